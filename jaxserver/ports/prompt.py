"""The port that writes a conversation down as a prompt."""

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeAlias

from jaxserver.ports.types import Message

Pairs: TypeAlias = Sequence[Sequence[str]]
"""What the user and the assistant said, turn by turn."""


def conversation(
    history: Pairs | None, prompt: str, system: str | None
) -> list[Message]:
    """The messages of earlier turns and a prompt.

    An empty system message is none, as a page whose box for it is empty means it.
    """
    pairs = [
        (Message(role="user", content=user), Message(role="assistant", content=answer))
        for user, answer in history or ()
    ]
    return [
        *([Message(role="system", content=system)] if system else []),
        *itertools.chain.from_iterable(pairs),
        Message(role="user", content=prompt),
    ]


class Rendered(str):
    """A prompt whose special tokens are all written out.

    It is plain text for whoever passes it on, and stays what it is when text is added.
    """

    _system_turn: Callable[[], str] = staticmethod(lambda: "")

    @classmethod
    def by(cls, formatter: "PromptFormatter", messages: Sequence[Message]) -> Self:
        """What the formatter makes of the messages."""
        return cls(formatter.format(messages)).keeping(
            functools.partial(formatter.system_turn, messages)
        )

    def keeping(self, system_turn: Callable[[], str]) -> Self:
        """The same text, with what has to survive when it is cut."""
        made = type(self)(self)
        made._system_turn = system_turn
        return made

    def kept_prefix(self) -> str:
        """Its part that survives when it has to be cut; only then it is asked for."""
        both = [self, self._system_turn()]
        return os.path.commonprefix(both)  # noqa: RUF071  # by characters, not paths

    def __add__(self, more: str) -> Self:
        return type(self)(super().__add__(more)).keeping(self._system_turn)


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
