"""The page in a headless Chromium gives the text of `kdasr transcribe`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from export.demo_page import DemoPage
from export.parity import probe_sound
from export.publish import export_student
from export.runtime import WAVE_FLOAT_FILE, WAVE_INT8_FILE
from kdasr.error_rates import count_errors
from tests.export.small_models import ALL, UNITS
from tests.export.transcripts import texts_of
from tests.web.pages import choose, error_of, text_of, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.web


@pytest.mark.parametrize("name", ["a.wav", "b.flac"])
def test_a_file_gives_the_text_of_the_command_line(page: Page, place: Path, name: str) -> None:
    choose(page, "float32")
    text = text_of(page, place / name)
    assert len(text) > 10
    for model in ("student", "wave"):
        assert texts_of([place / name], place / model, stream=True) == [text]


@pytest.mark.parametrize("kind", ["conformer", "lstm", "zipformer"])
def test_the_text_is_that_of_the_same_file_in_another_runtime(
    browser: Browser, place: Path, tmp_path: Path, kind: str
) -> None:
    """With 8-bit weights but for a letter: see docs/streaming-export.md."""
    export_student(ALL[kind](), UNITS, tmp_path, format="wave-onnx")
    with DemoPage(tmp_path, port=0) as served:
        page = browser.new_page()
        page.goto(served.url)
        wait_until(page, "ready")
        for precision, file, most in [("int8", WAVE_INT8_FILE, 1), ("float32", WAVE_FLOAT_FILE, 0)]:
            choose(page, precision)
            (expected,) = texts_of([place / "float.wav"], tmp_path / file)
            counts = count_errors([expected], [text_of(page, place / "float.wav")])
            assert counts.char_errors <= most and len(expected) > 20
        page.close()


def test_figures_and_segments_are_shown(page: Page, place: Path) -> None:
    text = text_of(page, place / "a.wav")
    assert page.locator("#segments li span").all_inner_texts() == [text]
    assert page.locator("#latency").inner_text() == "208 ms"
    assert "M parameters" in page.locator("#size-what").inner_text()
    for figure in ("p50", "p95"):
        assert 0 < float(page.locator(f"#{figure}").inner_text().removesuffix(" ms")) < 160
    assert 0 < float(page.locator("#rtf").inner_text().removesuffix(" %")) < 100


def test_a_file_that_is_no_audio_is_said_so(page: Page, place: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_bytes(b"Dear Sir")
    page.set_input_files("#file", tmp_path / "letter.wav")
    assert "letter.wav is not audio" in error_of(page)
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
    (expected,) = texts_of([tmp_path / "odd.wav"], place / "wave")
    assert text_of(page, tmp_path / "odd.wav") == expected


def test_where_no_word_is_heard_it_is_said_so(page: Page, place: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", probe_sound(40, 8), 16_000)
    assert text_of(page, tmp_path / "short.wav") == ""
    assert page.locator("#nothing").is_visible() and page.locator("#copy").is_disabled()
    text_of(page, place / "a.wav")
    assert page.locator("#nothing").is_hidden() and page.locator("#copy").is_enabled()


def test_another_rate_is_resampled(page: Page, tmp_path: Path) -> None:
    """By the browser, whose filter is not ours: the text may differ in a letter."""
    soundfile.write(tmp_path / "narrow.wav", probe_sound(30_000, 1)[::2], 8_000)
    assert len(text_of(page, tmp_path / "narrow.wav")) > 5


def test_silence_is_heard_in_place_of_samples_that_are_no_numbers(
    page: Page, place: Path, tmp_path: Path
) -> None:
    choose(page, "float32")
    sound = probe_sound(40_000, 8)
    sound[[20_000, 30_000]] = 0
    soundfile.write(tmp_path / "odd.wav", sound, 16_000, subtype="FLOAT")
    (expected,) = texts_of([tmp_path / "odd.wav"], place / "wave")
    sound[[20_000, 30_000]] = np.nan, np.inf
    soundfile.write(tmp_path / "odd.wav", sound, 16_000, subtype="FLOAT")
    assert text_of(page, tmp_path / "odd.wav") == expected
    told = error_of(page)
    assert told == "Some samples were NaN or infinite and were replaced by silence"
    assert len(text_of(page, place / "a.wav")) > 10
    wait_until(page, "ready")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (32_768 * probe_sound(40_000, 8), r"not scaled to .* \(their peak is"),
        (np.zeros(0, np.float32), "odd.wav (is not audio|contains no samples)"),
    ],
    ids=["not scaled", "zero length"],
)
def test_audio_that_is_none_is_said_so_and_the_page_goes_on(
    page: Page, place: Path, tmp_path: Path, samples: Any, message: str
) -> None:
    soundfile.write(tmp_path / "odd.wav", samples, 16_000, subtype="FLOAT")
    page.set_input_files("#file", tmp_path / "odd.wav")
    assert re.search(message, error_of(page))
    assert len(text_of(page, place / "a.wav")) > 10
