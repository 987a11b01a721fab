"""A headless Chromium, and the page with a small model in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from export.demo_page import PAGE_FOLDER, DemoPage
from export.parity import probe_sound
from export.publish import export_student
from kdasr.models import save_model
from tests.export.small_models import UNITS, conformer
from tests.web.pages import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    save_model(root / "student", conformer(), UNITS)
    export_student(conformer(), UNITS, root / "wave", format="wave-onnx")
    soundfile.write(root / "a.wav", probe_sound(75_123, 1), 16_000)
    # Chromium scales 16-bit samples otherwise than others do, floats as all do.
    soundfile.write(root / "float.wav", probe_sound(75_123, 1), 16_000, subtype="FLOAT")
    soundfile.write(root / "b.flac", np.stack([probe_sound(50_000, 2)] * 2, 1), 16_000)
    soundfile.write(root / "microphone.wav", probe_sound(160_000, 3), 48_000)
    return root


@pytest.fixture(scope="session")
def url(place: Path) -> Iterator[str]:
    with DemoPage(place / "wave", port=0) as page:
        yield page.url


@pytest.fixture(scope="session")
def browser(place: Path) -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "install a browser: apt-get install chromium"
    # Here, because the package is there for these tests alone.
    from playwright.sync_api import sync_playwright

    arguments = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={place / 'microphone.wav'}%noloop",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*arguments, "--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page, in a folder where Node.js takes its files for modules."""
    copy = Path(shutil.copytree(PAGE_FOLDER, tmp_path / "page"))
    (copy / "package.json").write_text('{"type": "module"}')
    return copy


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1000, "height": 900}, permissions=["microphone"])
    page = context.new_page()
    complaints: list[Any] = []
    page.on("pageerror", lambda error: complaints.append(error))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.goto(url)
    wait_until(page, "ready")
    yield page
    context.close()
    assert complaints == []
