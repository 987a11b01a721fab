"""The page listens: to a microphone, and along with a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from export.demo_page import PAGE_FOLDER
from export.sources import pieces_of
from export.transcribe import open_recogniser
from kdasr.streaming import EndpointRules
from tests.export.transcripts import texts_of
from tests.web.pages import choose, error_of, final_text, text_of, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.web


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
    (expected,) = texts_of([place / "a.wav"], place / "wave")
    assert all(expected.startswith(text) for text in seen)
    assert page.evaluate("document.body.dataset.text") == expected


def test_what_the_worker_tells_bit_by_bit_is_put_together(browser: Browser, url: str, place: Path) -> None:
    page = browser.new_context().new_page()
    page.add_init_script(
        "window.Worker = class extends Worker { constructor(...a) { super(...a); window.worker = this; } };"
    )
    page.goto(url)
    wait_until(page, "ready")
    text_of(page, place / "a.wav")
    told: list[tuple[Any, list[str]]] = [
        ({"anew": True, "words": [], "open": "on"}, ["on"]),
        ({"anew": True, "words": ["one"], "open": "t"}, ["one t"]),
        ({"anew": False, "words": [], "open": "tw"}, ["one tw"]),
        ({"anew": False, "words": ["two three"], "open": ""}, ["one two three"]),
        (
            {"anew": False, "words": ["four"] * 99, "open": "f"},
            ["one two three" + " four" * 97, "four four f"],
        ),
        ({"anew": True, "words": [], "open": ""}, [""]),
        ({"anew": True, "words": [], "open": "ne"}, ["ne"]),
    ]
    for news, paragraphs in told:
        page.evaluate(
            "data => worker.dispatchEvent(new MessageEvent('message', { data }))",
            {"type": "update", "news": news, "segments": [], "chunks": [], "seconds": 1},
        )
        found = page.locator("#partial > span").all_text_contents()
        assert [text.strip() for text in found] == paragraphs
    page.context.close()


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


def start_listening(page: Page) -> None:
    page.evaluate("delete document.body.dataset.text")
    page.click("#microphone")
    wait_until(page, "listening")
    page.wait_for_function("document.querySelector('#partial').textContent.length > 8", timeout=20_000)


def heard_by(page: Page, folder: Path) -> Path:
    """Stops listening and saves what was heard."""
    page.click("#microphone")
    final_text(page)
    return saved(page, folder)


def saved(page: Page, folder: Path) -> Path:
    """What was heard, as it is saved."""
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(folder / "heard.wav")
    return folder / "heard.wav"


def assert_heard(page: Page, place: Path, file: Path) -> None:
    """The page's text is that of `kdasr transcribe`, which is given the same samples as a stream."""
    heard, rate_hz = soundfile.read(file, dtype="float32")
    assert rate_hz == 16_000 and len(heard) > 8_000 and np.abs(heard).max() > 0.05
    pieces = pieces_of(heard)
    transcripts = open_recogniser(place / "wave").listen(pieces, "microphone", EndpointRules())
    expected = [transcript.text for transcript in transcripts if transcript.final]
    assert page.locator("#segments span").all_inner_texts() == expected != []
    assert final_text(page) == " ".join(expected)


def test_the_microphone_gives_the_text_of_what_it_heard(page: Page, place: Path, tmp_path: Path) -> None:
    choose(page, "float32")
    start_listening(page)
    assert_heard(page, place, heard_by(page, tmp_path))


def test_a_microphone_that_takes_its_own_rate_alone_is_resampled(
    page: Page, place: Path, tmp_path: Path
) -> None:
    """As Firefox may refuse a microphone to a context of another rate."""
    page.evaluate(CONTEXTS, "context => context.sampleRate === 16000")
    choose(page, "float32")
    start_listening(page)
    heard = heard_by(page, tmp_path)
    assert page.evaluate("contexts.map((context) => [context.sampleRate === 16000, context.state])") == [
        [True, "closed"],
        [False, "closed"],
    ]
    assert_heard(page, place, heard)


def test_a_microphone_that_fails_is_let_go(page: Page) -> None:
    page.evaluate(CONTEXTS, "() => true")
    page.click("#microphone")
    assert "The microphone cannot be used: refused" in error_of(page)
    assert page.evaluate("contexts.map((context) => context.state)") == ["closed", "closed"]
    assert page.evaluate("contexts[0].stream.getTracks().map((track) => track.readyState)") == ["ended"]
    assert page.locator("#microphone").is_enabled()


