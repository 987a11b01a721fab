"""What the tests of the page do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def wait_until(page: Page, state: str) -> None:
    """Waits for a state of the page; an error that it shows fails the test."""
    page.wait_for_function(
        "state => [state, 'error'].includes(document.querySelector('#status').dataset.state)", arg=state
    )
    assert page.locator("#status").get_attribute("data-state") == state, page.locator("#status").inner_text()


def error_of(page: Page) -> str:
    """Waits for an error and gives its message."""
    page.wait_for_function("document.querySelector('#status').dataset.state === 'error'")
    return page.locator("#status").inner_text()


def choose(page: Page, precision: str) -> None:
    page.select_option("#precision", precision)
    wait_until(page, "ready")


def text_of(page: Page, file: Path) -> str:
    """The page's text of a file."""
    page.evaluate("delete document.body.dataset.text")
    page.set_input_files("#file", file)
    return final_text(page)


def final_text(page: Page) -> str:
    """Waits for the end of what is heard and gives its text."""
    page.wait_for_function("document.body.dataset.text !== undefined")
    return str(page.evaluate("document.body.dataset.text"))
