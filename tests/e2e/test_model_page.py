"""The page of a server with the default model, as the one who started it sees it."""

import pytest
from playwright.sync_api import Browser, Page, expect

from jaxserver import JAXServer
from tests.e2e.browsing import opened_tab, say, shown, visit
from tests.waiting import eventually

pytestmark = [pytest.mark.model, pytest.mark.browser]
LONG = "Count from one to a thousand, in words."


def uses_slots(server: JAXServer, count: int) -> bool:
    return eventually(lambda: server.snapshot().slots_in_use == count, 60)


def test_the_address_that_serve_prints_opens_and_answers(
    loaded_server: JAXServer, server_url: str, tab: Page
) -> None:
    visit(tab, server_url)
    tab.get_by_label("Greedy").check()
    say(tab, "What is the capital of France?")

    expect(shown(tab)).to_contain_text("Paris")
    assert uses_slots(loaded_server, 0)


def test_the_stop_button_frees_the_slot(
    loaded_server: JAXServer, server_url: str, tab: Page
) -> None:
    assert uses_slots(loaded_server, 0)
    visit(tab, server_url)
    say(tab, LONG)
    assert uses_slots(loaded_server, 1)
    expect(shown(tab)).not_to_be_empty()
    tab.locator("#prompt .stop-button").click()

    assert uses_slots(loaded_server, 0)
    expect(tab.locator("#note")).to_contain_text("stopped")


def test_closing_the_tab_frees_the_slot(
    loaded_server: JAXServer, server_url: str, browser: Browser
) -> None:
    assert uses_slots(loaded_server, 0)
    with opened_tab(browser) as tab:
        visit(tab, server_url)
        say(tab, LONG)
        assert uses_slots(loaded_server, 1)
        expect(shown(tab)).not_to_be_empty()

    assert uses_slots(loaded_server, 0)
