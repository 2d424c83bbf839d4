"""The small values of the other ports."""

import dataclasses

import numpy as np

from jaxserver.ports.generator import Generator, Stream
from jaxserver.ports.handlers import (
    CANCEL,
    CancelToken,
    ChatRequest,
    Handlers,
    InstructRequest,
)
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.model import TokenBatch
from jaxserver.ports.progress import Progress
from jaxserver.ports.prompt import PromptFormatter, Rendered, conversation
from jaxserver.ports.status import ServerState, ServerStatus
from jaxserver.ports.telemetry import RequestRecord, Telemetry
from jaxserver.ports.tensors import Checkpoint, HostArray, TensorSource
from jaxserver.ports.tokenizer import Tokenizer
from jaxserver.ports.types import GenerationRequest, Message, Usage
from tests.counting_model import counting_model
from tests.fakes import ByteFormatter, ByteTokenizer, FixedStatus, ScriptedGenerator


class Remembered:
    """Implements the ports that only listen, and that of the weights."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.heard.append((stage, done, total))

    def request_finished(self, record: RequestRecord) -> None:
        self.heard.append(record.outcome)

    def close(self) -> None:
        self.heard.append("close")

    def names(self) -> list[str]:
        return ["norm"]

    def shape(self, name: str) -> tuple[int, ...]:
        return (2,)

    def read(self, name: str) -> HostArray:
        return np.zeros(2, np.float32)


def test_the_fakes_are_what_the_ports_ask_for() -> None:
    generator: Generator = ScriptedGenerator("a", "b")
    stream: Stream = generator.generate(GenerationRequest(prompt="hi"))
    assert "".join(chunk.text for chunk in stream) == "ab"
    formatter: PromptFormatter = ByteFormatter()
    assert formatter.system_turn([]) == ""
    tokenizer: Tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"
    status: ServerStatus = FixedStatus(ServerState.DRAINING)
    assert status.snapshot().state is ServerState.DRAINING


def test_listeners_are_called_with_values() -> None:
    remembered = Remembered()
    progress: Progress = remembered
    progress("load", 1, 2)
    telemetry: Telemetry = remembered
    telemetry.request_finished(
        RequestRecord(
            request_id=0,
            outcome="stop",
            usage=Usage(prompt_tokens=1, completion_tokens=1),
            queue_seconds=None,
            first_token_seconds=None,
            total_seconds=0.5,
        )
    )
    telemetry.close()
    assert remembered.heard == [("load", 1, 2), "stop", "close"]


def test_a_checkpoint_names_its_tensors() -> None:
    tensors: TensorSource = Remembered()
    checkpoint = Checkpoint(path="a", layout="gguf", config={}, tensors=tensors)
    assert list(checkpoint.tensors.names()) == ["norm"]
    assert checkpoint.tensors.read("norm").shape == checkpoint.tensors.shape("norm")


def test_memory_of_a_device_is_weights_and_cache() -> None:
    plan = MemoryPlan(
        model="tiny",
        num_parameters=1,
        num_devices=1,
        slots=1,
        max_length=2,
        dtype="float32",
        weights_bytes_per_device=40,
        cache_bytes_per_device=2,
    )
    assert plan.bytes_per_device == 42
    assert plan.replicated == ()


def test_the_original_s_requests_need_a_prompt_alone() -> None:
    silent = {
        "system": None,
        "temperature": None,
        "greedy": False,
        "max_new_tokens": None,
        "top_p": None,
        "top_k": None,
        "seed": None,
        "stop": None,
        "logits_processors": None,
        "stream": False,
        "priority": 0,
        "deadline_seconds": None,
    }
    instruct, chat = InstructRequest(prompt="hi"), ChatRequest(prompt="hi")
    assert dataclasses.asdict(instruct) == {"prompt": "hi", **silent}
    assert dataclasses.asdict(chat) == {"prompt": "hi", "history": None, **silent}


def test_no_handler_is_ours_to_begin_with_and_nothing_is_cancelled() -> None:
    assert set(dataclasses.asdict(Handlers()).values()) == {None}
    assert CANCEL.get() is None
    cancel = CancelToken()
    token = CANCEL.set(cancel)
    assert CANCEL.get() is cancel
    CANCEL.reset(token)


def test_a_cancel_token_tells_whoever_asked_once() -> None:
    cancel = CancelToken()
    told: list[str] = []
    cancel.on_set(lambda: told.append("early"))
    cancel.set()
    cancel.set()
    cancel.on_set(lambda: told.append("late"))

    assert cancel.is_set()
    assert told == ["early", "late"]


def test_a_model_without_an_encoder_says_so() -> None:
    assert counting_model(max_len=4).encode is None
    assert TokenBatch._fields == (
        "tokens",
        "start",
        "length",
        "page_table",
        "logits_at",
    )


def test_a_conversation_is_system_history_and_prompt() -> None:
    said = [Message(role="system", content="s"), Message(role="user", content="p")]
    assert conversation([], "p", "s") == said
    assert conversation([("a", "b")], "p", None) == [
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
        Message(role="user", content="p"),
    ]


def test_a_rendered_prompt_knows_what_of_it_stays() -> None:
    messages = conversation([("a", "b")], "p", "s")
    prompt = Rendered.by(ByteFormatter(), messages)
    assert prompt == ByteFormatter().format(messages)
    assert prompt.kept_prefix() == "system: s\n"
    assert Rendered("a").kept_prefix() == ""


def test_an_empty_system_message_and_an_empty_history_are_none() -> None:
    assert conversation(None, "p", "") == [Message(role="user", content="p")]


def test_a_rendered_prompt_stays_one_when_text_is_added() -> None:
    prompt = Rendered("system: s\nuser: ").keeping(lambda: "system: s\n") + "p"
    assert isinstance(prompt, Rendered)
    assert prompt == "system: s\nuser: p"
    assert prompt.kept_prefix() == "system: s\n"


def test_what_is_kept_of_a_prompt_begins_it() -> None:
    assert Rendered("abc").keeping(lambda: "abd").kept_prefix() == "ab"
