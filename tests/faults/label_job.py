"""The labelling job that the tests disturb: a few small shards, a tiny teacher, and what must come out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kdasr.labelling import label
from tests.labelling.tiny import TinySource, make_audio

NUM_SHARDS = 6
_ROOT = Path(__file__).parents[2]


def make_shards(folder: Path) -> Path:
    """The audio: `NUM_SHARDS` shards of two utterances."""
    make_audio(folder, NUM_SHARDS * 2, per_shard=2)
    return folder


def run(audio: Path | str, out: Path | str, **options: Any) -> dict[str, Any]:
    """Label `audio` into `out` with the tiny teacher; returns the summary."""
    source = options.pop("teacher", TinySource())
    return label(teacher=source, audio=audio, out=out, **options)


def label_files(folder: Path) -> dict[str, bytes]:
    """Everything in a label folder but its logs."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith("log")}


def finished(out: Path) -> set[str]:
    """The manifests in a label folder."""
    return {path.name for path in out.glob("shard-*.json")}


def log_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def driver_at_work(audio: Path, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A process of its own that labels slowly with two workers and has finished its first shard."""
    script = (
        "import sys\n"
        "from tests.faults.label_job import TinySource, run\n"
        "if __name__ == '__main__':\n"
        f"    run({str(audio)!r}, {str(out)!r}, teacher=TinySource(pause_s=0.5), workers=2, **{options!r})\n"
    )
    path = out.with_suffix(".driver.py")
    path.write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen([sys.executable, str(path)], cwd=_ROOT, env=environment)
    deadline = time.monotonic() + 90
    while not finished(out):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def children_of(pid: int) -> set[int]:
    """The processes that a process has started and that still run."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
