"""What every prompt formatter promises."""

import pytest

from jaxserver.adapters.prompts import ChatTemplateFormatter
from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.types import Message
from tests.fakes import ByteFormatter
from tests.golden import chat_templates


def of_template(name: str) -> PromptFormatter:
    return ChatTemplateFormatter(
        template=chat_templates.ALL[name], bos_token="<s>", eos_token="</s>"
    )


FORMATTERS = {
    "bytes": ByteFormatter(),
    "chatml": of_template("chatml"),
    "llama3": of_template("llama3"),
    "mistral": of_template("mistral"),
}


@pytest.fixture(params=FORMATTERS)
def formatter(request: pytest.FixtureRequest) -> PromptFormatter:
    return FORMATTERS[request.param]


def talk(*contents: str) -> list[Message]:
    """A conversation, the user first."""
    return [
        Message(role="assistant" if i % 2 else "user", content=content)
        for i, content in enumerate(contents)
    ]


SYSTEM = [Message(role="system", content="Answer in verse.")]


def test_everything_that_was_said_is_in_the_prompt_in_order(
    formatter: PromptFormatter,
) -> None:
    said = ["first", "second", "third"]
    prompt = formatter.format([*SYSTEM, *talk(*said)])
    places = [prompt.index(text) for text in ["Answer in verse.", *said]]
    assert places == sorted(places)


def test_the_same_messages_make_the_same_prompt(formatter: PromptFormatter) -> None:
    messages = [*SYSTEM, *talk("first", "second", "third")]
    assert formatter.format(messages) == formatter.format(list(messages))


def test_an_answer_can_be_appended(formatter: PromptFormatter) -> None:
    prompt = formatter.format(talk("first"))
    longer = formatter.format(talk("first", "ANSWER", "third"))
    assert longer.startswith(prompt.rstrip())


@pytest.mark.parametrize("system", [[], SYSTEM])
def test_the_system_turn_begins_the_prompt(
    formatter: PromptFormatter, system: list[Message]
) -> None:
    messages = [*system, *talk("first", "second", "third")]
    turn = formatter.system_turn(messages)
    assert formatter.format(messages).startswith(turn)
    assert "first" not in turn
    assert all(message.content in turn for message in system)


def test_the_system_turn_does_not_depend_on_what_is_said(
    formatter: PromptFormatter,
) -> None:
    turn = formatter.system_turn([*SYSTEM, *talk("first", "second", "third")])
    assert formatter.system_turn([*SYSTEM, *talk("a", "b", "c")]) == turn
