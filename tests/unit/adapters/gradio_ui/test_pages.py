"""The pages stand where they should, below any path, with headers that guard them."""

import ast
import asyncio
import types
from collections.abc import AsyncIterator
from pathlib import Path

import fastapi
import gradio as gr
import httpx
import pytest

import jaxserver.adapters.gradio_ui as package
from jaxserver.adapters.gradio_ui.page import Page, open_queue
from jaxserver.adapters.gradio_ui.pages import mount_pages
from jaxserver.adapters.gradio_ui.panel import Panel
from jaxserver.ports.config import ServerConfig
from tests.fakes import ByteFormatter, ScriptedGenerator
from tests.unit.adapters.gradio_ui.serving import pages, served
from tests.waiting import eventually


def test_the_root_leads_to_the_chat() -> None:
    with pages(ScriptedGenerator("a")) as address:
        answer = httpx.get(address, follow_redirects=True)
        assert answer.url.path == "/gradio_chat/"
        assert answer.status_code == 200
        for page in ("gradio_chat", "gradio_instruct"):
            assert httpx.get(f"{address}/{page}/").status_code == 200


def test_the_root_leads_to_the_chat_below_another_path() -> None:
    app = fastapi.FastAPI()
    mount_pages(app, ScriptedGenerator("a"), ByteFormatter(), config=ServerConfig())
    outer = fastapi.FastAPI()
    outer.mount("/models/one", app)
    with served(outer) as address:
        answer = httpx.get(f"{address}/models/one/", follow_redirects=True)
    assert answer.url.path == "/models/one/gradio_chat/"
    assert answer.status_code == 200


def test_every_answer_of_a_page_forbids_the_browser_other_hosts() -> None:
    with pages(ScriptedGenerator("a")) as address:
        for path in ("", "theme.css", "config", "nothing-there"):
            headers = httpx.get(f"{address}/gradio_chat/{path}").headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'self'; ")
            assert "http" not in policy
            assert headers["referrer-policy"] == "no-referrer"


def test_nothing_can_be_uploaded() -> None:
    with pages(ScriptedGenerator("a")) as address:
        answer = httpx.post(
            f"{address}/gradio_chat/gradio_api/upload", files={"files": b"anything"}
        )
    assert answer.status_code == 413


def test_no_font_and_no_telemetry_is_fetched() -> None:
    with pages(ScriptedGenerator("a")) as address:
        config = httpx.get(f"{address}/gradio_chat/config").json()
    assert config["analytics_enabled"] is False
    assert all(
        not sheet or sheet.startswith(("/", ".", "@"))
        for sheet in config["stylesheets"]
    )


def test_settings_begin_as_configured() -> None:
    config = ServerConfig(temperature=5, top_k=500, top_p=0.25, max_new_tokens=4096)

    async def build() -> tuple[Panel, Panel]:
        with gr.Blocks(analytics_enabled=False):
            full = Panel(config, with_sampling=True)
            return full, Panel(config, with_sampling=False)

    full, short = asyncio.run(build())
    values = [component.value for component in full.components]
    assert values == [None, False, 2048, 5, 0.25, 500]
    settings = short.settings(["s", True, 3])
    assert (settings.system, settings.greedy, settings.max_new_tokens) == ("s", True, 3)
    assert set(settings.sampling_fields().values()) == {None}


def opened_page() -> Page:
    async def build() -> Page:
        page = Page(analytics_enabled=False)
        open_queue(page, ServerConfig(slots=16, max_queue=16))
        return page

    return asyncio.run(build())


@pytest.mark.parametrize("num_events", [3, 2000])
def test_the_queue_remembers_a_bounded_number_of_events(num_events: int) -> None:
    queue = opened_page()._queue
    for kept in (queue.event_analytics, queue.event_ids_to_events):
        for event in range(num_events):
            kept[str(event)] = {}
        assert len(kept) == min(num_events, 96)
        assert str(num_events - 1) in kept


def test_an_answer_that_ended_is_forgotten_before_its_id_is_used_again() -> None:
    async def answer() -> AsyncIterator[str]:
        yield "a"

    block_fn = types.SimpleNamespace(
        fn=answer,
        inputs_as_dict=False,
        renderable=None,
        component_prop_inputs=[],
        outputs=[object()],
    )
    page = opened_page()

    async def break_off() -> None:
        result = await page.call_function(block_fn, [])
        run = id(result["iterator"])
        page.handle_streaming_diffs(block_fn, ["a"], "session", run, False)
        assert run in page.pending_diff_streams["session"]
        await result["iterator"].aclose()

    asyncio.run(break_off())
    assert eventually(lambda: page.pending_diff_streams == {})


def test_only_the_modules_of_a_page_import_gradio() -> None:
    (folder,) = package.__path__
    assert "gradio" not in _imports(Path(folder) / "__init__.py")
    for pure in ("settings", "turns", "updates", "by_ports", "by_handler", "headers"):
        assert "gradio" not in _imports(Path(folder) / f"{pure}.py")


def _imports(file: Path) -> set[str]:
    return {
        name.split(".")[0]
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
