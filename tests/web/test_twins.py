"""What is written in Python and in JavaScript gives the same in both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from export.parity import probe_sound
from kdasr.resampling import resample
from kdasr.streaming import EndpointingSession, EndpointRules, SampleWindows
from kdasr.symbols import TableUnits
from tests.export.small_models import UNITS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.web


def test_segments_end_where_the_command_line_ends_them(page: Page) -> None:
    """The same classes through both sessions: words, pauses, and speech that never pauses."""
    random = np.random.default_rng(8)
    ids = np.repeat(random.integers(0, UNITS.vocab_size, 1_500), 2)
    ids[random.random(3_000) < 0.5] = 0
    ids[600:700] = ids[2_000:2_060] = ids[2_970:] = 0
    ids = np.append(ids, [0, 3, 0, 4, 0, 5, 0, 0, 6, 7])  # in the tail, and beyond it
    model = Scripted(ids)
    session = EndpointingSession(model, UNITS, EndpointRules(0.8, 6.0))
    samples = np.zeros(3_000 * 640, np.float32)
    segments = session.accept(samples) + session.finish()
    assert len(segments) > 15 and segments[-1].text == UNITS.decode([3, 4, 5])
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
    starts = [segment.start_s for segment in segments]
    assert [segment["start"] for segment in found] == pytest.approx(starts)
    # What was said in the tail is in the last frame of the audio.
    assert found[-1]["start"] == pytest.approx(2_999 * 0.04) == segments[-1].start_s


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


def test_classes_that_stand_for_no_text_are_left_out(page: Page) -> None:
    foreign = [
        "a",
        "<unk>",
        "b",
        "<pad>",
        "<s>",
        "|",
        "[PAD]",
        "<|en|>",
        "<",
        "x>",
        "[",
        "1<2>",
        "\u00a0",
        "",
    ]
    units = TableUnits.from_foreign(foreign, foreign.index("<pad>"))
    ids = [*range(1, units.vocab_size), 1, 2, 2, 5, 3, 1]
    found = page.evaluate(
        """async ({ ids, table }) => {
          const { decode, parseTokens } = await import("./session.js");
          return decode(ids.map((id) => ({ id })), parseTokens(table));
        }""",
        {"ids": ids, "table": "".join(f"{symbol} {unit}\n" for unit, symbol in enumerate(units.symbols))},
    )
    assert found == units.decode(ids) == "ab <x>[1<2> a ba"


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000])
def test_pieces_at_another_rate_are_resampled_as_the_whole_is(page: Page, rate_hz: int) -> None:
    sound = probe_sound(7_001, 5)
    found = page.evaluate(
        """async ({ sound, rate }) => {
          const { Resampler } = await import("./resampler.js");
          const resampler = new Resampler(rate, 16000);
          const out = [];
          for (let start = 0, size = 0; start < sound.length; start += size, size += 97) {
            out.push(...resampler.accept(new Float32Array(sound.slice(start, start + size))));
          }
          return [...out, ...resampler.flush()];
        }""",
        {"sound": sound.tolist(), "rate": rate_hz},
    )
    np.testing.assert_allclose(found, resample(sound, rate_hz, 16_000), atol=1e-5)
