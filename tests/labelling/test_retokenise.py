"""What a teacher heard, spelled in other units: its words, how sure it was of them, and what has none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from kdasr import stages
from kdasr.errors import ConfigError, UnitsError
from kdasr.interfaces import Utterance
from kdasr.labelling import heard_texts, retokenise
from kdasr.labelling.filters import confidence
from kdasr.labelling.heard import heard_text
from kdasr.labelling.out_folder import write_labels
from kdasr.manifest import read_manifest
from kdasr.shards import write_shards
from kdasr.soft_labels import Failure, Full, Header, open_label_shard
from kdasr.symbols import TableUnits
from kdasr.teachers.base import spell
from kdasr.text import CharUnits, load_units

# What was heard (None: nothing was), and how surely.
SAID = [("café", 0.9), (None, 0.0), ("un", 0.6), ("xyz", 0.7), ("", 0.8)]
THEIRS = CharUnits("é")
OURS = TableUnits(["<blk>", "▁", "c", "a", "f", "é", "u", "n", "e"])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two shards and their labels."""
    audio, labels = tmp_path / "audio", tmp_path / "labels"
    items = [Utterance(f"utt-{n}", np.zeros(1600, np.float32)) for n in range(len(SAID))]
    paths = write_shards(items, audio, max_utterances=3, description="test")
    for path, first in zip(paths, (0, 3), strict=True):
        shard = read_manifest(path)
        header = Header(
            teacher="tiny", teacher_hash="t" * 64, units_hash=THEIRS.hash, vocab_size=THEIRS.vocab_size,
            feature_hash="f" * 16, frame_shift_ms=10.0, subsampling=4, codec="full",
            codec_params=Full().params, audio_file=path.name, audio_sha256=shard.sha256,
            settings={"teacher": {"level": "frame", "family": "tiny"}, "window_seconds": 40.0},
        )  # fmt: skip
        stored = [
            Failure("filtered: it is music")
            if text is None
            else Full().encode(spell(THEIRS.encode(text), math.log(sure), THEIRS.vocab_size))
            for text, sure in SAID[first : first + 3]
        ]
        write_labels(labels, shard, header, ((f"utt-{first + n}", item) for n, item in enumerate(stored)))
    THEIRS.save(labels)
    return audio, labels


def test_texts_and_their_confidence_stay_and_what_has_none_keeps_its_reason(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found = retokenise(audio=folders[0], labels=folders[1], out=tmp_path / "text", units=OURS)
    assert found.utterances == 2
    assert found.failed["utt-1"] == "filtered: it is music"
    assert found.failed["utt-3"].startswith("cannot be spelled in the student's units: ")
    assert found.failed["utt-4"] == "the teacher heard no words" and len(found.failed) == 3
    shards = [open_label_shard(tmp_path / "text" / f"shard-00000{n}.kdsl") for n in range(2)]
    assert [shard.keys for shard in shards] == [["utt-0", "utt-1", "utt-2"], ["utt-3", "utt-4"]]
    for key, text, sure in (("utt-0", "café", 0.9), ("utt-2", "un", 0.6)):
        labels = shards[0].read(key)
        assert heard_text(labels, OURS) == text, "a letter that the student has is not lost"
        assert confidence(labels).best_path == pytest.approx(sure, abs=0.02)


def test_letters_that_the_student_lacks_are_named(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audio, labels = folders
    retokenise(audio=audio, labels=labels, out=tmp_path / "kept", units=OURS)
    assert caplog.messages == []
    retokenise(audio=audio, labels=labels, out=tmp_path / "lost", units=CharUnits("ü"))
    assert caplog.messages == ["letters that the student lacks lose their accents or are left out: é"]


def test_the_header_says_that_there_are_no_times_any_more_and_what_it_was_made_of(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    retokenise(audio=folders[0], labels=folders[1], out=tmp_path / "text", units=OURS)
    header = open_label_shard(tmp_path / "text/shard-000001.kdsl").header
    assert (header.frame_shift_ms, header.subsampling, header.vocab_size) == (0.0, 1, OURS.vocab_size)
    assert (header.codec, header.codec_params["k"], header.units_hash) == ("top_k", 2, OURS.hash)
    assert header.settings == {
        "teacher": {"level": "sequence", "family": "tiny"},
        "window_seconds": 40.0,
        "heard_in_units": THEIRS.hash,
    }


def test_audio_is_not_written_over(folders: tuple[Path, Path]) -> None:
    before = json.loads((folders[0] / "shard-000000.json").read_text())
    with pytest.raises(ConfigError, match="folder of audio shards"):
        retokenise(audio=folders[0], labels=folders[1], out=folders[0], units=OURS)
    assert json.loads((folders[0] / "shard-000000.json").read_text()) == before


def test_labels_are_read_in_no_other_units_than_theirs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    CharUnits().save(folders[1])
    with pytest.raises(UnitsError, match="the units in this folder are not those of its labels") as told:
        retokenise(audio=folders[0], labels=folders[1], out=tmp_path / "text", units=OURS)
    assert (told.value.expected, told.value.got) == (THEIRS.hash, CharUnits().hash)
    assert not list(tmp_path.glob("text/*.kdsl"))


def test_pieces_are_learnt_from_transcripts_or_from_what_was_heard(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, labels = folders
    assert [*heard_texts(audio, labels)] == ["café", "un", "xyz", ""]
    given = {"audio": str(audio), "labels": str(labels), "units": {"kind": "sentencepiece", "vocab_size": 11}}
    found = stages.retokenise(**given, out=str(tmp_path / "heard"))
    assert found == {"labelled": 3, "without labels": 2}
    assert {*"caféunxyz"} < {*load_units(tmp_path / "heard").symbols}

    items = [Utterance("said", np.zeros(1600, np.float32), "café un")]
    write_shards(items, tmp_path / "said", max_utterances=1, description="test")
    of_transcripts = {**given["units"], "vocab_size": 8}
    given |= {"units": of_transcripts, "labelled": [str(tmp_path / "said")]}
    assert stages.retokenise(**given, out=str(tmp_path / "text"))["labelled"] == 2
    assert "utt-3: cannot be spelled in the student's units" in capsys.readouterr().err
    assert not {*"xyz"} & {*load_units(tmp_path / "text").symbols}
