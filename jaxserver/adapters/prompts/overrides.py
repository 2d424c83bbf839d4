"""The prompt port over functions of the user's own."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxserver.ports.errors import UnsupportedMessages
from jaxserver.ports.types import Message

_SENTINELS = ("a", "b")


class Turns(NamedTuple):
    """A conversation as the original's functions take it."""

    history: list[list[str]]
    prompt: str
    system: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatOverride:
    """Conversations by `format_chat(history, prompt, system)`."""

    format_chat: Callable[..., str]

    def format(self, messages: Sequence[Message]) -> str:
        turns = _turns(messages, "format_chat")
        return self.format_chat(**turns._asdict())

    def system_turn(self, messages: Sequence[Message]) -> str:
        system = _turns(messages, "format_chat").system
        prompts = [
            self.format_chat(history=[], prompt=text, system=system)
            for text in _SENTINELS
        ]
        return _common_beginning(prompts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InstructOverride:
    """Single instructions by `format_instruct(system, instruction)`."""

    format_instruct: Callable[..., str]

    def format(self, messages: Sequence[Message]) -> str:
        turns = _turns(messages, "format_instruct")
        if turns.history:
            raise UnsupportedMessages(
                "the method `format_instruct` takes one instruction, no history"
            )
        return self.format_instruct(system=turns.system, instruction=turns.prompt)

    def system_turn(self, messages: Sequence[Message]) -> str:
        system = _turns(messages, "format_instruct").system
        prompts = [
            self.format_instruct(system=system, instruction=text) for text in _SENTINELS
        ]
        return _common_beginning(prompts)


def _turns(messages: Sequence[Message], method: str) -> Turns:
    """The inverse of `ports.prompt.conversation`.

    Raises:
        UnsupportedMessages: The turns do not alternate, from the user to the user.
    """
    has_system = bool(messages) and messages[0].role == "system"
    spoken = messages[has_system:]
    wanted = ("user", "assistant")
    alternate = all(m.role == wanted[i % 2] for i, m in enumerate(spoken))
    if not alternate or len(spoken) % 2 == 0:
        roles = ", ".join(message.role for message in messages)
        raise UnsupportedMessages(
            f"the method `{method}` takes an optional system message and then user and "
            f"assistant in turns, the user last; got {roles or 'no message'}"
        )
    history = [
        [user.content, answer.content]
        for user, answer in zip(spoken[:-1:2], spoken[1:-1:2], strict=True)
    ]
    system = messages[0].content if has_system else None
    return Turns(history, spoken[-1].content, system)


def _common_beginning(prompts: list[Any]) -> str:
    return str(os.path.commonprefix(prompts))  # noqa: RUF071  # by characters
