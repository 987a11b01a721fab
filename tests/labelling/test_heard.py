"""What a teacher heard: texts, confidence and reasons as they were stored, and error rates by hand."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kdasr.cli import main
from kdasr.errors import ConfigError, SoftLabelError, UnitsError
from kdasr.interfaces import SoftLabels
from kdasr.labelling import Heard, MinConfidence, heard, heard_frames, heard_summary
from kdasr.labelling.heard import begins_with_a_unit
from kdasr.labelling.out_folder import write_labels
from kdasr.manifest import read_manifest
from kdasr.shards import Placed, write_shards
from kdasr.soft_labels import Failure, Full, Header, open_label_shard
from kdasr.storage import locate
from kdasr.teachers.base import spell
from kdasr.text import CharUnits

# Transcript, what was heard (None: nothing), and how surely.
SAID = [
    ("one two", "one two", 0.9),
    ("three four", "three for", 0.6),
    ("five", None, 0.0),
    (None, "six", 0.8),
    ("seven eight nine", "seven", 0.7),
]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return _labelled(tmp_path)


def _labelled(
    folder: Path,
    said: Sequence[tuple[str | None, str | None, float]] = SAID,
    *,
    with_text: bool = True,
    letters: str = "",
    frame_shift_ms: float = 0.0,
) -> tuple[Path, Path]:
    audio, labels, units = folder / "audio", folder / "labels", CharUnits(letters)
    items = [
        Placed(
            f"utt-{n}",
            np.zeros(16_000 * (n + 1), np.float32),
            text if with_text else None,
            source=f"{n}.mp3",
            offset=2.5 * n,
        )
        for n, (text, _, _) in enumerate(said)
    ]
    (path,) = write_shards(items, audio, description="test")
    shard = read_manifest(path)
    header = Header(
        teacher="tiny", teacher_hash="t" * 64, units_hash=units.hash, vocab_size=units.vocab_size,
        feature_hash="f" * 16, frame_shift_ms=frame_shift_ms, subsampling=1, codec="full",
        codec_params=Full().params, audio_file=path.name, audio_sha256=shard.sha256,
    )  # fmt: skip
    stored = [
        Failure("filtered: it is music")
        if text is None
        else Full().encode(spell(units.encode(text), math.log(sure), units.vocab_size))
        for _, text, sure in said
    ]
    write_labels(labels, shard, header, ((f"utt-{n}", item) for n, item in enumerate(stored)))
    units.save(labels)
    return audio, labels


def test_texts_confidence_and_reasons_are_what_was_stored(folders: tuple[Path, Path]) -> None:
    found = list(heard(audio=folders[0], labels=folders[1]))
    assert [item.text for item in found] == [text for _, text, _ in SAID]
    assert [item.reference for item in found] == [text for text, _, _ in SAID]
    assert [item.confidence for item in found if item.text] == pytest.approx([0.9, 0.6, 0.8, 0.7], abs=0.02)
    assert found[2].failure == "filtered: it is music" and found[2].confidence is None
    assert [item.seconds for item in found] == [1, 2, 3, 4, 5]
    assert [(item.source, item.offset) for item in found] == [(f"{n}.mp3", 2.5 * n) for n in range(5)]


def test_the_error_rate_is_that_of_the_surest_shares_of_what_has_a_transcript(
    folders: tuple[Path, Path],
) -> None:
    lines = heard_summary(list(heard(audio=folders[0], labels=folders[1])), "best_path")
    assert lines[0] == "4 of 5 utterances have labels, 12.0 s of 15.0 s"
    assert lines[1] == "WER of the 3 that also have a transcript, by best_path:"
    rows = [line.split() for line in lines[3:]]
    # All three: one of two, two of three and none of two words wrong; two thirds; the surest alone.
    assert [row[0] for row in rows] == ["100%", "90%", "75%", "50%", "25%"]
    assert [row[-1] for row in rows] == ["42.9", "42.9", "40.0", "40.0", "0.0"]
    assert [float(row[1]) for row in rows] == pytest.approx([0.6, 0.6, 0.7, 0.7, 0.9], abs=0.02)
    found = list(heard(audio=folders[0], labels=folders[1], measure="entropy"))
    lines = heard_summary(found, "entropy")
    assert lines[2].split()[2:4] == ["up", "to"]
    for row, item in ((rows[4], found[0]), (lines[7].split(), found[0])):
        measure = "best_path" if row is rows[4] else "entropy"
        labels = open_label_shard(folders[1] / "shard-000000.kdsl").read(item.key)
        assert MinConfidence(float(row[1]), measure).after(labels, 1.0) is None, "the threshold keeps it"


def test_without_transcripts_there_is_no_error_rate(tmp_path: Path) -> None:
    audio, labels = _labelled(tmp_path, with_text=False)
    found = list(heard(audio=audio, labels=labels))
    assert heard_summary(found, "best_path") == ["4 of 5 utterances have labels, 12.0 s of 15.0 s"]


@pytest.mark.parametrize(("frame_shift_ms", "told"), [(0.0, False), (40.0, True)])
def test_units_in_the_first_frame_are_told_where_labels_have_times(
    frame_shift_ms: float, told: bool, tmp_path: Path
) -> None:
    audio, labels = _labelled(tmp_path, frame_shift_ms=frame_shift_ms, with_text=False)
    found = list(heard(audio=audio, labels=labels))
    # `spell` gives each unit its frames, beginning with the first.
    assert [item.at_once for item in found] == [told, told, False, told, told]
    lines = heard_summary(found, "best_path")[1:]
    assert [line[:57] for line in lines] == [
        "4 of them have a unit in their first frame, whether or no"
    ] * told


@pytest.mark.parametrize("count", [2, 3])
def test_hours_are_those_of_each_share_and_half_of_them_at_once_is_not_told(count: int) -> None:
    found = [Heard(f"utt-{n}", 1800.0, "a", 0.9 - n / 10, "", "a", at_once=n < count) for n in range(4)]
    lines = heard_summary(found, "best_path")
    assert [line[:12] for line in lines[1:-7]] == ["3 of them ha"] * (count == 3)
    rows = [line.split() for line in lines[-5:]]
    assert [(row[0], row[2]) for row in rows] == [
        ("100%", "2.00"), ("90%", "2.00"), ("75%", "1.50"), ("50%", "1.00"), ("25%", "0.50"),
    ]  # fmt: skip


@pytest.mark.parametrize(("blank", "frames", "is_unit"), [(0.6, 2, False), (0.4, 2, True), (0.4, 0, False)])
def test_the_first_frame_is_that_of_its_best_unit(blank: float, frames: int, is_unit: bool) -> None:
    kept, probabilities = np.array([2, 1][:frames]), np.array([blank, 1 - blank, 1.0][: 3 * (frames > 0)])
    ids = np.array([0, 3, 3][: len(probabilities)])
    labels = SoftLabels(
        kept, ids, np.log(probabilities, dtype=np.float32), np.full(frames, -np.inf, np.float32)
    )
    assert begins_with_a_unit(labels) == is_unit


def test_letters_that_the_transcripts_have_lost_are_no_errors(tmp_path: Path) -> None:
    said = [("the cafe", "the café", 0.9), ("ja", "já", 0.8)]
    places = _labelled(tmp_path, said, letters="éá")
    found = list(heard(audio=places[0], labels=places[1]))
    assert [item.text for item in found] == ["the café", "já"]
    assert heard_summary(found, "best_path")[3].split()[-1] == "0.0"
    kept = [("the café", "the cafe", 0.9), ("já", "já", 0.8)]
    places = _labelled(tmp_path / "kept", kept, letters="éá")
    found = list(heard(audio=places[0], labels=places[1]))
    assert heard_summary(found, "best_path")[3].split()[-1] == "33.3", "and are where these have them"


def test_a_word_that_cannot_be_normalised_is_an_error_by_itself_and_told(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "It was 1984, he said to the Man."
    # By its name: the package has a function of the same one.
    module = importlib.import_module("kdasr.labelling.heard")
    monkeypatch.setattr(module, "heard_text", lambda labels, units: said)
    found = next(heard(audio=folders[0], labels=folders[1]))
    assert found.text == "it was 1984, he said to the man"
    spelled = "it was nineteen eighty four he said to the man"
    items = [Heard("a", 3, said, 0.9, "", spelled), Heard("b", 3, "Yes.", 0.8, "", "yes")]
    lines = heard_summary(items, "best_path")
    # One word for three of ten and one.
    assert lines[3].split()[-1] == "27.3" and lines[7].split()[-1] == "30.0"
    assert lines[8:] == ["1 texts contain words that could not be normalised; they count as errors"]
    assert len(heard_summary(items[1:], "best_path")) == 8


def test_words_heard_in_known_silence_are_errors(tmp_path: Path) -> None:
    audio, labels = _labelled(
        tmp_path, [("one two", "one too", 0.7), ("", "thank you for", 0.9), (None, "six", 0.8)]
    )
    found = list(heard(audio=audio, labels=labels))
    assert [item.reference for item in found] == ["one two", "", None]
    lines = heard_summary(found, "best_path")
    assert lines[1] == "WER of the 2 that also have a transcript, by best_path:"
    # A substitution and three insertions on two words; the surest alone holds no word to count by.
    assert [line.split()[-1] for line in lines[3:]] == ["200.0", "200.0", "200.0", "–", "–"]
    assert {len(line) for line in lines[2:]} == {41}, "the columns stay in line"
    silence = [item for item in found if item.reference != "one two"]
    said = "no error rate: the 1 that also have a transcript contain no words"
    assert heard_summary(silence, "best_path")[1:] == [said]


def test_audio_at_a_url_is_not_fetched_for_its_transcripts(folders: tuple[Path, Path]) -> None:
    place = locate("memory://heard-test/audio")
    for path in folders[0].iterdir():
        place.child(path.name).commit(path.read_bytes() if path.suffix == ".json" else b"")
    found = list(heard(audio="memory://heard-test/audio", labels=folders[1]))
    assert [item.text for item in found] == [text for _, text, _ in SAID]
    assert {(item.reference, item.source, item.offset) for item in found} == {(None, None, None)}


def test_the_command_prints_a_line_each_and_the_summary_beside_them(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--audio", str(folders[0]), "--labels", str(folders[1])]
    assert main(["heard", *place, "--measure", "spikes"]) == 0
    out, told = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [f"utt-{n}" for n in range(5)]
    assert lines[2][1:] == ["-", "filtered: it is music", "2.mp3", "5.0", "five"]
    assert lines[3][2:] == ["six", "3.mp3", "7.5"], "it has no transcript"
    assert [line[2::3] for line in lines[:2]] == [["one two"] * 2, ["three for", "three four"]]
    assert float(lines[0][1]) == pytest.approx(0.9, abs=0.02) and "by spikes" in told
    assert main(["heard", *place, "--measure", "entropy"]) == 0
    out, told = capsys.readouterr()
    # One posterior in each frame: the best class has 0.9, and 27 others the rest.
    nats = -0.9 * math.log(0.9) - 0.1 * math.log(0.1 / 27)
    shown = [line.split("\t")[1] for line in out.splitlines()]
    assert float(shown[0]) == pytest.approx(nats, abs=0.05) and shown[2] == "-"
    least = float(told.splitlines()[3].split()[1])
    assert max(float(shown[number]) for number in (0, 1, 4)) <= least + 5e-4
    assert main(["heard", *place, "--measure", "loudness"]) == 2
    assert "unknown measure" in capsys.readouterr().err


def test_one_utterance_is_shown_frame_by_frame(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--audio", str(folders[0]), "--labels", str(folders[1])]
    assert main(["heard", *place, "--key", "utt-1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "utt-1: 2.0 s, 1.mp3 at 2.5 s"
    assert lines[1].startswith("teacher: ") and lines[1].endswith("codec full")
    assert lines[2:4] == ["transcript: three four", "best path: three for"]
    assert lines[4] == "WER: 50.0 %, 1 error in 2 words"
    shown = [line.split()[1:3] for line in lines[5:]]
    assert [unit for unit, _ in shown if unit != "<blk>"] == list("three▁for")
    assert all(float(share) == pytest.approx(0.6, abs=0.02) for unit, share in shown if unit != "<blk>")
    for key, message in (
        ("utt-2", "utt-2: this utterance has no labels; got .*music"),
        ("utt-9", "--key: no utterance has this key"),
    ):
        assert main(["heard", *place, "--key", key]) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("said", "heard", "told"),
    [
        ("seven", "seven", ["WER: 0.0 %, 0 errors in 1 word"]),
        ("one two three", "one too", ["WER: 66.7 %, 2 errors in 3 words"]),
        ("", "thank you", ["no error rate: the transcript contains no words"]),
        (None, "six", []),
    ],
)
def test_one_utterance_has_an_error_rate_if_its_transcript_has_words(
    said: str | None, heard: str, told: list[str], tmp_path: Path
) -> None:
    audio, labels = _labelled(tmp_path, [(said, heard, 0.8)])
    lines = heard_frames(audio=audio, labels=labels, key="utt-0")
    best = lines.index(f"best path: {heard}")
    assert [line for line in lines if "WER" in line or "error" in line] == told
    assert lines[best + 1 : best + 1 + len(told)] == told


def test_one_utterance_is_normalised_as_the_transcripts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, labels = _labelled(tmp_path, [("the cafe", "the café", 0.9), ("já", "já", 0.8)], letters="éá")
    assert "WER: 0.0 %, 0 errors in 2 words" in heard_frames(audio=audio, labels=labels, key="utt-0")
    module = importlib.import_module("kdasr.labelling.heard")
    monkeypatch.setattr(module, "heard_text", lambda labels, units: "In 1984.")
    lines = heard_frames(audio=audio, labels=labels, key="utt-0")
    at = lines.index("best path: In 1984.")
    assert lines[at + 1 : at + 3] == [
        "WER: 100.0 %, 2 errors in 2 words",
        "1 texts contain words that could not be normalised; they count as errors",
    ]


def test_frames_have_their_times(tmp_path: Path) -> None:
    audio, labels = _labelled(tmp_path, frame_shift_ms=10.0)
    lines = heard_frames(audio=audio, labels=labels, key="utt-0")
    header = open_label_shard(next(labels.glob("*.kdsl"))).header
    frame_s = header.subsampling / 100
    times = [float(line.split()[0]) for line in lines if line.lstrip()[0].isdigit() and " s   " in line]
    assert times and all(time / frame_s == pytest.approx(round(time / frame_s), abs=0.2) for time in times)


def test_labels_without_their_units_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(SoftLabelError, match="the folder of soft labels does not exist"):
        list(heard(audio=folders[0], labels=folders[0].parent / "lables"))
    CharUnits("é").save(folders[1])
    with pytest.raises(UnitsError, match="the units in this folder are not those of its labels"):
        list(heard(audio=folders[0], labels=folders[1]))
    (folders[1] / "units.json").unlink()
    with pytest.raises(UnitsError, match="cannot be read"):
        list(heard(audio=folders[0], labels=folders[1]))
    with pytest.raises(ConfigError, match="unknown measure"):
        list(heard(audio=folders[0], labels=folders[1], measure="loudness"))  # type: ignore[arg-type]


def test_texts_and_reasons_do_not_direct_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, labels = _labelled(tmp_path, [("one \x1b[2J two", "one two", 0.9)])
    place = ["--audio", str(audio), "--labels", str(labels)]
    for more in ([], ["--key", "utt-0"]):
        assert main(["heard", *place, *more]) == 0
        assert r"one \u001b[2J two" in capsys.readouterr().out
