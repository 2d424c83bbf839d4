"""Servers whose methods are written as users write them answer on every way."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from examples.own_answers import Interview, Numbered
from jaxserver.ports.handlers import ChatRequest, InstructRequest
from jaxserver.server import JAXServer
from tests.unit.tiny_server import Servers, page_texts, tiny_servers

HISTORY = [["a", "b"]]
ROUTES = [
    ("instruct", {"prompt": "c", "system": "s", "greedy": True}),
    ("instruct", {"prompt": "c", "greedy": True}),
    ("instruct", {"prompt": "word " * 200, "system": "s", "greedy": True}),
    ("chat", {"prompt": "c", "history": HISTORY, "greedy": True}),
    ("chat", {"prompt": "c", "greedy": True}),
    ("chat", {"prompt": "word " * 200, "history": HISTORY, "greedy": True}),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with tiny_servers() as made:
        yield made


@pytest.fixture(scope="module")
def plain(servers: Servers) -> JAXServer:
    """A server that nobody has changed."""
    return servers.open()


@pytest.fixture(scope="module", params=[True, False], ids=["streams", "whole"])
def numbered(servers: Servers, request: pytest.FixtureRequest) -> JAXServer:
    server = servers.open(Numbered, stream_tokens_for_gradio=request.param)
    server.fire()
    return server


@pytest.fixture(scope="module", params=[True, False], ids=["streams", "whole"])
def interview(servers: Servers, request: pytest.FixtureRequest) -> JAXServer:
    server = servers.open(Interview, stream_tokens_for_gradio=request.param)
    server.fire()
    return server


def by_methods(server: JAXServer, route: str, body: dict[str, Any]) -> Any:
    if route == "chat":
        return server.forward_chat(ChatRequest(**body))
    return server.forward_instruct(InstructRequest(**body))


def by_generator(server: JAXServer, history: Any, system: str) -> tuple[int, Any]:
    """How often the method yields, and its last update."""
    updates: Any = server.process_gradio_chat("c", history, 40, system, True)
    yielded = 0
    while True:
        try:
            next(updates)
        except StopIteration as end:
            return yielded, end.value
        yielded += 1


@pytest.mark.parametrize(("route", "body"), ROUTES)
def test_own_routes_answer_what_the_servers_answer_and_more(
    numbered: JAXServer, plain: JAXServer, route: str, body: dict[str, Any]
) -> None:
    count = numbered.number_of_served_request_until_last_up_time
    posted = requests.post(f"{numbered.url}/{route}", json=body, timeout=60).json()
    called = by_methods(numbered, route, body)

    assert posted.pop("number") == count + 1
    assert called.pop("number") == count + 2
    assert posted == called == by_methods(plain, route, body)


def test_own_routes_say_that_an_unready_server_is_down(servers: Servers) -> None:
    closed = servers.make(Numbered)

    for route, body in ROUTES:
        assert by_methods(closed, route, body) == {"status": "down"}


@pytest.mark.parametrize("history", [HISTORY, []])
@pytest.mark.parametrize("system", ["s", ""])
def test_an_own_page_shows_what_the_servers_page_shows(
    numbered: JAXServer, plain: JAXServer, history: list[list[str]], system: str
) -> None:
    pairs = [list(turn) for turn in history]
    *_, last = plain.process_gradio_chat("c", history, 40, system, True)
    yielded, returned = by_generator(numbered, pairs, system)
    texts = page_texts(
        numbered, "chat", "c", history=history, system=system, greedy=True
    )

    assert returned == last
    assert texts[0] == ""
    assert texts[-1] == returned[1][-1][1]
    streams = numbered.config.stream_tokens_for_gradio
    assert (len(texts) > 2) == streams
    assert (yielded > 0) == streams


def test_a_page_with_prompts_of_its_own_shows_their_answer(
    interview: JAXServer, plain: JAXServer
) -> None:
    prompt = "s\nQuestion: a\nAnswer: b\nQuestion: c\nAnswer:"
    *_, (answer, _) = plain.process(prompt, greedy=True, max_new_tokens=40)
    _, returned = by_generator(interview, [["a", "b"]], "s")

    assert returned == ("", [["a", "b"], ["c", answer]])
    texts = page_texts(interview, "chat", "c", history=HISTORY, system="s", greedy=True)
    assert texts[-1] == answer
    assert (len(texts) > 2) == interview.config.stream_tokens_for_gradio
