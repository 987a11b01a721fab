"""A file of any length takes the page's worker time in proportion to it: text is spelt and told once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdasr.decoding import Token
from kdasr.streaming import text_of
from tests.export.small_models import UNITS
from tests.web.node import FRAMES, run, write_model

pytestmark = pytest.mark.web

FRAMES_PER_SECOND = 25
# Words of one piece or several, a mark of a word start alone, and classes that stand for no text.
PIECES = ["<blk>", "▁", "▁a", "▁the", "b", "ing", "'", "<unk>", "[PAD]", "▁", "e"]


def said(minutes: float, num_classes: int, seed: int = 1) -> list[int]:
    """The classes of 12.5 tokens a second, of which every sixth begins a word."""
    random = np.random.default_rng(seed)
    ids = np.zeros(int(60 * FRAMES_PER_SECOND * minutes), np.int64)
    ids[::2] = random.integers(2, num_classes, len(ids) // 2)
    ids[::12] = 1
    return [int(unit) for unit in ids]


@pytest.mark.parametrize("rules", [None, {"minSilence": 0.8, "maxSegment": 6.0}], ids=["file", "live"])
@pytest.mark.parametrize("symbols", [list(UNITS.symbols), PIECES], ids=["characters", "pieces"])
def test_the_text_so_far_is_that_of_all_tokens_spelt_anew(
    folder: Path, symbols: list[str], rules: dict[str, float] | None
) -> None:
    ids = said(1, len(symbols))
    ids[200:230] = ids[700:740] = [0] * 30  # pauses
    ids[300:600] = [2 + unit % 2 for unit in range(300)]
    found = run("spelling.mjs", folder, symbols=symbols, ids=ids, frames=FRAMES, rules=rules, every=1)
    assert found["wrong"] == [] and found["compared"] > 500
    assert (len(found["segments"]) > 8) == (rules is not None)


def test_a_second_of_silence_ends_a_word_as_in_python(folder: Path) -> None:
    spikes = dict(zip((10, 35, 61, 62, 90, 91), map(UNITS.symbols.index, "onit▁a"), strict=True))
    ids = [spikes.get(frame, 0) for frame in range(104)]
    found = run(
        "spelling.mjs", folder, symbols=list(UNITS.symbols), ids=ids, frames=FRAMES, rules=None, every=1
    )
    assert found["wrong"] == []
    expected = text_of([Token(unit, frame, 0.0) for frame, unit in spikes.items()], UNITS, 0.04)
    assert found["segments"][0]["text"] == expected == "on it a"


def test_every_word_is_spelt_a_few_times_however_long_the_file(folder: Path) -> None:
    looked_up = {}
    for minutes in (4, 16):
        ids = said(minutes, UNITS.vocab_size)
        settings = {
            "symbols": list(UNITS.symbols),
            "ids": ids,
            "frames": FRAMES,
            "rules": None,
            "every": 1_000,
        }
        found = run("spelling.mjs", folder, **settings)
        assert found["wrong"] == [] and len(found["segments"][0]["text"]) > 600 * minutes
        looked_up[minutes] = found["lookedUp"] / np.count_nonzero(ids)
    assert looked_up[16] < 8 and looked_up[16] == pytest.approx(looked_up[4], rel=0.05)


def test_of_a_long_file_the_worker_posts_what_is_new(folder: Path) -> None:
    minutes = 16
    ids = said(minutes, UNITS.vocab_size)
    write_model(folder, ids)
    pieces = [{"type": "samples", "all": 0}] * (600 * minutes)
    messages = [{"type": "start", "rules": None}, *pieces, {"type": "finish"}]
    steps = [
        {"messages": [{"type": "load", "precision": None}], "until": "ready"},
        {"messages": messages, "until": "final"},
    ]
    ready, *updates, final = run("worker.mjs", folder, steps=steps)["posted"]
    assert (ready["type"], final["type"]) == ("ready", "final")
    (segment,) = final["segments"]
    assert segment["text"] == UNITS.decode([unit for unit in ids if unit])
    assert all(update["chunks"] for update in updates)
    assert len(updates) <= 60 * minutes * FRAMES_PER_SECOND / FRAMES
    words: list[str] = []
    for news in (update["news"] for update in updates):
        words = [*([] if news["anew"] else words), *news["words"]]
    assert segment["text"].startswith(" ".join([*words, updates[-1]["news"]["open"]]))
    told = sum(len("".join([*update["news"]["words"], update["news"]["open"]])) for update in updates)
    assert len(segment["text"]) < 1.1 * len(" ".join(words)) and told < 4 * len(segment["text"])
