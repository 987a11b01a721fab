"""Does training wait for data? Compares the speed of making batches with that of training steps.

    python -m benchmarks.loader --shards runs/mini/shards/labelled [--model runs/mini/teacher] [--device cuda]

prints, by CPU time on one core, the speed from audio shard to log-mel (also for decoding and features
separately) and that of whole batches, with their share of padding, optionally at other --speeds and for
--unlabelled audio with its soft labels. For 0, 1 and 2 workers it prints the seconds for a batch from the
loader alone, for a step on a batch in memory, and for both as in training. If `loader_to_step` is below 1,
workers have time to spare; `waiting_percent` is the share of training time in which the step waits for data.

Labels are read in random order, as in training. With a large corpus, nearly every utterance needs a block of
labels to be decoded; the blocks of a small one stay in memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.step import TrainingStep, print_table, seconds_each, seconds_of, synchronise
from kdasr.contract import StudentSide
from kdasr.features import FRAME_SHIFT_MS, log_mel
from kdasr.interfaces import Batch
from kdasr.loader import Stream
from kdasr.models import load_model
from kdasr.schedule import ScheduledBatches
from kdasr.shards import list_shards, open_shard, read_utterance
from kdasr.soft_labels import LabelFolder
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write to --out if given; returns the figures."""
    parser = argparse.ArgumentParser(
        description="compare the speed of the input pipeline with that of the training step"
    )
    parser.add_argument("--shards", type=Path, required=True, help="a folder of labelled audio shards")
    parser.add_argument("--model", type=Path, help="a model folder; default: a teacher with 4.5 M parameters")
    parser.add_argument(
        "--unlabelled", type=Path, help="further audio shards, with the soft labels in --labels"
    )
    parser.add_argument("--labels", type=Path, help="soft labels of --unlabelled, adapted to --model")
    parser.add_argument("--speeds", type=float, nargs="+", help="speeds, as in a recipe: 0.9 1.0 1.1")
    parser.add_argument("--batch-seconds", type=float, default=40.0)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if (options.unlabelled is None) != (options.labels is None):
        parser.error("--unlabelled and --labels must be given together")
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    figures |= features_speed(options.shards, options.batches * options.batch_seconds)
    figures |= batches_speed(options)
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}")
    figures["workers"] = waiting(options)
    print_table(figures["workers"])
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def features_speed(folder: Path, seconds: float) -> dict[str, float]:
    """Speed (times real time) at which one core reads, decodes and computes features."""
    decode_s = features_s = audio_s = 0.0
    shards = (open_shard(path) for path in list_shards(folder))
    for shard, entry in ((opened, entry) for opened in shards for entry in opened.entries):
        started = time.process_time()
        samples = read_utterance(shard, entry).samples
        decoded = time.process_time()
        log_mel(samples)
        decode_s += decoded - started
        features_s += time.process_time() - decoded
        audio_s += len(samples) / 16_000
        if audio_s >= seconds:
            break
    return {
        "shard_to_log_mel_times_real_time": audio_s / (decode_s + features_s),
        "decode_times_real_time": audio_s / decode_s,
        "log_mel_times_real_time": audio_s / features_s,
    }


def batches_speed(options: argparse.Namespace) -> dict[str, float]:
    """Speed (times real time) at which one core makes batches of each requested kind."""
    make = partial(Stream, batch_seconds=options.batch_seconds, seed=1)
    streams = {"batches": make([options.shards])}
    if options.speeds is not None:
        streams["batches_at_other_speeds"] = make([options.shards], speeds=tuple(options.speeds))
    if options.unlabelled is not None:
        streams["batches_of_unlabelled"] = make([options.unlabelled])
        loaded = None if options.model is None else load_model(options.model)
        student = None if loaded is None else StudentSide(loaded.units, loaded.model.subsampling)
        labels = [LabelFolder(options.labels)]
        streams["batches_of_unlabelled_with_labels"] = make(
            [options.unlabelled], labels=labels, student=student
        )
    figures: dict[str, float] = {}
    for name, stream in streams.items():
        figures |= _made(name, stream, options.batches)
    return figures


def _made(name: str, stream: Stream, count: int) -> dict[str, float]:
    audio_s, padded_s, began = 0.0, 0.0, time.process_time()
    for position in range(count):
        batch = stream.batch(position)
        audio_s += seconds_of(batch)
        padded_s += batch.features_btf.shape[:2].numel() * FRAME_SHIFT_MS / 1000
    return {
        f"{name}_times_real_time": audio_s / (time.process_time() - began),
        f"{name}_padding_percent": 100 * (1 - audio_s / padded_s),
    }


def waiting(options: argparse.Namespace) -> list[dict[str, float]]:
    """For each number of workers: the loader alone, the step alone, and training."""
    if options.model is not None:
        loaded = load_model(options.model)
        model, units = loaded.model, loaded.units
    else:
        units = CharUnits()
        model = ConformerTeacher(vocab_size=units.vocab_size)
    # No cache: every batch is made from the audio, as with a corpus larger than memory.
    # Otherwise as in `kdasr train`.
    student = StudentSide(units, model.subsampling)
    stream = Stream(
        [options.shards],
        options.batch_seconds,
        1,
        units=units,
        student=student,
        lead_share=0.5,
        joined_share=0.5,
    )
    step = TrainingStep(model, options.device, options.precision)
    in_memory = [stream.batch(position) for position in range(8)]
    turns = itertools.cycle(in_memory)
    step_s = seconds_each(lambda: step(next(turns)), options.device, times=options.batches)
    rows = []
    for workers in options.workers:
        loader_s = _each(_batches(stream, options, workers), lambda batch: None, options)
        together_s = _each(_batches(stream, options, workers), step, options)
        rows.append(
            {
                "workers": workers,
                "loader_s": loader_s,
                "step_s": step_s,
                "training_s": together_s,
                "loader_to_step": loader_s / step_s,
                "waiting_percent": max(0.0, 100 * (1 - step_s / together_s)),
                "training_times_real_time": sum(map(seconds_of, in_memory)) / len(in_memory) / together_s,
            }
        )
    step.close()
    return rows


def _batches(stream: Stream, options: argparse.Namespace, workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        ScheduledBatches({"labelled": stream}, [("labelled", 1)]),
        batch_size=None,
        sampler=range(options.batches + 2),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=options.device.startswith("cuda"),
    )
    return iter(loader)


def _each(batches: Iterator[Batch], use: Any, options: argparse.Namespace) -> float:
    """Seconds for a batch, from the third on, since workers take time to start."""
    for _ in range(2):
        use(next(batches))
    synchronise(options.device)
    started = time.perf_counter()
    for batch in batches:
        use(batch)
    synchronise(options.device)
    return (time.perf_counter() - started) / options.batches


if __name__ == "__main__":
    main()
