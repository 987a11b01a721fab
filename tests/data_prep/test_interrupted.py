"""A preparation that was killed goes on after its last complete shard, and ends in the same bytes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_prep import corpora, prepare
from data_prep.support import prepared
from kdasr import audio
from kdasr.interfaces import Utterance
from kdasr.shards import write_shards
from kdasr.storage import temporary_name
from tests.data_prep.fakes import bytes_below, make_fsdd, write_call, write_tone
from tests.librispeech_tree import make_recordings, make_tree

MINUTES = {"labelled_minutes": 0.3, "unlabelled_minutes": 0, "dev_minutes": 0, "test_minutes": 0}


def librispeech(folder: Path) -> dict[str, Any]:
    corpus = make_tree(folder)
    # Resampled and known by its header alone the second time.
    write_tone(corpus / "LibriSpeech/train-clean-5/0/1000/0-1000-0002.flac", 0.5, 44_100)
    return {"corpus": corpus, "subset": "train-clean-5", "speeds": (0.9, 1.0), "max_shard_utterances": 5}


def recordings(folder: Path) -> dict[str, Any]:
    corpus = make_recordings(folder)
    write_call(corpus / "a.wav", 3.0, 44_100)
    write_tone(corpus / "b.mp3", 9.0)
    whole = (corpus / "b.mp3").read_bytes()
    (corpus / "b.mp3").write_bytes(whole[: len(whole) // 2])
    return {"corpus": corpus, "max_seconds": 1.5, "max_shard_utterances": 3, "channels": "each"}


def cuts(folder: Path) -> list[str]:
    """Ends of nine cuts of an mp3, where what is decoded after another part differs in its last bits."""
    write_tone(folder / "long.mp3", 5.0, 44_100)
    return [f"{0.5 * number} {0.5 * number + 0.5}" for number in range(9)]


def manifest(folder: Path) -> dict[str, Any]:
    lines = [
        {"audio_filepath": "long.mp3", "offset": float(cut.split()[0]), "duration": 0.5, "text": "one"}
        for cut in reversed(cuts(folder))
    ]
    write_tone(folder / "a.wav", 0.5)
    lines.insert(0, {"audio_filepath": "a.wav", "text": "one"})
    (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"corpus": folder, "max_shard_utterances": 2}


def kaldi(folder: Path) -> dict[str, Any]:
    segments = [
        f"u{number} {recording} {cut}" for recording in "ab" for number, cut in enumerate(cuts(folder))
    ]
    lines = [line.replace("u", line.split()[1], 1) for line in segments]
    (folder / "segments").write_text("\n".join(lines))
    (folder / "wav.scp").write_text("a long.mp3\nb other.wav\n")
    write_tone(folder / "other.wav", 5.0, 8_000)
    return {"corpus": folder, "max_shard_utterances": 3}


def table(folder: Path) -> dict[str, Any]:
    for number in range(8):
        write_tone(folder / f"clips/{number}.mp3", 0.5)
    lines = "".join(f"{number}.mp3\tone\n" for number in range(8))
    (folder / "all.tsv").write_text(f"path\tsentence\n{lines}")
    return {"corpus": folder, "max_shard_utterances": 2}


def digits(folder: Path) -> dict[str, Any]:
    speakers = {"labelled_speakers": "ann,bob", "unlabelled_speakers": "cat", "test_speakers": "dan"}
    more = {**MINUTES, "synthetic_minutes": 0.2, "max_shard_utterances": 3}
    return {"corpus": make_fsdd(folder), **speakers, **more}


def speech(folder: Path) -> dict[str, Any]:
    return {**MINUTES, "labelled_voices": 3, "max_shard_utterances": 2}


READERS = "kdasr.audio", "_blocks"
# What is prepared, and what makes or decodes one utterance of it.
CORPORA: dict[str, tuple[Callable[[Path], dict[str, Any]], tuple[str, str]]] = {
    "librispeech": (librispeech, READERS),
    "folder": (recordings, READERS),
    "manifest": (manifest, READERS),
    "kaldi": (kaldi, READERS),
    "table": (table, READERS),
    "fsdd": (digits, ("data_prep.fsdd", "_join")),
    "synth": (speech, ("data_prep.synth", "_between_silences")),
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[int]]:
    """Counts the calls of a function from now on."""

    def count(module: Any, name: str) -> list[int]:
        calls, real = [0], getattr(module, name)

        def counting(*args: Any, **settings: Any) -> Any:
            calls[0] += 1
            return real(*args, **settings)

        monkeypatch.setattr(module, name, counting)
        return calls

    return count


@contextmanager
def killed_at(encoded: int) -> Iterator[None]:
    """Stops when so many utterances are written, in the middle of a shard."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        left, real = [encoded], audio.encode_flac

        def encode_or_die(samples: Any) -> bytes:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(samples)

        patch.setattr(audio, "encode_flac", encode_or_die)
        yield


