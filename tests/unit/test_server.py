import concurrent.futures
import contextvars
import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jaxserver import server as server_module
from jaxserver import wiring
from jaxserver.ports.errors import (
    EngineFailed,
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    PromptTooLong,
)
from jaxserver.ports.handlers import CANCEL, CancelToken, ChatRequest, InstructRequest
from jaxserver.ports.receipt import Digests
from jaxserver.ports.status import ServerState
from jaxserver.ports.types import GenerationRequest, SamplingParams
from jaxserver.server import JAXServer
from tests import engines
from tests.fakes import ByteTokenizer
from tests.unit.tiny_server import Servers, tiny_parts, tiny_servers
from tests.waiting import eventually

FREE: dict[str, Any] = {"ignore_eos": True, "seed": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with tiny_servers() as made:
        yield made


@pytest.fixture(scope="module")
def server(servers: Servers) -> JAXServer:
    return servers.open()


def is_free(server: JAXServer) -> bool:
    return eventually(lambda: server.snapshot().slots_in_use == 0)


@pytest.fixture
def held(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[JAXServer]:
    """A server that begins one answer, and goes on when that has been cancelled."""
    gate = engines.Gate()
    gate.allow(4)
    monkeypatch.setattr(wiring, "Device", engines.gated_device(gate))
    server = servers.open()
    assert server._host.engine is not None
    loop = server._host.engine.loop
    cancel = loop.cancel

    def cancel_and_go_on(request_id: int) -> None:
        cancel(request_id)
        gate.open()

    monkeypatch.setattr(loop, "cancel", cancel_and_go_on)
    yield server
    gate.open()


def test_process_yields_the_text_so_far_and_the_tokens_used(server: JAXServer) -> None:
    pairs = list(server.process("once", max_new_tokens=30, **FREE))

    texts = [text for text, _ in pairs]
    assert len(pairs) > 1
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    counts = [count for _, count in pairs]
    assert counts == sorted(counts)
    assert counts[-1] == 30


def test_process_gives_what_generate_gives(server: JAXServer) -> None:
    sampling = SamplingParams(max_new_tokens=30, ignore_eos=True, seed=3, temperature=1)
    request = GenerationRequest(prompt="once", sampling=sampling)
    chunks = list(server.generate(request))
    *_, (text, count) = server.process("once", max_new_tokens=30, **FREE)

    ids = [token for chunk in chunks for token in chunk.token_ids]
    assert text == "".join(c.text for c in chunks) == ByteTokenizer().decode(ids)
    assert count == chunks[-1].usage.completion_tokens


def test_process_takes_the_configured_number_of_tokens(server: JAXServer) -> None:
    *_, (_, count) = server.process("once", **FREE)

    assert count == 40


def test_greedy_is_the_likeliest_every_time(server: JAXServer) -> None:
    answers = {list(server.process("once", greedy=True))[-1] for _ in range(3)}

    assert len(answers) == 1


def test_closing_process_frees_its_slot(held: JAXServer) -> None:
    answers = held.process("once", max_new_tokens=300, **FREE)
    next(answers)
    answers.close()  # type: ignore[attr-defined]  # generators have it

    assert eventually(lambda: held.snapshot().requests_served == 1)
    assert 0 < held.snapshot().tokens_generated < 300
    assert is_free(held)


def test_process_stops_when_its_cancel_token_is_set(held: JAXServer) -> None:
    token = CancelToken()

    def read() -> list[tuple[str, int]]:
        CANCEL.set(token)
        pairs = []
        for pair in held.process("once", max_new_tokens=300, **FREE):
            pairs.append(pair)
            token.set()
        return pairs

    pairs = contextvars.copy_context().run(read)

    assert 0 < pairs[-1][1] < 300
    assert is_free(held)


def test_process_hardly_begins_when_its_token_was_set_before(held: JAXServer) -> None:
    token = CancelToken()
    token.set()

    def read() -> list[tuple[str, int]]:
        CANCEL.set(token)
        return list(held.process("once", max_new_tokens=300, **FREE))

    pairs = contextvars.copy_context().run(read)

    assert pairs[-1][1] < 300


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("route", ["instruct", "chat"])
def test_the_originals_routes_cut_where_so_configured(
    servers: Servers, route: str, cuts: bool
) -> None:
    client = TestClient(servers.open(use_prefix_tokenizer=cuts).app(pages=False))
    answered = client.post(f"/{route}", json={"prompt": "x" * 1000})

    if cuts:
        assert answered.json()["prompt_tokens_dropped"] > 600
    else:
        assert answered.status_code == 400
        assert answered.json()["error"]["code"] == "prompt_too_long"


def test_openais_routes_never_cut(server: JAXServer) -> None:
    client = TestClient(server.app(pages=False))
    messages = [{"role": "user", "content": "x" * 1000}]
    for route, body in [
        ("completions", {"prompt": "x" * 1000}),
        ("chat/completions", {"messages": messages}),
    ]:
        refused = client.post(f"/v1/{route}", json=body).json()["error"]
        assert refused["code"] == "context_length_exceeded"


def test_a_prompt_that_is_too_long_is_cut(server: JAXServer) -> None:
    *_, (_, count) = server.process("x" * 1000, **FREE)

    assert count == engines.NARROW.max_stream_tokens


def test_a_prompt_that_is_too_long_is_refused_where_so_configured(
    servers: Servers,
) -> None:
    strict = servers.open(use_prefix_tokenizer=False)

    with pytest.raises(PromptTooLong):
        list(strict.process("x" * 1000))


def test_a_wrong_field_is_named(server: JAXServer) -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        list(server.process("once", temperature=-1.0))
    with pytest.raises(TypeError, match="heat"):
        list(server.process("once", heat=1.0))


def test_a_wrong_configuration_is_refused_at_once() -> None:
    with pytest.raises(InvalidConfig, match="sloths"):
        JAXServer({"sloths": 3})


def test_before_it_is_open_it_says_that_it_is_loading(servers: Servers) -> None:
    closed = servers.make()

    assert not closed.is_ready()
    assert closed.is_alive()
    assert closed.snapshot().state is ServerState.LOADING
    with pytest.raises(NotReady, match="loading"):
        closed.generate(GenerationRequest(prompt="a"))
    with pytest.raises(NotReady):
        list(closed.process("a"))
    with pytest.raises(NotReady):
        closed.compile()
    with pytest.raises(NotReady):
        closed.formatter.format([])


def test_before_it_is_open_the_originals_answers_say_down(servers: Servers) -> None:
    closed = servers.make()

    assert not closed._funcs_generated
    assert closed.forward_chat(ChatRequest(prompt="a")) == {"status": "down"}
    assert closed.forward_instruct(InstructRequest(prompt="a")) == {"status": "down"}
    assert closed.number_of_served_request_until_last_up_time == 0


def test_load_opens_what_it_makes(servers: Servers) -> None:
    heard: list[tuple[str, int, int]] = []
    loaded = JAXServer.load(
        "tiny", {"max_stream_tokens": 8}, lambda *one: heard.append(one)
    )
    try:
        assert loaded.is_ready()
        assert loaded._funcs_generated
        assert loaded.snapshot().model == "tiny"
        assert ("load", 1, 1) in heard
    finally:
        loaded.end(0.0)


def test_a_model_that_cannot_be_loaded_leaves_a_failed_server(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ModelNotFound("there is no such model")

    monkeypatch.setattr(server_module, "load_model", broken)
    failed = servers.make()
    with pytest.raises(ModelNotFound):
        failed.open()

    assert failed.snapshot().state is ServerState.FAILED
    assert not failed.is_alive()
    with pytest.raises(EngineFailed):
        failed.generate(GenerationRequest(prompt="a"))


def test_a_server_whose_engine_died_says_that_it_failed(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise MemoryError

    class Dying(engines.HookedDevice):
        before_step = staticmethod(die)
        before_reset = staticmethod(die)

    monkeypatch.setattr(wiring, "Device", Dying)
    dying = servers.open()
    with pytest.raises(EngineFailed):
        list(dying.process("a"))

    assert not dying.is_alive()
    assert not dying.is_ready()
    assert dying.snapshot().state is ServerState.FAILED
    with pytest.raises(EngineFailed):
        dying.generate(GenerationRequest(prompt="a"))


def test_ending_lets_what_runs_finish_and_takes_no_more(servers: Servers) -> None:
    ending = servers.open()
    answers = ending.process("once", max_new_tokens=200, **FREE)
    next(answers)
    thread = threading.Thread(target=ending.end)
    thread.start()
    *_, (_, count) = answers
    thread.join(30)

    assert count == 200
    assert ending.snapshot().state is ServerState.DRAINING
    assert not ending._funcs_generated
    with pytest.raises(NotReady, match="draining"):
        ending.generate(GenerationRequest(prompt="a"))


def test_ending_leaves_no_thread_and_may_be_done_twice(servers: Servers) -> None:
    before = set(threading.enumerate())
    ending = servers.open()
    list(ending.process("once", **FREE))
    started = set(threading.enumerate()) - before
    ending.end()
    ending.end()

    assert started
    assert not any(thread.is_alive() for thread in started)


def test_what_was_never_open_may_be_ended(servers: Servers) -> None:
    servers.make().end()


def test_the_status_counts_what_was_served(servers: Servers) -> None:
    fresh = servers.open(api_key="secret")
    for _ in range(3):
        list(fresh.process("once", max_new_tokens=10, **FREE))
    status = fresh.status()

    assert json.loads(json.dumps(status))["state"] == "ready"
    assert status["requests_served"] == status["prompts_served"] == 3
    assert status["tokens_generated"] == 30
    assert status["queue_length"] == 0
    assert status["compiles_after_ready"] == 0
    assert status["config"]["api_key"] is True
    assert "secret" not in json.dumps(status)
    assert status["memory"]["weights"] == 10
    assert status["memory"]["cache"] == 20
    assert is_free(fresh)


def test_answers_of_the_originals_routes_are_counted(servers: Servers) -> None:
    fresh = servers.open()
    answer = fresh.forward_instruct(InstructRequest(prompt="hi", seed=1))
    fresh.forward_chat(ChatRequest(prompt="hi", history=[("a", "b")], greedy=True))

    assert set(answer) == {"input", "response", "tokens_used"}
    assert fresh.number_of_served_request_until_last_up_time == 2


def test_the_originals_fields_reach_the_sampling(server: JAXServer) -> None:
    limited = InstructRequest(prompt="hi", max_new_tokens=5, seed=4, temperature=1.0)
    first = server.forward_instruct(limited)
    again = server.forward_instruct(limited)
    other = server.forward_instruct(
        InstructRequest(prompt="hi", max_new_tokens=5, seed=5, temperature=1.0)
    )

    assert first == again
    assert first["response"] != other["response"]


def test_it_is_reached_where_it_listens(servers: Servers) -> None:
    fired = servers.make(host="0.0.0.0")
    with pytest.raises(NotReady):
        fired.url  # noqa: B018  # a property that raises


def test_what_was_left_uncompiled_may_be_compiled_later(server: JAXServer) -> None:
    heard: list[tuple[str, int, int]] = []
    server.compile(lambda *one: heard.append(one))

    assert heard == []
    assert server.snapshot().compiles_after_ready == 0


def test_a_server_is_ready_before_its_files_have_been_read_for_their_digests(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests: Future[Digests] = Future()

    def load(*parts: Any, **rules: Any) -> wiring.Model:
        return tiny_parts(*parts, **rules)._replace(digests=digests)

    monkeypatch.setattr(server_module, "load_model", load)
    server = servers.open()
    assert server.is_ready()
    assert list(server.generate(GenerationRequest(prompt="a")))[-1].finish_reason
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.fingerprint)
        assert not asked.done()
        digests.set_result(Digests("aa", None, "cc", None))
        assert asked.result(20) == servers.open().fingerprint() is not None


def test_a_model_whose_files_went_away_has_no_fingerprint(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*parts: Any, **rules: Any) -> wiring.Model:
        gone: Future[Digests] = Future()
        gone.set_exception(FileNotFoundError("gone"))
        return tiny_parts(*parts, **rules)._replace(digests=gone)

    monkeypatch.setattr(server_module, "load_model", load)
    server = servers.open()
    assert server.fingerprint() is None
    client = TestClient(server.app(pages=False))
    answer = client.post("/v1/completions", json={"prompt": "a"}).json()
    assert answer["system_fingerprint"] is None


def test_a_server_without_a_model_has_no_fingerprint_yet(servers: Servers) -> None:
    with pytest.raises(NotReady):
        servers.make().fingerprint()
