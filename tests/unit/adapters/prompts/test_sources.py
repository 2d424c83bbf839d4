import json
from pathlib import Path
from typing import Any

import pytest

from jaxserver.adapters.prompts import from_folder, from_metadata
from jaxserver.ports.errors import BrokenCheckpoint, NoChatTemplate
from jaxserver.ports.types import Message

TALK = [Message(role="user", content="Hi")]
ENDS = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"


def write(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize(
    "template",
    [
        ENDS,
        [{"name": "default", "template": ENDS}, {"name": "rag", "template": "no"}],
        [{"name": "chat", "template": ENDS}],
    ],
)
def test_the_template_of_the_configuration_is_taken(
    tmp_path: Path, template: Any
) -> None:
    settings = {
        "chat_template": template,
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
    }
    folder = write(tmp_path, "tokenizer_config.json", settings)
    assert from_folder(folder).format(TALK) == "<s>Hi</s>"


def test_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": "no"})
    write(tmp_path, "special_tokens_map.json", {"bos_token": "<s>"})
    (tmp_path / "chat_template.jinja").write_text(ENDS)
    assert from_folder(tmp_path).format(TALK) == "<s>Hi"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chat_template": None},
        {
            "chat_template": [
                {"name": "rag", "template": "a"},
                {"name": "tools", "template": "b"},
            ]
        },
    ],
)
def test_without_a_template_there_is_none_to_fall_back_on(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = write(tmp_path, "tokenizer_config.json", settings)
    with pytest.raises(NoChatTemplate):
        from_folder(folder).format(TALK)


@pytest.mark.parametrize("template", [7, ["text"], [{"name": "default"}]])
def test_a_template_of_another_shape_is_named(tmp_path: Path, template: Any) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": template})
    with pytest.raises(BrokenCheckpoint, match=r"tokenizer_config.*chat_template"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", rb'{"chat_template": "\ud800"}']
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=r"tokenizer_config\.json"):
        from_folder(tmp_path)


def test_metadata_gives_the_template_and_its_tokens() -> None:
    metadata = {
        "tokenizer.chat_template": ENDS,
        "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert from_metadata(metadata).format(TALK) == "<s>Hi</s>"
    outside = {**metadata, "tokenizer.ggml.eos_token_id": 2}
    assert from_metadata(outside).format(TALK) == "<s>Hi"


def test_metadata_without_a_template_makes_a_formatter_without_one() -> None:
    with pytest.raises(NoChatTemplate):
        from_metadata({}).format(TALK)
