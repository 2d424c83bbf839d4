import asyncio
import json
from typing import Any

import httpx
import pytest

from benchmarks.figures import figures
from benchmarks.load import Dialect, Run, Workload, drive
from jaxserver.ports.errors import ServerFull
from tests.fakes import ScriptedGenerator
from tests.unit.benchmarks.serving import drive_in_process, serving


def test_the_figures_of_scripted_timings_are_exact() -> None:
    """The clock ticks at a request, at each of its three pieces, and at both ends."""
    generator = ScriptedGenerator("a", "b", "c")
    workload = Workload(clients=1, requests=2)

    result = figures(drive_in_process(generator, workload))

    assert (result.completed, result.failed) == (2, 0)
    assert result.prompt_tokens == 3
    assert result.output_tok_s == pytest.approx(6 / 9)
    for found, expected in (
        (result.ttft_ms, 1000),
        (result.itl_ms, 1000),
        (result.decode_tok_s, 1),
    ):
        assert found is not None
        assert (found.p50, found.p99) == pytest.approx((expected, expected))


def test_pieces_without_text_are_no_moments_of_an_answer() -> None:
    generator = ScriptedGenerator("", "b", "", "d", "")
    run = drive_in_process(generator, Workload(clients=1, requests=1))
    (answer,) = run.answers
    assert answer.stamps == (2.0, 3.0)
    assert answer.tokens == 5


def test_an_answer_is_asked_for_in_full_length_and_greedily() -> None:
    generator = ScriptedGenerator("a")
    drive_in_process(generator, Workload(clients=1, requests=1, new_tokens=9))
    (request,) = generator.requests
    assert request.sampling.max_new_tokens == 9
    assert request.sampling.ignore_eos
    assert request.sampling.temperature == 0
    assert request.streaming


def test_a_server_that_refuses_is_counted_and_quoted() -> None:
    generator = ScriptedGenerator("a")
    generator.fail = lambda: ServerFull("the queue is full", 1)
    run = drive_in_process(generator, Workload(clients=2, requests=3))
    assert not run.answers
    assert len(run.failures) == 3
    assert run.failures[0].startswith("RequestFailed: 429")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ('data: {"error": {"message": "the engine died"}}\n\n', "the engine died"),
        ('data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "broke off"),
        ("data: [DONE]\n\n", "no text"),
    ],
)
def test_a_stream_that_is_no_whole_answer_is_a_failure(
    stream: str, message: str
) -> None:
    async def run() -> Run:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text=stream))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await drive(http, Workload(clients=1, requests=1))

    done = asyncio.run(run())
    assert not done.answers
    assert message in done.failures[0]


WITHOUT_USAGE = Dialect(wishes={"model": "m"}, has_usage=False)
ROLE = '{"delta": {"role": "assistant"}}'
TEXT = '{"delta": {"content": "a"}}'
HALF_OF_A_LETTER = '{"delta": {}}'
END = '{"delta": {}, "finish_reason": "stop"}'


def drive_without_usage(*choices: str) -> tuple[Run, dict[str, Any]]:
    """A run against a server that says no `usage` and no end, and its request."""
    stream = "".join(f'data: {{"choices": [{choice}]}}\n\n' for choice in choices)
    heard: list[dict[str, Any]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        heard.append(json.loads(request.content))
        return httpx.Response(200, text=stream)

    async def run() -> Run:
        transport = httpx.MockTransport(handle)
        workload = Workload(clients=1, requests=1, dialect=WITHOUT_USAGE)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await drive(http, workload)

    return asyncio.run(run()), heard[0]


def test_a_server_without_usage_is_counted_by_its_events() -> None:
    run, body = drive_without_usage(ROLE, TEXT, HALF_OF_A_LETTER, TEXT, END)
    (answer,) = run.answers
    assert (answer.tokens, answer.prompt_tokens) == (3, None)
    assert len(answer.stamps) == 2
    assert figures(run).prompt_tokens == 0
    assert body["model"] == "m"
    assert "ignore_eos" not in body


def test_a_server_without_usage_ends_with_a_finish_reason() -> None:
    run, _ = drive_without_usage(ROLE, TEXT)
    assert "broke off" in run.failures[0]


def test_as_many_requests_are_in_flight_as_there_are_clients() -> None:
    generator = ScriptedGenerator("a", "b", chunk_seconds=0.05)
    workload = Workload(clients=3, requests=6)

    async def run(url: str) -> list[tuple[float, float]]:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            done = await drive(client, workload)
        assert done.wall_seconds >= 0.2
        return sorted((answer.sent, answer.stamps[-1]) for answer in done.answers)

    with serving(generator) as url:
        spans = asyncio.run(run(url))

    assert len(spans) == 6
    first_end = min(end for _, end in spans)
    assert [sent < first_end for sent, _ in spans] == [True] * 3 + [False] * 3
