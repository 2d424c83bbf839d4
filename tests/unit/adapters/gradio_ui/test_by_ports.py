"""By default the pages ask the ports, and nothing else."""

import asyncio
import contextlib
import dataclasses

import pytest

from jaxserver.adapters.gradio_ui.by_ports import PortAnswers
from jaxserver.adapters.gradio_ui.settings import Settings
from jaxserver.adapters.gradio_ui.updates import Shown, Update, Updates
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import ServerFull
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import Chunk, FinishReason, GenerationRequest, Usage
from tests.fakes import ByteFormatter, ScriptedGenerator, ScriptedStream


def answers(generator: ScriptedGenerator, **config: object) -> PortAnswers:
    return PortAnswers(generator, ByteFormatter(), ServerConfig.of(config))


def every(updates: Updates[Shown]) -> list[Update[Shown]]:
    async def read() -> list[Update[Shown]]:
        return [update async for update in updates]

    return asyncio.run(read())


def test_a_chat_streams_its_newest_turn() -> None:
    generator = ScriptedGenerator("He", "llo")
    updates = every(answers(generator).chat("hi", [["a", "b"]], Settings(system="s")))

    assert [update.shown for update in updates] == [
        [["a", "b"], ["hi", "He"]],
        [["a", "b"], ["hi", "Hello"]],
    ]
    (request,) = generator.requests
    assert request == GenerationRequest(
        prompt="system: s\nuser: a\nassistant: b\nuser: hi\nassistant: ",
        sampling=Settings().sampling_params(),
        truncate=True,
        streaming=True,
    )
    assert isinstance(request.prompt, Rendered)
    assert request.prompt.kept_prefix() == "system: s\n"


def test_an_instruction_keeps_its_box() -> None:
    generator = ScriptedGenerator("He", "llo")
    updates = every(answers(generator).instruct("hi", Settings()))
    assert [(u.box, u.shown) for u in updates] == [("hi", "He"), ("hi", "Hello")]
    assert generator.requests[0].prompt == "user: hi\nassistant: "


def test_without_streaming_the_answer_appears_whole() -> None:
    generator = ScriptedGenerator("He", "llo")
    page = answers(
        generator, stream_tokens_for_gradio=False, use_prefix_tokenizer=False
    )
    (update,) = every(page.instruct("hi", Settings()))
    assert update.shown == "Hello"
    assert not generator.requests[0].streaming
    assert not generator.requests[0].truncate


def test_the_note_tells_tokens_and_speed() -> None:
    first, last = every(
        answers(ScriptedGenerator("He", "llo")).instruct("", Settings())
    )
    assert first.note.startswith("1 token · ")
    assert last.note.startswith("2 tokens · ")
    assert last.note.endswith(" tokens/s")


def test_the_note_tells_what_was_cut() -> None:
    class CutShort(ScriptedGenerator):
        def generate(self, request: GenerationRequest) -> ScriptedStream:
            usage = Usage(
                prompt_tokens=1, completion_tokens=1, prompt_tokens_dropped=12
            )
            chunk = Chunk(
                text="a",
                token_ids=(1,),
                usage=usage,
                finish_reason=FinishReason.LENGTH,
                seed=0,
            )
            return ScriptedStream([chunk], 0)

    (update,) = every(answers(CutShort()).instruct("hi", Settings()))
    assert "ended at the most tokens allowed" in update.note
    assert "12 of its tokens were left out" in update.note


def test_leaving_cancels_the_stream() -> None:
    generator = ScriptedGenerator("a", "b", chunk_seconds=0.01)

    async def leave() -> None:
        updates = answers(generator).instruct("hi", Settings())
        async with contextlib.aclosing(updates):
            await anext(updates)

    asyncio.run(leave())
    assert generator.streams[0].cancelled.is_set()


def test_a_full_server_says_so() -> None:
    generator = ScriptedGenerator("a")
    generator.fail = lambda: ServerFull("the queue is full", 3)
    with pytest.raises(ServerFull):
        every(answers(generator).chat("hi", [], Settings()))


def test_updates_are_values() -> None:
    (update,) = every(answers(ScriptedGenerator("a")).instruct("hi", Settings()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.shown = "b"  # type: ignore[misc]  # that it cannot be set is the point
