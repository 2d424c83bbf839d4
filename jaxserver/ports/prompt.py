"""The port that writes a conversation down as a prompt."""

from collections.abc import Sequence
from typing import Protocol

from jaxserver.ports.types import Message


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