def test_every_corpus_is_interrupted_here() -> None:
    assert set(CORPORA) == set(corpora())


@pytest.mark.parametrize("name", CORPORA)
def test_what_is_complete_is_neither_made_nor_written_again(
    name: str, tmp_path: Path, counted: Callable[[Any, str], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    make, (module, maker) = CORPORA[name]
    settings = make(tmp_path / "corpus")
    per_shard = settings["max_shard_utterances"]
    made = counted(importlib.import_module(module), maker)
    encoded = counted(audio, "encode_flac")
    whole = prepare(name, out=tmp_path / "whole", **settings)
    (split,), at_once, in_all = whole, made[0], encoded[0]
    assert len(whole[split]) > 3

    with killed_at(3 * per_shard + 1):
        prepare(name, out=tmp_path / "out", **settings)
    folder = tmp_path / "out" / split
    (folder / "shard-000003.tar").write_bytes(b"renamed, but the manifest was not written yet")
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("shard-00000[012].*")}
    assert len(stamps) == 6
    made[0] = encoded[0] = 0
    prepare(name, out=tmp_path / "out", **settings)
    assert encoded[0] == in_all - 3 * per_shard
    assert made[0] < at_once
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "whole")
    assert f"{3 * per_shard} utterances in 3 complete shards kept" in capsys.readouterr().err


def test_of_the_shards_that_are_kept_no_entries_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are too many for the memory of a small machine, while the rest is prepared."""
    settings, kept = librispeech(tmp_path / "corpus"), []

    def seen(utterances: Iterator[Utterance], folder: Path, **further: Any) -> list[Path]:
        kept.extend((shard.path.name, shard.count, shard.entries) for shard in further["kept"])
        return write_shards(utterances, folder, **further)

    with killed_at(11):
        prepare("librispeech", out=tmp_path / "out", **settings)
    monkeypatch.setattr(prepared, "write_shards", seen)
    prepare("librispeech", out=tmp_path / "out", **settings)
    assert kept == [("shard-000000.tar", 5, ()), ("shard-000001.tar", 5, ())]


def test_after_the_last_shard_there_is_nothing_left_to_write(
    tmp_path: Path, counted: Callable[[Any, str], list[int]]
) -> None:
    settings = librispeech(tmp_path / "corpus")
    prepare("librispeech", out=tmp_path, **settings)
    before, folder = bytes_below(tmp_path / "train-clean-5"), tmp_path / "train-clean-5"
    (folder / "prepared.json").rename(folder / "preparing.json")
    encoded = counted(audio, "encode_flac")
    prepare("librispeech", out=tmp_path, **settings)
    assert (encoded[0], bytes_below(folder)) == (0, before)


def test_another_source_begins_anew(tmp_path: Path, counted: Callable[[Any, str], list[int]]) -> None:
    settings = librispeech(tmp_path / "corpus")
    with killed_at(6):
        prepare("librispeech", out=tmp_path / "out", **settings)
    write_tone(tmp_path / "corpus/LibriSpeech/train-clean-5/0/1000/0-1000-0000.flac", 0.7)
    encoded = counted(audio, "encode_flac")
    prepare("librispeech", out=tmp_path / "out", **settings)
    again = encoded[0]
    prepare("librispeech", out=tmp_path / "whole", **settings)
    assert encoded[0] == 2 * again
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "whole")


def test_a_shard_that_is_damaged_since_is_written_again(tmp_path: Path) -> None:
    settings = librispeech(tmp_path / "corpus")
    prepare("librispeech", out=tmp_path / "whole", **settings)
    with killed_at(16):
        prepare("librispeech", out=tmp_path / "out", **settings)
    tar = tmp_path / "out/train-clean-5/shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[3000] ^= 1
    tar.write_bytes(data)
    prepare("librispeech", out=tmp_path / "out", **settings)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "whole")


def test_a_foreign_shard_in_a_folder_that_was_complete_is_never_kept(tmp_path: Path) -> None:
    settings = librispeech(tmp_path / "corpus")
    prepare("librispeech", out=tmp_path / "one", **settings)
    prepare("librispeech", out=tmp_path / "two", **{**settings, "speeds": (1.1,)})
    for kind in ("tar", "json"):
        name = f"train-clean-5/shard-000000.{kind}"
        (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    for _ in range(2):
        with pytest.raises(Exception, match="shard-000000.*already holds a shard with different content"):
            prepare("librispeech", out=tmp_path / "one", **settings)


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    settings = librispeech(tmp_path / "corpus")
    prepare("librispeech", out=tmp_path / "whole", **settings)
    killed = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    own = temporary_name(tmp_path / "again/train-clean-5/preparing.json")
    half = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{int(killed.stdout)}-"))
    half.parent.mkdir(parents=True)
    half.write_text('{"source": ')
    prepare("librispeech", out=tmp_path / "again", **settings)
    assert bytes_below(tmp_path / "again") == bytes_below(tmp_path / "whole")
