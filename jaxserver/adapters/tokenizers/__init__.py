"""Tokenizers read from a checkpoint: from its folder, or from GGUF metadata."""

from jaxserver.adapters.tokenizers.folder import from_folder
from jaxserver.adapters.tokenizers.gguf import from_gguf

__all__ = ["from_folder", "from_gguf"]
