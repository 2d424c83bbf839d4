"""Which methods of a server its user has written."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Protocol

from jaxserver.adapters.prompts.overrides import ChatOverride, InstructOverride
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.handlers import Handlers
from jaxserver.ports.prompt import Pairs, PromptFormatter

PROMPT_METHODS = (
    "format_chat",
    "chat_format",
    "format_instruct",
    "process_chat_history",
)
PROMPT_KEYS = ("instruct_format", "prompt_prefix_chat", "prompt_postfix_chat")


def is_overridden(server: object, base: type, name: str) -> bool:
    """Whether a subclass, or the object itself, has its own method of that name."""
    is_on_object = name in vars(server)
    return is_on_object or getattr(type(server), name) is not getattr(base, name)


def own_handlers(server: object, base: type) -> Handlers:
    """The handlers that are the user's own; adapters do without the others.

    Whoever overrides `process` wants it used everywhere, so all of them are given then.
    """
    names = [field.name for field in dataclasses.fields(Handlers)]
    all_of_them = is_overridden(server, base, "process")
    own = [n for n in names if all_of_them or is_overridden(server, base, n)]
    return Handlers(**{name: getattr(server, name) for name in own})


class WritesPrompts(Protocol):
    """A server's methods that write prompts down."""

    def format_chat(self, history: Pairs, prompt: str, system: str | None) -> str: ...

    def chat_format(self, history: Pairs, prompt: str, system: str | None) -> str: ...

    def format_instruct(self, system: str | None, instruction: str) -> str: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Writers:
    """Chooses the formatter each time it is used: the user's methods, else the model's.

    Attributes:
        config: As it was given; its own pieces of prompts count as the user's methods.
        of_model: The model's own formatter; it may raise `NotReady`.
    """

    server: WritesPrompts
    base: type
    config: ServerConfig
    of_model: Callable[[], PromptFormatter]

    def overrides(self, name: str) -> bool:
        return is_overridden(self.server, self.base, name)

    def own_prompts(self) -> list[str]:
        """What the user has written about prompts: methods as code, and keys."""
        methods = [
            _code(getattr(self.server, name))
            for name in PROMPT_METHODS
            if self.overrides(name)
        ]
        values = {key: getattr(self.config, key) for key in PROMPT_KEYS}
        return [
            *methods,
            *(f"{key} = {value!r}" for key, value in values.items() if value),
        ]

    @property
    def has_own_chat_pieces(self) -> bool:
        has_keys = self.config.prompt_prefix_chat or self.config.prompt_postfix_chat
        return bool(has_keys) or self.overrides("process_chat_history")

    def chat(self) -> PromptFormatter:
        if self.overrides("chat_format"):
            return ChatOverride(format_chat=self.server.chat_format)
        return self.format_chat()

    def format_chat(self) -> PromptFormatter:
        """What `chat_format` writes with, where it is not the user's own."""
        if self.overrides("format_chat") or self.has_own_chat_pieces:
            return ChatOverride(format_chat=self.server.format_chat)
        return self.of_model()

    def instruct(self) -> PromptFormatter:
        if self.overrides("format_instruct") or self.config.instruct_format:
            return InstructOverride(format_instruct=self.server.format_instruct)
        return self.of_model()


def _code(method: Callable[..., object]) -> str:
    """A method's source, or its name where there is none to be read."""
    try:
        return inspect.getsource(method)
    except (OSError, TypeError):
        return str(getattr(method, "__qualname__", type(method).__qualname__))
