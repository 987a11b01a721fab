"""The page's session refuses what Python's refuses, and takes one call after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdasr.decoding import Token
from kdasr.streaming import words_of
from kdasr.symbols import TableUnits
from tests.export.small_models import UNITS
from tests.web.node import FRAMES, run

pytestmark = pytest.mark.web

IDS = [unit for unit in range(1, UNITS.vocab_size) for _ in range(2)] + [0, 2, 0, 3]
PIECES = 25 * len(IDS) // 60


def of_session(folder: Path, code: str, **given: Any) -> Any:
    settings = {"symbols": list(UNITS.symbols), "ids": IDS, "frames": FRAMES, "fails": None, **given}
    return run("session.mjs", folder, code=code, **settings)


WAITING = f"""
  for (let i = 0; i < {PIECES}; i++) await session.accept(piece());
  await session.finish();
  return session.segments;
"""


def test_calls_that_do_not_wait_take_their_turns(folder: Path) -> None:
    expected = of_session(folder, WAITING)
    assert len(expected[0]["text"]) > 20
    code = f"""
      const calls = [];
      for (let i = 0; i < {PIECES}; i++) calls.push(session.accept(piece()));
      await Promise.all([...calls, session.finish()]);
      return session.segments;
    """
    assert of_session(folder, code) == expected


def test_the_caller_may_use_its_buffer_again(folder: Path) -> None:
    code = """
      const heard = [];
      const { step } = session.model;
      session.model.step = (window, state) => {
        heard.push(...window.samples.slice(200, 240));
        return step(window, state);
      };
      const buffer = piece(50);
      const calls = [0, 0, 0, 0].map(() => session.accept(buffer));
      buffer.fill(0);
      await Promise.all(calls);
      return [heard.length, new Set(heard).size, heard[0]];
    """
    assert of_session(folder, code) == [40, 1, 0.5]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ("new Int16Array(1600).fill(3000)", "not a Float32Array"),
        ("Array(1600).fill(0)", "not a Float32Array"),
        ("undefined", "not a Float32Array"),
        ("piece(-10_001)", r"not scaled to [-1, 1] (their peak is 100): "),
        ("piece().fill(NaN, 7, 8)", "contains NaN or infinite samples"),
        ("piece().fill(-Infinity, 7, 8)", "contains NaN or infinite samples"),
    ],
)
def test_a_piece_that_is_refused_is_not_used_and_the_session_goes_on(
    folder: Path, samples: str, message: str
) -> None:
    code = f"""
      const calls = [];
      for (let i = 0; i < {PIECES}; i++) {{
        calls.push(session.accept(piece()));
        if (i === 9) calls.push(session.accept({samples}));
      }}
      const told = await Promise.all([...calls, session.finish()].map(said));
      return [told, session.segments, session.numSamples];
    """
    told, segments, num_samples = of_session(folder, code)
    assert message in told.pop(10) and set(told) == {"done"}
    assert segments == of_session(folder, WAITING) and num_samples == 1_600 * PIECES


def test_a_peak_that_overshoots_is_heard(folder: Path) -> None:
    assert of_session(folder, "return said(session.accept(piece(9_999)));") == "done"


def test_nothing_is_heard_after_the_end(folder: Path) -> None:
    code = f"""
      for (let i = 0; i < {PIECES}; i++) await session.accept(piece());
      const calls = [session.finish(), session.accept(piece()), session.finish()];
      return [await Promise.all(calls.map(said)), session.segments, session.numSamples, session.text];
    """
    told, segments, num_samples, text = of_session(folder, code)
    assert told == ["done", "The stream is finished: start a new session", "done"]
    assert segments == of_session(folder, WAITING) and num_samples == 1_600 * PIECES and text == ""


@pytest.mark.parametrize("at", [40, 0])
def test_where_the_model_fails_the_stream_is_over_and_its_text_is_there(folder: Path, at: int) -> None:
    """That call has the error, and those after it are told why they have none of the text."""
    code = f"""
      const calls = [];
      for (let i = 0; i < {PIECES}; i++) calls.push(session.accept(piece()));
      const told = await Promise.all([...calls, session.finish()].map(said));
      return [told, session.segments, session.news()];
    """
    told, segments, news = of_session(folder, code, fails=at)
    failed = told.index("out of memory")
    assert set(told[:failed]) <= {"done"} and 16 * at // 40 <= failed < PIECES
    assert set(told[failed + 1 :]) == {"The stream was aborted: out of memory"}
    expected = UNITS.decode(range(1, 1 + at // 2))
    assert [segment["text"] for segment in segments] == ([expected] if expected else [])
    assert news == {"anew": True, "words": [], "open": ""}


def test_where_the_tail_fails_the_text_is_there(folder: Path) -> None:
    code = f"""
      for (let i = 0; i < {PIECES}; i++) await session.accept(piece());
      const told = [await said(session.finish()), await said(session.finish())];
      return [told, session.segments[0].text];
    """
    told, text = of_session(folder, code, fails=56)
    assert told == ["out of memory", "The stream was aborted: out of memory"]
    assert text == UNITS.decode(range(1, 29))


TABLE = TableUnits(["<blk>", "▁", "a", "<unk>", "▁b"])


@pytest.mark.parametrize(
    "spikes",
    [
        {3: "▁", 6: "a"},
        {3: "▁b", 6: "a"},
        {3: "a", 6: "▁"},
        {3: "<unk>", 6: "a"},
        {3: "▁", 6: "<unk>", 9: "a"},
        {3: "▁", 6: "<unk>", 9: "▁", 12: "a"},
        {3: "<unk>", 6: "▁b"},
        {3: "<unk>", 40: "a"},
        {3: "▁", 5: "▁", 40: "a"},
    ],
)
def test_a_segment_starts_where_python_says(folder: Path, spikes: dict[int, str]) -> None:
    unit_of = {symbol: unit for unit, symbol in enumerate(TABLE.symbols)}
    tokens = [Token(unit_of[symbol], frame, 0.0) for frame, symbol in spikes.items()]
    ids = [unit_of.get(spikes.get(frame, ""), 0) for frame in range(48)]
    ids += [0] * (-len(ids) % FRAMES)
    (segment,) = of_session(folder, WAITING, symbols=TABLE.symbols, ids=ids)
    word, *_ = words_of(tokens, TABLE)
    assert segment["start"] == pytest.approx(word.start_s)
