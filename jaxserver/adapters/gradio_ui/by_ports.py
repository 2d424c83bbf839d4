"""Answers from the formatter and the generator: what the pages do by default."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence

from jaxserver.adapters.gradio_ui.settings import Settings
from jaxserver.adapters.gradio_ui.updates import Shown, Update, Updates
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.generator import Generator
from jaxserver.ports.handlers import History
from jaxserver.ports.prompt import PromptFormatter, Rendered, conversation
from jaxserver.ports.types import Chunk, FinishReason, GenerationRequest, Message


@dataclasses.dataclass(frozen=True, slots=True)
class PortAnswers:
    """Both pages' answers; streaming or whole, as the configuration says."""

    generator: Generator
    formatter: PromptFormatter
    config: ServerConfig

    def chat(
        self, prompt: str, history: History, settings: Settings
    ) -> Updates[History]:
        messages = conversation(history, prompt, settings.system)

        def show(text: str) -> Update[History]:
            return Update(shown=[*history, [prompt, text]])

        return self._answer(messages, settings, show)

    def instruct(self, prompt: str, settings: Settings) -> Updates[str]:
        messages = conversation([], prompt, settings.system)

        def show(text: str) -> Update[str]:
            return Update(box=prompt, shown=text)

        return self._answer(messages, settings, show)

    async def _answer(
        self,
        messages: Sequence[Message],
        settings: Settings,
        show: Callable[[str], Update[Shown]],
    ) -> Updates[Shown]:
        started, text = time.monotonic(), ""
        is_streaming = self.config.stream_tokens_for_gradio
        request = await asyncio.to_thread(self._request, messages, settings)
        with self.generator.generate(request) as stream:
            async for chunk in stream:
                text += chunk.text
                if is_streaming or chunk.finish_reason is not None:
                    note = _note(chunk, time.monotonic() - started)
                    yield dataclasses.replace(show(text), note=note)

    def _request(
        self, messages: Sequence[Message], settings: Settings
    ) -> GenerationRequest:
        """Runs in a thread of its own, as a formatter may be anybody's code."""
        return GenerationRequest(
            prompt=Rendered.by(self.formatter, messages),
            sampling=settings.sampling_params(),
            truncate=self.config.use_prefix_tokenizer,
            streaming=self.config.stream_tokens_for_gradio,
        )


def _note(chunk: Chunk, seconds: float) -> str:
    """How fast the answer comes, counted from the moment it was asked for."""
    tokens = chunk.usage.completion_tokens
    parts = [
        f"{tokens} token{'' if tokens == 1 else 's'}",
        f"{tokens / max(seconds, 1e-3):.1f} tokens/s",
    ]
    if chunk.finish_reason is FinishReason.LENGTH:
        parts.append("ended at the most tokens allowed")
    if chunk.usage.prompt_tokens_dropped:
        dropped = chunk.usage.prompt_tokens_dropped
        parts.append(f"the prompt was too long, {dropped} of its tokens were left out")
    return " · ".join(parts)
