"""A file of any length takes the page's worker time in proportion to it: text is spelt and told once."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.demo_page import PAGE_FOLDER
from kdasr.decoding import Token
from kdasr.streaming import text_of
from kdasr.text import write_tokens_txt
from tests.export.small_models import UNITS

pytestmark = pytest.mark.web

HERE = Path(__file__).parent
FRAMES = 8  # of 40 ms in a chunk
FRAMES_PER_SECOND = 25
# Words of one piece or several, a mark of a word start alone, and classes that stand for no text.
PIECES = ["<blk>", "▁", "▁a", "▁the", "b", "ing", "'", "<unk>", "[PAD]", "▁", "e"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page, in a folder where Node.js takes its files for modules."""
    copy = Path(shutil.copytree(PAGE_FOLDER, tmp_path / "page"))
    (copy / "package.json").write_text('{"type": "module"}')
    return copy


def write_model(folder: Path, ids: list[int]) -> None:
    """Into a copy of the page, a model that says these classes and what runs it."""
    (folder / "ort").mkdir()
    shutil.copyfile(HERE / "runtime_of_classes.mjs", folder / "ort" / "ort.wasm.min.mjs")
    weights = json.dumps({"ids": ids, "frames": FRAMES, "classes": UNITS.vocab_size}).encode()
    figures = {"file": "said.onnx", "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    metadata = {
        "vocab_size": UNITS.vocab_size,
        "T": 4 * FRAMES,
        "decode_chunk_len": 4 * FRAMES,
        "subsampling": 4,
        "state_floats": 0,
        "num_samples": 640 * FRAMES + 240,
    }
    card = {"format": "kdasr-export", "version": 1, "file_format": "wave-onnx", "metadata": metadata}
    (folder / "model").mkdir()
    (folder / "model" / "said.onnx").write_bytes(weights)
    (folder / "model" / "model.json").write_text(json.dumps({**card, "files": {"int8": figures}}))
    write_tokens_txt(UNITS, folder / "model" / "tokens.txt")


def run(program: str, *arguments: object, **given: Any) -> Any:
    node = shutil.which("node")
    assert node, "install Node.js: apt-get install nodejs"
    done = subprocess.run(
        [node, HERE / program, *map(str, arguments)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout)


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
    ready, *updates, final = run("long_file.mjs", folder, 60 * minutes)
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
