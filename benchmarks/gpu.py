"""How well training steps and forward passes use an accelerator, in fp32, bf16 and with compiled layers.

fp32 is as in training: matrix products in TensorFloat-32, which SpeechBrain enables.

    python -m benchmarks.gpu --device cuda --scale full      prints the table, writes runs/gpu/steps.json
    python -m benchmarks.gpu --device cpu --scale tiny       the same in seconds, to see that it runs
    python -m benchmarks.gpu --kernels 20                    also the 20 kernels that take most of each step

Batches are full: utterances of one length, random features. MFU is the share of the device's peak speed
at which matrix products, convolutions and attention run (torch's FlopCounterMode counts their operations in
a forward pass; a step has three times as many). The peak is that of the data sheet, if the card is known,
and that of a large matrix product measured in the same run. The rest is lost to normalisation, activations,
the loss and idle time.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

from benchmarks.step import (
    DTYPES,
    TrainingStep,
    print_table,
    seconds_each,
    seconds_of,
    synchronise,
    synthetic_batch,
)
from kdasr.interfaces import Batch
from kdasr.students.conformer import ChunkConformer
from kdasr.teachers.conformer import ConformerTeacher

# Peak TFLOP/s in the data sheets, without sparsity: (bf16, TensorFloat-32).
DATA_SHEETS = {
    "H200": (989.0, 494.5),
    "H100": (989.0, 494.5),
    "A100": (312.0, 156.0),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "A10": (125.0, 62.5),
    "RTX 4090": (165.0, 82.6),
}


class Scale(NamedTuple):
    """Sizes of models, batches and measurements."""

    models: dict[str, Any]
    utterances: int
    seconds: float
    times: int
    matrix: int


def scales() -> dict[str, Scale]:
    """The scales by name; the full one has 5,000 classes, as with SentencePiece units."""
    teacher: dict[str, Any] = {"width": 512, "num_layers": 17, "num_heads": 8, "kernel_frames": 31}
    student: dict[str, Any] = {
        "width": 256,
        "num_layers": 8,
        "num_heads": 4,
        "expansion": 2,
        "left_context_frames": 64,
    }
    tiny: dict[str, Any] = {"width": 32, "num_layers": 2, "num_heads": 2, "kernel_frames": 5}
    # A typical large teacher: 24 layers of width 1,024.
    large = {**teacher, "width": 1024, "num_layers": 24, "num_heads": 16}
    full = {
        "teacher": lambda: ConformerTeacher(vocab_size=5_000, **teacher),
        "teacher_600m": lambda: ConformerTeacher(vocab_size=5_000, **large),
        "student": lambda: ChunkConformer(vocab_size=5_000, **student),
    }
    small = {
        "teacher": lambda: ConformerTeacher(vocab_size=29, **tiny),
        "student": lambda: ChunkConformer(vocab_size=29, **tiny),
    }
    return {"full": Scale(full, 128, 15.0, 10, 8_192), "tiny": Scale(small, 2, 2.0, 2, 256)}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a row for each model and setting, write --out; returns the rows."""
    parser = argparse.ArgumentParser(description="time training steps and forward passes on an accelerator")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", default="full", choices=list(scales()))
    parser.add_argument("--models", nargs="+", help="models of the scale to measure; default: all")
    parser.add_argument("--utterances", type=int, help="utterances in a batch; default: the scale's")
    parser.add_argument("--settings", nargs="+", default=["fp32", "bf16", "bf16+compile"])
    parser.add_argument(
        "--kernels",
        type=int,
        default=0,
        metavar="N",
        help="also list the N kernels that take longest in each step",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/steps.json"))
    options = parser.parse_args(arguments)
    scale = scales()[options.scale]
    if options.utterances:
        scale = scale._replace(utterances=options.utterances)
    if options.models:
        if unknown := set(options.models) - set(scale.models):
            parser.error(
                f"--models: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(scale.models)}"
            )
        scale = scale._replace(models={name: scale.models[name] for name in options.models})
    rows = []
    for row in measure(scale, options.device, options.settings):
        # Print at once: a later one may fail or take too long.
        print(f"{row['model']}, {row['setting']}, {row['what']}: {row['ms']:.1f} ms", flush=True)
        rows.append(row)
    print_table(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"device": device_name(options.device), "rows": rows}, indent=1) + "\n")
    # After all timing, since profiling once can slow down what follows.
    for row in rows if options.kernels else []:
        if row["what"] == "step":
            print(f"\n{row['model']}, {row['setting']}: a step of {row['ms']:.1f} ms", flush=True)
            fits = scale._replace(utterances=row["utterances"])
            print_kernels_of_step(
                scale.models[row["model"]], fits, options.device, row["setting"], options.kernels
            )
    return rows


