"""Stages put together from paths: the same seed gives the same start, and what does not fit is refused."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdasr import stages
from kdasr.augment import SpecAugment
from kdasr.channels import WorseChannel
from kdasr.contract import StudentSide
from kdasr.errors import (
    ConfigError,
    DamagedLabelsError,
    LabelMismatchError,
    ModelError,
    ShardError,
    UnitsError,
)
from kdasr.features import num_frames
from kdasr.interfaces import Batch, ModelOutput
from kdasr.loader import Stream, feature_statistics
from kdasr.losses import best_path_ctc, ctc, silent_start, soft_cross_entropy
from kdasr.methods.consistency import both_views
from kdasr.methods.delays import windowed_cross_entropy
from kdasr.methods.features import Hint, attention_transfer
from kdasr.methods.impressions import Impressions
from kdasr.methods.intermediate import IntermediateHead
from kdasr.methods.mixing import Munge
from kdasr.methods.pruning import Pruning
from kdasr.methods.responses import soft_targets
from kdasr.methods.teachers import FrozenTeacher
from kdasr.models import load_model, read_card, save_model
from kdasr.ranks import Ranks
from kdasr.shards import list_shards, open_shard, write_shards
from kdasr.soft_labels import Full, Header, write_label_shard
from kdasr.spikes import SpikeHistogram
from kdasr.stages.checks import check_against_labels, check_folders, check_train, check_units, tell_of_dev
from kdasr.stages.training import make_units
from kdasr.students.conformer import ChunkConformer
from kdasr.students.recurrent import RecurrentStudent
from kdasr.symbols import TableUnits
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits, train_sentencepiece
from kdasr.training import Optimisation, Training
from tests.speech import shards, utterance

STUDENT = functools.partial(ChunkConformer, width=16, num_layers=1, num_heads=2, expansion=1, kernel_frames=3)
WORDS = ["a b c", "c b a", "b b a c", "a a c", "abc cab bca"]


def save_teacher(folder: Path, seed: int) -> str:
    """A random one, of letters."""
    torch.manual_seed(seed)
    teacher = ConformerTeacher(
        vocab_size=CharUnits().vocab_size, width=16, num_layers=1, num_heads=2, kernel_frames=3
    )
    save_model(folder, teacher, CharUnits())
    return str(folder)


def taught(root: Path) -> Path:
    """Audio, a random teacher, and its labels of what is unlabelled."""
    shards(root / "labelled", 12)
    shards(root / "dev", 4, first_seed=100)
    shards(root / "unlabelled", 8, first_seed=200, with_text=False)
    teacher = save_teacher(root / "teacher", 1)
    stages.label(teacher=teacher, audio=str(root / "unlabelled"), out=str(root / "labels"))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("stages"))


class NoConfig:
    """A teacher that does not say what decides its answers."""

    def attach(self, *_: Any, **__: Any) -> None:
        raise AssertionError


def train(data: Path, out: Path, **changed: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": out.name,
        "out": str(out),
        "checkpoints": str(out.with_name(f"{out.name}-checkpoints")),
        "model": STUDENT,
        "units": {"kind": "characters"},
        "labelled": [str(data / "labelled")],
        "dev": [str(data / "dev")],
        "unlabelled": [str(data / "unlabelled")],
        "labels": [str(data / "labels")],
        "teacher": str(data / "teacher"),
        "optimisation": Optimisation(steps=2, eval_every=2),
        "labelled_losses": {"ctc": {"weight": 1.0, "loss": ctc}},
        "unlabelled_losses": {"soft": {"weight": 1.0, "loss": soft_cross_entropy}},
        "schedule": [["unlabelled", 1], ["labelled", 1]],
        "batch_seconds": 8.0,
        "seed": 4,
        "device": "cpu",
    }
    return stages.train(**{**settings, **changed})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).model.state_dict())


def test_the_same_seed_begins_with_the_same_weights_whatever_ran_before(data: Path, tmp_path: Path) -> None:
    frozen = Optimisation(steps=1, eval_every=1, peak_learning_rate=0.0)
    train(data, tmp_path / "one", optimisation=frozen)
    torch.rand(5)
    train(data, tmp_path / "two", optimisation=frozen, schedule=[["labelled", 1]])
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    train(data, tmp_path / "three", optimisation=frozen, seed=5)
    three = weights(tmp_path / "three")
    assert not torch.equal(one["head.weight"], three["head.weight"])


def test_a_training_goes_on_from_a_trained_model_as_it_is(data: Path, tmp_path: Path) -> None:
    frozen = Optimisation(steps=1, eval_every=1, peak_learning_rate=0.0)
    train(data, tmp_path / "first", optimisation=frozen, model=functools.partial(STUDENT, chunk_frames=4))
    first, start = weights(tmp_path / "first"), str(tmp_path / "first")
    for name, model in (("as_it_is", None), ("same", functools.partial(STUDENT, chunk_frames=4))):
        train(data, tmp_path / name, optimisation=frozen, model=model, start=start, seed=5)
        later, card = weights(tmp_path / name), load_model(tmp_path / name).card
        assert all(torch.equal(first[weight], later[weight]) for weight in first)
        assert card["config"]["chunk_frames"] == 4
        assert card["start"] == load_model(Path(start)).card["weights_sha256"]
    with pytest.raises(
        ConfigError,
        match=r"first: .*does not match the recipe.*'chunk_frames': 4.* `model: null`, it is used",
    ):
        train(data, tmp_path / "other", start=start)
    pieces = {"kind": "sentencepiece", "vocab_size": 8}
    with pytest.raises(
        ConfigError, match="first: .*does not match the recipe; expected units .*--units .*first"
    ):
        train(data, tmp_path / "other", model=None, start=start, units=pieces)


def test_students_hear_in_training_the_silence_that_they_hear_in_use(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(**settings: Any) -> None:
        streams = {**settings["streams"], "dev": settings["dev"]}
        around = {name: (one.lead_share, one.joined_share) for name, one in streams.items()}
        assert around == {"labelled": (0.5, 0.5), "unlabelled": (0.5, 0.5), "dev": (0.0, 0.0)}
        raise InterruptedError({name: one.tail_share for name, one in streams.items()})

    monkeypatch.setattr("kdasr.stages.training.Training", built)
    teacher = functools.partial(ConformerTeacher, width=16, num_layers=1, num_heads=2, kernel_frames=3)
    for model, shares in (
        (STUDENT, {"labelled": 0.5, "unlabelled": 0.0, "dev": 1.0}),
        (teacher, {"labelled": 0.0, "unlabelled": 0.0, "dev": 0.0}),
    ):
        with pytest.raises(InterruptedError) as stop:
            train(data, tmp_path / "model", model=model)
        assert stop.value.args[0] == shares


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dev": []}, "labelled or dev: no audio folder is given"),
        ({"labelled": []}, "labelled or dev: no audio folder is given"),
        (
            {"schedule": None},
            r"schedule: there are losses for unlabelled audio, but no schedule.*\[unlabelled",
        ),
        ({"unlabelled": None}, "unlabelled: the schedule uses unlabelled audio, but the recipe has none"),
        ({"teachers": {"t": NoConfig()}}, r"teachers\.t: this is not an online teacher"),
        ({"schedule": []}, r"schedule: the schedule is empty.*labelled, unlabelled"),
        (
            {"teachers": {"a.b": FrozenTeacher("runs/big")}},
            r"teachers\.a\.b: the name contains a dot",
        ),
        ({"teachers": {"big": FrozenTeacher}}, r"teachers\.big: this is not an online teacher"),
        (
            {"teachers": {"big": "runs/big"}},
            r"teachers\.big: this is not an online teacher.*!new:.*got runs/big",
        ),
        ({"augment": functools.partial(nn.Dropout)}, r"augment: this is not an augmentation.*!new:"),
        (
            {"labelled_losses": {"ctc": {"weight": -1.0, "loss": ctc}}},
            r"labelled_losses\.ctc: the weight is out of range",
        ),
        ({"labelled_losses": {"ctc": {"weight": math.nan, "loss": ctc}}}, r"labelled_losses\.ctc: .*got nan"),
        (
            {"labelled_losses": {"c.1": {"weight": 1.0, "loss": ctc}}},
            r"labelled_losses\.c\.1: the name contains a dot",
        ),
        ({"seed": 2**64}, r"seed: the value is out of range"),
        (
            {"labelled_losses": {"s": {"weight": 1.0, "loss": functools.partial(silent_start, frames=0)}}},
            "frames: the silence needs at least one frame",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    data: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "model", **changed)
    assert not (tmp_path / "model").exists()


def dev_set(folder: Path, *texts: str | None) -> list[str]:
    spoken = [replace(utterance(f"dev-{i}", i), text=text) for i, text in enumerate(texts)]
    write_shards(iter(spoken), folder)
    return [str(folder)]


def test_a_dev_set_that_is_learnt_from_is_told_of(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {"schedule": [["labelled", 1]]}
    train(data, tmp_path / "apart")
    assert "dev utterances" not in capsys.readouterr().err
    shutil.copytree(data / "dev", tmp_path / "copy")
    train(data, tmp_path / "both", labelled=[str(data / "labelled"), str(tmp_path / "copy")], **alone)
    assert (
        f"both: 4 of 4 dev utterances are also in the labelled audio ({data}/dev/dev-0000 is in "
        f"{tmp_path}/copy/dev-0000), so the dev WER is lower than on unseen audio\n"
    ) in capsys.readouterr().err
    # Three of the twelve are without transcripts among the rest: those of another seed are not.
    spoken = [utterance(f"u-{seed}", seed, with_text=False) for seed in (101, 102, 103, 300)]
    write_shards(spoken, tmp_path / "plain")
    plain = {"unlabelled": [str(tmp_path / "plain")], "labels": [], "unlabelled_losses": {}}
    train(data, tmp_path / "unlabelled", **plain, **alone)
    assert "dev utterances" not in capsys.readouterr().err, "the schedule has no use for it"
    heard = {"teachers": {"big": FrozenTeacher(str(data / "teacher"))}, "teacher": None}
    soft = functools.partial(soft_cross_entropy, teacher="big")
    losses = {"soft": {"weight": 1.0, "loss": soft}}
    train(data, tmp_path / "unlabelled", **{**plain, "unlabelled_losses": losses}, **heard)
    assert (
        f"unlabelled: 3 of 4 dev utterances are also in the unlabelled audio ({data}/dev/dev-0001 is in "
        f"{tmp_path}/plain/u-101), so the dev WER is lower than on unseen audio\n"
    ) in capsys.readouterr().err


def test_what_prepare_left_out_of_the_dev_set_is_told_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data / "dev", tmp_path / "dev")
    record = {"count": 4, "dropped": 3, "shards": [{"name": "shard-000000.tar"}]}
    (tmp_path / "dev/prepared.json").write_text(json.dumps(record))
    train(data, tmp_path / "model", dev=[str(tmp_path / "dev")], schedule=[["labelled", 1]])
    told = "model: dev set: 3 of 7 listed utterances were left out by prepare (dropped.json says why)\n"
    assert told in capsys.readouterr().err
    stream = Stream([tmp_path / "dev"], 8.0, 1, units=CharUnits())
    for rank in (1, 0):
        monkeypatch.setattr("kdasr.stages.checks.ranks", lambda rank=rank: Ranks(rank, 2))
        tell_of_dev("model", stream, {"labelled": stream})
        said = capsys.readouterr().err
        assert (told in said, "dev utterances are also in the labelled audio" in said) == 2 * (rank == 0,)


def test_a_dev_set_that_cannot_be_measured_is_refused_before_the_first_step(
    data: Path, tmp_path: Path
) -> None:
    pieces = train_sentencepiece(WORDS, vocab_size=8, seed=1)
    save_model(tmp_path / "pieces", STUDENT(vocab_size=pieces.vocab_size), pieces)
    settings: dict[str, Any] = {"schedule": [["labelled", 1]], "batch_seconds": 1.0}
    with pytest.raises(ShardError, match=r"dev-2: an utterance of labelled audio has no transcript"):
        train(data, tmp_path / "model", dev=dev_set(tmp_path / "one", "a", "b", None), **settings)
    with pytest.raises(UnitsError, match=r"shard-000000\.tar:dev-1: "):
        dev = dev_set(tmp_path / "two", "a", "zebra")
        train(data, tmp_path / "model", dev=dev, units=str(tmp_path / "pieces"), **settings)
    with pytest.raises(ConfigError, match="dev: the transcripts contain no words"):
        train(data, tmp_path / "model", dev=dev_set(tmp_path / "three", "", ""), **settings)
    long = replace(utterance("long", 1), samples=np.zeros(45 * 16_000, np.float32))
    write_shards([long, replace(utterance("short", 2), text="")], tmp_path / "four")
    with pytest.raises(
        ConfigError,
        match=r"dev: the transcripts contain no words.* 1 utterance left out: .*four/long: 45\.0 s is",
    ):
        train(data, tmp_path / "model", dev=[str(tmp_path / "four")], **settings)
    asks = {"soft": {"weight": 1.0, "loss": functools.partial(soft_cross_entropy, teacher="none")}}
    with pytest.raises(ConfigError, match="a loss uses the teacher 'none'"):
        train(data, tmp_path / "model", labelled_losses=asks, schedule=[["unlabelled", 1]])


def test_a_dev_set_may_be_as_long_as_what_is_trained_on(data: Path, tmp_path: Path) -> None:
    long = replace(utterance("long", 1), samples=np.zeros(45 * 16_000, np.float32))
    write_shards(iter([long]), tmp_path / "dev")
    settings: dict[str, Any] = {"schedule": [["labelled", 1]], "dev": [str(tmp_path / "dev")]}
    with pytest.raises(ShardError, match=r"45\.0 s is longer than 40\.0 s"):
        train(data, tmp_path / "model", **settings)
    train(data, tmp_path / "model", exclude_longer_s=60.0, **settings)
    assert "dev_loss" in log_of(tmp_path / "model")[-1]


def test_a_student_of_other_units_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    pieces = train_sentencepiece(WORDS, vocab_size=8, seed=1)
    save_model(tmp_path / "other", STUDENT(vocab_size=pieces.vocab_size), pieces)
    with pytest.raises(LabelMismatchError, match=r"units_hash.*same units"):
        train(data, tmp_path / "model", units=str(tmp_path / "other"))


def foreign_labels(
    folder: Path,
    audio: Path,
    *,
    missing_frames: int = 0,
    symbol: str = "<s>",
    shift_ms: float = 20.0,
    without: str = "",
) -> Path:
    """Labels every 20 ms over the letters backwards, some left out, and a class of their own."""
    letters = [letter for letter in CharUnits().symbols[:0:-1] if letter not in without]
    units = TableUnits([CharUnits().symbols[0], *letters, symbol])
    units.save(folder)
    for path in list_shards(audio):
        shard = open_shard(path)
        frames = {e.key: -(-num_frames(e.num_samples) // 2) - missing_frames for e in shard.entries}
        header = Header(
            "foreign", "h" * 64, units.hash, units.vocab_size, "samples", shift_ms, 1, "full", {},
            path.name, shard.sha256,
        )  # fmt: skip
        items = [
            (key, Full().encode(torch.randn(n, units.vocab_size).log_softmax(-1)))
            for key, n in frames.items()
        ]
        write_label_shard(folder / f"{path.stem}.kdsl", header, items)
    return folder


def test_a_teacher_of_another_rate_and_order_of_units_can_teach(data: Path, tmp_path: Path) -> None:
    labels = foreign_labels(tmp_path / "labels", data / "unlabelled")
    facts = train(data, tmp_path / "model", labels=[str(labels)], teacher=None)
    assert facts["train_steps"] == 2
    assert "unlabelled/soft" in (tmp_path / "model-checkpoints/train.jsonl").read_text()


def test_letters_that_the_teacher_lacks_are_named_before_the_first_step(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = foreign_labels(tmp_path / "labels", data / "unlabelled", without="'q")
    train(data, tmp_path / "model", labels=[str(labels)], teacher=None)
    told = "model: a teacher of the labels has no class for 2 of the student's symbols: ' q ("
    assert capfd.readouterr().err.count(told) == 1
    train(data, tmp_path / "own")
    assert "has no class for" not in capfd.readouterr().err


def test_what_cannot_be_joined_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    accented = foreign_labels(tmp_path / "accented", data / "unlabelled", symbol="é")
    with pytest.raises(LabelMismatchError, match=r"1 symbols that the student lacks: é.*unit_map"):
        train(data, tmp_path / "model", labels=[str(accented)], teacher=None)
    train(data, tmp_path / "model", labels=[str(accented)], teacher=None, unit_map={"é": "e"})
    short = foreign_labels(tmp_path / "short", data / "unlabelled", missing_frames=6)
    with pytest.raises(
        LabelMismatchError, match=r"unlabelled-\d{4}.*soft labels and the audio differ in length"
    ):
        train(data, tmp_path / "other", labels=[str(short)], teacher=None)
    assert not (tmp_path / "other-checkpoints").exists()


def test_transcripts_without_times_teach_only_what_needs_none(data: Path, tmp_path: Path) -> None:
    labels = str(foreign_labels(tmp_path / "labels", data / "unlabelled", missing_frames=20, shift_ms=0.0))
    with pytest.raises(
        ConfigError, match=r"unlabelled_losses\.soft.*transcripts without times.*best_path_ctc"
    ):
        train(data, tmp_path / "model", labels=[labels], teacher=None)
    heard = {"heard": {"weight": 1.0, "loss": best_path_ctc}}
    train(data, tmp_path / "model", labels=[labels], teacher=None, unlabelled_losses=heard)
    assert "spike_offsets" not in (tmp_path / "model-checkpoints/train.jsonl").read_text()
    hint = {"hint": {"weight": 1.0, "loss": Hint(teacher="big")}}  # asks no labels, so it needs no times
    big = {"big": FrozenTeacher(str(data / "teacher"))}
    facts = train(
        data, tmp_path / "hinted", labels=[labels], teacher=None, unlabelled_losses=hint, teachers=big
    )
    assert facts["train_steps"] == 2


def test_a_delay_longer_than_the_audio_is_refused(data: Path, tmp_path: Path) -> None:
    soft = functools.partial(soft_cross_entropy, delay_frames=200)
    windowed = functools.partial(windowed_cross_entropy, max_delay_frames=200)
    for loss in (
        soft,
        functools.partial(both_views, loss=soft),
        windowed,
        Hint(teacher="big", delay_frames=200),
    ):
        with pytest.raises(ConfigError, match=r"half of the audio is shorter than the delay.*got 200"):
            train(data, tmp_path / "model", unlabelled_losses={"soft": {"weight": 1.0, "loss": loss}})
        with pytest.raises(ConfigError, match=r"half of the audio is shorter than the delay.*got 200"):
            losses = {"soft": {"weight": 1.0, "loss": loss}}
            train(data, tmp_path / "model", unlabelled_losses=losses, labels=[], teacher=None)


def test_half_of_the_audio_must_be_longer_than_the_delay(data: Path) -> None:
    streams = {"unlabelled": Stream([data / "unlabelled"], 8.0, 1, student=StudentSide(CharUnits(), 4))}
    frames = streams["unlabelled"].median_frames()
    assert frames is not None

    def check(delay_frames: int) -> None:
        loss = functools.partial(soft_cross_entropy, delay_frames=delay_frames)
        check_against_labels({"unlabelled": {"soft": {"weight": 1.0, "loss": loss}}}, streams)

    check(frames - 1)
    with pytest.raises(ConfigError, match=f"expected less than {frames} frames; got {frames}"):
        check(frames)


def test_numbers_may_be_at_their_bounds() -> None:
    shares = ("tail_share", "lead_share", "joined_share")
    for value in (0.0, 1.0):
        check_train(**dict.fromkeys(shares, value), schedule=None)
    least = {"max_labelled_utterances": 1, "max_unlabelled_utterances": 1, "num_workers": 0}
    check_train(seed=0, cache_gigabytes=0.0, silent_start=0.0, **least)
    check_train(seed=2**63 - 1)


def test_only_training_needs_its_folders_here(tmp_path: Path) -> None:
    check_folders(urls=True, audio=["s3://bucket/shards"], labels=[str(tmp_path)])
    with pytest.raises(ConfigError, match="dev: training can read only local folders; got s3://bucket"):
        check_folders(dev=["s3://bucket/shards"])


def test_a_delay_is_measured_for_a_loss_that_another_is_given(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(data, tmp_path / "reference", schedule=[["labelled", 1]])
    histogram = SpikeHistogram(40.0, [80.0], [200], 200, 200)
    monkeypatch.setattr("kdasr.stages.delays.measure_offsets", lambda *_, **__: histogram)
    asked: list[int] = []

    def soft(output: ModelOutput, batch: Batch, *, delay_frames: int = 0) -> torch.Tensor:
        asked.append(delay_frames)
        return soft_cross_entropy(output, batch, delay_frames=delay_frames)

    loss = functools.partial(both_views, loss=functools.partial(soft, delay_frames="auto"))
    reference = str(tmp_path / "reference")
    losses = {"soft": {"weight": 1.0, "loss": loss}}
    train(
        data, tmp_path / "model", unlabelled_losses=losses, delay_reference=reference, delay_margin_frames=2
    )
    assert set(asked) == {4}  # 80 ms and two frames more
    trained = load_model(tmp_path / "reference")
    other = TableUnits([trained.units.symbols[0], *reversed(trained.units.symbols[1:])])
    save_model(tmp_path / "foreign", trained.model, other)
    with pytest.raises(
        ConfigError,
        match=r"delay_reference: .*foreign: the reference model has other units or another frame rate",
    ):
        train(data, tmp_path / "no", unlabelled_losses=losses, delay_reference=str(tmp_path / "foreign"))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (functools.partial(soft_targets, teacher="big"), "'big'"),
        (soft_cross_entropy, "needs soft labels"),
    ],
    ids=["no such teacher", "no labels"],
)
def test_a_loss_that_cannot_be_computed_is_refused_before_the_first_step(
    loss: Any, message: str, data: Path, tmp_path: Path
) -> None:
    """And not when the block that needs it begins."""
    losses = {"soft": {"weight": 1.0, "loss": loss}}
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "model", labelled_losses=losses, schedule=[["unlabelled", 3], ["labelled", 1]])
    assert not (tmp_path / "model-checkpoints/train.jsonl").exists()


def test_every_look_at_the_dev_set_has_the_spike_offsets(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "model", optimisation=Optimisation(steps=4, eval_every=2))
    log = [json.loads(line) for line in (tmp_path / "model-checkpoints/train.jsonl").read_text().splitlines()]
    looks = [row["spike_offsets"] for row in log if "dev_wer" in row]
    assert len(looks) == 2
    for look in looks:
        assert look["frame_shift_ms"] == 40.0 and look["teacher_spikes"] > 0
        assert len(look["offsets_ms"]) == len(look["counts"])


def test_labels_of_another_teacher_are_refused_by_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelMismatchError, match=r"teacher_hash.*another teacher"):
        train(data, tmp_path / "model", teacher=save_teacher(tmp_path / "other", 2))


def test_labels_of_other_audio_are_refused(data: Path, tmp_path: Path) -> None:
    shards(tmp_path / "unlabelled", 8, first_seed=900, with_text=False)
    with pytest.raises(LabelMismatchError, match="audio_sha256"):
        train(data, tmp_path / "model", unlabelled=[str(tmp_path / "unlabelled")])


def test_missing_labels_and_missing_audio_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DamagedLabelsError, match=r"shard-000000.*kdasr label"):
        train(data, tmp_path / "model", labels=[str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match="gone"):
        train(data, tmp_path / "model", labelled=[str(tmp_path / "gone")])


def test_a_loss_that_is_none_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labelled_losses\.ctc"):
        train(data, tmp_path / "model", labelled_losses={"ctc": {"weight": 1.0}})


def test_a_malformed_loss_of_unlabelled_audio_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    for entry in ({"loss": soft_cross_entropy}, {"weight": 1.0, "loss": Hint}):
        with pytest.raises(ConfigError, match=r"unlabelled_losses\.soft.*weight and a function"):
            train(data, tmp_path / "model", unlabelled_losses={"soft": entry})


def test_a_delay_that_nobody_measures_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    soft = functools.partial(soft_cross_entropy, delay_frames="auto")
    head = IntermediateHead(layer=0, loss=soft)
    hint = Hint(teacher="big", delay_frames="auto")  # type: ignore[arg-type]
    for losses in (
        {"labelled_losses": {"soft": {"weight": 1.0, "loss": soft}}},
        {"unlabelled_losses": {"soft": {"weight": 1.0, "loss": head}}},
        {"unlabelled_losses": {"soft": {"weight": 1.0, "loss": hint}}},
    ):
        with pytest.raises(ConfigError, match=r"losses\.soft\.delay_frames.*number of frames"):
            train(data, tmp_path / "model", **losses)


def test_units_of_an_unknown_kind_are_refused(data: Path, tmp_path: Path) -> None:
    for units in ({"kind": "phones"}, {"kind": "sentencepiece"}):
        with pytest.raises(ConfigError, match=r"characters.*sentencepiece, vocab_size: N"):
            train(data, tmp_path / "model", units=units)


def test_a_folder_that_is_not_there_is_told_of_the_key_that_names_it(data: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    for key in ("labelled", "dev", "unlabelled", "labels"):
        with pytest.raises(ConfigError, match=rf"{key}: there is no such folder; got {gone}\. .*--{key}"):
            train(data, tmp_path / "model", **{key: [gone]})
        with pytest.raises(
            ConfigError, match=rf"{key}: training can read only local folders; got s3://bucket/a"
        ):
            train(data, tmp_path / "model", **{key: ["s3://bucket/a"]})
    with pytest.raises(
        ModelError, match=rf"teacher: {gone}: there is no model.*--teacher null, labels of any"
    ):
        train(data, tmp_path / "model", teacher=gone)
    with pytest.raises(ModelError, match=rf"start: {gone}: there is no model in this folder"):
        train(data, tmp_path / "model", start=gone)
    with pytest.raises(
        UnitsError, match=rf"units: {gone}: .*no such folder.*Units are {{kind: characters}}, "
    ):
        train(data, tmp_path / "model", units=gone)
    folders = {"audio": str(data / "unlabelled"), "labels": str(data / "labels"), "out": str(tmp_path / "x")}
    with pytest.raises(
        UnitsError, match=r"units: characters: .*no such folder.*Units are {kind: characters}"
    ):
        stages.retokenise(**folders, units="characters")
    with pytest.raises(ConfigError, match=r"labels: there is no such folder; got .*gone"):
        stages.retokenise(**{**folders, "labels": gone}, units={"kind": "characters"})
    with pytest.raises(ModelError, match=rf"model: {gone}: there is no model"):
        stages.export(model=gone, out=str(tmp_path / "x"))


def test_what_a_schedule_leaves_out_need_not_be_there(data: Path, tmp_path: Path) -> None:
    gone = {"unlabelled": [str(tmp_path / "gone")], "labels": [str(tmp_path / "gone")]}
    train(data, tmp_path / "model", **gone, schedule=[["labelled", 1]])
    assert (tmp_path / "model" / "model.json").exists()


def test_a_student_may_learn_from_labels_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {"labelled": [], "labelled_losses": {}, "schedule": [["unlabelled", 1]]}
    train(data, tmp_path / "model", **alone)
    mean_f, _ = feature_statistics(Stream([data / "unlabelled"], 8.0, 4))
    torch.testing.assert_close(weights(tmp_path / "model")["normalise.mean_f"], mean_f.float())
    heard = read_card(tmp_path / "model")["learned_from"]
    (by,) = heard["unlabelled"].pop("labels")
    assert by["teacher_hash"] == read_card(data / "teacher")["weights_sha256"]
    audio = Stream([data / "unlabelled"], 8.0, 4)
    assert heard == {"unlabelled": {"utterances": 8, "hours": pytest.approx(audio.seconds / 3600, abs=1e-3)}}
    passes = 2 / len(audio.epoch_batches(0))
    told = f"model: unlabelled: {audio.seconds:.1f} s in 8 utterances, {passes:.1f} passes\n"
    assert told in capsys.readouterr().err
    with pytest.raises(ConfigError, match="units: word pieces are learnt from transcripts"):
        train(data, tmp_path / "pieces", **alone, units={"kind": "sentencepiece", "vocab_size": 20})
    with pytest.raises(ConfigError, match="prune: this needs transcribed audio"):
        train(data, tmp_path / "pruned", **alone, start=str(tmp_path / "model"), prune=Pruning(share=0.5))


def test_labels_of_several_teachers_are_told_of(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_teacher(tmp_path / "other", 2)
    shards(tmp_path / "more", 4, first_seed=300, with_text=False)
    stages.label(teacher=other, audio=str(tmp_path / "more"), out=str(tmp_path / "labels"))
    both = {
        "unlabelled": [str(data / "unlabelled"), str(tmp_path / "more")],
        "labels": [str(data / "labels"), str(tmp_path / "labels")],
    }
    train(data, tmp_path / "model", **both, teacher=None)
    assert "model: unlabelled: its labels are from 2 teachers: " in capsys.readouterr().err
    assert len(read_card(tmp_path / "model")["learned_from"]["unlabelled"]["labels"]) == 2


def test_units_of_characters_may_have_the_letters_of_a_language() -> None:
    check_units({"kind": "characters", "letters": "äöü"})
    assert make_units({"kind": "characters", "letters": "üäö"}, [], 0).symbols[-4:] == ["z", "ä", "ö", "ü"]
    with pytest.raises(ConfigError, match=r"units\.letters: .*a string; got 5"):
        check_units({"kind": "characters", "letters": 5})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schedule": ["labelled", 1]}, r"schedule: .*got labelled"),
        ({"schedule": [["labeled", 1]]}, r"schedule entry \[labeled, 1\].*one of labelled"),
        ({"units": {"kind": "characters", "size": 5}}, r"units: invalid units"),
        ({"unlabelled": [], "labels": []}, "unlabelled: the schedule uses unlabelled audio"),
        ({"batch_seconds": 0.0}, "batch_seconds"),
        ({"tail_share": 1.5}, r"tail_share: .*expected from 0 to 1; got 1\.5"),
        ({"silent_start": -1.0}, r"silent_start: .*expected 0 or more, and finite; got -1\.0"),
        (
            {"unlabelled_losses": {"soft": soft_cross_entropy}},
            r"unlabelled_losses\.soft: .*expected \{weight: 1\.0, loss: ",
        ),
        ({"unlabelled_losses": {"ctc": {"weight": 1.0, "loss": ctc}}}, "needs transcripts"),
        ({"device": "nothing"}, "device: the device cannot be used"),
        ({"model": None}, "model: there is no model to train; .*`start` to the folder of a trained model"),
        ({"model": functools.partial(STUDENT, width=18)}, r"model\.width: .*multiple of 2 \* num_heads = 4"),
        (
            {"unlabelled_losses": {"soft": {"weight": "much", "loss": soft_cross_entropy}}},
            r"unlabelled_losses\.soft\.weight: .*a number; got 'much'",
        ),
        (
            {"unlabelled_losses": {"soft": {"weight": 1.0, "loss": functools.partial(attention_transfer)}}},
            r"unlabelled_losses\.soft\.loss: attention_transfer lacks .*'teacher'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_refused_by_name(
    changed: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "model", **changed)


def test_a_dev_set_without_transcripts_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="without transcript"):
        train(data, tmp_path / "model", dev=[str(data / "unlabelled")])
    assert not (tmp_path / "model-checkpoints").exists()


def test_a_dev_set_is_kept_whole_or_not_at_all(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Stream] = []
    monkeypatch.setattr(Training, "run", lambda self, out, card: streams.append(self.dev) or {})
    train(data, tmp_path / "model")
    num_bytes = sum(80 * 4 * num_frames(item.entry.num_samples) for item in streams[0].items)
    monkeypatch.setattr(stages.training, "_DEV_CACHE_BYTES", num_bytes - 1)
    train(data, tmp_path / "model")
    assert [one.fits_cache for one in streams] == [True, False]
    assert streams[1].cache_bytes == 0 and streams[1].fingerprint() == streams[0].fingerprint()


def test_an_automatic_delay_needs_a_reference_and_labels(data: Path, tmp_path: Path) -> None:
    soft = functools.partial(soft_cross_entropy, delay_frames="auto")
    settings: dict[str, Any] = {"unlabelled_losses": {"soft": {"weight": 1.0, "loss": soft}}}
    with pytest.raises(ConfigError, match=r"delay_frames.*delay_reference"):
        train(data, tmp_path / "model", **settings)
    settings |= {"labels": [], "teacher": None, "delay_reference": str(data / "teacher")}
    with pytest.raises(
        ConfigError, match=r"delay_frames: .* stored soft labels, but there are none.*`labels`"
    ):
        train(data, tmp_path / "model", **settings)


def test_without_transcripts_in_the_schedule_the_dev_set_is_measured_by_ctc(
    data: Path, tmp_path: Path
) -> None:
    """And a run that was killed goes on to the bit."""
    settings: dict[str, Any] = {
        "labelled_losses": {},
        "schedule": [["unlabelled", 1]],
        "optimisation": Optimisation(steps=4, eval_every=2, checkpoint_every=1),
    }
    train(data, tmp_path / "whole", **settings)
    stops = {"soft": {"weight": 1.0, "loss": StopAt(4)}}
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", unlabelled_losses=stops, **settings)
    assert len(log_of(tmp_path / "cut")) == 4  # two steps, a look, a step
    train(data, tmp_path / "cut", **settings)
    log = log_of(tmp_path / "whole")
    assert log_of(tmp_path / "cut") == log
    assert [set(row) & {"unlabelled/soft", "labelled/ctc"} for row in log if "dev_wer" not in row] == [
        {"unlabelled/soft"}
    ] * 4
    loaded, dev = (
        load_model(tmp_path / "whole"),
        Stream([data / "dev"], 8.0, 4, units=CharUnits(), tail_share=1.0),
    )
    with torch.no_grad():
        losses = [
            ctc(ModelOutput(*loaded.model.offline(batch.features_btf, batch.feature_lengths_b)), batch).item()
            for batch in map(dev.batch, range(len(dev.epoch_batches(0))))
        ]
    best_step = loaded.card["training"]["best_step"]
    found = {row["step"]: row["dev_loss"] for row in log if "dev_loss" in row}
    assert list(found) == [2, 4] and found[best_step] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


class StopAt:
    """`soft_cross_entropy` that fails at its n-th training call, as a killed process would stop."""

    __qualname__ = soft_cross_entropy.__qualname__

    def __init__(self, call: int) -> None:
        self.calls_left = call

    def __call__(self, output: ModelOutput, batch: Batch) -> torch.Tensor:
        self.calls_left -= torch.is_grad_enabled()
        if self.calls_left == 0:
            raise KeyboardInterrupt
        return soft_cross_entropy(output, batch)


def log_of(out: Path) -> list[dict[str, Any]]:
    log = out.with_name(f"{out.name}-checkpoints") / "train.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def impressions(data: Path, tmp_path: Path) -> Impressions:
    cache = str(tmp_path / "impressions.safetensors")
    return Impressions(teacher=str(data / "teacher"), cache=cache, utterances=2, frames=4, steps=1)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"labels": ["somewhere"], "mix": Munge()}, "labels, mix"),
        ({"unit_map": {"é": "e"}}, "unit_map"),
        ({"spoil": WorseChannel()}, "spoil"),
        ({"max_unlabelled_utterances": 2}, "max_unlabelled_utterances"),
    ],
    ids=["labels and mix", "unit map", "spoil", "number"],
)
def test_what_impressions_have_no_use_for_is_refused(
    given: dict[str, Any], named: str, impressions: Impressions, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{named}: these settings are for audio, and impressions are not.*null"
    ):
        train(data, tmp_path / "model", **{"unlabelled": impressions, "labels": [], **given})


def test_impressions_are_those_of_the_teacher(impressions: Impressions, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "unlabelled": impressions,
        "labels": [],
        "mix": None,
        "teachers": {"big": FrozenTeacher(str(data / "teacher"))},
        "unlabelled_losses": {
            "soft": {"weight": 1.0, "loss": functools.partial(soft_targets, teacher="big")}
        },
    }
    assert train(data, tmp_path / "model", **settings)["train_steps"] == 2
    with pytest.raises(ConfigError, match="unlabelled, teacher: .*another teacher"):
        train(data, tmp_path / "model", **settings | {"teacher": str(tmp_path / "model")})


def test_unlabelled_audio_is_perturbed_where_no_stored_labels_are_of_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Stream] = {}

    def stream(folders: Sequence[Path], *further: Any, **settings: Any) -> Stream:
        made[folders[0].name] = Stream(folders, *further, **settings)
        return made[folders[0].name]

    monkeypatch.setattr("kdasr.stages.training.Stream", stream)
    train(data, tmp_path / "stored", speeds=[0.5, 0.8])
    assert made["labelled"].speeds == (0.5, 0.8) and made["unlabelled"].speeds == (1.0,)
    train(
        data,
        tmp_path / "online",
        speeds=[0.5, 0.8],
        lead_share=0.0,
        joined_share=0.0,
        labels=[],
        teachers={"big": FrozenTeacher(str(data / "teacher"))},
        unlabelled_losses={"soft": {"weight": 1.0, "loss": functools.partial(soft_targets, teacher="big")}},
    )
    plain = Stream([data / "unlabelled"], 8.0, 4)
    batch = made["unlabelled"].batch(0)
    lengths = {item.entry.key: num_frames(item.entry.num_samples) for item in plain.items}
    stretched = {
        round(lengths[key] / int(frames), 1)
        for key, frames in zip(batch.keys, batch.feature_lengths_b, strict=True)
    }
    assert stretched <= {0.5, 0.8}


def test_what_a_recipe_says_reaches_the_streams_and_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, dict[str, Any]] = {}

    def stream(folders: Sequence[Path], **settings: Any) -> Stream:
        made[folders[0].name] = settings
        return Stream(folders, **settings)

    def built(**settings: Any) -> None:
        raise InterruptedError(settings)

    monkeypatch.setattr("kdasr.stages.training.Stream", stream)
    monkeypatch.setattr("kdasr.stages.training.Training", built)
    said: dict[str, Any] = {
        "batch_seconds": 7.0,
        "exclude_longer_s": 45.0,
        "seed": 4,
        "spoil": WorseChannel(),
    }
    own = {"augment": SpecAugment(), "optimisation": Optimisation(steps=3), "num_workers": 5}
    most = {"labelled": 5, "unlabelled": 6}
    teachers = {"big": FrozenTeacher(str(data / "teacher"))}
    changed = {**said, **own, "teachers": teachers, "cache_gigabytes": 0.5}
    changed |= {f"max_{name}_utterances": count for name, count in most.items()}
    with pytest.raises(InterruptedError) as stop:
        train(data, tmp_path / "model", **changed)
    expected = {**said, "clean_too": True, "cache_bytes": 2**28}
    for name, count in most.items():
        assert {**made[name], **expected, "max_utterances": count} == made[name]
    assert made["dev"]["batch_seconds"] == 7.0 and made["dev"]["exclude_longer_s"] == 45.0
    training = stop.value.args[0]
    expected = {**own, "teachers": teachers, "seed": 4, "name": "model", "start": None}
    assert {name: training[name] for name in expected} == expected
    mix, no_labels = Munge(), {"labels": [], "teacher": None}
    alone = [["unlabelled", 1]]
    with pytest.raises(InterruptedError) as stop:
        train(data, tmp_path / "model", mix=mix, schedule=alone, exclude_longer_s=20.0, **no_labels)
    assert made["unlabelled"]["mix"] is mix and not made["unlabelled"]["clean_too"]
    # What is too long to be trained on is measured all the same.
    assert made["dev"]["exclude_longer_s"] == 40.0
    # Audio that is not trained on is there to normalise the features by.
    assert set(stop.value.args[0]["streams"]) == {"labelled", "unlabelled"}
    with pytest.raises(InterruptedError) as stop:
        train(data, tmp_path / "model", labelled=[], schedule=alone)
    assert set(stop.value.args[0]["streams"]) == {"unlabelled"}


def test_how_a_model_is_pruned_is_part_of_what_a_training_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(data, tmp_path / "first")
    begun: list[str] = []

    def built(**settings: Any) -> None:
        begun.append(settings["start"])
        raise InterruptedError

    monkeypatch.setattr("kdasr.stages.training.Training", built)
    for prune in (None, Pruning(share=0.5), Pruning(share=0.6)):
        with pytest.raises(InterruptedError):
            train(data, tmp_path / "model", start=str(tmp_path / "first"), prune=prune)
    weights = read_card(tmp_path / "first")["weights_sha256"]
    assert len(set(begun)) == 3 and all(weights in start for start in begun)


def test_the_card_tells_how_the_model_was_trained(data: Path, tmp_path: Path) -> None:
    facts = train(data, tmp_path / "model")
    card = json.loads((tmp_path / "model/model.json").read_text())
    model = str(tmp_path / "model")
    assert {**card["training"], "weights_sha256": card["weights_sha256"], "model": model} == facts
    assert facts["train_steps"] == 2 and facts["seed"] == 4 and facts["params"] > 1_000


def test_a_loss_that_fades_leaves_another_and_ends_within_the_training(data: Path, tmp_path: Path) -> None:
    fading = {"weight": 1.0, "loss": soft_cross_entropy, "until": 0.5}
    heard = {"weight": 1.0, "loss": best_path_ctc}
    with pytest.raises(ConfigError, match=r"unlabelled_losses\.soft\.until.*nothing is left"):
        train(data, tmp_path / "model", unlabelled_losses={"soft": fading})
    for until in (0, 1.5, "half"):
        with pytest.raises(ConfigError, match=r"unlabelled_losses\.soft\.until"):
            losses = {"soft": {**fading, "until": until}, "heard": heard}
            train(data, tmp_path / "model", unlabelled_losses=losses)
    train(data, tmp_path / "model", unlabelled_losses={"soft": fading, "heard": heard})
    check_train(labelled_losses={"soft": {**fading, "until": 1.0}, "heard": heard})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("speeds", [0], "speeds: .*one or more numbers from 0.5 to 2"),
        ("speeds", [], "speeds: "),
        ("seed", -1, r"seed: .*expected from 0 to 2\^63 - 1; got -1"),
        ("num_workers", -1, "num_workers: "),
        ("cache_gigabytes", -1, "cache_gigabytes: "),
        ("max_labelled_utterances", -5, "max_labelled_utterances: .*1 or more"),
        ("batch_seconds", 0, "batch_seconds: .*more than 0"),
        ("units", {"kind": "sentencepiece", "vocab_size": "lots"}, "units.vocab_size: .*a whole number"),
        ("model", functools.partial(STUDENT, dropout=3), "model: the model cannot be built.*dropout"),
        ("model", functools.partial(STUDENT, num_layers=0), "model: the model cannot be built"),
        ("model", functools.partial(STUDENT, kernel_frames=0), "model: the model cannot be built"),
        ("model", functools.partial(RecurrentStudent, num_layers=0), "num_layers of RecurrentStudent"),
        ("model", functools.partial(RecurrentStudent, hidden_width=0), "model: the model cannot be built"),
        ("model", functools.partial(ConformerTeacher, chunk_frames=0), "chunk_frames of ConformerTeacher"),
        ("model", functools.partial(STUDENT, left_context_frames=-1), "left_context_frames.*0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(
    data: Path, tmp_path: Path, name: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "model", **{name: value})
    assert not (tmp_path / "model").exists()


class OwnStudent(RecurrentStudent):
    """A model as somebody might write it, with one mistake."""

    def __init__(self, *, vocab_size: int, mistake: str) -> None:
        super().__init__(vocab_size=vocab_size, width=16, num_layers=1)
        self.mistake = mistake
        self.config = {"vocab_size": vocab_size, "mistake": mistake}
        if mistake == "config":
            del self.config["mistake"]
        elif mistake == "json":
            self.config["mistake"] = torch.zeros(1)
        elif mistake == "none":
            del self.config

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        log_probs_btv, lengths_out = super().offline(features_btf, lengths_b)
        return {
            "logits": (log_probs_btv + 3, lengths_out),
            "axes": (log_probs_btv.transpose(0, 1), lengths_out),
            "classes": (log_probs_btv[..., :5].log_softmax(-1), lengths_out),
            "frames": (log_probs_btv, lengths_b // 4),
            "shares": (log_probs_btv, lengths_out / lengths_out.max()),
        }.get(self.mistake, (log_probs_btv, lengths_out))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("config", "could not be built again from its `config`; .* missing a required .*'mistake'"),
        ("json", "could not be built again from its `config`; .* as JSON; got .*Tensor"),
        ("none", "got OwnStudent without config"),
        ("logits", "no log-probabilities; .* got a log-sum of 3 in the first one"),
        ("axes", "wrong axes; .* got (26, 1, 29)"),
        ("classes", "other classes or frames than it should; expected 29 classes, .* got 5 and 26"),
        ("frames", "expected 29 classes, and 26 frames for 101 of features .* got 29 and 25"),
        ("shares", "whole numbers of frames; got .* torch.float32"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused_before_the_first_step(
    data: Path, tmp_path: Path, mistake: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^model: .*{message}".replace("(", r"\(").replace(")", r"\)")):
        train(data, tmp_path / "model", model=functools.partial(OwnStudent, mistake=mistake))
    assert not (tmp_path / "model").exists()
