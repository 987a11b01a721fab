"""data_prep.kaldi: data folders with and without segments, text, speakers; commands that are not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import prepare
from kdasr.errors import ConfigError, CorpusError
from tests.data_prep.fakes import channels_of, dropped_in, read_folder, record_of, write_call, write_tone


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
        "u9 a 0 1 B\nu10 a 0 1 -1\nu11 a 0 1 0 0\n",
        text="u1 one\nu2 two\nu3 three\nu4 four\nu8 eight\nu1 again\nu9 nine\n",
    )
    out = prepared(corpus)
    assert [(one.key, one.text, len(one.samples)) for one in read_folder(out / "data")] == [
        ("u1", "one", 12_000),
        ("u2", "two", 28_000),
    ]
    dropped = dropped_in(out / "data")
    assert dropped["u3"].startswith("the cut is not within the audio; expected a part of 0 to 3.00 s")
    assert dropped["u4"] == "wav.scp has no recording b"
    for name in ("u5", "u6", "u7", "u10", "u11"):
        assert dropped[name].startswith("this is not a valid segment; expected UTTERANCE RECORDING START END")
    assert dropped["u9"] == "there is no channel 1: the file has 1; expected 0"
    assert dropped["u8"] == "transcript without audio"
    assert dropped["text:6"] == "a second transcript for u1"
    assert len(dropped) == 10


def test_a_segment_at_an_impossible_time_is_listed(corpus: Path) -> None:
    write(
        corpus,
        wav_scp="a audio/a.wav\n",
        segments="u1 a 0.5 1.25\nu2 a 0 1e308\nu3 a 1e305 -1\n",
        text="u1 one\n",
    )
    out = prepared(corpus)
    assert [one.key for one in read_folder(out / "data")] == ["u1"]
    for name in ("u2", "u3"):
        assert dropped_in(out / "data")[name].startswith("this is not a valid segment")


def test_segments_may_name_a_channel(corpus: Path) -> None:
    write_call(corpus / "audio/call.wav", 3.0)
    write(
        corpus,
        wav_scp="call audio/call.wav\n",
        segments="u1 call 0.5 2 0\nu2 call 1 2.5 1\nu3 call 2 3 A\nu4 call 2.5 3\nu5 call 2.5 3 2\n",
        text="u1 one\nu2 two\nu3 three\nu4 four\nu5 five\n",
    )
    out = prepared(corpus)
    assert [(one.key, one.text, channels_of(one)) for one in read_folder(out / "data")] == [
        ("u1", "one", [0]),
        ("u2", "two", [1]),
        ("u3", "three", [0]),
        ("u4", "four", [0, 1]),
    ]
    assert dropped_in(out / "data") == {"u5": "there is no channel 2: the file has 2; expected 0 or 1"}
    assert record_of(out / "data")["notes"] == {"averaged 2 channels": 1}


def test_what_was_finished_before_stays_unless_a_segment_names_a_channel(corpus: Path) -> None:
    write_tone(corpus / "audio/1.wav", 2.0)
    write_tone(corpus / "audio/2.wav", 2.0)
    cuts = "u1 r1 0 1\nu2 r2 0 1\nu3 r1 1 2{}\n"
    for out, channel in (("all", ""), ("sides", " 0")):
        write(
            corpus,
            wav_scp="r1 audio/1.wav\nr2 audio/2.wav\n",
            segments=cuts.format(channel),
            text="u1 one\nu2 two\nu3 three\n",
        )
        folder = corpus.parent / out / "data"
        prepare("kaldi", corpus=corpus, out=folder.parent)
        assert [one.key for one in read_folder(folder)] == ["u1", "u3", "u2"]
        record = record_of(folder)
        record["source"]["generation"] = 2
        (folder / "prepared.json").write_text(json.dumps(record))
        if not channel:
            prepare("kaldi", corpus=corpus, out=folder.parent)
            continue
        # Which the older release left out, even if its file has no other.
        with pytest.raises(ConfigError, match="expected generation 3 of kaldi; got generation 2"):
            prepare("kaldi", corpus=corpus, out=folder.parent)


@pytest.mark.parametrize(("first", "second"), [("A", "B"), ("1", "2")])
def test_recordings_may_be_the_channels_of_one_file(corpus: Path, first: str, second: str) -> None:
    for name in ("1.wav", "2.mp3", "3.flac"):
        write_call(corpus / f"audio/{name}", 1.0)
    write(
        corpus,
        wav_scp="1-b audio/1.wav\n1-a audio/1.wav\n2-b audio/2.mp3\n3-a audio/3.flac\n3-c audio/3.flac\n",
        text="1-b one\n1-a two\n2-b three\n3-a four\n3-c five\n",
        reco2file_and_channel=f"1-a 1-a {first}\n1-b 1-b {second}\n2-b 2 {second}\n3-a 3 {first}\n3-c 3 0\n",
    )
    out = prepared(corpus)
    assert [(one.key, one.text, channels_of(one)) for one in read_folder(out / "data")] == [
        ("1-b", "one", [1]),
        ("1-a", "two", [0]),
        ("2-b", "three", [1]),
        ("3-a", "four", [0]),
    ]
    reason = "reco2file_and_channel gives no valid channel for it; expected FILE and A, B, … or 1, 2, …; "
    assert dropped_in(out / "data") == {"3-c": f"{reason}got 3 0"}
    assert record_of(out / "data")["notes"] == {}
    write(corpus, reco2file_and_channel=f"1-a 1-a {second}\n1-b 1-b {first}\n")
    with pytest.raises(ConfigError, match="the corpus has changed since"):
        prepared(corpus)


def test_sides_that_are_all_of_their_file_change_nothing(corpus: Path) -> None:
    """Whole files, as tools for scoring have them, and sides that were extracted."""
    write_call(corpus / "audio/both.wav", 1.0)
    recordings = "both audio/both.wav\ncall-A audio/b c.wav\ncall-B audio/a.wav\n"
    write(corpus, wav_scp=recordings, text="both one\ncall-A two\ncall-B three\n")
    out = prepared(corpus)
    assert channels_of(read_folder(out / "data")[0]) == [0, 1]
    before = (out / "data/prepared.json").read_bytes()
    write(corpus, reco2file_and_channel="both both A\ncall-A call A\ncall-B call B\n")
    prepared(corpus)
    prepare("kaldi", corpus=corpus, out=corpus.parent / "again")
    assert (corpus.parent / "again/data/prepared.json").read_bytes() == before
    write(corpus, wav_scp=recordings.replace("a.wav", "b c.wav"))
    prepare("kaldi", corpus=corpus, out=corpus.parent / "shared")
    dropped = dropped_in(corpus.parent / "shared/data")
    assert dropped == {"call-B": "there is no channel 1: the file has 1; expected 0"}


def test_a_command_is_never_run(corpus: Path, tmp_path: Path) -> None:
    command = f"touch {tmp_path}/run && cat {corpus}/audio/a.wav |"
    write(corpus, wav_scp=f"u1 {command}\nu2 audio/a.wav\n", text="u1 one\nu2 two\n")
    out = prepared(corpus)
    assert not (tmp_path / "run").exists()
    (reason,) = dropped_in(out / "data").values()
    assert reason.startswith("wav.scp gives a command for it, and commands are never run; expected the path")
    assert reason.endswith(f"name the file it writes; got {command}")


def test_all_files_of_the_folder_decide(corpus: Path) -> None:
    write(corpus, wav_scp="u1 audio/a.wav\n", text="u1 one\n")
    prepared(corpus)
    write(corpus, text="u1 two\n")
    with pytest.raises(ConfigError, match="the corpus has changed since"):
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
