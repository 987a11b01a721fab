"""Stored labels of transcribed audio: a teacher's posteriors beside the transcripts, in one step."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr import stages
from kdasr.contract import StudentSide
from kdasr.delay import teacher_tokens
from kdasr.errors import ConfigError, LabelMismatchError, MissingLabelsError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.loader import Stream
from kdasr.losses import best_path_ctc, ctc, soft_cross_entropy
from kdasr.methods.consistency import both_views
from kdasr.methods.intermediate import IntermediateHead
from kdasr.methods.teacher_free import label_smoothing
from kdasr.models import load_model
from kdasr.shards import list_shards, open_shard
from kdasr.soft_labels import Failure, LabelFolder, open_label_shard, write_label_shard
from kdasr.spikes import SpikeHistogram
from kdasr.text import CharUnits
from kdasr.training import Optimisation
from tests.test_stages import STUDENT, StopAt, foreign_labels, log_of, save_teacher, taught, train

UNITS = CharUnits()
CTC = {"weight": 1.0, "loss": ctc}
SOFT = {"weight": 0.5, "loss": soft_cross_entropy}
STILL = Optimisation(steps=1, eval_every=1, peak_learning_rate=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio of both streams, a random teacher and its labels of both."""
    root = taught(tmp_path_factory.mktemp("stages"))
    out = str(root / "labels_of_labelled")
    stages.label(teacher=str(root / "teacher"), audio=str(root / "labelled"), out=out)
    return root


def train_labelled(data: Path, out: Path, **changed: Any) -> dict[str, Any]:
    """On transcribed audio alone, which has stored labels too."""
    settings: dict[str, Any] = {
        "model": functools.partial(STUDENT, dropout=0.0),
        "labelled_soft_labels": [str(data / "labels_of_labelled")],
        "labelled_losses": {"ctc": CTC, "soft": SOFT},
        "schedule": [["labelled", 1]],
        # As `stream` reads it.
        "lead_share": 0.0,
        "joined_share": 0.0,
    }
    return train(data, out, **{**settings, **changed})


def stream(data: Path) -> Stream:
    labels = [LabelFolder(data / "labels_of_labelled")]
    return Stream([data / "labelled"], 8.0, 4, units=UNITS, labels=labels, student=StudentSide(UNITS, 4))


def output_of(folder: Path, batch: Batch) -> ModelOutput:
    with torch.no_grad():
        return ModelOutput(*load_model(folder).model.offline(batch.features_btf, batch.feature_lengths_b))


def test_a_step_is_the_sum_of_ctc_and_of_the_cross_entropy_to_the_labels(data: Path, tmp_path: Path) -> None:
    train_labelled(data, tmp_path / "model", optimisation=STILL)
    batch = stream(data).batch(0)
    output, labels = output_of(tmp_path / "model", batch), batch.soft_labels
    assert labels is not None
    total, frames = 0.0, 0
    for row, length in enumerate(labels.lengths_b.tolist()):
        for t in range(length):
            q_v = output.log_probs_btv[row, t].exp()
            kept = labels.log_probs_btk[row, t].isfinite()
            ids, p = labels.ids_btk[row, t, kept], labels.log_probs_btk[row, t, kept].exp()
            rest, tail = q_v.sum() - q_v[ids].sum(), labels.tail_log_probs_bt[row, t].exp()
            total -= float((p * q_v[ids].log()).sum() + (tail * rest.log() if tail > 0 else 0.0))
            frames += 1
    log = log_of(tmp_path / "model")
    assert log[0]["labelled/soft"] == pytest.approx(0.5 * total / frames, rel=1e-4)
    assert log[0]["labelled/ctc"] == pytest.approx(ctc(output, batch).item(), rel=1e-4)
    assert set(log[0]) == {"step", "labelled/ctc", "labelled/soft", "labelled/silent_start"}


@pytest.mark.parametrize(
    ("losses", "share"),
    [
        ({"ctc": {"weight": 0.7, "loss": ctc}, "soft": SOFT}, 0.7),
        ({"soft": SOFT}, 1.0),
        ({"soft": {"weight": 1.0, "loss": functools.partial(both_views, loss=soft_cross_entropy)}}, 1.0),
        ({"soft": {"weight": 1.0, "loss": IntermediateHead(layer=0, loss=best_path_ctc)}}, 1.0),
        ({"ctc": {"weight": 0.7, "loss": ctc, "until": 0.5}, "soft": SOFT}, 1.0),
    ],
    ids=["ctc and soft", "soft", "nested", "a loss that learns", "ctc has faded away"],
)
def test_a_dev_set_without_labels_is_measured_by_the_other_losses_or_ctc(
    losses: dict[str, Any], share: float, data: Path, tmp_path: Path
) -> None:
    train_labelled(data, tmp_path / "model", optimisation=STILL, labelled_losses=losses)
    dev = Stream([data / "dev"], 8.0, 4, units=UNITS, tail_share=1.0)
    batches = [dev.batch(i) for i in range(len(dev.epoch_batches(0)))]
    values = [ctc(output_of(tmp_path / "model", batch), batch).item() for batch in batches]
    (found,) = [row["dev_loss"] for row in log_of(tmp_path / "model") if "dev_loss" in row]
    assert found == pytest.approx(share * sum(values) / len(values), rel=1e-4)


