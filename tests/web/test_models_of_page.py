"""The page runs the model that its card names, or says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import export.demo_page
from export.demo_page import DemoPage
from export.publish import export_student
from export.runtime import WAVE_FLOAT_FILE, WAVE_INT8_FILE
from tests.export import transcripts
from tests.export.small_models import UNITS, conformer
from tests.web.pages import choose, error_of, text_of, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.web


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another export, whose files are older than those of `place`."""
    folder = tmp_path_factory.mktemp("other")
    export_student(conformer(width=40), UNITS, folder, format="wave-onnx", name="other")
    for file in folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    return folder


def serve(folder: Path, model: Path) -> None:
    """Puts another model in the folder that is served."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)


def load(page: Page, url: str) -> None:
    page.goto(url)
    wait_until(page, "ready")


def texts_of(page: Page, file: Path) -> list[str]:
    texts = []
    for precision in ("float32", "int8"):
        choose(page, precision)
        texts.append(text_of(page, file))
    return texts


def texts_by(model: Path, file: Path) -> list[str]:
    return [transcripts.texts_of([file], model / name)[0] for name in (WAVE_FLOAT_FILE, WAVE_INT8_FILE)]


def test_another_model_at_the_same_address_is_the_one_that_runs(
    browser: Browser, place: Path, other: Path, tmp_path: Path
) -> None:
    sound = place / "float.wav"
    assert texts_by(place / "wave", sound) != texts_by(other, sound)
    page = browser.new_page()
    serve(tmp_path / "model", place / "wave")
    with DemoPage(tmp_path / "model", port=0) as served:
        load(page, served.url)
        assert texts_of(page, sound) == texts_by(place / "wave", sound)
        serve(tmp_path / "model", other)
        load(page, served.url)
        assert page.locator("#source").inner_text() == "other"
        assert texts_of(page, sound) == texts_by(other, sound)
    page.close()


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that the server is asked for."""
    paths: list[str] = []
    answer = export.demo_page._Handler.send_head
    monkeypatch.setattr(
        export.demo_page._Handler,
        "send_head",
        lambda handler: (paths.append(handler.path), answer(handler))[1],
    )
    return paths


def test_the_weights_that_run_are_fetched_and_no_others(
    browser: Browser, place: Path, tmp_path: Path, asked_for: list[str]
) -> None:
    page = browser.new_page()
    serve(tmp_path / "model", place / "wave")
    with DemoPage(tmp_path / "model", port=0) as served:
        load(page, served.url)
        assert [path for path in asked_for if path.endswith(".onnx")] == [f"/model/{WAVE_INT8_FILE}"]
    page.context.set_offline(True)
    assert text_of(page, place / "float.wav") == texts_by(place / "wave", place / "float.wav")[1]
    page.select_option("#precision", "float32")
    assert "model.json cannot be loaded: the server does not answer" in error_of(page)
    assert page.locator("#precision").input_value() == "int8"
    page.close()


@pytest.mark.parametrize(
    ("gone", "kept", "precision"),
    [(WAVE_FLOAT_FILE, WAVE_INT8_FILE, "int8"), (WAVE_INT8_FILE, WAVE_FLOAT_FILE, "float32")],
    ids=["8 bit", "32 bit"],
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_an_export_with_one_of_its_files_runs_by_it(
    browser: Browser, place: Path, tmp_path: Path, gone: str, kept: str, precision: str, named: bool
) -> None:
    page = browser.new_page()
    folder = tmp_path / "model"
    serve(folder, place / "wave")
    (folder / gone).unlink()
    if not named:
        files = json.loads((folder / "model.json").read_text())["files"]
        set_in_card(folder, files={precision: files[precision]})
    (expected,) = transcripts.texts_of([place / "float.wav"], folder / kept)
    with DemoPage(folder, port=0) as served:
        load(page, served.url)
        assert page.locator("#precision").input_value() == precision
        assert page.locator("#precision option").count() == (2 if named else 1)
        assert text_of(page, place / "float.wav") == expected
    page.close()


def test_a_worker_that_an_earlier_version_registered_is_removed(
    browser: Browser, place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sw.js").write_text("")
    monkeypatch.setattr(export.demo_page, "PAGE_FOLDER", folder)
    count = "async () => (await navigator.serviceWorker.getRegistrations()).length"
    page = browser.new_page()
    with DemoPage(place / "wave", port=0) as served:
        load(page, served.url)
        assert page.evaluate(count) == 0
        register = "await navigator.serviceWorker.register('sw.js'); await navigator.serviceWorker.ready;"
        page.evaluate(f"async () => {{ {register} }}")
        load(page, served.url)
        assert page.evaluate(count) == 1  # it may be another program's
        page.evaluate("() => caches.open('kdasr')")
        load(page, served.url)
        page.wait_for_function(f"async () => !(await ({count})()) && !(await caches.has('kdasr'))")
    page.close()


def test_an_export_that_lost_both_of_its_files_is_said_so(
    browser: Browser, place: Path, tmp_path: Path
) -> None:
    serve(tmp_path / "model", place / "wave")
    with DemoPage(tmp_path / "model", port=0) as served:
        for file in (WAVE_FLOAT_FILE, WAVE_INT8_FILE):
            (tmp_path / "model" / file).unlink()
        page = browser.new_page()
        page.goto(served.url)
        assert "model.wave.onnx cannot be loaded (404)" in error_of(page)
        page.close()


def test_weights_that_cannot_be_loaded_leave_the_model_that_is_chosen(
    browser: Browser, place: Path, tmp_path: Path
) -> None:
    page = browser.new_page()
    serve(tmp_path / "model", place / "wave")
    with DemoPage(tmp_path / "model", port=0) as served:
        load(page, served.url)
        (tmp_path / "model" / WAVE_FLOAT_FILE).unlink()
        page.select_option("#precision", "float32")
        assert "model.wave.onnx cannot be loaded" in error_of(page)
        assert page.locator("#precision").input_value() == "int8"
        text = text_of(page, place / "float.wav")
        assert text == texts_by(place / "wave", place / "float.wav")[1]
    page.close()


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def set_in_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: set_in_card(folder, version=99), "of this version"),
        (lambda folder: set_in_card(folder, file_format="onnx"), "not the card of a wave-onnx export"),
        (lambda folder: os.truncate(folder / "model.wave.int8.onnx", 5_000), "5000 bytes, not .*truncated"),
        (lambda folder: change_a_byte(folder / WAVE_INT8_FILE), "from another export than model.json"),
        (
            lambda folder: (folder / "tokens.txt").write_text("<blk> 0\na 1\n"),
            "2 symbols, but the model has 29",
        ),
        (lambda folder: (folder / "tokens.txt").unlink(), "tokens.txt cannot be loaded"),
    ],
    ids=["version", "format", "truncated", "other weights", "tokens", "no tokens"],
)
def test_a_model_that_is_not_whole_is_said_so(
    browser: Browser, place: Path, tmp_path: Path, spoil: Any, message: str
) -> None:
    folder = Path(shutil.copytree(place / "wave", tmp_path / "model"))
    spoil(folder)
    with DemoPage(folder, port=0) as served:
        page = browser.new_page()
        page.goto(served.url)
        assert re.search(message, error_of(page))
        assert page.locator("#microphone").is_disabled()
        page.close()
