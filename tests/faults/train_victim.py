"""A training that can be killed at any step; importable by a server that forks it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the optimiser imports it when it is made, which takes longer than all else here

from kdasr.augment import SpecAugment
from kdasr.contract import StudentSide
from kdasr.features import num_frames
from kdasr.interfaces import Batch
from kdasr.loader import Stream
from kdasr.losses import ctc, soft_cross_entropy
from kdasr.shards import list_shards, open_shard
from kdasr.soft_labels import Full, Header, LabelFolder, write_label_shard
from kdasr.students.conformer import ChunkConformer
from kdasr.text import CharUnits
from kdasr.training import Optimisation, Training
from kdasr.training.brain import CtcBrain
from kdasr.training.step import Step
from tests.speech import shards

STEPS = 13
SCHEDULE = [("unlabelled", 2), ("labelled", 1)]
READ_FILE = "read.jsonl"
_UNITS = CharUnits()


def prepare(root: Path) -> None:
    """Shards with transcripts, shards with soft labels, and a dev set."""
    shards(root / "labelled", 7, per_shard=4)
    shards(root / "dev", 2, first_seed=100)
    shards(root / "unlabelled", 9, per_shard=5, first_seed=200, with_text=False)
    torch.manual_seed(0)
    for path in list_shards(root / "unlabelled"):
        shard = open_shard(path)
        header = Header(
            "t", "h" * 64, _UNITS.hash, _UNITS.vocab_size, "f", 10.0, 4, "full", {}, path.name, shard.sha256
        )
        frames = {entry.key: -(-num_frames(entry.num_samples) // 4) for entry in shard.entries}
        logits = {key: 3 * torch.randn(count, _UNITS.vocab_size) for key, count in frames.items()}
        items = [(key, Full().encode(one.log_softmax(-1))) for key, one in logits.items()]
        write_label_shard(root / "labels" / f"{path.stem}.kdsl", header, items)


def training(root: Path, checkpoints: Path, workers: int, eval_every: int = 5) -> Training:
    """A tiny student on two streams, with dropout, augmentation and learning rates in phases."""
    torch.manual_seed(0)
    model = ChunkConformer(
        vocab_size=_UNITS.vocab_size, width=16, num_layers=1, num_heads=2, expansion=1, kernel_frames=3,
        dropout=0.1,
    )  # fmt: skip
    return Training(
        name="victim",
        model=model,
        units=_UNITS,
        streams={
            "labelled": Stream([root / "labelled"], 4.0, 3, units=_UNITS, speeds=(0.9, 1.1)),
            "unlabelled": Stream(
                [root / "unlabelled"],
                4.0,
                3,
                labels=[LabelFolder(root / "labels")],
                student=StudentSide(_UNITS, 4),
            ),
        },
        schedule=SCHEDULE,
        losses={"labelled": {"ctc": (1.0, ctc)}, "unlabelled": {"soft": (1.0, soft_cross_entropy)}},
        dev=Stream([root / "dev"], 20.0, 3, units=_UNITS),
        dev_loss=ctc,
        optimisation=Optimisation(
            steps=STEPS,
            eval_every=eval_every,
            checkpoint_every=2,
            phases=[{"steps": 4, "start": 1e-2, "end": 1e-3}],
        ),
        augment=SpecAugment(max_frequency_bins=8, max_time_frames=5, max_warp=0.05),
        seed=3,
        checkpoints=checkpoints,
        num_workers=workers,
        device="cpu",
    )


def train_and_die(root: Path, out: Path, workers: int, at: str, count: int, eval_every: int = 5) -> None:
    """Train into `out`, and kill this process with SIGKILL at the `count`-th event of a kind.

    Args:
        at: "step": after a step of the optimiser; "look": when the dev set is next; "save": with a
            checkpoint half written; "rename": with one written but not yet named, or no longer named; ""
            for never.
    """
    # As in a training of its own: workers of its server would not see that it is gone, and stay.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    left = {at: count}

    def die(event: str) -> None:
        left[event] = left.get(event, 0) - 1
        if left[event] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _before(torch, "save", lambda *_, **__: die("save"))
    _before(Path, "replace", lambda path, *_: die("rename") if "CKPT" in path.name else None)

    def read(brain: CtcBrain, batches: list[Batch]) -> None:
        with (out / READ_FILE).open("a") as file:
            file.writelines(json.dumps(batch.keys) + "\n" for batch in batches)

    out.mkdir(exist_ok=True)
    _before(CtcBrain, "fit_batch", read)
    _before(Step, "after_step", lambda *_: die("step"))
    _before(CtcBrain, "on_stage_start", lambda _, stage, *__: die("look") if stage.name == "VALID" else None)
    training(root, out / "checkpoints", workers, eval_every).run(out / "model")


def _before(owner: Any, name: str, also: Any) -> None:
    """Call `also` before a function each time, with its arguments."""
    original = getattr(owner, name)

    def both(*arguments: Any, **settings: Any) -> Any:
        also(*arguments, **settings)
        return original(*arguments, **settings)

    setattr(owner, name, both)
