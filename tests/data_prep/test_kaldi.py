"""data_prep.kaldi: data folders with and without segments, text, speakers; commands that are not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep import prepare
from kdasr.errors import ConfigError, CorpusError
from tests.data_prep.fakes import dropped_in, read_folder, write_tone


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_tone(folder / "audio/a.wav", 3.0, 8_000)
    write_tone(folder / "audio/b c.wav", 0.5)
    return folder


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(text)


def prepared(corpus: Path, **settings: Any) -> Path:
    out = corpus.parent / "out"
    prepare("kaldi", corpus=corpus, out=out, **settings)
    return out


def test_every_folder_is_a_split(corpus: Path) -> None:
    write(
        corpus / "train",
        wav_scp="u1 ../audio/a.wav\nu.2\t../audio/b c.wav\n",
        text="u1 IT'S  A DAY\nu.2\ttwo\n",
        utt2spk="u1 ann\n",
    )
    write(corpus / "train/split2/1", wav_scp="u1 x\n")
    write(corpus / "more", wav_scp=f"r1 {corpus}/audio/a.wav\n")
    out = prepared(corpus, max_seconds=2)
    assert sorted(path.name for path in out.iterdir()) == ["more", "train"]
    assert dropped_in(out / "train") == {"u1": "3.000 s is longer than max_seconds"}
    (two,) = read_folder(out / "train")
    assert (two.key[:4], two.text, two.speaker, len(two.samples)) == ("u_2-", "two", None, 8_000)
    assert [(one.key, one.text) for one in read_folder(out / "more")] == [
        ("r1-0000", None),
        ("r1-0001", None),
    ]


def test_linked_folders_are_splits_by_their_own_names(corpus: Path) -> None:
    for name in ("a", "b"):
        write(
            corpus.parent / f"exp/{name}/data", wav_scp=f"{name} {corpus}/audio/a.wav\n", text=f"{name} one\n"
        )
    (corpus / "train").symlink_to(corpus.parent / "exp/a/data")
    (corpus / "dev").symlink_to(corpus.parent / "exp/b/data")
    out = prepared(corpus)
    assert sorted(path.name for path in out.iterdir()) == ["dev", "train"]
    assert [one.key for one in read_folder(out / "train")] == ["a"]


def test_the_corpus_may_be_a_data_folder(corpus: Path) -> None:
    write(corpus, wav_scp="u1 audio/a.wav\n", text="u1 one\n", utt2spk="u1 ann\n")
    (one,) = read_folder(prepared(corpus) / "data")
    assert (one.key, one.text, one.speaker, len(one.samples)) == ("u1", "one", "ann", 48_000)


def test_segments_are_cut(corpus: Path) -> None:
    write(
        corpus,
        wav_scp="a audio/a.wav\n",
        segments="u1 a 0.5 1.25\nu2 a 1.25 -1\nu3 a 5 6\nu4 b 0 1\nu5 a one two\nu6 a 1\nu7 a 0 nan\n"
        "u9 a 0 1 B\n",
        text="u1 one\nu2 two\nu3 three\nu4 four\nu8 eight\nu1 again\n",
    )
    out = prepared(corpus)
    assert [(one.key, one.text, len(one.samples)) for one in read_folder(out / "data")] == [
        ("u1", "one", 12_000),
        ("u2", "two", 28_000),
    ]
    dropped = dropped_in(out / "data")
    assert dropped["u3"].startswith("the cut is not within the audio; expected a part of 0 to 3.00 s")
    assert dropped["u4"] == "wav.scp has no recording b"
    for name in ("u5", "u6", "u7"):
        assert dropped[name].startswith("this is no segment; expected UTTERANCE RECORDING START END")
    assert "is of one channel, and channels are averaged" in dropped["u9"]
    assert dropped["u8"] == "transcript without audio"
    assert dropped["text:6"] == "a second transcript of u1"
    assert len(dropped) == 8


def test_a_command_is_never_run(corpus: Path, tmp_path: Path) -> None:
    command = f"touch {tmp_path}/run && cat {corpus}/audio/a.wav |"
    write(corpus, wav_scp=f"u1 {command}\nu2 audio/a.wav\n", text="u1 one\nu2 two\n")
    out = prepared(corpus)
    assert not (tmp_path / "run").exists()
    (reason,) = dropped_in(out / "data").values()
    assert reason.startswith("wav.scp has a command for it, and commands are never run; expected the path")
    assert reason.endswith(f"name the file that it gives; got {command}")


def test_all_files_of_the_folder_decide(corpus: Path) -> None:
    write(corpus, wav_scp="u1 audio/a.wav\n", text="u1 one\n")
    prepared(corpus)
    write(corpus, text="u1 two\n")
    with pytest.raises(ConfigError, match="the list or its audio has changed since"):
        prepared(corpus)


def test_another_folder_is_refused(corpus: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"no Kaldi data folder here; expected wav\.scp in the folder or in"
    ):
        prepared(corpus)


def test_a_folder_by_a_name_that_is_none_is_written_within_out(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(corpus, wav_scp="u1 audio/a.wav\n", text="u1 one\n")
    monkeypatch.chdir(corpus / "audio")
    prepare("kaldi", corpus=Path(".."), out=corpus.parent / "out")
    assert [path.name for path in (corpus.parent / "out").iterdir()] == ["data"]
