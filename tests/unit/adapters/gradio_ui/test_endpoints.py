"""`gradio_client` uses the pages like functions, and all of it at once."""

from collections.abc import Iterator
from typing import Any

import fastapi
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from jaxserver.adapters.gradio_ui.pages import mount_pages
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import (
    EngineFailed,
    JaxServerError,
    NoChatTemplate,
    NotReady,
    PromptTooLong,
    ServerFull,
    UnsupportedMessages,
)
from jaxserver.ports.handlers import CANCEL, CancelToken, Handlers, History
from tests.fakes import ByteFormatter, ScriptedGenerator
from tests.unit.adapters.gradio_ui.serving import pages, served
from tests.waiting import eventually


def client(address: str, page: str) -> Client:
    return Client(f"{address}/{page}", verbose=False, analytics_enabled=False)


def chat_client(address: str) -> Client:
    return client(address, "gradio_chat")


def instruct_client(address: str) -> Client:
    return client(address, "gradio_instruct")


def test_an_instruction_needs_its_text_only() -> None:
    generator = ScriptedGenerator("He", "llo")
    with pages(generator) as address:
        assert instruct_client(address).predict("hi", api_name="/instruct") == "Hello"
    assert generator.requests[0].prompt == "user: hi\nassistant: "


def test_a_chat_takes_pairs_and_every_setting_by_name() -> None:
    generator = ScriptedGenerator("Hello")
    with pages(generator) as address:
        answer = chat_client(address).predict(
            "hi",
            history=[["a", "b"]],
            system="s",
            greedy=True,
            max_new_tokens=5,
            temperature=0.5,
            top_p=0.9,
            top_k=3,
            api_name="/chat",
        )
    assert answer == "Hello"
    (request,) = generator.requests
    assert request.prompt == "system: s\nuser: a\nassistant: b\nuser: hi\nassistant: "
    sampling = request.sampling
    assert (sampling.greedy, sampling.max_new_tokens) == (True, 5)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)


def test_a_job_streams_the_answer_as_it_grows() -> None:
    with pages(ScriptedGenerator("a", "b", "c", chunk_seconds=0.05)) as address:
        job = instruct_client(address).submit("hi", api_name="/instruct")
        texts = list(dict.fromkeys(job))
    assert texts == ["", "a", "ab", "abc"]


def test_a_server_set_so_answers_whole() -> None:
    config = ServerConfig(stream_tokens_for_gradio=False)
    with pages(ScriptedGenerator("a", "b", chunk_seconds=0.05), config) as address:
        job = instruct_client(address).submit("hi", api_name="/instruct")
        texts = list(dict.fromkeys(job))
    assert texts == ["", "ab"]


def test_only_the_two_named_endpoints_are_shown_to_clients() -> None:
    with pages(ScriptedGenerator("a")) as address:
        shown = [
            each.view_api(return_format="dict", print_info=False)
            for each in (chat_client(address), instruct_client(address))
        ]
    assert [list(api["named_endpoints"]) for api in shown] == [["/chat"], ["/instruct"]]
    assert all(not api["unnamed_endpoints"] for api in shown)


@pytest.mark.parametrize("page", ["chat", "instruct"])
@pytest.mark.parametrize("is_streaming", [True, False])
def test_cancelling_a_job_cancels_its_stream(page: str, is_streaming: bool) -> None:
    generator = ScriptedGenerator(*"abcdefgh", chunk_seconds=60)
    config = ServerConfig(stream_tokens_for_gradio=is_streaming)
    with pages(generator, config) as address:
        job = client(address, f"gradio_{page}").submit("hi", api_name=f"/{page}")
        # Without an output, the client may not know yet which event it is to cancel.
        assert eventually(lambda: generator.streams and job.outputs())
        job.cancel()
        assert generator.streams[0].cancelled.wait(20)


def test_sixteen_pages_stream_at_once() -> None:
    generator = ScriptedGenerator(*"abcdefghij")

    def all_have_come_so_far(number: int) -> bool:
        given = [stream.num_given for stream in generator.streams]
        return len(given) == 16 and min(given) >= number

    generator.is_due = all_have_come_so_far
    with pages(generator) as address:
        clients = [chat_client(address) for _ in range(16)]
        jobs = [each.submit("hi", api_name="/chat") for each in clients]
        answers = [job.result(timeout=60) for job in jobs]
    assert answers == ["abcdefghij"] * 16


@pytest.mark.parametrize(
    "error",
    [
        ServerFull("the queue holds 256 requests", 3),
        NotReady("the model is being loaded", 10),
        EngineFailed("the engine <b>failed</b>"),
        PromptTooLong(3000, 2047),
    ],
)
def test_an_error_is_told_in_our_words_and_the_page_goes_on(
    error: JaxServerError,
) -> None:
    generator = ScriptedGenerator("fine")
    generator.fail = lambda: error
    with pages(generator) as address:
        each = chat_client(address)
        with pytest.raises(AppError) as told:
            each.predict("hi", api_name="/chat")
        generator.fail = None
        assert each.predict("hi", api_name="/chat") == "fine"
    text = str(error).replace("<", "&lt;").replace(">", "&gt;")
    assert told.value.message == text


