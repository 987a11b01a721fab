"""data_prep.librispeech: subsets, transcripts, and what is left out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import prepare
from kdasr.audio import load
from kdasr.errors import ConfigError, CorpusError
from tests.data_prep.fakes import dropped_in, make_librispeech, read_folder, record_of, write_tone

CHAPTER = "LibriSpeech/train-clean-5/19/198"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_librispeech(tmp_path / "corpus")


def prepared(corpus: Path, **settings: Any) -> Path:
    out = corpus.parent / "out"
    prepare("librispeech", corpus=corpus, out=out, **settings)
    return out


def test_every_subset_becomes_a_split(corpus: Path) -> None:
    out = prepared(corpus)
    train, dev = read_folder(out / "train-clean-5"), read_folder(out / "dev-clean-2")
    assert [(one.key, one.speaker, one.text) for one in train] == [
        ("19-198-0000", "19", "it's a day"),
        ("19-198-0001", "19", "two"),
        ("19-198-0002", "19", "three"),
        ("26-495-0000", "26", "four"),
    ]
    assert [one.text for one in dev] == ["five", "six"]
    np.testing.assert_array_equal(train[1].samples, load(corpus / CHAPTER / "19-198-0001.flac"))
    assert dropped_in(out / "train-clean-5") == {}


def test_a_subset_can_be_chosen_and_go_without_transcripts(corpus: Path) -> None:
    out = prepared(corpus, subset=["dev-clean-2"], unlabelled="dev-clean-2")
    assert [path.name for path in out.iterdir()] == ["dev-clean-2"]
    assert [one.text for one in read_folder(out / "dev-clean-2")] == [None, None]


def test_the_subsets_may_lie_at_the_top(corpus: Path) -> None:
    out = corpus.parent / "out"
    prepare("librispeech", corpus=corpus / "LibriSpeech", out=out)
    assert len(read_folder(out / "train-clean-5")) == 4


def test_a_subset_that_is_not_whole_is_told_of(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(corpus)
    assert "the published" not in capsys.readouterr().err
    (corpus / "LibriSpeech/train-clean-5").rename(corpus / "LibriSpeech/train-clean-360")
    prepared(corpus, subset="train-clean-360")
    told = [line for line in capsys.readouterr().err.splitlines() if "the published" in line]
    assert [line.partition(": ")[2] for line in told] == [
        "4 utterances instead of the published 104,014: is it fully unpacked?"
    ]


def test_a_subset_can_be_parted_by_speaker(corpus: Path) -> None:
    out = prepared(corpus, subset=["train-clean-5", "dev-clean-2"], halved="train-clean-5")
    assert sorted(path.name for path in out.iterdir()) == [
        "dev-clean-2",
        "train-clean-5-a",
        "train-clean-5-b",
    ]
    assert {one.speaker for one in read_folder(out / "train-clean-5-a")} == {"19"}
    assert [one.key for one in read_folder(out / "train-clean-5-b")] == ["26-495-0000"]
    with pytest.raises(ConfigError, match="halved: dev-clean-2 is not among the chosen subsets"):
        prepared(corpus, subset="train-clean-5", halved="dev-clean-2")


def test_every_utterance_is_written_at_each_speed(corpus: Path) -> None:
    out = prepared(corpus, subset="dev-clean-2", unlabelled="dev-clean-2", speeds="1,0.9,1.1")
    written = read_folder(out / "dev-clean-2")
    assert [(one.key, len(one.samples)) for one in written[:3]] == [
        ("84-121-0000", 8000),
        ("84-121-0000-sp90", 8889),
        ("84-121-0000-sp110", 7273),
    ]
    crossings = [int((np.diff(np.signbit(one.samples)) != 0).sum()) for one in written[:3]]
    assert max(crossings) - min(crossings) <= 2, "as many periods of the tone, faster or slower"
    with pytest.raises(
        ConfigError,
        match=r"speeds: invalid speed factors; expected one or more numbers from 0.5 to 2; got \[3",
    ):
        prepared(corpus, subset="dev-clean-2", speeds=[3])


def test_an_unknown_subset_is_refused_with_those_found(corpus: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"no subset train-clean-100; expected some of dev-clean-2, train-clean-5"
    ):
        prepared(corpus, subset="train-clean-100")
    with pytest.raises(ConfigError, match="unlabelled: train-clean-5 is not among the chosen subsets"):
        prepared(corpus, subset="dev-clean-2", unlabelled="train-clean-5")


def test_another_folder_is_no_corpus(tmp_path: Path) -> None:
    write_tone(tmp_path / "in" / "music" / "a.flac", 0.5)
    with pytest.raises(CorpusError, match=r"not a LibriSpeech corpus; expected LibriSpeech/SUBSET"):
        prepare("librispeech", corpus=tmp_path / "in", out=tmp_path / "out")


def test_everything_left_out_is_listed_with_its_reason(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter = corpus / CHAPTER
    transcripts = chapter / "19-198.trans.txt"
    whole = (chapter / "19-198-0002.flac").read_bytes()
    for number, data in (
        (3, b""),
        (4, whole[: len(whole) // 2]),
        (5, whole),
        (6, whole),
        (7, whole),
        (8, whole),
    ):
        (chapter / f"19-198-{number:04d}.flac").write_bytes(data)
    lines = ("0003 EMPTY", "0004 CUT", "0006", "0007 CHAPTER 7", "0009 NO AUDIO", "0001 TWICE", "0010 MORE")
    with transcripts.open("a") as file:
        file.writelines(f"19-198-{line}\n" for line in lines)
    (chapter / "bad name.flac").write_bytes(whole)
    shutil.copy(chapter / "19-198-0000.flac", corpus / "LibriSpeech/train-clean-5/26/495/19-198-0000.flac")
    with (corpus / "LibriSpeech/train-clean-5/26/495/26-495.trans.txt").open("a") as file:
        file.write("19-198-0000 SAID BEFORE\n")
    out = prepared(corpus, subset="train-clean-5")
    keys = [one.key for one in read_folder(out / "train-clean-5")]
    assert keys == ["19-198-0000", "19-198-0001", "19-198-0002", "26-495-0000"]
    dropped = dropped_in(out / "train-clean-5")
    reasons = {name.removeprefix(f"{CHAPTER}/"): reason for name, reason in dropped.items()}
    assert reasons["19-198-0003.flac"].startswith("the audio is empty")
    assert "cut short" in reasons["19-198-0004.flac"] or "decoded" in reasons["19-198-0004.flac"]
    assert reasons["19-198-0005.flac"] == "audio without transcript"
    assert reasons["19-198-0006.flac"] == "the transcript is empty after normalisation"
    assert "'7' cannot be normalised" in reasons["19-198-0007.flac"]
    assert reasons["19-198-0008.flac"] == "audio without transcript"
    assert reasons["19-198-0009.flac"] == "transcript without audio"
    assert reasons["19-198-0010.flac"] == "transcript without audio"
    assert reasons["19-198.trans.txt:9"] == "a second transcript for 19-198-0001"
    assert reasons["bad name.flac"].startswith("the name is not a valid key")
    order = [name for name in reasons if name.startswith("19-198-")]
    assert order == [f"19-198-{number:04d}.flac" for number in range(3, 11)], (
        "as they lie, then what has no audio"
    )
    second = "LibriSpeech/train-clean-5/26/495/19-198-0000.flac"
    assert reasons[second] == "the key is a duplicate of an earlier one"
    assert len(dropped) == 11
    assert "--numbers" not in capsys.readouterr().err  # a setting that this corpus does not have


def test_a_chapter_without_transcripts_is_listed(corpus: Path) -> None:
    (corpus / CHAPTER / "19-198.trans.txt").unlink()
    out = prepared(corpus, subset="train-clean-5")
    assert set(dropped_in(out / "train-clean-5").values()) == {"audio without transcript"}
    assert len(dropped_in(out / "train-clean-5")) == 3


def test_unlabelled_audio_needs_no_transcripts(corpus: Path) -> None:
    (corpus / CHAPTER / "19-198.trans.txt").write_text("19-198-0000 NUMBER 7\nno-audio AT ALL\n")
    out = prepared(corpus, subset="train-clean-5", unlabelled="train-clean-5")
    assert [one.text for one in read_folder(out / "train-clean-5")] == [None] * 4
    assert dropped_in(out / "train-clean-5") == {}


def test_another_sample_rate_is_resampled_and_said(corpus: Path) -> None:
    write_tone(corpus / CHAPTER / "19-198-0001.flac", 0.5, 44_100)
    out = prepared(corpus, subset="train-clean-5")
    assert len(read_folder(out / "train-clean-5")[1].samples) == 8000
    assert record_of(out / "train-clean-5")["notes"] == {"resampled from 44100 Hz": 1}


def test_a_language_is_written_to_every_utterance(corpus: Path) -> None:
    out = prepared(corpus, language="en")
    assert {one.language for one in read_folder(out / "train-clean-5")} == {"en"}
