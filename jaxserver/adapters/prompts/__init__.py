"""Prompts written down by a checkpoint's own chat template."""

from jaxserver.adapters.prompts.formatter import ChatTemplateFormatter
from jaxserver.adapters.prompts.sources import from_folder, from_metadata

__all__ = ["ChatTemplateFormatter", "from_folder", "from_metadata"]
