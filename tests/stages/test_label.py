"""The stage that labels: what it raises, and what it says, when all is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdasr import stages
from kdasr.errors import SoftLabelError
from kdasr.labelling import DurationLimits, Settings
from tests.labelling.tiny import TinySource, make_audio

NOTHING = Settings(filters=(DurationLimits(min_seconds=100),))


def run(folder: Path, settings: Settings, num_shards: int = 1) -> None:
    stages.label(
        teacher=TinySource(),  # type: ignore[arg-type]
        audio=str(folder / "audio"),
        out=str(folder / "labels"),
        settings=settings,
        device="cpu",
        num_shards=num_shards,
    )


def test_a_job_in_which_nothing_got_labels_ends_with_the_reasons_whenever_it_is_run(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 12, per_shard=4)
    said = []
    for _ in range(2):
        with pytest.raises(SoftLabelError, match="labels: no utterance received labels") as caught:
            run(tmp_path, NOTHING)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "got filtered: " in said[0] and "(12 utterances). Use filters that keep more" in said[0]
    assert "--overwrite true" in said[0]


def test_a_part_of_an_array_may_have_nothing_to_keep(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 12, per_shard=4)
    run(tmp_path, NOTHING, num_shards=2)


def test_a_job_of_which_a_little_is_kept_has_labels(tmp_path: Path) -> None:
    make_audio(tmp_path / "audio", 12, per_shard=4)
    run(tmp_path, Settings(filters=(DurationLimits(min_seconds=1.3),)))


def test_what_a_recipe_says_reaches_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(**settings: Any) -> None:
        raise InterruptedError(settings)

    monkeypatch.setattr(stages, "label_shards", job)
    said: dict[str, Any] = {
        "teacher": TinySource(), "audio": "audio", "out": "labels", "settings": NOTHING, "engine": "pool",
        "workers": 3, "device": "cpu", "shard_index": 2, "num_shards": 5, "verify": True, "overwrite": True,
        "ray_address": "auto",
    }  # fmt: skip
    with pytest.raises(InterruptedError) as stop:
        stages.label(**said, log="log")
    assert stop.value.args[0] == {**said, "log": Path("log")}
