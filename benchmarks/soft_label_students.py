"""The word error rate of students that learn from differently stored labels of one teacher.

    python -m benchmarks.soft_label_students --work-dir runs/mini --seeds 1 2 3

WORK_DIR is that of a finished run, whose shards, teacher and labels-only student (which the delay is
measured with) are used again. For each codec: label the unlabelled shards, then train the student of
RECIPE with each seed, all else equal, and evaluate it on the test shards.

Every finished training is a line of WORK_DIR/soft_label_students.jsonl, and is not done again; one
that was interrupted goes on from its checkpoint. Students learn by cross-entropy to the stored
posteriors unless `--recipe` names other losses; `--set` changes the recipe for all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import SHARDS, hash_of_inputs, manifests
from kdasr.evaluation import evaluate
from kdasr.labelling import Settings, label
from kdasr.models import load_model, read_card
from kdasr.pipeline import run_recipe
from kdasr.recipe import load_recipe, parse_value
from kdasr.shards import list_shards
from kdasr.soft_labels import Codec, Full, Sampled, TopK, TopP

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
    """Label, train, evaluate, print; returns the runs."""
    options = _options(arguments)
    settings = dict(options.set)
    if options.steps is not None:
        settings["optimisation.steps"] = options.steps
    file = options.work_dir / "soft_label_students.jsonl"
    conditions = {
        "teacher": read_card(options.work_dir / "teacher")["weights_sha256"],
        "recipe": hashlib.sha256(load_recipe(options.recipe).text.encode()).hexdigest(),
        "settings": settings,
        "audio": hash_of_inputs(*manifests(options.work_dir, SHARDS)),
    }
    # Seed by seed, so that what was measured until somebody stops it can be compared.
    for seed in options.seeds:
        for name in options.codecs:
            wanted = {"codec": name, "seed": seed, **conditions}
            if not _find(_read(file), wanted):
                run = {**wanted, **_measure(options, name, seed, settings)}
                with file.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(run) + "\n")
            _print(_find(_read(file), conditions))
    return _find(_read(file), conditions)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="student WER for each way of storing labels")
    parser.add_argument("--work-dir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/methods/soft_labels.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--steps", type=int, help="fewer training steps than the recipe's")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(arguments)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, parse_value(value)


def _read(file: Path) -> list[Run]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _find(runs: Sequence[Run], wanted: Mapping[str, Any]) -> list[Run]:
    return [run for run in runs if all(run.get(name) == value for name, value in wanted.items())]


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
    student = f"students_by_codec/{name}-{seed}"
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
    table = Table(title="Students that learned from the same teacher, stored differently")
    for title in ("labels", "bytes/frame", "WER %, mean", "std", "against full, same seeds", "each seed"):
        table.add_column(title, justify="left" if title == "labels" else "right")
    reference = {run["seed"]: run["wer"] for run in runs if run["codec"] == REFERENCE}
    for name in dict.fromkeys(run["codec"] for run in runs):
        own = {run["seed"]: run for run in runs if run["codec"] == name}
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
    """Mean and standard error."""
    if not values:
        return ""
    error = f" ± {stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{mean(values):+.2f}{error}"


if __name__ == "__main__":
    main()
