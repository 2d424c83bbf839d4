"""A formatter that is chosen each time it is used, since the model comes later."""

import dataclasses
from collections.abc import Callable, Sequence

from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.types import Message


@dataclasses.dataclass(frozen=True, slots=True)
class LateFormatter:
    """Asks for the formatter to use; who is asked may say `NotReady`."""

    choose: Callable[[], PromptFormatter]

    def format(self, messages: Sequence[Message]) -> str:
        return self.choose().format(messages)

    def system_turn(self, messages: Sequence[Message]) -> str:
        return self.choose().system_turn(messages)
