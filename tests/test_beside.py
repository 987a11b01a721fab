"""Commands run at the same time, and end together where one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from kdasr import beside
from kdasr.beside import without_ctrl_c
from kdasr.errors import KdasrError


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What runs instead of the command line: it meets the other one, or fails, or waits for ever."""
    (tmp_path / "kdasr").mkdir()
    (tmp_path / "kdasr/__init__.py").touch()
    (tmp_path / "kdasr/cli.py").write_text(
        textwrap.dedent("""
        import os, pathlib, sys, time
        name, other = sys.argv[1:3]
        folder = pathlib.Path(os.environ["MEETING"])
        (folder / name).write_text(os.environ["OMP_NUM_THREADS"])
        if other == "fail":
            sys.exit("kdasr: no such thing")
        while not (folder / other).exists():
            time.sleep(0.01)
        print(f"{name}: met {other}", file=sys.stderr)
        """)
    )
    monkeypatch.setenv("MEETING", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_run_at_the_same_time_and_share_the_cores(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said: list[str] = []
    beside.run_beside({"a": ["one", "two"], "b": ["two", "one"]}, said.append)
    assert sorted(said) == ["one: met two", "two: met one"]
    assert (script / "one").read_text() == (script / "two").read_text() == "3"


def test_they_keep_to_the_threads_that_a_user_allows(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 16)
    for allowed, threads in (("2", "2"), ("64", "8"), ("many", "8")):
        monkeypatch.setenv("OMP_NUM_THREADS", allowed)
        beside.run_beside({"a": ["one", "two"], "b": ["two", "one"]})
        assert (script / "one").read_text() == threads


def test_what_is_no_text_is_said_all_the_same(script: Path) -> None:
    (script / "kdasr/cli.py").write_text("import os\nos.write(2, b'\\xff' + b'x' * 200_000 + b'\\nend\\n')\n")
    said: list[str] = []
    beside.run_beside({"a": []}, said.append)
    assert said[-1] == "end" and len(said[0]) == 200_001


def test_one_that_fails_ends_the_others(script: Path) -> None:
    said: list[str] = []
    with pytest.raises(KdasrError, match=r"^b failed; got exit status 1.*stopped"):
        beside.run_beside({"a": ["one", "nobody"], "b": ["two", "fail"]}, said.append)
    assert "kdasr: no such thing" in said


@pytest.mark.slow
def test_they_do_not_outlive_a_parent_that_is_killed(script: Path) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(beside.__file__).parents[1])!r})
        from kdasr.beside import run_beside
        run_beside({{"a": ["one", "nobody"], "b": ["two", "nobody"]}})
    """
    environment = {**os.environ}
    parent = subprocess.Popen([sys.executable, "-P", "-c", textwrap.dedent(code)], env=environment)
    _until(lambda: (script / "one").exists() and (script / "two").exists())
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert len(children) == 2
    _until(lambda: not any(_alive(int(child)) for child in children))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def _until(true: object, seconds: float = 20) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_of_multiprocessing_start_without_ctrl_c_from_the_first_on() -> None:
    # In a new process: what multiprocessing itself starts for the first one must not change that.
    script = """
import multiprocessing, time
from kdasr.beside import without_ctrl_c

if __name__ == "__main__":
    for _ in range(2):
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
        with without_ctrl_c():
            child.start()
        print(next(line for line in open(f"/proc/{child.pid}/status") if line.startswith("SigBlk")), end="")
        child.kill()
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert [int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1 for line in shown.splitlines()] == [1, 1]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_process_starts_comes_when_it_has_started() -> None:
    other = threading.Event()
    # A thread that the signal may be delivered to, as libraries have them.
    thread = threading.Thread(target=other.wait)
    thread.start()
    began_and_ended = []
    try:
        with pytest.raises(KeyboardInterrupt):
            with without_ctrl_c():
                began_and_ended.append("began")
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
                began_and_ended.append("ended")
            began_and_ended.append("went on")
    finally:
        other.set()
        thread.join()
    assert began_and_ended == ["began", "ended"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