def test_labels_of_both_streams_teach_and_a_killed_run_goes_on_to_the_bit(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": functools.partial(STUDENT, dropout=0.1),
        "schedule": [["unlabelled", 1], ["labelled", 1]],
        "optimisation": Optimisation(steps=6, eval_every=3, checkpoint_every=1),
    }
    train_labelled(data, tmp_path / "whole", **settings)
    stops = {"ctc": CTC, "soft": {**SOFT, "loss": StopAt(3)}}
    with pytest.raises(KeyboardInterrupt):
        train_labelled(data, tmp_path / "cut", **settings, labelled_losses=stops)
    assert len(log_of(tmp_path / "cut")) == 6  # five steps and a look
    train_labelled(data, tmp_path / "cut", **settings)
    log = log_of(tmp_path / "whole")
    assert log_of(tmp_path / "cut") == log
    terms = [{name for name in row if "/" in name} for row in log if "dev_wer" not in row]
    labelled = {"labelled/ctc", "labelled/soft"}
    assert terms == [
        {"unlabelled/soft"},
        {*labelled, "labelled/silent_start"},
        *[{"unlabelled/soft"}, labelled] * 2,
    ]
    one, two = (load_model(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_labels_decide_which_checkpoints_are_gone_on_from(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_labelled(data, tmp_path / "model", labelled_losses={"ctc": CTC})
    train_labelled(data, tmp_path / "model", labelled_losses={"ctc": CTC}, labelled_soft_labels=[])
    said = capfd.readouterr().err
    assert "starting from the beginning: checkpoints of other" in said
    assert f"this run will replace the model in {tmp_path / 'model'}" in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"speeds": [0.9, 1.0]}, r"speeds: .*misalign the audio and its soft labels.*got \[0\.9, 1\.0\]"),
        (
            {"labelled_soft_labels": ["labels_of_labelled"] * 2},
            r"^labelled, labelled_soft_labels: the numbers of audio and label folders differ",
        ),
    ],
    ids=["speeds", "pairs"],
)
def test_what_does_not_go_with_labels_is_refused_by_name(
    changed: dict[str, Any], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    with pytest.raises(ConfigError, match=message):
        train_labelled(data, tmp_path / "model", **changed)


def test_a_loss_of_labels_that_are_not_there_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingLabelsError, match=r"^labelled_losses\.soft: .*`labelled_soft_labels`"):
        train_labelled(data, tmp_path / "model", labelled_soft_labels=[])
    with pytest.raises(MissingLabelsError, match=r"^unlabelled_losses\.soft: .*`labels`"):
        train_labelled(data, tmp_path / "model", labels=[], schedule=[["labelled", 9], ["unlabelled", 1]])
    assert not (tmp_path / "model-checkpoints" / "train.jsonl").exists()


def test_labels_are_those_of_the_teacher(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelMismatchError, match=r"labels_of_labelled.*teacher_hash"):
        train_labelled(data, tmp_path / "model", teacher=save_teacher(tmp_path / "other", 2))
    with pytest.raises(LabelMismatchError, match="audio_sha256"):
        train_labelled(data, tmp_path / "model", labelled_soft_labels=[str(data / "labels")])


def test_what_the_teacher_gave_no_labels_is_left_out_by_name(data: Path, tmp_path: Path) -> None:
    for path in list_shards(data / "labelled"):
        shard, name = open_shard(path), f"{path.stem}.kdsl"
        known = open_label_shard(data / "labels_of_labelled" / name)
        items = [(entry.key, known.read(entry.key)) for entry in shard.entries]
        items[2] = (items[2][0], Failure("nothing heard"))  # type: ignore[assignment]
        write_label_shard(tmp_path / "labels" / name, known.header, items)
    facts = train_labelled(data, tmp_path / "model", labelled_soft_labels=[str(tmp_path / "labels")])
    assert facts["left_out"] == {"labelled": 1, "dev": 0}
    record = json.loads((tmp_path / "model-checkpoints" / "left_out.json").read_text())
    assert (
        record["labelled"]["left_out"]
        == {f"{data}/labelled/labelled-0002": "it has no labels: nothing heard"}
        and record["labelled"]["used"] == 11
    )


