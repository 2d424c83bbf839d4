"""A real browser, and what a person does in it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_SECONDS = 60
EVENT_END_MILLISECONDS = 200


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A browser; without one a test is skipped, and fails under CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = f"no browser: none of {', '.join(names)} is installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened_tab(browser: Browser, **context: Any) -> Iterator[Page]:
    with browser.new_context(**context) as opened:
        opened.set_default_timeout(PATIENCE_SECONDS * 1000)
        yield opened.new_page()


def visit(tab: Page, address: str) -> None:
    """Opens a page and lets it load: Gradio empties a field filled while it does."""
    tab.goto(address)
    tab.wait_for_load_state("networkidle")


def say(tab: Page, text: str) -> None:
    """Sends a message a little after the page says that it takes one.

    Gradio ignores what is sent while an event runs, and it still does when the last of
    the event's results, the button, is shown.
    """
    expect(tab.locator("#prompt .submit-button")).to_be_visible()
    tab.wait_for_timeout(EVENT_END_MILLISECONDS)
    tab.locator("#prompt textarea").fill(text)
    tab.locator("#prompt textarea").press("Enter")


def shown(tab: Page, role: str = "bot") -> Any:
    return tab.locator(f"#chatbot .message.{role}")
