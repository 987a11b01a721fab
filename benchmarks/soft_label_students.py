"""The word error rates of students that learn from one teacher's labels, stored with different codecs.

    python -m benchmarks.soft_label_students --work-dir runs/mini --seeds 1 2 3

WORK_DIR is that of a finished run, whose shards, teacher and labels-only student (with which the delay is
measured) are used. For each codec: label the unlabelled shards, then train the student of
RECIPE with each seed, all else equal, and evaluate it on the test shards.

Finished rows are not made again, and an interrupted training continues from its checkpoint.
Students learn by cross-entropy to the stored posteriors unless `--recipe` has other losses; `--set`
changes the recipe for all of them.

    WORK_DIR/students_by_codec/CODEC-SEED/       the student
    WORK_DIR/students_by_codec/CODEC-SEED.json   its row; delete it to train again
    WORK_DIR/students_by_codec.json              all rows
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import SHARDS, grouped, hash_of_inputs, manifests, read_row, write_all, write_row
from kdasr.evaluation import evaluate
from kdasr.labelling import Settings, label
from kdasr.models import load_model, read_card
from kdasr.pipeline import run_recipe
from kdasr.recipe import load_recipe, parse_value
from kdasr.shards import list_shards
from kdasr.soft_labels import Codec, Full, Sampled, TopK, TopP

FOLDER = "students_by_codec"
REFERENCE = "full"
CODECS: dict[str, Codec] = {
    REFERENCE: Full(),
    "top_p_0.999_16_0.05": TopP(0.999, 16, 0.05),
    "top_p_0.99_16_0.25": TopP(0.99, 16, 0.25),
    "top_p_0.9_4_1": TopP(0.9, 4, 1.0),
    "top_p_0.5_2_2": TopP(0.5, 2, 2.0),
    "top_k_2_1": TopK(2, 1.0),
    "sampled_12": Sampled(12),
    "sampled_2": Sampled(2),
}
Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> list[Run]:
    """Label, train, evaluate, print; returns the requested rows."""
    options = _options(arguments)
    settings = dict(options.set)
    if options.steps is not None:
        settings["optimisation.steps"] = options.steps
    teacher = read_card(options.work_dir / "teacher")["weights_sha256"]
    recipe = [load_recipe(options.recipe).text, json.dumps(settings, sort_keys=True)]
    inputs = hash_of_inputs(teacher, *recipe, *manifests(options.work_dir, SHARDS))
    rows: list[Run] = []
    # Seed by seed, so that codecs can be compared even if this is stopped early.
    for seed in options.seeds:
        for name in options.codecs:
            file = options.work_dir / FOLDER / f"{name}-{seed}.json"
            if (row := read_row(file, inputs)) is None:
                measured = _measure(options, name, seed, settings)
                row = {"codec": name, "seed": seed, "settings": settings, **measured, "inputs": inputs}
                write_row(file, row)
                write_all(options.work_dir / FOLDER)
            rows.append(row)
            _print(rows)
    return rows


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure student WER for each way of storing labels")
    parser.add_argument("--work-dir", type=Path, required=True, help="work folder of a finished run")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/methods/soft_labels.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--steps", type=int, help="fewer training steps than the recipe's")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(arguments)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, parse_value(value)


def _measure(options: argparse.Namespace, name: str, seed: int, settings: Mapping[str, Any]) -> Run:
    work_dir, started = options.work_dir, time.monotonic()
    labels = work_dir / "labels_by_codec" / name
    summary = label(
        teacher=work_dir / "teacher",
        audio=work_dir / "shards" / "unlabelled",
        out=labels,
        settings=Settings(codec=CODECS[name]),
        overwrite=True,
    )
    student = f"{FOLDER}/{name}-{seed}"
    fixed = {
        "work_dir": str(work_dir),
        "name": student,
        "out": str(work_dir / student),
        "checkpoints": str(work_dir / f"{student}.checkpoints"),
        "labels": [str(labels)],
        "seed": seed,
    }
    run_recipe(options.recipe, {**settings, **fixed}, expected_stage="train")
    loaded = load_model(work_dir / student)
    result = evaluate(loaded.model, loaded.units, list_shards(work_dir / "shards" / "test"))
    return {
        "wer": result.wer,
        "bytes_per_frame": summary["bytes_per_frame"],
        "delay_frames": loaded.card.get("delay_frames"),
        "minutes": (time.monotonic() - started) / 60,
    }


def _print(runs: Sequence[Run]) -> None:
    table = Table(title="Students trained on the same teacher's labels, stored differently")
    for title in ("labels", "bytes/frame", "WER %, mean", "std", "against full, same seeds", "each seed"):
        table.add_column(title, justify="left" if title == "labels" else "right")
    reference = {run["seed"]: run["wer"] for run in runs if run["codec"] == REFERENCE}
    for name, group in grouped(runs, "codec").items():
        own = {run["seed"]: run for run in group}
        wers = [own[seed]["wer"] for seed in sorted(own)]
        differences = [own[seed]["wer"] - reference[seed] for seed in sorted(own) if seed in reference]
        table.add_row(
            name,
            f"{mean(run['bytes_per_frame'] for run in own.values()):.2f}",
            f"{mean(wers):.2f}",
            f"{stdev(wers):.2f}" if len(wers) > 1 else "",
            _difference(differences) if name != REFERENCE else "",
            " ".join(f"{wer:.2f}" for wer in wers),
        )
    Console(width=120).print(table)


def _difference(values: Sequence[float]) -> str:
    """Mean and standard error as text."""
    if not values:
        return ""
    error = f" ± {stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{mean(values):+.2f}{error}"


if __name__ == "__main__":
    main()