def test_foreign_labels_are_mapped_and_what_they_lack_is_said_once(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lacking = {"labelled": "q", "unlabelled": "'"}
    labels = {
        audio: [str(foreign_labels(tmp_path / audio, data / audio, symbol="é", without=without))]
        for audio, without in lacking.items()
    }
    both: dict[str, Any] = {
        "labelled_soft_labels": labels["labelled"],
        "labels": labels["unlabelled"],
        "teacher": None,
        "schedule": [["unlabelled", 1], ["labelled", 1]],
    }
    with pytest.raises(LabelMismatchError, match=r"1 symbols that the student lacks: é.*unit_map"):
        train_labelled(data, tmp_path / "model", **both | {"schedule": [["labelled", 1]]})
    train_labelled(data, tmp_path / "model", **both, unit_map={"é": "e"})
    told = "model: a teacher of the labels has no class for 2 of the student's symbols: ' q ("
    assert capfd.readouterr().err.count(told) == 1


def test_transcripts_without_times_go_with_losses_that_ask_for_none(data: Path, tmp_path: Path) -> None:
    labels = foreign_labels(tmp_path / "labels", data / "labelled", missing_frames=20, shift_ms=0.0)
    settings: dict[str, Any] = {"labelled_soft_labels": [str(labels)], "teacher": None}
    with pytest.raises(ConfigError, match=r"^labelled_losses\.soft: .*transcripts without times"):
        train_labelled(data, tmp_path / "model", **settings)
    losses = {
        "ctc": CTC,
        "both": {"weight": 1.0, "loss": functools.partial(both_views, loss=ctc)},
        "smooth": {"weight": 0.1, "loss": label_smoothing},
        "heard": {"weight": 1.0, "loss": best_path_ctc},
    }
    train_labelled(data, tmp_path / "model", **settings, labelled_losses=losses)
    log = log_of(tmp_path / "model")
    assert {name for name in log[0] if "/" in name} == {
        f"labelled/{name}" for name in (*losses, "silent_start")
    }
    assert not any("spike_offsets" in row for row in log)


def test_a_delay_longer_than_the_audio_is_refused(data: Path, tmp_path: Path) -> None:
    late = {"soft": {"weight": 1.0, "loss": functools.partial(soft_cross_entropy, delay_frames=200)}}
    with pytest.raises(
        ConfigError, match=r"^labelled_losses\.soft\.delay_frames: half of the audio.*got 200"
    ):
        train_labelled(data, tmp_path / "model", labelled_losses=late)


def test_each_stream_has_a_delay_of_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def measured(source: Stream, reference: object) -> SpikeHistogram:
        return SpikeHistogram(40.0, [80.0 if source.units is not None else 120.0], [200], 200, 200)

    monkeypatch.setattr("kdasr.stages.delays.measure_offsets", measured)
    asked: dict[bool, int] = {}

    def soft(output: ModelOutput, batch: Batch, *, delay_frames: int = 0) -> torch.Tensor:
        asked[batch.tokens_bu is not None] = delay_frames
        return soft_cross_entropy(output, batch, delay_frames=delay_frames)

    auto = {"soft": {"weight": 1.0, "loss": functools.partial(soft, delay_frames="auto")}}
    settings: dict[str, Any] = {"labelled_losses": auto, "unlabelled_losses": auto}
    with pytest.raises(ConfigError, match=r"^labelled_losses\.soft\.loss\.delay_frames: .*delay_reference"):
        train_labelled(data, tmp_path / "model", **settings)
    train_labelled(data, tmp_path / "reference")
    settings |= {"delay_reference": str(tmp_path / "reference")}
    schedule = [["unlabelled", 1], ["labelled", 1]]
    train_labelled(data, tmp_path / "model", **settings, schedule=schedule)
    assert asked == {True: 3, False: 4}  # and one frame more than measured
    card: Mapping[str, Any] = load_model(tmp_path / "model").card
    assert (card["labelled_delay_frames"], card["delay_frames"]) == (3, 4)
    assert "on labelled audio, the reference's spikes are offset by +80 ms" in capfd.readouterr().err


@pytest.mark.parametrize("used", [["labelled"], ["labelled", "unlabelled"]])
def test_the_spikes_are_watched_on_unlabelled_audio_where_it_is_used(
    used: list[str], data: Path, tmp_path: Path
) -> None:
    train_labelled(data, tmp_path / "model", schedule=[[name, 1] for name in used])
    folder, labels = [data / used[-1]], {"labelled": "labels_of_labelled", "unlabelled": "labels"}[used[-1]]
    source = Stream(folder, 8.0, 4, labels=[LabelFolder(data / labels)], student=StudentSide(UNITS, 4))
    heard = [source.batch(i).soft_labels for i in range(min(2, len(source.epoch_batches(0))))]
    spikes = sum(len(tokens) for one in heard if one is not None for tokens in teacher_tokens(one))
    (look,) = [row["spike_offsets"] for row in log_of(tmp_path / "model") if "dev_wer" in row]
    assert look["teacher_spikes"] == spikes > 0
