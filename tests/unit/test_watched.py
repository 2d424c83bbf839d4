"""What a whole server tells of itself: metrics, names of requests, traces, profiles."""

import gzip
import http.server
import io
import json
import logging
import sys
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jaxserver import wiring
from jaxserver.adapters.telemetry.traces import TraceTelemetry
from jaxserver.ports.errors import EngineFailed, InvalidConfig, NotReady, PromptTooLong
from jaxserver.ports.handlers import Answer, ChatRequest
from jaxserver.ports.types import GenerationRequest, SamplingParams
from jaxserver.server import JAXServer
from tests import engines
from tests.unit.adapters.telemetry.test_metrics import samples
from tests.unit.tiny_server import Servers, tiny_servers
from tests.waiting import eventually

FREE: dict[str, Any] = {"ignore_eos": True, "seed": 3, "temperature": 1.0}
KEY = {"Authorization": "Bearer key"}
HEADER = "X-Request-Id"


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with tiny_servers() as made:
        yield made


@pytest.fixture
def server(servers: Servers) -> JAXServer:
    return servers.open()


def client_of(server: JAXServer) -> TestClient:
    return TestClient(server.app(pages=False), raise_server_exceptions=False)


def counted(server: JAXServer, name: str) -> float:
    return samples(server._host.metrics)[f"jaxserver_{name}"]


def ended(server: JAXServer, outcome: str) -> float:
    return counted(server, f"requests_total{{outcome={outcome}}}")


def asked(prompt: str = "once", **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt, sampling=SamplingParams(**{**FREE, **sampling})
    )


def test_an_answer_moves_the_counters(server: JAXServer) -> None:
    *_, last = server.generate(asked(max_new_tokens=30))
    assert ended(server, "length") == 1
    assert counted(server, "prompt_tokens_total") == last.usage.prompt_tokens == 5
    assert counted(server, "generated_tokens_total") == 30
    for name in ("queue", "time_to_first_token", "prefill", "decode"):
        assert counted(server, f"{name}_seconds_count") == 1


def test_the_beginning_of_a_prompt_that_was_there_is_counted(
    server: JAXServer,
) -> None:
    long = asked("x" * 100, max_new_tokens=4)
    list(server.generate(long))
    assert counted(server, "cached_tokens_total") == 0
    *_, last = server.generate(long)
    cached = counted(server, "cached_tokens_total")
    assert 0 < cached == last.usage.cached_tokens < last.usage.prompt_tokens
    assert counted(server, "prompt_tokens_total") == 2 * last.usage.prompt_tokens
    assert counted(server, "prefix_hits_total") == 1


def test_a_stream_has_a_gap_for_every_token_after_the_first(server: JAXServer) -> None:
    body = {"prompt": "p", "max_tokens": 20, "seed": 1, "stream": True}
    wish = {
        **body,
        "logit_bias": {"97": 100},
        "stream_options": {"include_usage": True},
    }
    streamed = client_of(server).post("/v1/completions", json=wish)
    assert streamed.status_code == 200
    usage = json.loads(streamed.text.split("data: ")[-2])["usage"]
    assert usage["completion_tokens"] == 20

    assert counted(server, "generated_tokens_total") == 20
    assert counted(server, "inter_token_seconds_count") == 19
    decoding = counted(server, "decode_seconds_sum")
    assert counted(server, "inter_token_seconds_sum") == pytest.approx(decoding)