def measure(scale: Scale, device: str, settings: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a training step of each model in each setting, and of a forward pass in each uncompiled one."""
    # As in training, where SpeechBrain enables it: float32 with TensorFloat-32 products.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    peaks = {precision: matrix_tflops(device, precision, scale.matrix) for precision in DTYPES}
    print(f"{device_name(device)}; product of two {scale.matrix}² matrices, TFLOP/s: {peaks}", flush=True)
    for name, make in scale.models.items():
        flops = _flops(make, scale, device)
        for setting in settings:
            for row in _rows_that_fit(make, scale, device, setting):
                each_s = row["ms"] / 1e3
                tflops = flops[row["what"]] * row["utterances"] / each_s / 1e12
                yield {
                    "model": name,
                    "setting": setting,
                    **row,
                    "tflops": tflops,
                    "mfu_of_matmul_percent": 100 * tflops / peaks[_precision(setting)],
                    "mfu_of_data_sheet_percent": _of_data_sheet(device, _precision(setting), tflops),
                }


def _rows_that_fit(make: Callable[[], Any], scale: Scale, device: str, setting: str) -> list[dict[str, Any]]:
    """The rows of a setting with the batch of `scale`, halved until it fits into the device's memory."""
    while True:
        try:
            return _rows(make, scale, device, setting)
        except torch.OutOfMemoryError:
            if scale.utterances == 1:
                raise
        print(f"{setting}: out of memory with {scale.utterances} utterances; trying half as many", flush=True)
        scale = scale._replace(utterances=scale.utterances // 2)


def _rows(make: Callable[[], Any], scale: Scale, device: str, setting: str) -> list[dict[str, Any]]:
    rows = []
    with _step_and_batch(make, scale, device, setting) as (step, batch):
        # Layers are compiled only for training.
        works: list[tuple[str, Callable[[Batch], Any]]] = [("step", step)]
        works += [] if _compiles(setting) else [("forward", step.forward)]
        for what, work in works:
            if device != "cpu":
                torch.accelerator.reset_peak_memory_stats()
            each_s = seconds_each(partial(work, batch), device, times=scale.times, warm_up=_warm_up(setting))
            rows.append(
                {
                    "what": what,
                    "utterances": scale.utterances,
                    "ms": each_s * 1e3,
                    "audio_hours_per_s": seconds_of(batch) / each_s / 3600,
                    "times_real_time": seconds_of(batch) / each_s,
                    "peak_gib": peak_gib(device),
                }
            )
    return rows


@contextmanager
def _step_and_batch(
    make: Callable[[], Any], scale: Scale, device: str, setting: str
) -> Iterator[tuple[TrainingStep, Batch]]:
    # Free the memory of the step before this one: its hooks form reference cycles.
    gc.collect()
    torch.manual_seed(1)
    step = TrainingStep(make(), device, _precision(setting), compile=_compiles(setting))
    try:
        yield step, _batch(step, scale, device)
    finally:
        step.close()


def print_kernels_of_step(
    make: Callable[[], Any], scale: Scale, device: str, setting: str, most: int
) -> None:
    """Print which kernels a training step spends its time in; see `print_kernels`."""
    with _step_and_batch(make, scale, device, setting) as (step, batch):
        for _ in range(_warm_up(setting)):
            step(batch)
        print_kernels(partial(step, batch), device, most)


def print_kernels(work: Callable[[], Any], device: str, most: int) -> None:
    """Print the `most` longest kernels (on a CPU, operations) of `work`, by torch's profiler over two
    calls."""
    kind, times = torch.device(device).type, 2
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (kind == "cuda")
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(times):
            work()
        synchronise(device)
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        # Skip torch's own annotations, such as an optimiser's step: they include the kernels within them.
        if event.device_type.name.lower() == kind and (kind == "cpu" or not event.is_user_annotation):
            us = event.self_cpu_time_total if kind == "cpu" else event.time_range.elapsed_us()
            spent[event.name] += us / 1e3 / times
            calls[event.name] += 1
    if not spent:
        print(f"no kernel was recorded: torch's profiler does not support {device} or lacks permission")
        return
    print(f"{spent.total():9.2f} ms  all kernels")
    for name, ms in spent.most_common(most):
        print(f"{ms:9.2f} ms {calls[name] / times:6.1f} x  {name[:120]}", flush=True)


def _warm_up(setting: str) -> int:
    # A teacher draws one of two masks, each of which needs its own compiled graph.
    return 12 if _compiles(setting) else 3


def _compiles(setting: str) -> bool:
    return setting.endswith("+compile")


def _precision(setting: str) -> str:
    return setting.removesuffix("+compile")


def _flops(make: Callable[[], Any], scale: Scale, device: str) -> dict[str, float]:
    """Floating-point operations per utterance of a step and of a forward pass. Counted without compiling,
    since the counter cannot see into compiled layers."""
    step = TrainingStep(make(), device, "bf16")
    forward = step.flops(_batch(step, scale._replace(utterances=1), device), step.forward)
    step.close()
    # Only the forward pass is counted, because the counter takes the gradient of a depthwise convolution for
    # that of a dense one. The backward pass has two products for each in the forward pass.
    return {"step": 3 * forward, "forward": forward}


def _batch(step: TrainingStep, scale: Scale, device: str) -> Batch:
    return synthetic_batch(scale.utterances, scale.seconds, step.step.student.model.vocab_size, device)


def matrix_tflops(device: str, precision: str, size: int) -> float:
    """TFLOP/s of the product of two random square matrices."""
    dtype = DTYPES[precision] or torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    each_s = seconds_each(lambda: left @ right, device, times=10, warm_up=3)
    return 2 * size**3 / each_s / 1e12


def peak_gib(device: str) -> float:
    """Peak memory of tensors on the accelerator since its statistics were last reset."""
    return torch.accelerator.max_memory_allocated() / 2**30 if device != "cpu" else 0.0


def device_name(device: str) -> str:
    """The manufacturer's name of the device."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def _of_data_sheet(device: str, precision: str, tflops: float) -> float:
    """Per cent of the data sheet's speed; NaN for a device that is not in DATA_SHEETS."""
    sheet = data_sheet(device_name(device))
    return float("nan") if sheet is None else 100 * tflops / sheet[0 if precision == "bf16" else 1]


def data_sheet(card: str) -> tuple[float, float] | None:
    """The row of DATA_SHEETS for torch's name of a card; whole words are compared, since an L40 is no L4."""
    # "NVIDIA H100 80GB HBM3", "NVIDIA A100-PCIE-40GB": except for the A100, PCIe cards are slower.
    words = card.replace("-", " ").split()
    slower = {"NVL", "Laptop", "Ti", "D"} | (set() if "A100" in words else {"PCIe", "PCIE"})
    if slower & set(words):
        return None
    named = [name for name in DATA_SHEETS if f" {name} " in f" {' '.join(words)} "]
    return DATA_SHEETS[named[0]] if len(named) == 1 else None


if __name__ == "__main__":
    main()
