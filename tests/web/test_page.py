"""The page in a headless Chromium gives the text of `kdasr transcribe`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np
import pytest
import soundfile

from export.demo_page import DemoPage
from export.parity import probe_sound
from export.publish import export_student
from export.transcribe import transcribe
from kdasr.models import save_model
from kdasr.streaming import EndpointingSession, EndpointRules, SampleWindows
from tests.export.small_models import UNITS, conformer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.web


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    save_model(root / "student", conformer(), UNITS)
    export_student(conformer(), UNITS, root / "wave", format="wave-onnx")
    soundfile.write(root / "a.wav", probe_sound(75_123, 1), 16_000)
    soundfile.write(root / "b.flac", np.stack([probe_sound(50_000, 2)] * 2, 1), 16_000)
    soundfile.write(root / "microphone.wav", probe_sound(160_000, 3), 48_000)
    return root


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    with DemoPage(place / "wave", port=0) as page:
        yield page.url


@pytest.fixture(scope="module")
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


def wait_until(page: Page, state: str) -> None:
    page.wait_for_function(
        "state => [state, 'error'].includes(document.querySelector('#status').dataset.state)", arg=state
    )
    assert page.locator("#status").get_attribute("data-state") == state, page.locator("#status").inner_text()


def choose(page: Page, precision: str) -> None:
    page.select_option("#precision", precision)
    wait_until(page, "ready")


def text_of(page: Page, file: Path) -> str:
    page.evaluate("delete document.body.dataset.text")
    page.set_input_files("#file", file)
    page.wait_for_function("document.body.dataset.text !== undefined")
    return str(page.evaluate("document.body.dataset.text"))


@pytest.mark.parametrize("name", ["a.wav", "b.flac"])
def test_a_file_gives_the_text_of_the_command_line(page: Page, place: Path, name: str) -> None:
    choose(page, "float32")
    text = text_of(page, place / name)
    assert len(text) > 10
    for model in ("student", "wave"):
        assert dict(transcribe([place / name], place / model, stream=True)) == {place / name: text}


def test_8_bit_weights_give_nearly_the_same_text(page: Page, place: Path) -> None:
    """Nearly: activations are rounded to 8 bits, so the last bit of a float, in which processors
    differ, may move a class of this untrained model."""
    choose(page, "int8")
    ((_, expected),) = transcribe([place / "a.wav"], place / "wave" / "model.wave.int8.onnx")
    assert jiwer.cer(expected, text_of(page, place / "a.wav")) < 0.15


def test_figures_and_segments_are_shown(page: Page, place: Path) -> None:
    text = text_of(page, place / "a.wav")
    assert page.locator("#segments li span").all_inner_texts() == [text]
    assert page.locator("#latency").inner_text() == "218 ms"
    assert "M parameters" in page.locator("#size-what").inner_text()
    for figure in ("p50", "p95"):
        assert 0 < float(page.locator(f"#{figure}").inner_text().removesuffix(" ms")) < 160
    assert 0 < float(page.locator("#rtf").inner_text().removesuffix(" %")) < 100


def test_partial_text_appears_while_one_listens_along(page: Page, place: Path) -> None:
    choose(page, "float32")
    page.check("#listen")
    page.set_input_files("#file", place / "a.wav")
    seen = set()
    for _ in range(30):
        page.wait_for_timeout(100)
        seen.add(page.locator("#partial").inner_text())
    assert len(seen - {""}) > 3
    page.wait_for_function("document.body.dataset.text !== undefined")
    ((_, expected),) = transcribe([place / "a.wav"], place / "wave")
    assert page.evaluate("document.body.dataset.text") == expected


def test_listening_along_can_be_stopped(page: Page, place: Path) -> None:
    button = page.locator("#microphone")
    page.check("#listen")
    page.set_input_files("#file", place / "a.wav")
    page.wait_for_function("document.querySelector('#partial').textContent.length > 3")
    assert button.inner_text() == "Stop" and page.locator("#file").is_disabled()
    button.click()
    page.wait_for_function("document.body.dataset.text !== undefined")
    wait_until(page, "ready")
    assert button.inner_text() == "Speak"
    text = str(page.evaluate("document.body.dataset.text"))
    page.uncheck("#listen")
    assert 3 < len(text) < len(text_of(page, place / "a.wav"))


def test_segments_end_where_the_command_line_ends_them(page: Page) -> None:
    """The same classes through both sessions: words, pauses, and speech that never pauses."""
    random = np.random.default_rng(8)
    ids = np.repeat(random.integers(0, UNITS.vocab_size, 1_500), 2)
    ids[random.random(3_000) < 0.5] = 0
    ids[600:700] = ids[2_000:2_060] = 0
    model = Scripted(ids)
    session = EndpointingSession(model, UNITS, EndpointRules(0.8, 6.0))
    samples = np.zeros(3_000 * 640, np.float32)
    segments = session.accept(samples) + session.finish()
    assert len(segments) > 15
    found = page.evaluate(
        """async ({ ids, symbols, size }) => {
          const { Session } = await import("./session.js");
          const model = {
            window: 40, shift: 40, subsampling: 4, vocabSize: symbols.length, initialState: () => 0,
            async step(window, state) {
              const logProbs = new Float32Array(10 * symbols.length);
              for (let i = 0; i < 10; i++) logProbs[i * symbols.length + ids[state + i]] = 1;
              return { logProbs, frames: 10, state: state + 10 };
            },
          };
          const session = new Session(model, symbols, { minSilence: 0.8, maxSegment: 6.0 });
          for (let start = 0; start < size; start += 50_001) {
            await session.accept(new Float32Array(Math.min(50_001, size - start)));
          }
          await session.finish();
          return session.segments;
        }""",
        {"ids": ids.tolist(), "symbols": list(UNITS.symbols), "size": len(samples)},
    )
    assert [segment["text"] for segment in found] == [segment.text for segment in segments]


class Scripted:
    """A `ChunkModel` that says the classes it was given, whatever it hears."""

    window = shift = 40
    subsampling, vocab_size = 4, UNITS.vocab_size

    def __init__(self, ids: np.ndarray[Any, Any]) -> None:
        self._one_hot_tv = np.eye(self.vocab_size, dtype=np.float32)[ids]

    def initial_state(self, batch_size: int = 1) -> int:
        return 0

    def front_end(self) -> SampleWindows:
        return SampleWindows(self.window, self.shift)

    def step(self, window: Any, state: int) -> tuple[np.ndarray[Any, Any], int]:
        return self._one_hot_tv[None, state : state + 10], state + 10


def test_the_microphone_gives_the_text_of_what_it_heard(page: Page, place: Path, tmp_path: Path) -> None:
    choose(page, "float32")
    page.click("#microphone")
    wait_until(page, "listening")
    page.wait_for_function("document.querySelector('#partial').textContent.length > 8", timeout=20_000)
    page.click("#microphone")
    page.wait_for_function("document.body.dataset.text !== undefined")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "heard.wav")
    heard, rate_hz = soundfile.read(tmp_path / "heard.wav", dtype="float32")
    assert rate_hz == 16_000 and len(heard) > 8_000 and np.abs(heard).max() > 0.05
    ((_, expected),) = transcribe([tmp_path / "heard.wav"], place / "wave")
    assert page.evaluate("document.body.dataset.text").replace(" ", "") == expected.replace(" ", "") != ""


def test_the_page_works_without_a_network_once_loaded(page: Page, place: Path) -> None:
    before = text_of(page, place / "a.wav")
    page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    page.wait_for_function("navigator.serviceWorker.controller !== null")
    page.context.set_offline(True)
    page.reload()
    wait_until(page, "ready")
    assert text_of(page, place / "a.wav") == before
    page.context.set_offline(False)


def test_a_file_that_is_no_audio_is_said_so(page: Page, place: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_bytes(b"Dear Sir")
    page.set_input_files("#file", tmp_path / "letter.wav")
    page.wait_for_function("document.querySelector('#status').dataset.state === 'error'")
    assert "letter.wav is not audio" in page.locator("#status").inner_text()
    assert len(text_of(page, place / "a.wav")) > 10


@pytest.mark.parametrize("kind", ["clipped", "silent", "stereo", "one sample"])
def test_odd_audio_gives_the_text_of_the_command_line(
    page: Page, place: Path, tmp_path: Path, kind: str
) -> None:
    choose(page, "float32")
    sound = probe_sound(40_000, 8)
    samples = {
        "clipped": np.clip(50 * sound, -1, 1),
        "silent": np.zeros(16_000, np.float32),
        "stereo": np.stack([sound, sound], axis=1),
        "one sample": sound[:1],
    }
    soundfile.write(tmp_path / "odd.wav", samples[kind], 16_000, subtype="FLOAT")
    ((_, expected),) = transcribe([tmp_path / "odd.wav"], place / "wave")
    assert text_of(page, tmp_path / "odd.wav") == expected


def test_another_rate_is_resampled(page: Page, tmp_path: Path) -> None:
    """By the browser, whose filter is not ours: the text may differ in a letter."""
    soundfile.write(tmp_path / "narrow.wav", probe_sound(30_000, 1)[::2], 8_000)
    assert len(text_of(page, tmp_path / "narrow.wav")) > 5


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.where(np.arange(40_000) == 20_000, np.nan, probe_sound(40_000, 8)), "no numbers"),
        (np.zeros(0, np.float32), "odd.wav (is not audio|holds no samples)"),
    ],
    ids=["NaN", "zero length"],
)
def test_audio_that_is_none_is_said_so_and_the_page_goes_on(
    page: Page, place: Path, tmp_path: Path, samples: Any, message: str
) -> None:
    soundfile.write(tmp_path / "odd.wav", samples, 16_000, subtype="FLOAT")
    page.set_input_files("#file", tmp_path / "odd.wav")
    page.wait_for_function("document.querySelector('#status').dataset.state === 'error'")
    assert re.search(message, page.locator("#status").inner_text())
    assert len(text_of(page, place / "a.wav")) > 10


def set_in_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: set_in_card(folder, version=99), "of this version"),
        (lambda folder: set_in_card(folder, file_format="onnx"), "not the card of a wave-onnx export"),
        (lambda folder: os.truncate(folder / "model.wave.int8.onnx", 5_000), "5000 bytes, not .*truncated"),
        (lambda folder: (folder / "tokens.txt").write_text("<blk> 0\na 1\n"), "2 symbols, but the model 29"),
        (lambda folder: (folder / "tokens.txt").unlink(), "tokens.txt cannot be loaded"),
    ],
    ids=["version", "format", "truncated", "tokens", "no tokens"],
)
def test_a_model_that_is_not_whole_is_said_so(
    browser: Browser, place: Path, tmp_path: Path, spoil: Any, message: str
) -> None:
    folder = Path(shutil.copytree(place / "wave", tmp_path / "model"))
    spoil(folder)
    with DemoPage(folder, port=0) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.wait_for_function("document.querySelector('#status').dataset.state === 'error'")
        assert re.search(message, page.locator("#status").inner_text())
        assert page.locator("#microphone").is_disabled()
        page.close()
