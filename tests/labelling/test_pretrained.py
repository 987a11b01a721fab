"""The job with pretrained teachers: headers that say everything, units beside labels, any batch the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ConfigError, LabelMismatchError, SoftLabelError, UnitsError
from kdasr.interfaces import Utterance
from kdasr.labelling import Settings, Words, label, label_shard, retokenise, select, verify_labels
from kdasr.labelling.heard import heard_text
from kdasr.lexicon import Lexicon
from kdasr.loader import Stream
from kdasr.losses import best_path_ctc
from kdasr.shards import list_shards, read_shard, write_shards
from kdasr.soft_labels import Full, LabelFolder, Sampled, TopP, open_label_shard
from kdasr.stages.training import make_units
from kdasr.symbols import TableUnits
from kdasr.teachers.base import WAVEFORM, Teacher, spell
from kdasr.teachers.onnx_ctc import OnnxCTC
from kdasr.teachers.torchaudio_ctc import TorchaudioCTC
from kdasr.text import CharUnits, load_units
from tests.teachers.tiny_models import noise, torchaudio_model
from tests.teachers.tiny_onnx import write

SECONDS = (0.9, 0.41, 0.905, 1.3, 0.41)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    items = [Utterance(f"utt-{n}", noise(seconds, n)) for n, seconds in enumerate(SECONDS)]
    write_shards(items, tmp_path / "audio", max_utterances=3, description="noise")
    return tmp_path / "audio"


def labels_of(audio: Path, out: Path, teacher: Any, **settings: Any) -> dict[str, Any]:
    label(teacher=teacher, audio=audio, out=out, settings=Settings(**settings))
    assert verify_labels(audio, out) == []
    shards = [open_label_shard(out / f"{path.stem}.kdsl") for path in list_shards(audio)]
    return {key: shard.read(key) for shard in shards for key in shard.keys}


@pytest.mark.parametrize("norm", ["layer_norm", "group_norm"])
def test_labels_are_the_teachers_posteriors_whatever_the_batch(
    audio: Path, tmp_path: Path, norm: str
) -> None:
    source = TorchaudioCTC(architecture=torchaudio_model(tmp_path / "model", norm=norm)[0])
    small = labels_of(audio, tmp_path / "small", source, codec=Full(), batch_seconds=0.1)
    large = labels_of(audio, tmp_path / "large", source, codec=Full(), batch_seconds=100)
    teacher = source.load("cpu")
    for shard in list_shards(audio):
        for utterance in read_shard(shard):
            samples = torch.from_numpy(utterance.samples)
            with torch.inference_mode():
                wanted, frames = teacher.model.offline(samples[None], torch.tensor([len(samples)]))
            assert small[utterance.key].num_frames == int(frames[0])
            for found in (small[utterance.key], large[utterance.key]):
                got = found.log_probs.reshape(wanted.shape[1:])
                assert got == pytest.approx(wanted[0].numpy(), abs=1e-4)
    if norm == "group_norm":  # each was heard alone, so not a bit differs
        assert all(np.array_equal(small[key].log_probs, large[key].log_probs) for key in small)


def test_the_hash_of_a_teacher_is_of_its_architecture_too(tmp_path: Path) -> None:
    """The same weights fit other numbers of heads."""
    architecture = torchaudio_model(tmp_path / "model")[0]
    first = TorchaudioCTC(architecture=architecture).load("cpu")
    card = json.loads(architecture.read_text())
    card["parameters"]["encoder_num_heads"] = 1 if card["parameters"]["encoder_num_heads"] > 1 else 2
    architecture.write_text(json.dumps(card))
    assert TorchaudioCTC(architecture=architecture).load("cpu").weights_hash != first.weights_hash


def test_windows_of_long_audio_fit_together(audio: Path, tmp_path: Path) -> None:
    """Convolutions alone hear a short way, so windows change only what lies near their edges."""
    path, _ = write(tmp_path / "model", "wenet")
    whole = labels_of(audio, tmp_path / "whole", OnnxCTC(path), codec=Full())
    windows = {"window_seconds": 0.64, "overlap_seconds": 0.16}
    parts = labels_of(audio, tmp_path / "parts", OnnxCTC(path), codec=Full(), **windows)
    for key, wanted in whole.items():
        assert parts[key].num_frames == wanted.num_frames
        assert parts[key].log_probs == pytest.approx(wanted.log_probs, abs=2e-3)


def test_the_header_says_what_the_teacher_is(audio: Path, tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model", "nemo")
    labels_of(audio, tmp_path / "labels", OnnxCTC(path))
    header = open_label_shard(tmp_path / "labels" / "shard-000000.kdsl").header
    assert header.teacher == "ONNX nemo CTC" and header.vocab_size == 25 and header.blank_id == 0
    assert header.frame_shift_ms * header.subsampling == 40.0
    assert header.settings["teacher"] == {
        "kind": "ONNX nemo CTC",
        "source": "",
        "blank_id": 24,
        "hears": "80 log-mel as sherpa-onnx makes them for nemo",
        "frame_shift_ms": 40.0,
        "slack_frames": 2,
        "level": "frame",
    }
    units = load_units(tmp_path / "labels")
    assert units.hash == header.units_hash and units.symbols[:3] == ["<blk>", "▁a", "▁b"]
    assert make_units(str(tmp_path / "labels"), [], 0).hash == units.hash
    assert make_units(OnnxCTC(path), [], 0).hash == units.hash
    select(audio=audio, labels=tmp_path / "labels", out=tmp_path / "best", hours=1.0)
    assert load_units(tmp_path / "best").hash == units.hash


class Speaks(torch.nn.Module):
    """Says how many tenths of a second it heard, in words, and nothing of less than half a second."""

    subsampling = 1
    vocab_size = CharUnits().vocab_size

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.passes: list[int] = []

    def offline(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        self.passes.append(len(lengths_b))
        paths = []
        for length in lengths_b.tolist():
            text = " ".join(["tt"] * (length // 1600 if length >= SAMPLE_RATE_HZ // 2 else 0))
            paths.append(spell(CharUnits().encode(text), -0.1, self.vocab_size))
        return torch.nn.utils.rnn.pad_sequence(paths, batch_first=True), torch.tensor([*map(len, paths)])


@dataclass(frozen=True)
class Transcripts:
    max_seconds: float = 1.2

    def load(self, device: str) -> Teacher:
        units = CharUnits()
        facts = {"kind": "counter", "level": "sequence"}
        return Teacher(
            Speaks(), "counter", "w" * 64, units, front_end=WAVEFORM,
            level="sequence", max_seconds=self.max_seconds, facts=facts,
        )  # fmt: skip


def test_transcripts_become_labels_without_times(audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    summary = label(teacher=Transcripts(), audio=audio, out=out, settings=Settings(codec=TopP()))
    shards = [open_label_shard(out / f"{path.stem}.kdsl") for path in list_shards(audio)]
    assert {key: reason for one in shards for key, reason in one.failures.items()} == {
        "utt-1": "the teacher heard no words, or its transcript did not end",
        "utt-3": "too long: 1.3 s, but this teacher takes at most 1.2 s",
        "utt-4": "the teacher heard no words, or its transcript did not end",
    }
    assert summary["labelled"] == 2
    shard = open_label_shard(out / "shard-000000.kdsl")
    assert shard.header.frame_shift_ms == 0.0 and shard.header.settings["teacher"]["level"] == "sequence"
    labels = shard.read("utt-0")
    assert heard_text(labels, CharUnits()) == " ".join(["tt"] * 9)
    assert labels.num_frames == 9 * 3 + 8  # t, blank, t and the spaces between
    with pytest.raises(ConfigError, match="random draws"):
        label(
            teacher=Transcripts(), audio=audio, out=tmp_path / "drawn", settings=Settings(codec=Sampled()),
        )  # fmt: skip


def test_a_teacher_of_transcripts_hears_as_long_a_time_for_every_utterance(
    audio: Path, tmp_path: Path
) -> None:
    (path, *_) = list_shards(audio)
    teacher = Transcripts().load("cpu")
    for batch_seconds, passes in ((2.4, [2, 1]), (3.6, [3]), (0.5, [1, 1, 1])):
        teacher.model.passes.clear()
        label_shard(teacher, path, tmp_path / str(batch_seconds), Settings(batch_seconds=batch_seconds))
        assert teacher.model.passes == passes[::-1], batch_seconds


def test_a_shard_of_silence_is_labelled_as_such(tmp_path: Path) -> None:
    items = [Utterance(f"utt-{n}", noise(0.4, n)) for n in range(3)]
    write_shards(items, tmp_path / "audio", description="silence")
    label(teacher=Transcripts(), audio=tmp_path / "audio", out=tmp_path / "labels")
    shard = open_label_shard(tmp_path / "labels" / "shard-000000.kdsl")
    assert shard.failures == {
        f"utt-{n}": "the teacher heard no words, or its transcript did not end" for n in range(3)
    }


def test_silence_beside_a_broken_teacher_does_not_hide_that_it_is_broken(tmp_path: Path) -> None:
    items = [Utterance(f"utt-{n}", noise(0.4 if n == 0 else 0.9, n)) for n in range(4)]
    write_shards(items, tmp_path / "audio", description="noise and a pause")
    (path,) = list_shards(tmp_path / "audio")
    teacher = Transcripts().load("cpu")
    hears = teacher.model.offline

    def broken(inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        if int(lengths_b.max()) > SAMPLE_RATE_HZ // 2:
            raise ValueError("broken")
        return hears(inputs, lengths_b)

    teacher.model.offline = broken  # type: ignore[method-assign]
    with pytest.raises(SoftLabelError, match="the teacher failed on all 3 utterances"):
        label_shard(teacher, path, tmp_path / "labels", Settings())


def test_words_of_a_lexicon_and_a_teacher_that_hears_none_of_them(audio: Path, tmp_path: Path) -> None:
    settings = Settings(words=Words(Lexicon(units=CharUnits(), words=["tt"])))
    label(teacher=Transcripts(), audio=audio, out=tmp_path / "labels", settings=settings)
    shard = open_label_shard(tmp_path / "labels" / "shard-000000.kdsl")
    assert "no words" in shard.failures["utt-1"] and heard_text(shard.read("utt-0"), CharUnits())[:2] == "tt"


def test_retokenised_labels_are_what_the_teacher_heard(audio: Path, tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model", "zipformer")
    labels_of(audio, tmp_path / "labels", OnnxCTC(path))
    theirs, ours = load_units(tmp_path / "labels"), CharUnits()
    found = retokenise(audio=audio, labels=tmp_path / "labels", out=tmp_path / "text", units=ours)
    assert found.utterances == len(SECONDS) and found.failed == {}
    assert verify_labels(audio, tmp_path / "text") == []
    for shard_path in list_shards(audio):
        for utterance in read_shard(shard_path):
            name = f"{shard_path.stem}.kdsl"
            heard = open_label_shard(tmp_path / "labels" / name).read(utterance.key)
            spelled = open_label_shard(tmp_path / "text" / name)
            text = heard_text(heard, theirs)
            assert len(text) > 3 and heard_text(spelled.read(utterance.key), ours) == text
            assert spelled.header.units_hash == ours.hash and spelled.header.frame_shift_ms == 0.0
    assert load_units(tmp_path / "text").hash == ours.hash


def test_a_student_learns_from_retokenised_labels_by_ctc(audio: Path, tmp_path: Path) -> None:
    from kdasr.contract import StudentSide
    from kdasr.interfaces import ModelOutput

    path, _ = write(tmp_path / "model", "zipformer")
    labels_of(audio, tmp_path / "labels", OnnxCTC(path))
    units = CharUnits()
    retokenise(audio=audio, labels=tmp_path / "labels", out=tmp_path / "text", units=units)
    stream = Stream([audio], 10.0, 0, labels=[LabelFolder(tmp_path / "text")], student=StudentSide(units, 2))
    assert not stream.labels_have_times
    batch = stream.batch(0)
    after = Stream(
        [audio], 10.0, 0, labels=stream.labels, student=StudentSide(units, 2), tail_share=1.0
    ).batch(0)
    longer = dict(zip(after.keys, after.feature_lengths_b.tolist(), strict=True))
    lengths = dict(zip(batch.keys, batch.feature_lengths_b.tolist(), strict=True))
    assert {key: frames + 32 for key, frames in lengths.items() if key in longer} == longer
    frames_b = (batch.feature_lengths_b + 1) // 2
    log_probs = torch.zeros(len(batch.keys), int(frames_b.max()), units.vocab_size).log_softmax(-1)
    loss = best_path_ctc(ModelOutput(log_probs, frames_b), batch)
    targets = []
    theirs = load_units(tmp_path / "labels")
    for shard_path in list_shards(audio):
        shard = open_label_shard(tmp_path / "labels" / f"{shard_path.stem}.kdsl")
        targets += [(key, units.encode(heard_text(shard.read(key), theirs))) for key in shard.keys]
    expected = sum(
        torch.nn.functional.ctc_loss(
            log_probs[row, : frames_b[row]], torch.tensor(dict(targets)[key]), frames_b[row : row + 1],
            torch.tensor([len(dict(targets)[key])]), reduction="sum",
        )
        for row, key in enumerate(batch.keys)
    )  # fmt: skip
    assert float(loss) == pytest.approx(float(expected / frames_b.sum()), rel=1e-5)


def test_what_the_student_cannot_spell_is_named(audio: Path, tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model", "zipformer")
    labels_of(audio, tmp_path / "labels", OnnxCTC(path))
    few = TableUnits(["<blk>", "▁", "a", "b"])
    found = retokenise(audio=audio, labels=tmp_path / "labels", out=tmp_path / "text", units=few)
    assert found.utterances == 0 and len(found.failed) == len(SECONDS)
    assert "cannot be spelled in the student's units" in found.failed["utt-0"]
    assert verify_labels(audio, tmp_path / "text") == []
    with pytest.raises(ConfigError, match="folder of their own"):
        retokenise(audio=audio, labels=tmp_path / "labels", out=tmp_path / "labels", units=few)
    (tmp_path / "way").symlink_to(tmp_path / "labels")
    with pytest.raises(ConfigError, match="folder of their own"):
        retokenise(audio=audio, labels=tmp_path / "way", out=tmp_path / "labels", units=few, overwrite=True)
    again = retokenise(audio=audio, labels=tmp_path / "labels", out=tmp_path / "text", units=few)
    assert again == found
    with pytest.raises(LabelMismatchError, match="a different configuration: .*units_hash"):
        retokenise(audio=audio, labels=tmp_path / "labels", out=tmp_path / "text", units=CharUnits())
    assert load_units(tmp_path / "text").hash == few.hash and verify_labels(audio, tmp_path / "text") == []
    retokenise(
        audio=audio, labels=tmp_path / "labels", out=tmp_path / "text", units=CharUnits(), overwrite=True
    )
    assert load_units(tmp_path / "text").hash == CharUnits().hash
    (tmp_path / "labels" / "units.json").unlink()
    with pytest.raises(UnitsError, match="cannot be read"):
        retokenise(audio=audio, labels=tmp_path / "labels", out=tmp_path / "text2", units=few)
