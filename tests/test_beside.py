"""Commands run at the same time, and end together where one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from kdasr import beside
from kdasr.devices import one_torch_thread
from kdasr.errors import ExportError, KdasrError


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


def write_facts(path: Path) -> None:
    path.write_text(f"{os.getpid()} {torch.get_num_threads()}")


def test_work_begun_beside_is_done_by_another_process_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 2)
    with one_torch_thread():
        torch.set_num_threads(2)
        weights = torch.randn(300, 300) @ torch.randn(300, 300)  # which starts threads that a copy has not

        def work() -> None:
            write_facts(tmp_path / "facts")
            torch.save(weights @ weights, tmp_path / "product.pt")

        with beside.begun_beside(work) as wait:
            deadline = time.monotonic() + 60
            while not (tmp_path / "facts").exists():
                assert time.monotonic() < deadline, "it is not begun before it is waited for"
                time.sleep(0.01)
            wait()
            wait()
        process, threads = (tmp_path / "facts").read_text().split()
        assert int(process) != os.getpid() and threads == "1" and torch.get_num_threads() == 2
    torch.testing.assert_close(torch.load(tmp_path / "product.pt"), weights @ weights)


def test_leaving_waits_for_work_begun_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 2)

    def work() -> None:
        time.sleep(0.3)
        write_facts(tmp_path / "facts")

    with pytest.raises(ValueError, match="meanwhile"), beside.begun_beside(work):
        raise ValueError("meanwhile")
    assert (tmp_path / "facts").exists()


def test_what_work_begun_beside_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 2)

    def fail() -> None:
        raise ExportError("it cannot be", where="here", fix="Do that.")

    with (
        pytest.raises(ExportError, match=r"here: it cannot be\. Do that\.") as caught,
        beside.begun_beside(fail) as wait,
    ):
        wait()
    assert caught.value.fix == "Do that."


def test_work_begun_beside_that_is_killed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 2)
    with (
        pytest.raises(KdasrError, match="was killed.*run out of memory"),
        beside.begun_beside(lambda: os.kill(os.getpid(), signal.SIGKILL)) as wait,
    ):
        wait()


def test_with_one_core_work_is_done_when_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 1)
    with beside.begun_beside(lambda: write_facts(tmp_path / "facts")) as wait:
        assert not (tmp_path / "facts").exists()
        wait()
    assert (tmp_path / "facts").read_text().split()[0] == str(os.getpid())


def test_beside_a_gpu_work_is_done_when_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with beside.begun_beside(lambda: write_facts(tmp_path / "facts")) as wait:
        wait()
    assert (tmp_path / "facts").read_text().split()[0] == str(os.getpid())
