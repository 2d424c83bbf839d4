"""Where a checkpoint keeps its chat template: files of a folder, or GGUF metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic_core

from jaxserver.adapters.prompts.formatter import ChatTemplateFormatter
from jaxserver.ports.errors import BrokenCheckpoint


def from_folder(path: str | Path) -> ChatTemplateFormatter:
    """Reads `chat_template.jinja`, or the template in `tokenizer_config.json`.

    Where the configuration holds several, the one named `default` is taken, or the only
    one. Without any the formatter has no template.

    Raises:
        BrokenCheckpoint: A file cannot be read.
    """
    folder = Path(path)
    settings = _json(folder / "special_tokens_map.json") | {
        key: value
        for key, value in _json(folder / "tokenizer_config.json").items()
        if value is not None
    }
    own_file = folder / "chat_template.jinja"
    return ChatTemplateFormatter(
        template=_read(own_file) if own_file.is_file() else _chosen(folder, settings),
        bos_token=_text(settings.get("bos_token")),
        eos_token=_text(settings.get("eos_token")),
    )


def from_metadata(metadata: Mapping[str, Any]) -> ChatTemplateFormatter:
    """Reads GGUF's `tokenizer.chat_template` and the tokens that it may name.

    Raises:
        BrokenCheckpoint: The template is no text.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise BrokenCheckpoint(
            "GGUF metadata",
            None,
            expected="tokenizer.chat_template to be text",
            found=type(template).__name__,
        )

    def text(name: str) -> str | None:
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not isinstance(tokens, list) or not isinstance(token, int):
            return None
        return str(tokens[token]) if 0 <= token < len(tokens) else None

    return ChatTemplateFormatter(
        template=template, bos_token=text("bos"), eos_token=text("eos")
    )


def _chosen(folder: Path, settings: Mapping[str, Any]) -> str | None:
    template = settings.get("chat_template")
    if template is None or isinstance(template, str):
        return template
    try:
        named: dict[str, str] = {each["name"]: each["template"] for each in template}
    except (KeyError, TypeError):
        raise BrokenCheckpoint(
            str(folder / "tokenizer_config.json"),
            None,
            expected="chat_template to be text, or a list of names and templates",
            found=type(template).__name__,
        ) from None
    only = next(iter(named.values())) if len(named) == 1 else None
    return named.get("default", only)


def _text(token: Any) -> str | None:
    """A special token as text; some files write it with how it is matched."""
    return token.get("content") if isinstance(token, dict) else token


def _json(file: Path) -> dict[str, Any]:
    """Of text that can be written down: halves of characters are refused."""
    if not file.is_file():
        return {}
    try:
        content = pydantic_core.from_json(_read(file))
    except (ValueError, RecursionError) as error:
        found = str(error)
    else:
        if isinstance(content, dict):
            return content
        found = f"a {type(content).__name__}"
    raise BrokenCheckpoint(str(file), None, expected="a JSON object", found=found)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise BrokenCheckpoint(
            str(file), None, expected="text in UTF-8", found=str(error)
        ) from error