def test_a_microphone_that_is_taken_away_ends_what_is_heard(page: Page, place: Path, tmp_path: Path) -> None:
    page.evaluate(CONTEXTS, "() => false")
    choose(page, "float32")
    start_listening(page)
    page.evaluate(
        """() => {
          const [track] = contexts[0].stream.getTracks();
          track.stop(); // which alone tells nobody
          track.dispatchEvent(new Event("ended"));
        }"""
    )
    assert error_of(page) == "The microphone has stopped: its audio is kept"
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "heard.wav")
    assert_heard(page, place, tmp_path / "heard.wav")
    assert page.evaluate("contexts[0].state") == "closed"
    assert page.locator("#microphone").inner_text() == "Speak"
    assert len(text_of(page, place / "a.wav")) > 3
    wait_until(page, "ready")


def test_audio_that_is_interrupted_is_started_again(page: Page, place: Path, tmp_path: Path) -> None:
    page.evaluate(CONTEXTS, "() => false")
    page.evaluate(PIECES)
    choose(page, "float32")
    start_listening(page)
    page.evaluate(
        """() => {
          const [context] = contexts;
          const again = () => AudioContext.prototype.resume.call(context);
          context.resume = () => new Promise((resolve) => (window.allow = () => again().then(resolve)));
          return context.suspend();
        }"""
    )
    wait_until(page, "interrupted")
    assert page.locator("#status").inner_text() == "the microphone is interrupted"
    assert page.locator("#microphone").inner_text() == "Stop"
    before = page.evaluate("window.pieces")
    page.evaluate("allow()")
    wait_until(page, "listening")
    page.wait_for_function("before => window.pieces > before + 3", arg=before)
    assert page.evaluate("contexts[0].state") == "running"
    assert_heard(page, place, heard_by(page, tmp_path))


def test_audio_that_stays_interrupted_can_be_ended(page: Page, place: Path, tmp_path: Path) -> None:
    page.evaluate(CONTEXTS, "() => false")
    choose(page, "float32")
    start_listening(page)
    page.evaluate(
        """() => {
          contexts[0].resume = () => new Promise(() => {});
          MessagePort.prototype.postMessage = () => {}; // the audio thread hears of nothing
          return contexts[0].suspend();
        }"""
    )
    wait_until(page, "interrupted")
    assert_heard(page, place, heard_by(page, tmp_path))
    wait_until(page, "ready")
    assert page.evaluate("contexts[0].state") == "closed"


def test_audio_that_cannot_be_started_again_ends_what_is_heard(
    page: Page, place: Path, tmp_path: Path
) -> None:
    page.evaluate(CONTEXTS, "() => false")
    choose(page, "float32")
    start_listening(page)
    page.evaluate(
        """() => {
          contexts[0].resume = () => Promise.reject(new DOMException("no", "InvalidStateError"));
          return contexts[0].suspend();
        }"""
    )
    assert error_of(page) == "The microphone has stopped: its audio is kept"
    assert_heard(page, place, saved(page, tmp_path))
    assert page.evaluate("contexts[0].state") == "closed"
    assert page.locator("#microphone").inner_text() == "Speak"


def test_a_microphone_that_is_muted_is_said_so(page: Page) -> None:
    page.evaluate(CONTEXTS, "() => false")
    start_listening(page)
    for muted, state, text in [
        (True, "interrupted", "the microphone is muted"),
        (False, "listening", "listening"),
    ]:
        page.evaluate(
            """muted => {
              const [track] = contexts[0].stream.getTracks();
              Object.defineProperty(track, "muted", { value: muted, configurable: true });
              track.dispatchEvent(new Event(muted ? "mute" : "unmute"));
            }""",
            muted,
        )
        wait_until(page, state)
        assert page.locator("#status").inner_text() == text


# Counts the pieces that the worker is given, and gives it what `window.spoil` makes of them.
PIECES = """() => {
  window.pieces = 0;
  const post = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message) {
    if (message.samples) window.pieces++;
    if (message.samples && window.spoil) message = { ...message, samples: message.samples.map(spoil) };
    post.call(this, message);
  };
}"""


def test_a_sample_that_is_no_number_costs_no_word(page: Page, place: Path, tmp_path: Path) -> None:
    page.evaluate(CONTEXTS, "() => false")
    page.evaluate(
        """() => {
          window.AudioWorkletNode = class extends AudioWorkletNode {
            constructor(...given) {
              super(...given);
              window.node = this;
            }
          };
        }"""
    )
    choose(page, "float32")
    start_listening(page)
    page.evaluate(
        """() => {
          const source = contexts[0].createBufferSource();
          source.buffer = contexts[0].createBuffer(1, 400, 16000);
          source.buffer.getChannelData(0)[200] = NaN;
          source.connect(node);
          source.start();
        }"""
    )
    page.wait_for_function("document.querySelector('#status').textContent.includes('silenced')")
    assert page.locator("#status").get_attribute("data-state") == "listening"
    heard = heard_by(page, tmp_path)
    assert "Some samples were NaN or infinite" in error_of(page)
    assert_heard(page, place, heard)