@pytest.mark.parametrize(
    "error",
    [UnsupportedMessages("format_chat takes no system"), NoChatTemplate("format_chat")],
)
def test_what_the_formatter_refuses_is_told(error: JaxServerError) -> None:
    class Refusing(ByteFormatter):
        def format(self, messages: object) -> str:
            raise error

    with (
        pages(ScriptedGenerator("a"), formatter=Refusing()) as address,
        pytest.raises(AppError) as told,
    ):
        instruct_client(address).predict("hi", api_name="/instruct")
    assert told.value.message == str(error)


def test_a_wrong_field_is_refused_by_name() -> None:
    with pages(ScriptedGenerator("a")) as address:
        each = chat_client(address)
        with pytest.raises(
            AppError, match=r"^temperature: got -1, allowed is a number"
        ):
            each.predict("hi", temperature=-1, api_name="/chat")
        with pytest.raises(AppError, match=r"^history: .*\[user, assistant\] pairs"):
            each.predict("hi", history=[["a"]], api_name="/chat")


def test_an_error_of_ones_own_shows_nothing_of_its_inside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handler(*_: object) -> Iterator[tuple[str, str]]:
        yield "", "a"
        raise ValueError("the password is 1234")

    handlers = Handlers(process_gradio_instruct=handler)
    with (
        pages(ScriptedGenerator("a"), handlers=handlers) as address,
        pytest.raises(AppError, match="failed inside the server") as told,
    ):
        instruct_client(address).predict("hi", api_name="/instruct")
    assert "1234" not in told.value.message
    assert "the password is 1234" in caplog.text


def test_a_handler_answers_in_our_place() -> None:
    asked: list[Any] = []

    def chat(
        prompt: str, history: History, max_new_tokens: int, system: str, greedy: bool
    ) -> Iterator[tuple[str, History]]:
        asked.append((prompt, [list(turn) for turn in history], max_new_tokens, system))
        history.append([prompt, "mine"])
        yield "", history

    def instruct(
        prompt: str, system: str, max_new_tokens: int, greedy: bool, **sampling: Any
    ) -> Any:
        asked.append((prompt, system, max_new_tokens, greedy, sampling["top_k"]))
        return "", "mine too"
        yield

    generator = ScriptedGenerator("ours")
    handlers = Handlers(process_gradio_chat=chat, process_gradio_instruct=instruct)
    with pages(
        generator, ServerConfig(max_new_tokens=64), handlers=handlers
    ) as address:
        answer = chat_client(address).predict(
            "hi", history=[["a", "b"]], system="s", api_name="/chat"
        )
        other = instruct_client(address).predict("do", top_k=3, api_name="/instruct")
        with pytest.raises(AppError, match=r"^top_k: got 3, allowed is nothing"):
            chat_client(address).predict("hi", top_k=3, api_name="/chat")
    assert (answer, other) == ("mine", "mine too")
    assert asked == [("hi", [["a", "b"]], 64, "s"), ("do", "", 64, False, 3)]
    assert generator.requests == []


def test_cancelling_a_job_sets_the_handlers_token_and_closes_it() -> None:
    tokens: list[CancelToken] = []
    closed: list[str] = []

    def handler(*_: object) -> Iterator[tuple[str, str]]:
        token = CANCEL.get()
        assert token is not None
        tokens.append(token)
        try:
            yield "", "a"
            token.wait(20)
            yield "", "b"
        finally:
            closed.append("closed")

    handlers = Handlers(process_gradio_instruct=handler)
    with pages(ScriptedGenerator("a"), handlers=handlers) as address:
        job = instruct_client(address).submit("hi", api_name="/instruct")
        assert eventually(lambda: "a" in job.outputs())
        job.cancel()
        assert eventually(lambda: closed)
    assert tokens[0].is_set()


def test_the_pages_may_be_mounted_while_the_application_serves() -> None:
    app = fastapi.FastAPI()
    config, generator = ServerConfig(), ScriptedGenerator("late")
    with served(app) as address:
        mount_pages(app, generator, ByteFormatter(), config=config)
        assert chat_client(address).predict("hi", api_name="/chat") == "late"


def test_an_answer_after_a_cancelled_one_is_whole() -> None:
    generator = ScriptedGenerator("x", "y", chunk_seconds=0.1)
    with pages(generator) as address:
        each = chat_client(address)
        for stream in range(8):
            generator.pieces = ("x",) * 500
            job = each.submit("hi", api_name="/chat")
            assert eventually(lambda: "x" in job.outputs())  # noqa: B023  # used at once
            job.cancel()
            assert generator.streams[2 * stream].cancelled.wait(20)
            generator.pieces = ("one", " two")
            assert each.predict("hi", api_name="/chat") == "one two"


def test_sessions_do_not_see_each_other() -> None:
    generator = ScriptedGenerator("x", chunk_seconds=0.1)
    with pages(generator) as address:
        one, other = chat_client(address), chat_client(address)
        one.predict("first", api_name="/chat")
        other.predict("second", api_name="/chat")
        one.predict("third", api_name="/chat")
    prompts = [request.prompt for request in generator.requests]
    assert prompts == [f"user: {w}\nassistant: " for w in ("first", "second", "third")]
