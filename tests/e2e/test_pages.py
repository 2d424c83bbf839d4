"""The pages in a real browser: what a person sees, and what the browser asks for."""

import base64
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import fastapi
import pytest
from playwright.sync_api import Browser, Page, expect

from jaxserver.adapters.gradio_ui.pages import mount_pages
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import EngineFailed, ServerFull
from jaxserver.ports.handlers import Handlers, History
from jaxserver.ports.status import ServerState
from tests.e2e.browsing import PATIENCE_SECONDS, opened_tab, say, shown, visit
from tests.fakes import ByteFormatter, FixedStatus, ScriptedGenerator
from tests.unit.adapters.gradio_ui.serving import pages, served
from tests.waiting import eventually

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        # Gradio names a constant that Starlette has renamed.
        "ignore:'HTTP_422_UNPROCESSABLE_ENTITY' is deprecated"
    ),
]
SLOW = 0.15


def test_an_answer_streams_in_and_no_other_host_is_asked(tab: Page) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    answer = ["Look:\n\n```python\nx", "=", "1\n```\n\n$$x$$", "and", "**more**"]
    generator = ScriptedGenerator(*(f"{a} " for a in answer))
    may_go_on = threading.Event()
    generator.is_due = lambda number: number == 0 or may_go_on.is_set()
    with pages(generator, status=FixedStatus()) as address:
        visit(tab, address)
        say(tab, "hello")
        expect(shown(tab, "user")).to_have_text("hello")
        expect(shown(tab)).to_contain_text("Look:")
        assert "more" not in shown(tab).inner_text()
        may_go_on.set()
        expect(shown(tab)).to_contain_text("more")
        expect(tab.locator("#note")).to_contain_text("tokens/s")
        expect(tab.locator("#prompt textarea")).to_have_value("")
        expect(tab.locator("#prompt .submit-button")).to_be_visible()
        tab.get_by_role("link", name="Instruct", exact=True).click()
        expect(tab.locator("#answer")).to_be_visible()
    assert generator.requests[0].prompt == "user: hello\nassistant: "
    hosts = {urlsplit(url).netloc for url in asked if url.startswith("http")}
    assert hosts == {urlsplit(address).netloc}


def test_the_stop_button_cancels_and_the_page_goes_on(tab: Page) -> None:
    generator = ScriptedGenerator(*(f"w{i} " for i in range(400)), chunk_seconds=SLOW)
    with pages(generator) as address:
        visit(tab, address)
        say(tab, "hello")
        expect(shown(tab)).to_contain_text("w1 ")
        tab.locator("#prompt .stop-button").click()
        assert generator.streams[0].cancelled.wait(PATIENCE_SECONDS)
        expect(tab.locator("#note")).to_contain_text("stopped")
        expect(tab.locator("#prompt .submit-button")).to_be_visible()

        generator.pieces, generator.chunk_seconds = ("One ", "again."), 0.0
        said = shown(tab).inner_text()
        say(tab, "more")
        expect(shown(tab).nth(1)).to_have_text("One again.")
        assert shown(tab).nth(0).inner_text() == said
    prompt = str(generator.requests[1].prompt)
    assert prompt.startswith("user: hello\nassistant: w0 w1 ")
    assert prompt.endswith("\nuser: more\nassistant: ")


def test_stop_is_told_whenever_it_is_pressed(tab: Page) -> None:
    generator = ScriptedGenerator(*(f"w{i} " for i in range(400)), chunk_seconds=SLOW)
    with pages(generator) as address:
        visit(tab, address)
        for attempt in range(6):
            say(tab, "hello")
            expect(shown(tab).nth(attempt)).to_contain_text("w1 ")
            tab.wait_for_timeout(attempt * SLOW * 1000 / 6)  # anywhere between chunks
            tab.locator("#prompt .stop-button").click()
            assert generator.streams[attempt].cancelled.wait(PATIENCE_SECONDS)
            expect(tab.locator("#note")).to_contain_text("stopped")
            expect(tab.locator("#prompt .submit-button")).to_be_visible()


def test_clear_and_retry_interrupt_a_running_answer(tab: Page) -> None:
    generator = ScriptedGenerator(*(f"w{i} " for i in range(400)), chunk_seconds=SLOW)
    with pages(generator) as address:
        visit(tab, address)
        say(tab, "hello")
        expect(shown(tab)).to_contain_text("w1 ")
        tab.locator("#clear").click()
        assert generator.streams[0].cancelled.wait(PATIENCE_SECONDS)
        expect(shown(tab, "user")).to_have_count(0)

        say(tab, "again")
        expect(shown(tab)).to_contain_text("w1 ")
        generator.pieces, generator.chunk_seconds = ("short",), 0.0
        tab.locator("#retry").click()
        assert generator.streams[1].cancelled.wait(PATIENCE_SECONDS)
        expect(shown(tab)).to_have_text("short")
        expect(shown(tab, "user")).to_have_text("again")
        expect(tab.locator("#prompt .submit-button")).to_be_visible()
    assert generator.requests[2].prompt == "user: again\nassistant: "


