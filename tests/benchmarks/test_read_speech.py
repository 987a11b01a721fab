"""A text becomes a corpus that is read as LibriSpeech is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from benchmarks import read_speech
from data_prep import prepare
from kdasr.shards import list_shards, read_shard

TEXT = "Wind, over dark water; it's cold. Who goes there? Nobody knows: the old men sing by night!"
WORDS = TEXT.split()
HOURS = {"train-clean-100": 0.004, "train-other-500": 0.004, "test-other": 0.003}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [" ".join(map(str, rng.choice(WORDS, 12))) for _ in range(60)]
    path.write_text("\n".join([*lines, *lines[:20], "Chapter 4 has a number; and a naïve café none."]))
    return path


def write(text: Path, corpus: Path, processes: int) -> dict[str, float]:
    hours = [f"{subset}={number}" for subset, number in HOURS.items()]
    arguments = ["--text", str(text), "--corpus", str(corpus), "--processes", str(processes)]
    return read_speech.main([*arguments, "--hours", *hours])


@pytest.fixture(scope="module", autouse=True)
def _short_chapters() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_speech, "CHAPTER_UTTERANCES", 1)
        yield


@pytest.fixture(scope="module")
def corpus(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    written = write(text, folder, 1)
    assert len(list(folder.glob("LibriSpeech/train-clean-100/*"))) > 1
    assert all(0.3 < written[subset] / HOURS[subset] < 4 for subset in HOURS)
    return folder


def files(corpus: Path) -> dict[str, bytes]:
    return {str(p.relative_to(corpus)): p.read_bytes() for p in corpus.rglob("*") if p.is_file()}


def test_the_corpus_is_the_same_whatever_the_processes(text: Path, corpus: Path, tmp_path: Path) -> None:
    write(text, tmp_path, 2)
    assert files(tmp_path) == files(corpus)


def test_it_is_prepared_as_librispeech_is(corpus: Path, tmp_path: Path) -> None:
    prepare("librispeech", corpus=corpus, out=tmp_path, seed=1, unlabelled=("train-other-500",))
    heard = {
        subset: [one for shard in list_shards(tmp_path / subset) for one in read_shard(shard)]
        for subset in HOURS
    }
    transcripts = [one.text or "" for subset in ("train-clean-100", "test-other") for one in heard[subset]]
    words = {word.strip(",.;:?!").upper() for word in WORDS}
    assert transcripts and all(set(text.upper().split()) <= words for text in transcripts)
    assert len(set(transcripts)) == len(transcripts)
    assert all(one.text is None for one in heard["train-other-500"])
    assert all(1 < len(one.samples) / 16_000 < 20 for group in heard.values() for one in group)
    assert all(0.01 < np.abs(one.samples).max() < 1 for group in heard.values() for one in group)


def test_no_voice_reads_in_two_subsets_that_are_measured_apart() -> None:
    voices = {subset: set(read_speech._voices(subset, 1)) for subset in read_speech.SUBSETS}
    unlabelled = {"train-clean-360", "train-other-500"}
    for one, other in combinations(voices, 2):
        assert {one, other} == unlabelled or not voices[one] & voices[other]
    assert all(len(voices[name]) == number for name, number in read_speech.NUM_VOICES.items())


def test_sentences_are_of_all_lengths_and_each_once(text: Path) -> None:
    rng = np.random.default_rng(2)
    long = "\n".join(" ".join(map(str, rng.choice(WORDS, 12))) for _ in range(2_000))
    lengths = [len(line.split()) for line in read_speech.readable(long, 1)]
    assert min(lengths) >= read_speech.MIN_WORDS and max(lengths) <= read_speech.MAX_WORDS
    assert len(set(lengths)) > 20
    lines = read_speech.readable(text.read_text(), 1)
    assert len(set(lines)) == len(lines) and not any("number" in line or "caf" in line for line in lines)


def test_a_text_that_is_too_short_says_how_much_an_hour_takes(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Nobody knows why the old men sing by night.")
    with pytest.raises(SystemExit, match="the text ends in train-clean-100; an hour takes 11,600 words"):
        write(short, tmp_path / "corpus", 1)


def test_an_unknown_subset_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_speech.main(["--text", str(text), "--corpus", str(tmp_path), "--hours", "train-clean=1"])
    assert "there is no subset train-clean;" in capsys.readouterr().err


def test_two_corpora_are_not_mixed(text: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(corpus)
    with pytest.raises(SystemExit):
        write(text, corpus, 1)
    assert "already has train-clean-100, train-other-500, test-other; choose" in capsys.readouterr().err
    assert files(corpus) == before
