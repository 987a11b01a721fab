"""What each way to learn gains and costs: trains and tests the recipes in recipes/methods, a row for each.

    python -m benchmarks.methods --work-dir runs/mini --seeds 1 --steps 600 --only hints,flow

The work folder is that of a finished `kdasr run recipes/mini`, whose shards, teacher, labels and students
are used. Finished rows are not trained again, so this can be stopped and continued.

    WORK_DIR/methods/NAME-SEED/        the student
    WORK_DIR/methods/NAME-SEED.json    its row; delete it to train again
    WORK_DIR/methods/test_spoilt/      the test shards through the degraded channel of cross_channel.yaml
    WORK_DIR/methods.json              all rows

It prints a table in Markdown: WER on the test shards, its change from labels_only and from soft_labels, and
WER through the degraded channel.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.rows import (
    change,
    grouped,
    hash_of_inputs,
    manifests,
    mean_wers,
    read_row,
    write_all,
    write_row,
)
from kdasr.errors import ConfigError
from kdasr.evaluation import evaluate
from kdasr.models import load_model, read_card
from kdasr.pipeline import load_arguments, run_recipe
from kdasr.recipe import load_recipe, parse_value
from kdasr.shards import list_shards, read_shard, write_shards

RECIPES = Path("recipes/methods")
FOLDER = "methods"
LABELS_ONLY, SOFT_LABELS = "labels_only", "soft_labels"
# Models that the rows depend on, besides the recipes.
MODELS = ("teacher", "student_labelled_only", "student_distilled")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train, test, print; returns the requested rows."""
    parser = argparse.ArgumentParser(description="compare the recipes of recipes/methods")
    parser.add_argument(
        "--work-dir", type=Path, required=True, help="work folder of a finished run of recipes/mini"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--steps", type=int, help="number of training steps, in place of the recipes'; pruning keeps its own"
    )
    parser.add_argument("--only", type=lambda text: text.split(","), help="a,b,… (default: all)")
    parser.add_argument("--set", nargs="*", default=[], help="settings KEY=VALUE for every recipe")
    options = parser.parse_args(arguments)
    rows = []
    for seed in options.seeds:
        for name in chosen(options.only):
            rows.append(_row(options, name, seed))
            write_all(options.work_dir / FOLDER)
    print(table(rows))
    return rows


def chosen(only: Sequence[str] | None) -> list[str]:
    """Names of the recipes to train, beginning with the two to which the others are compared.

    Raises:
        ConfigError: no recipe has one of the names.
    """
    names = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "base")
    if only and (unknown := set(only) - set(names)):
        raise ConfigError("unknown method", where="--only", expected=", ".join(names), got=", ".join(unknown))
    first = [LABELS_ONLY, SOFT_LABELS]
    return [name for name in first + [n for n in names if n not in first] if not only or name in only]


def _row(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """The result of one recipe and seed; read from its file if that was made with these settings."""
    work_dir, student = options.work_dir, f"{name}-{seed}"
    recipe = RECIPES / f"{name}.yaml"
    settings: dict[str, Any] = {"work_dir": str(work_dir), "name": student, "seed": seed}
    for setting in options.set:
        key, _, value = setting.partition("=")
        settings[key] = parse_value(value)
    if options.steps is not None and "start" not in load_recipe(recipe, settings).arguments:
        settings["optimisation.steps"] = options.steps
    file = work_dir / FOLDER / f"{student}.json"
    inputs = _inputs(recipe, settings, work_dir)
    if (known := read_row(file, inputs)) is not None:
        return known
    began = time.time()
    facts = run_recipe(recipe, settings, expected_stage="train")
    loaded = load_model(work_dir / FOLDER / student)
    result = evaluate(loaded.model, loaded.units, list_shards(work_dir / "shards" / "test"))
    spoilt = evaluate(loaded.model, loaded.units, list_shards(spoilt_test(work_dir)))
    row = {
        "method": name,
        "seed": seed,
        "steps": facts["train_steps"],
        "dev_wer": facts["dev_wer"],
        "wer": round(result.wer, 3),
        "cer": round(result.cer, 3),
        "spoilt_wer": round(spoilt.wer, 3),
        "train_seconds": round(time.time() - began),
        "pruned": loaded.card.get("pruned"),
        "inputs": inputs,
    }
    write_row(file, row)
    shutil.rmtree(work_dir / FOLDER / "checkpoints" / student)
    return row


def spoilt_test(work_dir: Path) -> Path:
    """The test shards through the degraded channel of cross_channel.yaml, with fixed seeds."""
    folder, clean = work_dir / FOLDER / "test_spoilt", list_shards(work_dir / "shards" / "test")
    recipe = RECIPES / "cross_channel.yaml"
    spoil = load_arguments(recipe, {"work_dir": str(work_dir)}, expected_stage="train")["spoil"]
    utterances = (one for path in clean for one in read_shard(path))
    write_shards(
        (
            replace(one, samples=spoil(one.samples, np.random.default_rng(n)))
            for n, one in enumerate(utterances)
        ),
        folder,
        description="spoilt test",
    )
    return folder


def _inputs(recipe: Path, settings: Mapping[str, Any], work_dir: Path) -> str:
    """A hash of the recipe (without the work folder's path), the models it may use, labels and audio."""
    resolved = load_recipe(recipe, settings).text.replace(str(work_dir), "WORK_DIR")
    weights = [read_card(work_dir / name)["weights_sha256"] for name in MODELS]
    return hash_of_inputs(resolved, *weights, *manifests(work_dir))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table in Markdown, one line for each method."""
    by_method = grouped(rows, "method")
    means = mean_wers(by_method)
    lines = [
        "| method | steps | WER %, each seed | mean | against transcripts only | against soft labels "
        "| through a worse channel | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in by_method.items():
        cells = [
            name,
            str(group[0]["steps"]),
            " ".join(f"{row['wer']:.1f}" for row in group),
            f"{means[name]:.1f}",
            *(change(means, name, reference) for reference in (LABELS_ONLY, SOFT_LABELS)),
            f"{mean(row['spoilt_wer'] for row in group):.1f}",
            f"{mean(row['train_seconds'] for row in group):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