@pytest.mark.parametrize("page", ["gradio_chat", "gradio_instruct"])
@pytest.mark.parametrize("is_streaming", [True, False])
def test_closing_the_tab_cancels(
    browser: Browser, page: str, is_streaming: bool
) -> None:
    generator = ScriptedGenerator("a", "b", chunk_seconds=60)  # nothing comes
    config = ServerConfig(stream_tokens_for_gradio=is_streaming)
    with pages(generator, config) as address:
        with opened_tab(browser) as tab:
            visit(tab, f"{address}/{page}/")
            tab.locator("#prompt textarea").fill("hello")
            tab.locator("#prompt textarea").press("Shift+Enter")
            if page == "gradio_chat":
                tab.locator("#prompt .submit-button").click()
            assert eventually(lambda: generator.streams)
            assert not generator.streams[0].cancelled.is_set()
        assert generator.streams[0].cancelled.wait(PATIENCE_SECONDS)


def test_what_a_model_writes_does_not_run_and_fetches_nothing(tab: Page) -> None:
    asked = threading.Event()
    with listener(asked) as outside:
        generator = ScriptedGenerator(
            "<script>window.ran = 1</script>",
            '<img src="nothing" onerror="window.ran = 2">',
            '<a href="javascript:window.ran = 3">go</a>',
            f'\n\n![seen]({outside}/seen.png)\n\n<img src="{outside}/too.png">\n\n',
            f'<iframe src="{outside}/frame"></iframe><p id="end">end</p>',
        )
        with pages(generator) as address:
            visit(tab, address)
            say(tab, "<script>window.ran = 4</script>")
            expect(shown(tab)).to_contain_text("end")
            tab.wait_for_timeout(500)
            assert tab.evaluate("window.ran") is None
            assert tab.locator("#chatbot script, #chatbot iframe").count() == 0
    assert not asked.is_set()


