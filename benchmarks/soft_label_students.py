"""The word error rate of students that learn from differently stored labels of one teacher.

    python -m benchmarks.soft_label_students --work-dir runs/mini --seeds 1 2 3

For each codec: label the unlabelled shards, then train the student of RECIPE with each seed, all else
equal, and evaluate it on the test shards. What is there already is not done again, so this can be
stopped and continued. Rows are written to WORK_DIR/soft_label_students.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from kdasr.evaluation import evaluate
from kdasr.labelling import Settings, label
from kdasr.models import CARD_FILE, load_model
from kdasr.pipeline import run_recipe
from kdasr.shards import list_shards
from kdasr.soft_labels import Codec, Full, Sampled, TopP

CODECS: dict[str, Codec] = {
    "full": Full(),
    "top_p_0.999_0.05": TopP(0.999, 16, 0.05),
    "top_p_0.99_0.25": TopP(0.99, 16, 0.25),
    "top_p_0.9_0.5": TopP(0.9, 16, 0.5),
    "top_p_0.5_1": TopP(0.5, 16, 1.0),
    "sampled_12": Sampled(12),
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Label, train, evaluate, print; returns the rows."""
    parser = argparse.ArgumentParser(description="student WER for each way of storing labels")
    parser.add_argument("--work-dir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/mini/student.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--steps", type=int, help="fewer training steps than the recipe's")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.codecs:
        rows.append(_row(options, name))
        (options.work_dir / "soft_label_students.json").write_text(json.dumps(rows, indent=1) + "\n")
    _print(rows)
    return rows


def _row(options: argparse.Namespace, name: str) -> dict[str, Any]:
    labels = options.work_dir / "labels_by_codec" / name
    summary = label(
        teacher=options.work_dir / "teacher",
        audio=options.work_dir / "shards" / "unlabelled",
        out=labels,
        settings=Settings(codec=CODECS[name]),
        overwrite=True,
    )
    wers = [_student_wer(options, name, labels, seed) for seed in options.seeds]
    return {
        "codec": name,
        "bytes_per_frame": summary["bytes_per_frame"],
        "seeds": options.seeds,
        "wers": wers,
        "wer_mean": mean(wers),
        "wer_std": stdev(wers) if len(wers) > 1 else None,
    }


def _student_wer(options: argparse.Namespace, name: str, labels: Path, seed: int) -> float:
    student = f"students_by_codec/{name}-{seed}"
    folder = options.work_dir / student
    if not (folder / CARD_FILE).exists():
        settings: dict[str, Any] = {
            "work_dir": str(options.work_dir),
            "name": student,
            "labels": [str(labels)],
            "seed": seed,
        }
        if options.steps is not None:
            settings["optimisation.steps"] = options.steps
        run_recipe(options.recipe, settings, expected_stage="train")
    loaded = load_model(folder)
    return evaluate(loaded.model, loaded.units, list_shards(options.work_dir / "shards" / "test")).wer


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Students that learned from the same teacher, stored differently")
    for title in ("labels", "bytes/frame", "WER %, mean", "std", "each seed"):
        table.add_column(title, justify="left" if title == "labels" else "right")
    for row in rows:
        spread = "" if row["wer_std"] is None else f"{row['wer_std']:.2f}"
        each = " ".join(f"{wer:.2f}" for wer in row["wers"])
        table.add_row(row["codec"], f"{row['bytes_per_frame']:.2f}", f"{row['wer_mean']:.2f}", spread, each)
    Console().print(table)


if __name__ == "__main__":
    main()
