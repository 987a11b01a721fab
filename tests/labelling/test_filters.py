"""Filters and selection: confidence by hand, reasons by name, budgets kept."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdasr.cli import main
from kdasr.errors import ConfigError, LabelMismatchError, SoftLabelError
from kdasr.interfaces import Utterance
from kdasr.labelling import (
    DurationLimits,
    Filter,
    Languages,
    MaxUnitRate,
    MinConfidence,
    MinSpikes,
    Settings,
    label,
    select,
    selection,
    shard_job,
    verify_labels,
)
from kdasr.labelling.filters import MEASURES, Measure, confidence, own_scale, score, threshold
from kdasr.labelling.selection import _choose
from kdasr.shards import open_shard, read_shard, write_shards
from kdasr.soft_labels import Full, TopP, open_label_shard
from kdasr.text import load_units
from tests.labelling.tiny import TinySource, make_audio

LABELS = Full().encode(torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.9, 0.05, 0.05]]).log())


def test_labels_without_frames_are_sure_of_nothing() -> None:
    nothing = Full().encode(torch.zeros(0, 3))
    assert score(nothing, "entropy") == -math.inf and score(nothing, "best_path") == 0
    assert MinConfidence(0.5, "entropy").after(nothing, 1.0) is not None


def test_limits_that_no_header_could_say_are_refused() -> None:
    for limits in ({"max_seconds": math.inf}, {"min_seconds": 3, "max_seconds": 2}, {"min_seconds": -1}):
        with pytest.raises(ConfigError, match="DurationLimits: invalid duration limits"):
            DurationLimits(**limits)
    with pytest.raises(ConfigError, match="threshold"):
        MinConfidence(math.nan)
    with pytest.raises(ConfigError, match="invalid lengths of overlap, window or batch"):
        Settings(batch_seconds=math.inf)
    with pytest.raises(
        ConfigError, match=r"in whole frames of this teacher, .*; expected 0\.08 s of difference"
    ):
        Settings(window_seconds=5.0, overlap_seconds=4.99).check_windows(4)


def test_confidence_is_hand_computable() -> None:
    found = confidence(LABELS)
    assert found.best_path == pytest.approx((0.8 * 0.5 * 0.9) ** (1 / 3))
    assert found.spikes == pytest.approx(0.5)
    assert found.num_spikes == 1
    rows = [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.9, 0.05, 0.05]]
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for row in rows for p in row) / 3)
    assert score(LABELS, "entropy") == -found.entropy


def test_the_tail_counts_as_one_class_and_silence_has_no_spikes() -> None:
    labels = TopP(mass=0.5, cap=1, step_nats=0.0).encode(torch.tensor([[0.7, 0.2, 0.1]]).log())
    assert confidence(labels).entropy == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)))
    assert confidence(labels)[1] == 0.0
    no_frames = Full().encode(torch.zeros(0, 3))
    assert confidence(no_frames) == (0, 0, math.inf, 0)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (MinConfidence(0.8), "best_path 0.711 < 0.8"),
        (MinConfidence(0.7), None),
        (MinConfidence(0.6, "spikes"), "spikes 0.500 < 0.6"),
        (MinConfidence(0.5, "entropy"), "entropy 0.688 > 0.5"),
        # One in three frames, whether they are of 40 ms or of any other length.
        (MinSpikes(per_second=9), "8.33 non-blank frames per second < 9"),
        (MinSpikes(per_second=8), None),
        (DurationLimits(), None),
    ],
)
def test_filters_say_why(item: Filter, reason: str | None) -> None:
    found = item.after(LABELS, 0.12)
    assert found == reason if reason is None else reason in str(found)


def test_duration_limits_need_no_labels() -> None:
    limits = DurationLimits(1.0, 20.0)
    assert limits.before(0.5) == "filtered: 0.50 s is not within 1 to 20 s"
    assert limits.before(21) is not None and limits.before(5) is None
    assert limits.before(1.0) is limits.before(20.0) is DurationLimits(3.0, 3.0).before(3.0) is None


@pytest.mark.parametrize(
    ("language", "reason"),
    [
        ("en", None),
        ("EN-gb", None),
        ("pt-BR", None),
        ("pt", "filtered: its language is pt, not en or pt-BR"),
        ("eng", "filtered: its language is eng, not en or pt-BR"),
        (None, "filtered: its language is unknown"),
    ],
)
def test_languages_are_told_by_their_tags(language: str | None, reason: str | None) -> None:
    assert Languages(["en", "pt-BR"]).before(1.0, language) == reason


def test_speech_of_an_unknown_language_may_be_kept_and_no_languages_are_refused() -> None:
    assert Languages(("en",), keep_unknown=True).before(1.0, None) is None
    for nothing in ("en", ()):
        with pytest.raises(ConfigError, match="not a list of languages"):
            Languages(nothing)


def test_a_job_drops_other_languages_unheard_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.full(16_000, 0.1, np.float32)
    spoken = {"a": "en", "b": "de", "c": None, "d": "en-GB"}
    items = [Utterance(key, noise, language=language) for key, language in spoken.items()]
    (shard,) = write_shards(items, tmp_path / "audio")
    assert [one.language for one in read_shard(shard)] == ["en", "de", None, "en-GB"]
    decoded: list[str] = []
    original = shard_job.read_utterance

    def read_utterance(shard: Any, entry: Any) -> Utterance:
        decoded.append(entry.key)
        return original(shard, entry)

    monkeypatch.setattr(shard_job, "read_utterance", read_utterance)
    summary = run(tmp_path / "audio", tmp_path / "out", Languages(["en"]))
    assert summary["failed"] == {
        "b": "filtered: its language is de, not en",
        "c": "filtered: its language is unknown",
    }
    assert sorted(decoded) == ["a", "d"]
    manifest = json.loads((tmp_path / "out" / "shard-000000.json").read_text())
    assert manifest["failed"] == [list(item) for item in summary["failed"].items()]
    assert ["language", {"keep": ["en"], "keep_unknown": False}] in manifest["header"]["settings"]["filters"]


def test_unknown_measures_are_refused() -> None:
    with pytest.raises(ConfigError, match="loudness"):
        MinConfidence(0.5, "loudness")  # type: ignore[arg-type]


def test_what_nobody_could_have_spoken_is_dropped() -> None:
    rows = [
        [0.1, 0.8, 0.1],
        [0.1, 0.8, 0.1],
        [0.8, 0.1, 0.1],
        [0.1, 0.8, 0.1],
        [0.1, 0.1, 0.8],
        [0.8, 0.1, 0.1],
    ]
    labels = Full().encode(torch.tensor(rows).log())
    assert MaxUnitRate(30).after(labels, 0.1) is None  # 1, 1 again after blank, 2
    assert MaxUnitRate(30).after(labels, 0.09) == "filtered: 33.3 units per second > 30"
    assert MaxUnitRate().after(Full().encode(torch.zeros(0, 3)), 1.0) is None


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    make_audio(tmp_path / "audio", 12, per_shard=4)
    return tmp_path / "audio"


def run(audio: Path, out: Path, *filters: Filter) -> dict[str, Any]:
    return label(teacher=TinySource(), audio=audio, out=out, settings=Settings(filters=filters))


def test_filters_of_a_job_drop_with_reasons_and_are_part_of_its_configuration(
    audio: Path, tmp_path: Path
) -> None:
    seconds = {e.key: e.num_samples / 16000 for p in audio.glob("*.tar") for e in open_shard(p).entries}
    long = {key for key, value in seconds.items() if value > 1.0}
    assert 0 < len(long) < 12
    summary = run(audio, tmp_path / "labels", DurationLimits(max_seconds=1.0))
    assert set(summary["failed"]) == long
    assert all("not within 0 to 1 s" in reason for reason in summary["failed"].values())
    header = open_label_shard(tmp_path / "labels" / "shard-000000.kdsl").header
    assert header.settings["filters"] == [["duration", {"min_seconds": 0.0, "max_seconds": 1.0}]]
    with pytest.raises(LabelMismatchError, match="settings"):
        run(audio, tmp_path / "labels")


def best_paths(labels: Path) -> dict[str, float]:
    """The confidence in every utterance that has labels, by its key."""
    return {
        key: confidence(item).best_path
        for path in sorted(labels.glob("*.kdsl"))
        for key, item in open_label_shard(path)
    }


def test_a_confidence_filter_keeps_what_is_above_it(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "all")
    scores = best_paths(tmp_path / "all")
    middle = float(np.median(list(scores.values())))
    summary = run(audio, tmp_path / "sure", MinConfidence(middle))
    assert set(summary["failed"]) == {key for key, value in scores.items() if value < middle}


def test_a_selection_holds_the_surest_hours_and_names_the_rest(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "all")
    total_s = sum(open_shard(path).seconds for path in audio.glob("*.tar"))
    budget = total_s / 2 / 3600
    chosen = select(audio=audio, labels=tmp_path / "all", out=tmp_path / "best", hours=budget)
    assert chosen.chosen + chosen.dropped == 12 and chosen.dropped > 0
    assert budget - 1.5 / 3600 < chosen.hours <= budget
    assert chosen.hours_before == pytest.approx(total_s / 3600)
    kept: list[float] = []
    dropped: list[float] = []
    for path in sorted((tmp_path / "all").glob("*.kdsl")):
        best = open_label_shard(tmp_path / "best" / path.name, verify=True)
        for key, item in open_label_shard(path):
            (kept if key in best else dropped).append(confidence(item).best_path)
            if key in best:
                assert np.array_equal(best.read(key).log_probs, item.log_probs)
            else:
                assert "not selected: best_path" in best.failures[key]
        assert best.header.settings["selection"]["measure"] == "best_path"
    assert min(kept) >= max(dropped)
    assert verify_labels(audio, tmp_path / "best") == []
    assert load_units(tmp_path / "best").hash == load_units(tmp_path / "all").hash


def test_a_budget_is_used_to_the_last_second_and_equal_scores_in_their_order() -> None:
    seconds, scores = np.array([2.0, 1.0, 2.0, 2.0, 9.0]), np.array([0.5, 0.9, 0.5, 0.5, 0.4])
    chosen, lowest = _choose(seconds, scores, 5.0)
    assert (chosen.tolist(), lowest) == ([True, True, True, False, False], 0.5)
    chosen, lowest = _choose(seconds, scores, 0.5)
    assert (int(chosen.sum()), lowest) == (0, math.inf)


def test_what_has_no_labels_takes_no_place_among_the_scores(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "raw")
    scores = best_paths(tmp_path / "raw")
    weakest = sorted(scores.values())[4]
    assert len(run(audio, tmp_path / "all", MinConfidence(weakest))["failed"]) == 4
    seconds = {e.key: e.num_samples / 16_000 for p in audio.glob("*.tar") for e in open_shard(p).entries}
    surest = sorted(scores, key=scores.__getitem__)[-4:]
    hours = (sum(seconds[key] for key in surest) + 0.001) / 3600
    select(audio=audio, labels=tmp_path / "all", out=tmp_path / "best", hours=hours)
    kept = {key for path in (tmp_path / "best").glob("*.kdsl") for key, _ in open_label_shard(path)}
    assert kept == set(surest)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_figures_of_a_selection_are_those_of_a_filter(
    measure: Measure, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(audio, tmp_path / "all")
    budget = sum(open_shard(path).seconds for path in audio.glob("*.tar")) / 2 / 3600
    place = ["--audio", str(audio), "--labels", str(tmp_path / "all"), "--out", str(tmp_path / "best")]
    assert main(["select", *place, "--hours", str(budget), "--measure", measure]) == 0
    said = re.search(rf"; their {measure} is (at most|at least) ([\d.]+)\n", capsys.readouterr().out)
    assert said is not None and (said[1] == "at most") == (measure == "entropy")
    keeps = MinConfidence(float(said[2]), measure)
    not_at_all = MinConfidence(0.0 if measure == "entropy" else 1.0, measure)
    for path in sorted((tmp_path / "all").glob("*.kdsl")):
        best = open_label_shard(tmp_path / "best" / path.name)
        for key, item in open_label_shard(path):
            assert not_at_all.after(item, 1.0) is not None
            if key in best:
                assert keeps.after(item, 1.0) is None
                continue
            found = float(getattr(confidence(item), measure))
            assert best.failures[key].startswith(f"not selected: {measure} {found:.4f}, but {said[1]} ")
            least = re.search(
                rf", but {said[1]} ([\d.]+) in the most confident [\d.]+ h$", best.failures[key]
            )
            assert least is not None and float(least[1]) == pytest.approx(float(said[2]), abs=1.1e-3)
            assert found >= float(least[1]) if measure == "entropy" else found <= float(least[1])


def test_scores_are_turned_back_into_thresholds_that_keep_them() -> None:
    assert own_scale(-0.6881, "entropy") == 0.6881 and own_scale(0.9, "spikes") == 0.9
    assert threshold(-0.6881, "entropy") == 0.689 and threshold(0.9119, "best_path") == 0.911
    assert f"{own_scale(0.0, 'entropy'):.3f}" == "0.000", "and no -0"
    assert threshold(-math.inf, "entropy") == math.inf


def test_a_budget_larger_than_what_there_is_keeps_everything(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "all")
    chosen = select(
        audio=audio, labels=tmp_path / "all", out=tmp_path / "best", hours=1000, measure="entropy"
    )
    assert (chosen.chosen, chosen.dropped) == (12, 0)


def test_a_selection_without_budget_or_folder_of_its_own_is_refused(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "all")
    with pytest.raises(ConfigError, match="budget"):
        select(audio=audio, labels=tmp_path / "all", out=tmp_path / "best", hours=0)
    with pytest.raises(ConfigError, match="budget"):
        select(audio=audio, labels=tmp_path / "all", out=tmp_path / "best", hours=float("nan"))
    scores = best_paths(tmp_path / "all")
    seconds = {e.key: e.num_samples / 16_000 for p in audio.glob("*.tar") for e in open_shard(p).entries}
    least = f"{seconds[max(scores, key=scores.__getitem__)] / 3600:.5f} or more"
    with pytest.raises(
        ConfigError,
        match=rf"hours: no utterance can be selected within this budget; expected {least}, for the most",
    ):
        select(audio=audio, labels=tmp_path / "all", out=tmp_path / "best", hours=1e-6)
    assert not (tmp_path / "best").exists()
    before = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    # Whatever the way to it.
    (tmp_path / "link").symlink_to(tmp_path / "all")
    for folder in (tmp_path / "all", f"{tmp_path}/all/", tmp_path / "link"):
        with pytest.raises(ConfigError, match="folder of its own"):
            select(audio=audio, labels=tmp_path / "all", out=folder, hours=1)
    with pytest.raises(ConfigError, match="folder of audio"):
        select(audio=audio, labels=tmp_path / "all", out=audio, hours=1)
    # Labels that cost a teacher's time are not replaced by a selection of them, wherever they are.
    shutil.copytree(tmp_path / "all", tmp_path / "copy")
    with pytest.raises(LabelMismatchError, match="Choose another --out"):
        select(audio=audio, labels=tmp_path / "all", out=tmp_path / "copy", hours=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == before


def test_a_selection_from_labels_without_utterances_says_so(audio: Path, tmp_path: Path) -> None:
    run(audio, tmp_path / "none", DurationLimits(min_seconds=100))
    with pytest.raises(SoftLabelError, match="none: no utterance has labels, so none can be sel") as caught:
        select(audio=audio, labels=tmp_path / "none", out=tmp_path / "best", hours=1)
    assert "hours" not in str(caught.value) and "`kdasr heard` shows why" in str(caught.value)
    assert not (tmp_path / "best").exists()


def test_a_selection_of_other_audio_is_not_replaced(audio: Path, tmp_path: Path) -> None:
    make_audio(tmp_path / "other", 4, name="other")
    for name in ("audio", "other"):
        run(tmp_path / name, tmp_path / f"{name}-labels")
    select(audio=audio, labels=tmp_path / "audio-labels", out=tmp_path / "best", hours=1)
    with pytest.raises(LabelMismatchError, match=r"of other audio.*such as other-000.*got utt-000"):
        select(audio=tmp_path / "other", labels=tmp_path / "other-labels", out=tmp_path / "best", hours=1)
    assert verify_labels(audio, tmp_path / "best") == []


def test_labels_that_are_replaced_during_a_selection_are_not_selected_by_the_scores_of_others(
    audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose_slowly(*arguments: Any) -> Any:
        shutil.rmtree(tmp_path / "all")
        run(audio, tmp_path / "all", DurationLimits(max_seconds=0.9))
        return _choose(*arguments)

    run(audio, tmp_path / "all")
    monkeypatch.setattr(selection, "_choose", choose_slowly)
    with pytest.raises(LabelMismatchError, match="all: the labels were replaced while they were"):
        select(audio=audio, labels=tmp_path / "all", out=tmp_path / "best", hours=1)
    assert not list(tmp_path.glob("best/*.kdsl"))


def test_spikes_are_counted_by_the_second_whatever_the_frame_rate() -> None:
    assert MinSpikes(per_second=3).after(LABELS, 0.3) is None
    assert MinSpikes(per_second=3).after(LABELS, 0.4) == "filtered: 2.50 non-blank frames per second < 3"
