"""data_prep.support.ahead: several processes read, and what is written is the same."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from data_prep import check, corpora, prepare
from data_prep.support import ahead
from data_prep.support.ahead import Readers
from data_prep.support.dropped import Dropped
from data_prep.support.listed import Reading
from kdasr.errors import AudioError, ConfigError, CorpusError
from kdasr.interfaces import Utterance
from kdasr.shards import Encoded
from tests.data_prep.fakes import bytes_below, read_folder, write_tone
from tests.data_prep.test_interrupted import CORPORA, killed_at

ROOT = Path(__file__).parents[2]
PARALLEL = {name for name in CORPORA if importlib.import_module(corpora()[name]).IN_PARALLEL}


def spoil(corpus: Path) -> None:
    """Make every third file unusable, and one of the transcripts lack its audio."""
    for path in sorted(corpus.rglob("*.wav"))[1::3]:
        path.write_bytes(b"no audio at all")
    for path in sorted(corpus.rglob("*.flac"))[1::3]:
        path.write_bytes(path.read_bytes()[:200])
    for path in sorted(corpus.rglob("*.trans.txt"))[:1]:
        path.write_text(path.read_text() + "0-1000-9999 NO AUDIO\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["librispeech", "folder", "manifest"])
def test_several_processes_write_the_same_bytes(name: str, tmp_path: Path) -> None:
    settings = CORPORA[name][0](tmp_path / "corpus")
    spoil(tmp_path / "corpus")
    prepare(name, out=tmp_path / "alone", **settings)
    prepare(name, out=tmp_path / "beside", readers=2, **settings)
    # Those in dropped.json and the counts of notes too, in the same order.
    assert bytes_below(tmp_path / "beside") == bytes_below(tmp_path / "alone")


@pytest.mark.slow
def test_long_files_are_read_in_their_turn_by_the_process_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in [("a", 0.5), ("b", 0.6), ("c", 7.0), ("d", 0.7), ("e", 0.8)]:
        write_tone(tmp_path / f"corpus/{name}.wav", seconds)
    (tmp_path / "corpus/d.txt.wav").write_bytes(b"no audio at all")
    settings = {"corpus": tmp_path / "corpus", "max_seconds": 2.0, "max_shard_utterances": 2}
    prepare("folder", out=tmp_path / "alone", **settings)
    # Killed while this process reads all of them, and resumed by two others.
    with killed_at(3):
        prepare("folder", out=tmp_path / "beside", **settings)
    read_here, real = list[str](), ahead._utterances_of

    def noted(one: Any, dropped: Dropped) -> Iterator[Any]:
        if one.read is not None and one.found is None:
            read_here.append(one.read.args[0].stem)
        return real(one, dropped)

    monkeypatch.setattr(ahead, "_LONGEST_BYTES", 2 * 16_000 * 5)
    monkeypatch.setattr(ahead, "_WAITING_BYTES", 2 * 16_000)  # so one or two wait at a time
    monkeypatch.setattr(ahead, "_utterances_of", noted)
    prepare("folder", out=tmp_path / "beside", readers=2, **settings)
    assert read_here == ["c"]
    assert bytes_below(tmp_path / "beside") == bytes_below(tmp_path / "alone")


@pytest.mark.parametrize("name", sorted({*CORPORA} - PARALLEL))
def test_a_corpus_that_is_made_in_one_process_refuses_several(name: str, tmp_path: Path) -> None:
    for call in (check, prepare):
        with pytest.raises(ConfigError, match=f"^readers: `prepare {name}` works in one process"):
            call(name, corpus=None, out=tmp_path / "out", readers=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("readers", [0, -1])
def test_at_least_one_process_reads(readers: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^readers: .*expected 1 or more; got {readers}"):
        prepare("folder", corpus=tmp_path, out=tmp_path / "out", readers=readers)


def die(path: Path, dropped: Dropped) -> Iterator[Utterance]:
    os._exit(1)


def refuse(path: Path, dropped: Dropped) -> Iterator[Utterance]:
    raise AudioError("cannot be read", where=path, fix="Copy it again.")


@pytest.mark.slow
def test_a_reader_that_dies_or_fails_ends_the_preparation_with_a_message() -> None:
    def reading(read: object) -> Reading:
        return Reading(iter([(Path("a.wav"), functools.partial(read, Path("a.wav")))]), Dropped())  # type: ignore[arg-type]

    with Readers(2) as readers:
        with pytest.raises(AudioError, match=r"^a\.wav: cannot be read\. Copy it again\.$"):
            list(readers.read(reading(refuse)))
        with pytest.raises(CorpusError, match="readers: a process that reads audio died.*got 2.*resumes"):
            list(readers.read(reading(die)))


@pytest.mark.slow
def test_a_script_that_readers_would_run_again_is_told_so(tmp_path: Path) -> None:
    write_tone(tmp_path / "corpus/a.wav", 0.5)
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\nfrom data_prep import prepare\n"
        'prepare("folder", corpus=Path("corpus"), out=Path("out"), readers=2)\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert 'below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def large(path: Path, dropped: Dropped) -> Iterator[Any]:
    ahead.encode = lambda encoded: encoded  # type: ignore[assignment,return-value]  # in the reader
    yield Encoded("a", 1, bytes(2**26), b"")


@pytest.mark.slow
def test_an_error_while_readers_send_large_results_ends_them() -> None:
    def fail() -> None:
        files = [(Path("a.wav"), functools.partial(large, Path("a.wav"))) for _ in range(100)]
        with contextlib.suppress(KeyError), Readers(2) as readers:
            found = readers.read(Reading(iter(files), Dropped()))
            for _ in range(6):
                next(found)
            raise KeyError

    for _ in range(2):
        failing = threading.Thread(target=fail, daemon=True)
        failing.start()
        failing.join(timeout=45)
        assert not failing.is_alive()


def die_in_a_result(path: Path, dropped: Dropped) -> Iterator[Any]:
    def send(connection: Connection, data: memoryview) -> None:
        os.write(connection.fileno(), data[: len(data) // 2])
        if len(data) > 1_000:
            os._exit(1)

    Connection._send = send  # type: ignore[attr-defined]
    yield from large(path, dropped)


@pytest.mark.slow
def test_a_reader_that_is_killed_in_the_middle_of_a_result_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ahead, "_SECONDS_BETWEEN_LOOKS", 0.5)
    files = [
        (Path("a.wav"), functools.partial(read, Path("a.wav"))) for read in (large, die_in_a_result, large)
    ]
    with pytest.raises(CorpusError, match="a process that reads audio died"), Readers(2) as readers:
        list(readers.read(Reading(iter(files * 10), Dropped())))


def started(folder: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A command that reads forty minutes of audio with two readers, and its arguments; run in a group of its
    own, as in a terminal."""
    for number in range(120):
        write_tone(folder / f"corpus/{number:03d}.wav", 20.0)
    arguments = ["folder", "--corpus", str(folder / "corpus"), "--max_shard_utterances", "2"]
    command = [sys.executable, "-m", "kdasr.cli", "prepare", *arguments]
    command += ["--readers", "2", "--out", str(folder / "out")]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell in the background ignores Ctrl-C, as do the processes that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return running, command


@pytest.mark.slow
def test_readers_end_with_a_killed_command_which_is_resumed(tmp_path: Path) -> None:
    running, command = started(tmp_path)
    while not list((tmp_path / "out").glob("*/shard-000001.json")):
        assert running.poll() is None
        time.sleep(0.02)
    readers = children_of(running.pid)
    assert len(readers) >= 2
    running.kill()
    running.wait()
    deadline = time.monotonic() + 30
    while not all(has_ended(pid) for pid in readers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True)
    assert "complete shards kept" in done.stderr
    assert len(read_folder(tmp_path / "out/unlabelled")) == 120


@pytest.mark.slow
def test_ctrl_c_while_readers_start_is_told_in_one_line(tmp_path: Path) -> None:
    running, _ = started(tmp_path)
    while len(children_of(running.pid)) < 2:
        assert running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert told == "kdasr: interrupted; run the same command again to resume from the finished parts\n"


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except FileNotFoundError:
        return True
