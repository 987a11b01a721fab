"""Times the training steps of a recipe (model, losses, augmentation) on batches of varying lengths.

    python -m benchmarks.recipe_steps recipes/librispeech/100h/student.yaml
    python -m benchmarks.recipe_steps recipes/librispeech/100h/teacher.yaml --set batch_seconds=500

`benchmarks.gpu` times one full batch repeatedly. In training, consecutive batches rarely have the same
shape, and a GPU waits while its libraries plan for a new shape. So the same batches are timed twice, first
with new shapes and then with known ones; after that, batches of one shape are timed. Features, transcripts
and soft labels are random and made on the accelerator. Lengths are distributed as in LibriSpeech (most near
14 s), and batches are made as in `kdasr.batches`, without changes of speed, pauses and audio before the
speech.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.gpu import device_name, peak_gib
from benchmarks.step import TrainingStep, print_table, synchronise
from kdasr.batches import cut_epoch
from kdasr.features import FRAME_SHIFT_MS, NUM_MEL_BINS
from kdasr.interfaces import Batch, SoftLabelBatch
from kdasr.pipeline import taken_keys
from kdasr.recipe import load_recipe, parse_value
from kdasr.stages.training import weighted

_UNITS_A_SECOND = 4.0
_KEPT_CLASSES = 8


class Shape(NamedTuple):
    """A batch's stream and the feature frames of its utterances."""

    stream: str
    frames: tuple[int, ...]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a row for each pass, write --out; returns the rows."""
    parser = argparse.ArgumentParser(
        description="time a recipe's training steps on batches of varying length"
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--vocab", type=int, default=256, help="number of classes, including blank")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/recipe_steps.json"))
    options = parser.parse_args(arguments)
    settings = {name: parse_value(value) for name, value in (one.split("=", 1) for one in options.set)}
    given = load_recipe(options.recipe, settings, taken_keys()).arguments
    shapes = draw_shapes(given, options.steps)
    rows = []
    for row in measure(given, shapes, options.device, options.vocab):
        rows.append(row)
        print(f"{row['pass']}: {row['ms_a_batch']:.1f} ms per batch", flush=True)
    print_table(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"device": device_name(options.device), "recipe": str(options.recipe), "settings": settings}
    options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return rows


def draw_shapes(given: Mapping[str, Any], steps: int) -> list[list[Shape]]:
    """The shapes of the batches in `steps` steps of a recipe."""
    rng = np.random.default_rng(given.get("seed", 1))
    near_14_s = rng.random(100_000) < 0.72
    seconds = np.where(near_14_s, rng.normal(14.2, 1.6, 100_000), rng.uniform(1.5, 14.0, 100_000))
    frames = (seconds.clip(1.3, 20.0) * 1000 / FRAME_SHIFT_MS).astype(np.int64)
    cut = cut_epoch(frames[None], int(given["batch_seconds"] * 1000 / FRAME_SHIFT_MS), 1, 0)
    pattern = [name for name, count in given.get("schedule", [("labelled", 1)]) for _ in range(count)]
    accumulate = given["optimisation"].accumulate
    return [
        [
            Shape(pattern[number % len(pattern)], tuple(frames[cut[number % len(cut)]].tolist()))
            for number in range(step * accumulate, (step + 1) * accumulate)
        ]
        for step in range(steps)
    ]


def measure(
    given: Mapping[str, Any], shapes: list[list[Shape]], device: str, vocab: int
) -> Iterator[dict[str, Any]]:
    """Rows for the steps with new shapes, with known shapes, and with one shape."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(1)
    losses = {stream: weighted(given[f"{stream}_losses"]) for stream in {one.stream for one in shapes[0]}}
    optimisation = given["optimisation"]
    step = TrainingStep(
        given["model"](vocab_size=vocab),
        device,
        optimisation.precision,
        compile=optimisation.compile,
        losses=losses,
        augment=given.get("augment"),
    )
    try:
        step(*(batch_of(Shape(one.stream, (200, 160)), vocab, device) for one in shapes[0]))  # warm-up
        one_shape = [[Shape(one.stream, shapes[0][0].frames) for one in shapes[0]]] * len(shapes)
        for name, passed in (("new shapes", shapes), ("known shapes", shapes), ("one shape", one_shape)):
            yield {"pass": name, **_timed(step, passed, vocab, device)}
    finally:
        step.close()


def _timed(step: TrainingStep, shapes: list[list[Shape]], vocab: int, device: str) -> dict[str, Any]:
    spent = 0.0
    if device != "cpu":
        torch.accelerator.reset_peak_memory_stats()
    for batches in shapes:
        made = [batch_of(shape, vocab, device) for shape in batches]
        synchronise(device)
        started = time.perf_counter()
        step(*made)
        synchronise(device)
        spent += time.perf_counter() - started
    every = [shape for batches in shapes for shape in batches]
    audio_s = sum(sum(shape.frames) for shape in every) * FRAME_SHIFT_MS / 1000
    return {
        "batches": len(every),
        "shapes": len({(len(shape.frames), max(shape.frames)) for shape in every}),
        "ms_a_batch": spent / len(every) * 1e3,
        "times_real_time": audio_s / spent,
        "peak_gib": peak_gib(device),
    }


def batch_of(shape: Shape, vocab: int, device: str) -> Batch:
    """Random features with random transcripts, or with random soft labels of 40 ms frames."""
    count, longest = len(shape.frames), max(shape.frames)
    lengths_b = torch.tensor(shape.frames)
    features_btf = torch.randn(count, longest, NUM_MEL_BINS, device=device) * 3 - 8
    batch = Batch([f"u{number}" for number in range(count)], features_btf, lengths_b)
    if shape.stream == "labelled":
        batch.token_lengths_b = (lengths_b * (_UNITS_A_SECOND * FRAME_SHIFT_MS / 1000)).long().clamp_min(1)
        batch.tokens_bu = torch.randint(1, vocab, (count, int(batch.token_lengths_b.max())))
    else:
        frames = -(-longest // 4)
        kept = torch.randn(count, frames, _KEPT_CLASSES, device=device).log_softmax(-1)
        ids = torch.rand(count, frames, vocab, device=device).topk(_KEPT_CLASSES).indices
        rest = torch.full((count, frames), -5.0, device=device)
        batch.soft_labels = SoftLabelBatch(ids, kept, rest, -(-lengths_b // 4))
    return batch.to(torch.device(device))


if __name__ == "__main__":
    main()
