"""A formatter taken apart into the pieces that the original's configuration names."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Self

from jaxserver.adapters.prompts.overrides import InstructOverride
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import NoChatTemplate
from jaxserver.ports.prompt import PromptFormatter, Rendered, conversation

_MARK = "\u2e28prompt\u2e29"
"""Stands for the prompt while a conversation is rendered to be taken apart."""


class InstructFormat(str):
    """A prompt's pattern whose `format(instruct=, system=)` knows a missing system.

    As text it is the pattern itself, as far as there is one.
    """

    _formatter: PromptFormatter

    @classmethod
    def of_formatter(
        cls, formatter: PromptFormatter, pattern: str = "{system}{instruct}"
    ) -> Self:
        """A pattern that renders by the formatter."""
        made = cls(pattern)
        made._formatter = formatter
        return made

    @classmethod
    def of_pattern(cls, pattern: str) -> Self:
        """A pattern with `{instruct}` and `{system}`, empty where there is none."""

        def fill_in(system: str | None, instruction: str) -> str:
            return pattern.format(instruct=instruction, system=system or "")

        return cls.of_formatter(InstructOverride(format_instruct=fill_in), pattern)

    def format(  # type: ignore[override]  # narrower than str's on purpose
        self, *, instruct: str, system: str | None = None
    ) -> str:
        """The prompt of one instruction, ready for `process`."""
        return Rendered.by(self._formatter, conversation([], instruct, system))


class Pieces:
    """The pieces of one model's prompts: the user's own, else the formatter's.

    `history(...) + prompt_prefix_chat + prompt + prompt_postfix_chat` is a prompt.

    Attributes:
        config: The configuration with every piece filled in. The chat pieces stay
            empty where there is no chat template.
    """

    def __init__(self, formatter: PromptFormatter, config: ServerConfig) -> None:
        self._formatter = formatter
        self._is_given = bool(config.prompt_prefix_chat or config.prompt_postfix_chat)
        pattern = config.instruct_format
        config = dataclasses.replace(
            config,
            instruct_format=InstructFormat.of_pattern(pattern)
            if pattern
            else InstructFormat.of_formatter(formatter),
        )
        if not self._is_given:
            prefix, postfix = _around_any_prompt(formatter)
            config = dataclasses.replace(
                config, prompt_prefix_chat=prefix, prompt_postfix_chat=postfix
            )
        self.config = config

    def history(
        self, history: Sequence[Sequence[str]] | None, system: str | None = None
    ) -> str:
        """What stands before the last prompt's prefix, ready for `process`.

        Raises:
            NoChatTemplate: Neither the user nor the model says how it is written.
        """
        prefix, postfix = (
            self.config.prompt_prefix_chat,
            self.config.prompt_postfix_chat,
        )
        if self._is_given:
            start = system or ""
            turns = [
                f"{prefix}{user}{postfix}{answer}" for user, answer in history or ()
            ]
            return Rendered(start + "".join(turns)).keeping(lambda: start + prefix)
        before, _ = _around_prompt(self._formatter, history, system)
        messages = conversation(history, _MARK, system)
        return Rendered(before.removesuffix(prefix)).keeping(
            functools.partial(self._formatter.system_turn, messages)
        )


def _around_any_prompt(formatter: PromptFormatter) -> tuple[str, str]:
    """What all conversations have in common before and after their last prompt."""
    try:
        alone, postfix = _around_prompt(formatter, [], None)
        after_turn, _ = _around_prompt(formatter, [("a", "b")], None)
    except NoChatTemplate:
        return "", ""
    backwards = [alone[::-1], after_turn[::-1]]
    prefix = os.path.commonprefix(backwards)[::-1]  # noqa: RUF071  # by characters
    return prefix, postfix


def _around_prompt(
    formatter: PromptFormatter,
    history: Sequence[Sequence[str]] | None,
    system: str | None,
) -> tuple[str, str]:
    before, _, after = formatter.format(
        conversation(history, _MARK, system)
    ).rpartition(_MARK)
    return before, after