@contextlib.contextmanager
def listener(asked: threading.Event) -> Iterator[str]:
    """Another host, which notes that it was asked for something."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        done = threading.Event()

        def listen() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    server.accept()[0].close()
                    asked.set()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        done.set()
        thread.join()


def test_an_error_is_shown_and_the_prompt_comes_back(tab: Page) -> None:
    generator = ScriptedGenerator("fine")
    generator.fail = lambda: ServerFull("the queue holds 256 requests", 3)
    with pages(generator) as address:
        visit(tab, address)
        say(tab, "hello")
        toast = tab.locator(".toast-body")
        expect(toast).to_contain_text("the queue holds 256 requests, try again in 3 s")
        expect(tab.locator("#prompt textarea")).to_have_value("hello")
        expect(shown(tab, "user")).to_have_count(0)
        generator.fail = lambda: EngineFailed("the engine stopped")
        visit(tab, f"{address}/gradio_instruct/")
        tab.locator("#prompt textarea").fill("do")
        tab.locator("#run").click()
        expect(toast).to_contain_text("the engine stopped")
        generator.fail = None
        tab.locator("#run").click()
        expect(tab.locator("#answer textarea")).to_have_value("fine")
        assert "Traceback" not in tab.content()


def test_retry_asks_the_last_question_again_and_clear_forgets(tab: Page) -> None:
    generator = ScriptedGenerator("first")
    with pages(generator) as address:
        visit(tab, address)
        say(tab, "hello")
        expect(shown(tab)).to_have_text("first")
        generator.pieces = ("second",)
        tab.locator("#retry").click()
        expect(shown(tab)).to_have_text("second")
        expect(shown(tab, "user")).to_have_count(1)
        tab.locator("#clear").click()
        expect(shown(tab)).to_have_count(0)
        say(tab, "new")
        expect(shown(tab)).to_have_text("second")
    prompts = [request.prompt for request in generator.requests]
    assert prompts == [f"user: {t}\nassistant: " for t in ("hello", "hello", "new")]


def test_the_settings_reach_the_generator(tab: Page) -> None:
    generator = ScriptedGenerator("fine")
    with pages(generator) as address:
        visit(tab, f"{address}/gradio_instruct/")
        tab.locator("#system textarea").fill("Be brief.")
        tab.locator("#greedy input").check()
        for field, value in (("temperature", "0.5"), ("top_p", "0.5"), ("top_k", "7")):
            tab.locator(f"#{field} input[type=number]").fill(value)
        tab.locator("#max_new_tokens input[type=number]").fill("9")
        tab.locator("#prompt textarea").fill("do")
        tab.locator("#run").click()
        expect(tab.locator("#answer textarea")).to_have_value("fine")
        expect(tab.locator("#prompt textarea")).to_have_value("do")
    (request,) = generator.requests
    assert request.prompt == "system: Be brief.\nuser: do\nassistant: "
    sampling = request.sampling
    assert (sampling.greedy, sampling.max_new_tokens) == (True, 9)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.5, 7)


def test_the_instruct_page_stops(tab: Page) -> None:
    generator = ScriptedGenerator(*(f"w{i} " for i in range(400)), chunk_seconds=SLOW)
    with pages(generator) as address:
        visit(tab, f"{address}/gradio_instruct/")
        expect(tab.locator("#stop")).to_be_disabled()
        tab.locator("#prompt textarea").fill("do")
        tab.locator("#run").click()
        assert eventually(lambda: generator.streams)
        tab.locator("#stop").click()
        assert generator.streams[0].cancelled.wait(PATIENCE_SECONDS)
        expect(tab.locator("#note")).to_contain_text("stopped")
        expect(tab.locator("#stop")).to_be_disabled()


def test_a_handler_without_sampling_hides_its_sliders(tab: Page) -> None:
    def handler(prompt: str, history: History, *_: object) -> Any:
        history.append([prompt, ""])
        for text in ("mine", "mine too"):
            history[-1][-1] = text
            yield "", history
        return "your turn", history

    handlers = Handlers(process_gradio_chat=handler)
    with pages(ScriptedGenerator("ours"), handlers=handlers) as address:
        visit(tab, address)
        expect(tab.locator("#max_new_tokens")).to_be_visible()
        expect(tab.locator("#temperature, #top_p, #top_k")).to_have_count(0)
        say(tab, "hello")
        expect(shown(tab)).to_have_text("mine too")
        expect(tab.locator("#prompt textarea")).to_have_value("your turn")
        visit(tab, f"{address}/gradio_instruct/")
        expect(tab.locator("#temperature, #top_p, #top_k")).to_have_count(3)


def test_a_handler_that_only_returns_is_shown_and_gets_its_pairs_back(
    tab: Page,
) -> None:
    given: list[History] = []

    def handler(prompt: str, history: History, *_: object) -> Any:
        given.append([list(turn) for turn in history])
        history.append([prompt, f"{prompt}!"])
        return "", history
        yield

    handlers = Handlers(process_gradio_chat=handler)
    with pages(ScriptedGenerator("ours"), handlers=handlers) as address:
        visit(tab, address)
        for text in ("hello", "again"):
            say(tab, text)
            expect(shown(tab).last).to_have_text(f"{text}!")
    assert given == [[], [["hello", "hello!"]]]


def test_two_tabs_share_nothing(browser: Browser) -> None:
    generator = ScriptedGenerator("a ", "b ", "c", chunk_seconds=SLOW)
    with (
        pages(generator) as address,
        opened_tab(browser) as one,
        opened_tab(browser) as other,
    ):
        for tab, text in ((one, "first"), (other, "second")):
            visit(tab, address)
            say(tab, text)
        for tab, text in ((one, "first"), (other, "second")):
            expect(shown(tab)).to_have_text("a b c")
            expect(shown(tab, "user")).to_have_text(text)


def test_a_server_that_is_not_ready_says_what_it_does(tab: Page) -> None:
    status = FixedStatus(ServerState.COMPILING)
    with pages(ScriptedGenerator("a"), status=status) as address:
        visit(tab, address)
        expect(tab.locator("#state")).to_have_text("The model is being compiled.")
        status.state = ServerState.READY
        expect(tab.locator("#state")).to_have_count(0)


Scope = MutableMapping[str, Any]


class BasicAuth:
    """Lets in who knows the password, as a server with an API key does."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._wanted = b"Basic " + base64.b64encode(b"any:key")

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        is_known = dict(scope.get("headers", ())).get(b"authorization") == self._wanted
        if scope["type"] != "http" or is_known:
            await self._app(scope, receive, send)
            return
        challenge = [(b"www-authenticate", b'Basic realm="jaxserver"')]
        start = {"type": "http.response.start", "status": 401, "headers": challenge}
        await send(start)
        await send({"type": "http.response.body", "body": b""})


def test_the_pages_work_behind_a_password_and_below_a_path(browser: Browser) -> None:
    app = fastapi.FastAPI()
    generator = ScriptedGenerator("a ", "b ", "c", chunk_seconds=SLOW)
    mount_pages(app, generator, ByteFormatter(), config=ServerConfig())
    outer = fastapi.FastAPI()
    outer.mount("/models/one", app)
    outer.add_middleware(BasicAuth)
    credentials = {"username": "any", "password": "key"}
    with (
        served(outer) as address,
        opened_tab(browser, http_credentials=credentials) as tab,
    ):
        visit(tab, f"{address}/models/one/")
        assert urlsplit(tab.url).path == "/models/one/gradio_chat/"
        say(tab, "hello")
        expect(shown(tab)).to_have_text("a b c")
