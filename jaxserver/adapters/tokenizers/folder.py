"""A tokenizer from the folder of a Hugging Face checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic_core
import tokenizers

from jaxserver.adapters.tokenizers.ends import MAX_TOKEN_CHARACTERS, put_around
from jaxserver.adapters.tokenizers.tokenizer import PieceTokenizer
from jaxserver.ports.errors import BrokenCheckpoint, UnsupportedModel

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# The classes of transformers that go by their settings and not by `tokenizer.json` in
# what they add to a text, and their tokens where the settings name none.
SET_ENDS = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>"},
    "CodeLlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "CohereTokenizer": {
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
    },
}
_TOKEN_KEY = re.compile("_tokens?(_decoder)?$")
SLOW_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


def from_folder(path: str | Path) -> PieceTokenizer:
    """Reads `tokenizer.json`, or what `transformers` makes one of.

    The end tokens are the tokenizer's and all that `generation_config.json` names; the
    checkpoint's `config.json` speaks where there is no such file.

    Raises:
        BrokenCheckpoint: There is no tokenizer, or a file cannot be read.
        UnsupportedModel: The tokenizer is of a kind that is not known here.
    """
    folder = Path(path)
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        encoder = _fast(folder / "tokenizer.json")
    else:
        encoder, settings = _converted(folder, settings)
    _declare_special_tokens(encoder, settings)
    if _kind(settings) in SET_ENDS:
        begin = _end(encoder, settings, "bos", is_added=True)
        put_around(encoder, begin, _end(encoder, settings, "eos", is_added=False))
    config = _json(folder / "config.json")
    generation = _json(folder / "generation_config.json") or config
    eos = [
        *_ids(generation, "eos_token_id"),
        *_named(encoder, settings, "eos").values(),
    ]
    bos = [*_named(encoder, settings, "bos").values(), *_ids(config, "bos_token_id")]
    return PieceTokenizer.of(encoder, bos_id=next(iter(bos), None), eos_ids=eos)


def _settings(folder: Path) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        found = _json(folder / name)
        written |= {key: value for key, value in found.items() if value is not None}
        tokens = [value for key, value in found.items() if _TOKEN_KEY.search(key)]
        _check_lengths(folder / name, tokens)
    added = folder / "added_tokens.json"
    _check_lengths(added, [*_json(added)])
    return SET_ENDS.get(_kind(written), {}) | written


def _kind(settings: Mapping[str, Any]) -> str:
    """The class that transformers reads the tokenizer with, in its slow form."""
    return str(settings.get("tokenizer_class")).removesuffix("Fast")


def _check_lengths(file: Path, tokens: Any) -> None:
    """Looks for texts that are too long for a token, however deep they lie."""
    left = [tokens]
    while left:
        value = left.pop()
        if isinstance(value, str) and len(value) > MAX_TOKEN_CHARACTERS:
            raise BrokenCheckpoint(
                str(file),
                None,
                expected=f"tokens of at most {MAX_TOKEN_CHARACTERS} characters",
                found=f"one of {len(value)}",
            )
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value


def _fast(file: Path) -> tokenizers.Tokenizer:
    _check_lengths(file, _json(file).get("added_tokens"))
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise BrokenCheckpoint(
            str(file), None, expected="a tokenizer as JSON", found=str(error)
        ) from error


def _converted(
    folder: Path, settings: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A vocabulary in an older form, and its special tokens."""
    if not any((folder / name).is_file() for name in SLOW_FILES):
        expected = f"tokenizer.json or one of {', '.join(SLOW_FILES)}"
        raise BrokenCheckpoint(str(folder), None, expected=expected, found="none")
    from transformers import AutoTokenizer  # noqa: PLC0415  # takes over a second

    supported = "tokenizers that transformers can convert to its fast form"
    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # it raises whatever its many readers raise
        model = f"the tokenizer of {folder} ({error})"
        raise UnsupportedModel(model, supported) from error
    if not loaded.is_fast:
        raise UnsupportedModel(f"the tokenizer {type(loaded).__name__}", supported)
    return loaded.backend_tokenizer, {**settings, **loaded.special_tokens_map}


def _declare_special_tokens(
    encoder: tokenizers.Tokenizer, settings: Mapping[str, Any]
) -> None:
    """Makes special those tokens that only the settings call so."""
    added = encoder.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    named = [settings.get(f"{name}_token") for name in NAMED]
    more = settings.get("additional_special_tokens") or []
    for text in map(_text, [*named, *more]):
        if text not in special and encoder.token_to_id(text) is not None:
            encoder.add_special_tokens([text])


def _end(
    encoder: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
    name: str,
    *,
    is_added: bool,
) -> dict[str, int]:
    """The token at one end of a text, where the settings say so or else `is_added`."""
    if not settings.get(f"add_{name}_token", is_added):
        return {}
    return _named(encoder, settings, name)


def _named(
    encoder: tokenizers.Tokenizer, settings: Mapping[str, Any], name: str
) -> dict[str, int]:
    """The special token of that name, by text and id, if the vocabulary has it."""
    text = _text(settings.get(f"{name}_token"))
    token = encoder.token_to_id(text)
    return {} if token is None else {text: token}


def _ids(config: Mapping[str, Any], key: str) -> list[int]:
    value = config.get(key)
    ids = value if isinstance(value, list) else [value]
    return [token for token in ids if isinstance(token, int)]


def _text(token: Any) -> str:
    """A special token as text; some files write it with how it is matched."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")


def _json(file: Path) -> dict[str, Any]:
    """Of text that can be written down: halves of characters are refused."""
    if not file.is_file():
        return {}
    try:
        content = pydantic_core.from_json(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = str(error)
    else:
        if isinstance(content, dict):
            return content
        found = f"a {type(content).__name__}"
    raise BrokenCheckpoint(str(file), None, expected="a JSON object", found=found)
