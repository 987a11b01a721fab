"""The page's worker: what it holds of models, and what it tells of a recording that an error ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.export.small_models import UNITS
from tests.web.node import run, write_model

pytestmark = pytest.mark.web

IDS = [unit for unit in range(1, UNITS.vocab_size) for _ in range(2)]
START = {"type": "start", "rules": None}
PIECE = {"type": "samples", "all": 0}
FINISH = {"type": "finish"}


def step(*messages: dict[str, Any], until: str) -> dict[str, Any]:
    return {"messages": messages, "until": until}


def load(precision: str, until: str = "ready") -> dict[str, Any]:
    return step({"type": "load", "precision": precision}, until=until)


def text_of(final: dict[str, Any]) -> str:
    assert final["type"] == "final"
    return " ".join(segment["text"] for segment in final["segments"])


def test_one_model_is_held_however_often_another_is_loaded(folder: Path) -> None:
    write_model(folder, IDS, {"int8": None, "float32": None})
    steps = [load("int8"), load("float32"), load("float32"), load("int8")]
    heard = run("worker.mjs", folder, steps=[*steps, step(START, *[PIECE] * 40, FINISH, until="final")])
    assert heard["held"] == [1] * 5
    assert text_of(heard["posted"][-1]) == UNITS.decode(range(1, UNITS.vocab_size))


def test_a_model_that_fails_is_not_held_and_the_one_before_it_runs(folder: Path) -> None:
    write_model(folder, IDS, {"int8": None, "float32": 0})
    steps = [load("float32", "error"), load("int8"), load("float32", "error"), load("float32", "error")]
    heard = run("worker.mjs", folder, steps=[*steps, step(START, *[PIECE] * 40, FINISH, until="final")])
    assert heard["held"] == [0, 1, 1, 1, 1]
    assert heard["posted"][0]["message"] == "out of memory"
    assert text_of(heard["posted"][-1]) == UNITS.decode(range(1, UNITS.vocab_size))


@pytest.mark.parametrize(
    ("fails", "last", "frames", "message"),
    [
        (16, PIECE, 16, "out of memory"),
        # What waits for its window is heard too, and the tail: of the 1.6 s before it, and 0.32 s.
        (None, {"type": "samples", "all": 1_000}, 48, "not scaled"),
        (40, FINISH, 40, "out of memory"),
    ],
    ids=["model", "samples", "tail"],
)
def test_what_was_heard_before_an_error_is_told_before_it(
    folder: Path, fails: int | None, last: dict[str, Any], frames: int, message: str
) -> None:
    write_model(folder, IDS, {"int8": fails})
    ended = step(START, *[PIECE] * 16, last, *[PIECE] * 2, FINISH, until="error")
    after = step(START, *[PIECE] * 3, FINISH, until="final")
    posted = run("worker.mjs", folder, steps=[load("int8"), ended, after])["posted"]
    types = [message["type"] for message in posted]
    assert types.count("error") == 1 and types.count("final") == 2
    at = types.index("error")
    assert message in posted[at]["message"]
    assert text_of(posted[at - 1]) == UNITS.decode(range(1, 1 + frames // 2))
    assert text_of(posted[-1]) == UNITS.decode(range(1, 9))
