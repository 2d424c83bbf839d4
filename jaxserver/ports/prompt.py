"""The port that writes a conversation down as a prompt."""

import itertools
from collections.abc import Sequence
from typing import Protocol, Self

from jaxserver.ports.types import Message


def conversation(
    history: Sequence[Sequence[str]], prompt: str, system: str | None
) -> list[Message]:
    """The messages of pairs of what the user and the assistant said, and a prompt."""
    pairs = [
        (Message(role="user", content=user), Message(role="assistant", content=answer))
        for user, answer in history
    ]
    return [
        *([] if system is None else [Message(role="system", content=system)]),
        *itertools.chain.from_iterable(pairs),
        Message(role="user", content=prompt),
    ]


class Rendered(str):
    """A prompt that a formatter wrote, as plain text for whoever passes it on.

    Attributes:
        kept_prefix: Its part that survives when it has to be cut.
    """

    kept_prefix: str

    @classmethod
    def by(cls, formatter: "PromptFormatter", messages: Sequence[Message]) -> Self:
        """What the formatter makes of the messages."""
        made = cls(formatter.format(messages))
        made.kept_prefix = formatter.system_turn(messages)
        return made


class PromptFormatter(Protocol):
    """Renders messages as the model was trained to read them."""

    def format(self, messages: Sequence[Message]) -> str:
        """The prompt's text, ready for the assistant's next turn.

        Raises:
            UnsupportedMessages: This conversation cannot be expressed.
            NoChatTemplate: There is no template and no override.
            NotReady: The model is not there yet.
        """
        ...

    def system_turn(self, messages: Sequence[Message]) -> str:
        """The part of `format(messages)` that stands before the conversation itself.

        It survives when a prompt has to be cut.
        """
        ...
