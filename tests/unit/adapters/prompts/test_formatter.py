import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from jaxserver.adapters.checkpoints.locate import open_checkpoint
from jaxserver.adapters.prompts import ChatTemplateFormatter, from_metadata
from jaxserver.ports.errors import NoChatTemplate, UnsupportedMessages
from jaxserver.ports.types import Message
from tests.golden import chat_templates

USER = Message(role="user", content="Hi")
SYSTEM = Message(role="system", content="Be brief.")


def formatter(template: str | None, **settings: Any) -> ChatTemplateFormatter:
    return ChatTemplateFormatter(template=template, **settings)


def test_a_model_without_a_template_names_the_method_to_write() -> None:
    for ask in (formatter(None).format, formatter(None).system_turn):
        with pytest.raises(NoChatTemplate, match="`format_chat`"):
            ask([USER])


def test_a_template_refuses_messages_in_its_own_words() -> None:
    with pytest.raises(UnsupportedMessages, match="System role not supported"):
        formatter(chat_templates.GEMMA).format([SYSTEM, USER])
    with pytest.raises(UnsupportedMessages, match="Turns must go user, assistant"):
        formatter(chat_templates.MISTRAL).format([USER, USER])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", r"cannot be read: .*line 1"),
        ("{{ messages[0].content.nothing.more }}", "no attribute 'nothing'"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "'__class__' .*is unsafe"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)
def test_a_template_that_fails_is_the_callers_to_know(
    template: str, words: str
) -> None:
    with pytest.raises(UnsupportedMessages, match=words):
        formatter(template).format([USER])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(10 ** 9) %}{% endfor %}", "loops over more than"),
        (
            "{% for i in range(90000) %}"
            "{% for j in range(90000) %}{% endfor %}{% endfor %}",
            "loops over more than",
        ),
        (
            "{% for i in range(90000) %}{{ messages[0].content }}{% endfor %}",
            "more than 33554432 characters",
        ),
        ("{# " + "x" * 2**20 + " #}", "has 1048582 characters"),
    ],
)
def test_a_template_can_be_neither_endless_nor_huge(template: str, words: str) -> None:
    long = Message(role="user", content="x" * 1000)
    with pytest.raises(UnsupportedMessages, match=words):
        formatter(template).format([long])


def test_each_rendering_may_loop_anew() -> None:
    template = "{% for i in range(90000) %}{% endfor %}done"
    assert [formatter(template).format([USER]) for _ in range(3)] == ["done"] * 3


def test_a_template_that_asks_gets_the_time() -> None:
    template = "{{ strftime_now('%d %b %Y') }}"
    day = datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC)
    assert formatter(template, now=lambda: day).format([USER]) == "29 Feb 2024"


def test_special_tokens_that_a_model_lacks_are_not_defined() -> None:
    template = "{{ bos_token is defined }} {{ eos_token }}"
    assert formatter(template, eos_token="</s>").format([USER]) == "False </s>"


def test_special_tokens_in_a_message_are_left_as_they_are() -> None:
    injected = Message(role="user", content="a<|im_end|>b")
    assert "a<|im_end|>b" in formatter(chat_templates.CHATML).format([injected])


def test_the_system_turn_is_what_the_template_writes_in_its_place() -> None:
    turn = formatter(chat_templates.CHATML).system_turn([USER])
    assert turn == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"


def test_the_system_turn_is_found_within_the_first_turn() -> None:
    template = formatter(chat_templates.MISTRAL, bos_token="<s>")
    assert template.system_turn([SYSTEM, USER]) == "<s>[INST] Be brief.\n\n"
    assert template.system_turn([USER]) == "<s>[INST] "


def test_a_system_message_that_is_written_later_is_no_beginning() -> None:
    last = "{{ messages[1].content }}|{{ messages[0].content }}"
    assert formatter(last).system_turn([SYSTEM, USER]) == ""


REFERENCE = Path(__file__).parents[3] / "reference" / "smollm2_greedy.json"


@pytest.mark.model
def test_the_default_models_prompts_are_the_references(
    default_model_path: Path,
) -> None:
    template = from_metadata(open_checkpoint(default_model_path).config)
    for item in json.loads(REFERENCE.read_text("utf-8"))["items"]:
        messages = [Message(**message) for message in item["messages"]]
        assert template.format(messages) == item["prompt_text"]
        turn = template.system_turn(messages)
        assert turn.endswith("Hugging Face<|im_end|>\n<|im_start|>user\n")
