"""Students of a pretrained teacher: on its units, on their own by a map or by its text, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdasr import stages
from kdasr.contract import StudentSide
from kdasr.errors import ConfigError, LabelMismatchError
from kdasr.loader import Stream
from kdasr.losses import best_path_ctc
from kdasr.models import load_model
from kdasr.soft_labels import LabelFolder, open_label_shard
from kdasr.teachers.onnx_ctc import OnnxCTC
from kdasr.teachers.torchaudio_ctc import TorchaudioCTC
from kdasr.text import CharUnits, load_units
from tests.speech import shards
from tests.teachers.tiny_models import torchaudio_model
from tests.teachers.tiny_onnx import write
from tests.test_stages import train as stages_train

pytestmark = pytest.mark.slow
BEST = {"best_path": {"weight": 1.0, "loss": best_path_ctc}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio, and labels of word pieces every 40 ms and of letters every 20 ms."""
    root = tmp_path_factory.mktemp("students")
    shards(root / "labelled", 6)
    shards(root / "dev", 2, first_seed=100)
    shards(root / "unlabelled", 6, first_seed=200, with_text=False)
    pieces = OnnxCTC(write(root / "onnx", "zipformer")[0])
    letters = TorchaudioCTC(architecture=torchaudio_model(root / "torchaudio")[0])
    for name, teacher in (("pieces", pieces), ("letters", letters)):
        stages.label(teacher=teacher, audio=str(root / "unlabelled"), out=str(root / name), device="cpu")
    return root


def train(data: Path, out: Path, labels: str, **changed: Any) -> Any:
    stages_train(data, out, labels=[str(data / labels)], teacher=None, **changed)
    return load_model(out)


def test_a_student_on_the_teachers_units(data: Path, tmp_path: Path) -> None:
    trained = train(data, tmp_path / "student", "pieces", units=str(data / "pieces"))
    assert trained.units.hash == load_units(data / "pieces").hash
    assert trained.model.vocab_size == 25
    # As its own teacher's units, they serve the next student too.
    assert load_units(tmp_path / "student").encode("a bad cab") == trained.units.encode("a bad cab")


def test_letters_of_another_order_and_rate_are_mapped(data: Path, tmp_path: Path) -> None:
    trained = train(data, tmp_path / "student", "letters")
    assert trained.units.hash == CharUnits().hash
    side = StudentSide(CharUnits(), 4)
    stream = Stream([data / "unlabelled"], 60.0, 0, labels=[LabelFolder(data / "letters")], student=side)
    batch = stream.batch(0)
    assert batch.soft_labels is not None
    assert batch.soft_labels.lengths_b.tolist() == [side.frames(n) for n in batch.feature_lengths_b.tolist()]
    assert int(batch.soft_labels.ids_btk.max()) < CharUnits().vocab_size


def test_as_many_frames_may_be_missing_as_the_teacher_says(data: Path) -> None:
    units = load_units(data / "pieces")
    header = open_label_shard(data / "pieces" / "shard-000000.kdsl").header
    plain = replace(header, settings={})
    fast = replace(header, subsampling=2)
    found = [StudentSide(units, 4).contract(one, None, "x").tolerance_frames for one in (header, plain, fast)]
    assert found == [2, 1, 1]  # two frames of 20 ms are one of the student's
    with pytest.raises(LabelMismatchError, match="25 ± 2 frames"):
        StudentSide(units, 4).contract(header, None, "x").check_length(22, 25, "x")


def test_other_units_are_refused_until_they_are_retokenised(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelMismatchError, match=r"units_hash.*same units"):
        train(data, tmp_path / "student", "pieces", unlabelled_losses=BEST)
    stages.retokenise(
        audio=str(data / "unlabelled"),
        labels=str(data / "pieces"),
        out=str(data / "text"),
        units={"kind": "characters"},
    )
    with pytest.raises(ConfigError, match="transcripts without times"):
        train(data, tmp_path / "student", "text")
    trained = train(data, tmp_path / "student", "text", unlabelled_losses=BEST)
    assert trained.units.hash == CharUnits().hash