def test_what_was_heard_before_an_error_is_kept(page: Page, place: Path, tmp_path: Path) -> None:
    page.evaluate(PIECES)
    choose(page, "float32")
    start_listening(page)
    page.evaluate("window.spoil = () => 1000")
    assert "not scaled" in error_of(page)
    page.evaluate("window.spoil = null")
    assert page.locator("#copy").is_enabled()
    heard, _ = soundfile.read(saved(page, tmp_path), dtype="float32")
    assert len(heard) > 8_000 and np.abs(heard).max() > 0.05
    shown = page.locator("#segments span").all_inner_texts()
    assert final_text(page) == " ".join(shown) and len(final_text(page)) > 8
    assert page.locator("#microphone").inner_text() == "Speak"
    assert len(text_of(page, place / "a.wav")) > 3


# Keeps every context in `contexts`, and has those refuse a stream for which `refuses` says so.
CONTEXTS = """refuses => {
  refuses = eval(refuses);
  window.contexts = [];
  window.AudioContext = class extends AudioContext {
    constructor(options) {
      super(options);
      contexts.push(this);
    }
    createMediaStreamSource(stream) {
      this.stream = stream;
      if (refuses(this)) throw new DOMException("refused", "NotSupportedError");
      return super.createMediaStreamSource(stream);
    }
  };
}"""


def test_the_end_of_a_recording_that_failed_does_not_end_the_next(
    page: Page, place: Path, tmp_path: Path
) -> None:
    page.evaluate(
        """() => {
          const { postMessage } = MessagePort.prototype;
          MessagePort.prototype.postMessage = function (message) {
            setTimeout(() => postMessage.call(this, message), 400); // the microphone stops late
          };
          const post = Worker.prototype.postMessage;
          Worker.prototype.postMessage = function (message) {
            if (window.spoil && message.samples) message.samples[0] = NaN;
            post.call(this, message);
          };
        }"""
    )
    choose(page, "float32")
    start_listening(page)
    page.evaluate("window.spoil = true")
    assert "The audio contains NaN or infinite samples" in error_of(page)
    page.evaluate("window.spoil = false")
    page.click("#microphone")
    wait_until(page, "listening")
    page.wait_for_timeout(1_000)
    assert page.locator("#status").get_attribute("data-state") == "listening"
    assert_heard(page, place, heard_by(page, tmp_path))


def test_the_microphone_gives_50_pieces_a_second_and_10_bars_of_loudness(
    browser: Browser, url: str, place: Path, tmp_path: Path
) -> None:
    """A piece that comes late makes the text later. With a small bound in place of ten minutes."""
    page = browser.new_context(permissions=["microphone"]).new_page()
    script = (PAGE_FOLDER / "app.js").read_text()
    assert "KEPT_SAMPLES = 600 * RATE" in script
    script = script.replace("KEPT_SAMPLES = 600 * RATE", "KEPT_SAMPLES = RATE") + "window.levels = levels;"
    page.route("**/app.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    page.goto(url)
    wait_until(page, "ready")
    page.evaluate(
        """() => {
          window.sizes = [];
          const post = Worker.prototype.postMessage;
          Worker.prototype.postMessage = function (message) {
            if (message.samples) sizes.push(message.samples.length);
            post.call(this, message);
          };
        }"""
    )
    page.click("#microphone")
    page.wait_for_function("window.sizes.length >= 101", timeout=20_000)
    sizes, bars = page.evaluate("[sizes.slice(), levels.values.slice()]")
    assert set(sizes) == {320} and len(bars) == len(sizes) // 5
    assert max(bars) > 0.3
    kept, _ = soundfile.read(heard_by(page, tmp_path), dtype="float32")
    assert 15_680 < len(kept) <= 16_000
    page.context.close()


def test_of_a_long_recording_the_end_is_kept(browser: Browser, url: str, place: Path, tmp_path: Path) -> None:
    """With small bounds in place of ten minutes and a thousand chunks."""
    page = browser.new_context().new_page()
    script = (PAGE_FOLDER / "app.js").read_text()
    for before, after in [
        ("KEPT_SAMPLES = 600 * RATE", "KEPT_SAMPLES = 2 * RATE"),
        ("KEPT_CHUNKS = 1000", "KEPT_CHUNKS = 5"),
    ]:
        assert before in script
        script = script.replace(before, after)
    page.route("**/app.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    page.goto(url)
    wait_until(page, "ready")
    text_of(page, place / "float.wav")
    assert page.locator("#save").inner_text() == "Save the last 10 minutes"
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "heard.wav")
    sound, _ = soundfile.read(place / "float.wav", dtype="float32")
    kept, _ = soundfile.read(tmp_path / "heard.wav", dtype="float32")
    assert np.array_equal(kept, sound[-len(kept) :]) and 19 * 1_600 < len(kept) <= 20 * 1_600
    page.context.close()
