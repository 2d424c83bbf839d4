"""The prompt port over a checkpoint's chat template."""

import dataclasses
import datetime
import hashlib
import os
from collections.abc import Callable, Sequence

from jaxserver.adapters.prompts.rendering import render
from jaxserver.ports.errors import NoChatTemplate
from jaxserver.ports.types import Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplateFormatter:
    """Writes a conversation down as the model was trained to read it.

    What a message says is put into the prompt as it is. If the text of a special token
    is in it, such as `<|im_end|>`, the tokenizer takes it for that token, as with every
    server that renders to text: who writes a message can end it and begin another. A
    program that passes on text it does not trust has to look for such tokens itself.

    Most templates make the prompt out of the messages alone. One that calls
    `strftime_now` writes the date as well, so its prompts change from day to day.

    Attributes:
        template: In Jinja's language; None if the model has none.
        bos_token: Text of the beginning-of-text token; None if there is none.
        eos_token: Likewise for the end.
        now: Tells the time to templates that ask.
    """

    template: str | None
    bos_token: str | None = None
    eos_token: str | None = None
    now: Callable[[], datetime.datetime] = datetime.datetime.now

    def format(self, messages: Sequence[Message]) -> str:
        return self._render([(turn.role, turn.content) for turn in messages])

    def system_turn(self, messages: Sequence[Message]) -> str:
        """What prompts have in common whose conversations say different things.

        This is the system message where the template writes it first, or what it writes
        in its place, and whatever begins the first turn.
        """
        turns = [(turn.role, turn.content) for turn in messages]
        system = [role == "system" for role, _ in turns]
        spoken = system.index(False) if False in system else len(turns)
        others = [
            [*turns[:spoken], *((role, letter) for role, _ in turns[spoken:])]
            for letter in "ab"
        ]
        prompts = [self._render(each) for each in [turns, *others]]
        return os.path.commonprefix(prompts)  # noqa: RUF071  # by characters, not paths

    def digest(self) -> str | None:
        """SHA-256 of the template's text, if there is one."""
        if self.template is None:
            return None
        written = self.template.encode("utf-8", "surrogatepass")
        return hashlib.sha256(written).hexdigest()

    def _render(self, turns: Sequence[tuple[str, str]]) -> str:
        if self.template is None:
            raise NoChatTemplate("format_chat")
        ends = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        return render(
            self.template,
            messages=[{"role": role, "content": content} for role, content in turns],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            strftime_now=lambda form: self.now().strftime(form),
            **{name: text for name, text in ends.items() if text is not None},
        )
