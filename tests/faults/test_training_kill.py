"""Training by torchrun: a process that is killed ends the job at once, and the next job goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdasr.training.checkpoints import WholeCheckpoints
from tests.speech import shards

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
# No look at the dev set before the last step: its row is of a step that has one already.
SETTINGS = {
    "model.width": 32, "model.num_layers": 1, "batch_seconds": 4,
    "optimisation.accumulate": 2, "optimisation.eval_every": 20_000, "optimisation.checkpoint_every": 2,
}  # fmt: skip


def start(work_dir: Path, processes: int, steps: int) -> subprocess.Popen[str]:
    settings = {**SETTINGS, "work_dir": work_dir, "optimisation.steps": steps}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    train = ["-m", "kdasr.cli", "train", "recipes/mini/teacher.yaml", *words]
    command = [sys.executable, *([*TORCHRUN, str(processes)] if processes > 1 else []), *train]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever starts tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(job: subprocess.Popen[str]) -> None:
    """Ctrl-C, and once more where Python was clearing up an object, in which it loses exceptions."""
    for _ in range(3):
        job.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.communicate(timeout=20)
            return


def rows(work_dir: Path) -> list[dict[str, Any]]:
    log = work_dir / "checkpoints/teacher/train.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def children(pid: int) -> list[int]:
    """Processes that `pid` has started, in order: the fourth field of /proc/*/stat is the parent."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_the_next_one_goes_on(tmp_path: Path) -> None:
    shards(tmp_path / "shards/labelled", 24)
    shards(tmp_path / "shards/dev", 4, first_seed=1_000)
    job = start(tmp_path, 2, steps=20_000)
    deadline = time.monotonic() + 120
    while len(rows(tmp_path)) < 7 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.05)
    ranks = children(job.pid)
    assert len(ranks) == 2, job.communicate()
    os.kill(ranks[1], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "Traceback" not in errors.split("torch/distributed")[0], errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)

    checkpoints = tmp_path / "checkpoints/teacher"
    assert WholeCheckpoints(checkpoints).find_checkpoint() is not None and not (tmp_path / "teacher").exists()
    for folder in checkpoints.glob("CKPT*"):
        names = {path.name for path in folder.iterdir()}
        assert {"CKPT.yaml", "model.ckpt", "optimizer.ckpt", "brain.ckpt", "counter.ckpt"} <= names

    # One process goes on where two were.
    before = rows(tmp_path)
    job = start(tmp_path, 1, steps=20_000)
    while len(rows(tmp_path)) < len(before) + 5 and job.poll() is None:
        time.sleep(0.05)
    interrupt(job)
    assert job.returncode == 130
    after = rows(tmp_path)
    assert [row["step"] for row in after] == list(range(1, len(after) + 1)) and len(after) > len(before)
    assert after[:2] == before[:2]