def test_a_cancelled_answer_is_counted(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = engines.Gate()
    monkeypatch.setattr(wiring, "Device", engines.gated_device(gate))
    server = servers.open()
    stream = server.generate(asked())
    gate.allow(2)
    next(stream)
    stream.cancel()
    gate.open()
    list(stream)
    assert eventually(lambda: ended(server, "cancelled") == 1)
    assert counted(server, "generated_tokens_total") > 0


def test_a_full_server_counts_whom_it_refuses_and_who_waits(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = engines.Gate()
    monkeypatch.setattr(wiring, "Device", engines.gated_device(gate))
    server = servers.open(max_queue=1)
    slots = int(counted(server, "slots"))
    assert slots == engines.NARROW.slots
    streams = [server.generate(asked()) for _ in range(slots + 1)]
    refused = client_of(server).post("/instruct", json={"prompt": "p"})
    assert refused.status_code == 429
    assert ended(server, "server_full") == 1
    assert server._host.engine is not None
    engines.tokenised(server._host.engine)
    gate.allow(1)

    def all_are_counted() -> bool:
        seated, waiting = (
            counted(server, "slots_in_use"),
            counted(server, "queue_length"),
        )
        is_whole = 0 < seated == slots + 1 - waiting
        return is_whole and counted(server, "queued_tokens") == 5 * waiting

    assert eventually(all_are_counted)
    assert counted(server, "cache_pages") > 0
    assert counted(server, "cache_pages_used") > 0
    gate.open()
    for stream in streams:
        list(stream)


def test_what_is_refused_or_comes_too_early_is_counted(servers: Servers) -> None:
    server = servers.make(use_prefix_tokenizer=False)
    with pytest.raises(NotReady):
        server.generate(asked())
    assert ended(server, "not_ready") == 1
    server.open()
    with pytest.raises(PromptTooLong):
        list(server.generate(asked("x" * 1000)))
    assert ended(server, "prompt_too_long") == 1
    assert counted(server, "prompt_tokens_total") == 0


class BreakingDevice(engines.HookedDevice):
    """One that fails at every step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

        def fail(kind: str) -> None:
            raise OSError(kind)

        self.before_step = fail


def test_an_answer_that_fails_is_counted_and_so_are_the_steps_that_did(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "Device", BreakingDevice)
    server = servers.open()
    with pytest.raises(EngineFailed):
        list(server.generate(asked()))
    assert ended(server, "engine_failed") == 1
    assert counted(server, "failed_dispatches_total") == 2


def test_two_servers_of_one_process_count_for_themselves(servers: Servers) -> None:
    one, other = servers.open(), servers.open()
    list(one.generate(asked(max_new_tokens=3)))
    assert counted(one, "generated_tokens_total") == 3
    assert counted(other, "generated_tokens_total") == 0
    assert "jaxserver" in client_of(other).get("/metrics").text


def test_metrics_are_there_before_the_model_is(servers: Servers) -> None:
    response = client_of(servers.make()).get("/metrics")
    assert response.status_code == 200
    assert "\njaxserver_slots 0.0\n" in response.text


def test_metrics_and_profiles_want_the_key(servers: Servers) -> None:
    server = servers.make(api_key="key", profile=True)
    client = client_of(server)
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=KEY).status_code == 200
    assert client.post("/profile", json={"seconds": 1}).status_code == 401


class Forwarding(JAXServer):
    def forward_chat(self, data: ChatRequest) -> Answer:
        return super().forward_chat(data)


@pytest.mark.parametrize("kind", [JAXServer, Forwarding])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"prompt": "p"}),
        ("/v1/completions", {"prompt": "p", "stream": True}),
        ("/v1/completions", {"prompt": "p" * 1000}),
    ],
)
def test_the_name_of_a_request_is_in_its_line_of_the_log(
    servers: Servers,
    caplog: pytest.LogCaptureFixture,
    kind: type[JAXServer],
    path: str,
    body: dict[str, Any],
) -> None:
    server = servers.open(kind, logging=True)
    with caplog.at_level(logging.INFO, logger="jaxserver.requests"):
        response = client_of(server).post(path, json=body, headers={HEADER: "mine"})
        server.end(5.0)
    assert response.headers[HEADER] == "mine"
    lines = [json.loads(r.message) for r in caplog.records if r.message[0] == "{"]
    assert [line["x_request_id"] for line in lines] == ["mine"]


def test_a_request_is_traced_with_its_clients_span(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    telemetry = TraceTelemetry(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(TraceTelemetry, "to_collector", lambda: telemetry)
    server = servers.open(traces=True)
    parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    body = {"prompt": "p", "max_tokens": 4, "logit_bias": {"97": 100}}
    client_of(server).post("/v1/completions", json=body, headers=parent)
    assert eventually(lambda: len(exporter.get_finished_spans()) == 4)

    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"request", "queue", "prefill", "decode"}
    for span in found.values():
        context = span.get_span_context()
        assert context is not None
        assert f"{context.trace_id:032x}" == "a" * 32
    attributes = found["decode"].attributes
    assert attributes is not None
    assert attributes["jaxserver.generated_tokens"] == 4


@pytest.fixture
def collector() -> Iterator[tuple[str, list[str]]]:
    """Where spans can be sent to, and the names of those that came."""
    names: list[str] = []

    class Collect(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            sent = ExportTraceServiceRequest.FromString(body)
            assert self.path == "/v1/traces"
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    names.extend(span.name for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collect) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", names
        listening.shutdown()
        thread.join()


def test_traces_go_where_the_variables_say_at_the_latest_at_the_end(
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    collector: tuple[str, list[str]],
) -> None:
    url, names = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    server = servers.open(traces=True)
    list(server.generate(asked(max_new_tokens=2)))
    server.end()
    assert sorted(names) == ["decode", "prefill", "queue", "request"]


def test_traces_without_what_sends_them_are_refused(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "jaxserver.adapters.telemetry.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidConfig, match=r"traces: .*'jaxserver\[otel\]'"):
        servers.make(traces=True)
    servers.make(traces=False)


def test_a_profile_of_a_serving_server_compiles_nothing(servers: Servers) -> None:
    server = servers.open(profile=True)
    stream = server.generate(asked(max_new_tokens=40))
    response = client_of(server).post("/profile", json={"seconds": 1})
    list(stream)
    assert response.status_code == 200
    with zipfile.ZipFile(io.BytesIO(response.content)) as files:
        assert any(name.endswith(".xplane.pb") for name in files.namelist())
    assert counted(server, "compiles_after_ready_total") == 0


@pytest.mark.parametrize("pages", [True, False])
def test_a_profile_that_was_not_switched_on_is_not_there(
    servers: Servers, pages: bool
) -> None:
    client = TestClient(servers.make().app(pages=pages))
    response = client.post("/profile", json={"seconds": 1})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert response.headers[HEADER]
