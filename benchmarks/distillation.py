"""Compare the ways to distil, with the same student, steps, seeds and teacher.

    python -m benchmarks.distillation --recipe recipes/mini --work-dir runs/mini --seeds 1 2 3

The work folder is that of a finished `kdasr run` of the recipe. Its shards and teacher are used, and its
labels by the arms that name them; all other arms use labels of the same teacher without a lexicon.
Arms are listed in benchmarks/distillation.yaml; `--arms a,b` runs some of them (and
labels_only, if they need it to measure a delay). Finished arms are not run again, so this can be
stopped and continued, and once labels_only is finished, arms can run in parallel.

    WORK_DIR/distillation/ARM-SEED/          the student
    WORK_DIR/distillation/ARM-SEED.json      its row; delete it to run the arm again
    WORK_DIR/distillation/ARM-SEED.jsonl     its training log
    WORK_DIR/distillation/labels_as_heard/   the teacher's unchanged posteriors
    WORK_DIR/distillation/transcribed/       the shards again, with transcripts of the unlabelled audio
    WORK_DIR/distillation.json               all rows

It prints a table in Markdown: WER on the test shards, and the delay of spikes relative to the teacher's
forced alignment of the transcript and relative to the teacher's own spikes. The arm `all_transcribed` also
learns from the true transcripts of the unlabelled audio (a recorded corpus needs `--corpus` for that). If it
is included, each arm has a WER recovery rate: its gain over labels_only as a share of that of
`all_transcribed` (Kahn et al., arXiv 1909.09116).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from ruamel.yaml import YAML

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
from data_prep import prepare
from export.delays import measure_delays, open_aligner
from export.transcribe import open_recogniser
from kdasr.errors import ConfigError
from kdasr.evaluation import evaluate
from kdasr.features import FRAME_SHIFT_MS
from kdasr.manifest import PREPARED
from kdasr.models import read_card
from kdasr.pipeline import run_recipe
from kdasr.recipe import load_recipe
from kdasr.shards import list_shards, read_shard
from kdasr.spikes import spike_histogram
from kdasr.training_log import LOG_FILE

ARMS_FILE = Path(__file__).with_suffix(".yaml")
REFERENCE = "labels_only"
TOPLINE = "all_transcribed"
# Corpora with transcripts of the unlabelled audio, and whether they need a folder.
CORPORA = {"synth": False, "fsdd": True}
# Hard pseudo-labels without a lexicon, the strongest simple rivals; arms are compared with the best of them.
RIVALS = ("pseudo_labels", "pseudo_labels_two_views")
FOLDER = "distillation"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train, measure, print; returns the rows of the requested arms and seeds."""
    parser = argparse.ArgumentParser(description="compare ways to distil")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/mini"))
    parser.add_argument(
        "--work-dir", type=Path, required=True, help="work folder of a finished run of the recipe"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", type=lambda text: text.split(","), help="a,b,… (default: all)")
    parser.add_argument("--steps", type=int, help="number of training steps, in place of the recipe's")
    parser.add_argument(
        "--delay-utterances", type=int, default=100, help="utterances for measuring emission delays"
    )
    parser.add_argument(
        "--corpus", type=Path, help=f"corpus folder, if the recipe needs one; only for the arm {TOPLINE}"
    )
    options = parser.parse_args(arguments)
    arms = YAML().load(ARMS_FILE.read_text())
    chosen = list(arms) if options.arms is None else options.arms
    if unknown := [name for name in chosen if name not in arms]:
        raise ConfigError("unknown arm", where="--arms", expected=", ".join(arms), got=", ".join(unknown))
    as_heard = _labels_as_heard(options.recipe, options.work_dir)
    if options.arms is None and (reason := _no_transcripts(options.work_dir, options.corpus)):
        print(f"{TOPLINE} is skipped: {reason}", file=sys.stderr)
        chosen.remove(TOPLINE)
    if TOPLINE in chosen:
        own = load_recipe(options.recipe / "student.yaml", {"work_dir": str(options.work_dir)})
        transcribed = _transcribed(options.work_dir, options.corpus)
        arms[TOPLINE]["labelled"] = [*own.arguments["labelled"], str(transcribed)]
    rows = []
    for seed in options.seeds:
        for name in _with_reference(chosen, arms):
            row = _row(options, name, {**as_heard, **arms[name]}, seed)
            rows += [row] if name in chosen else []
            write_all(options.work_dir / FOLDER)
    print(table(rows))
    return rows


def _with_reference(chosen: Sequence[str], arms: Mapping[str, Any]) -> list[str]:
    """The arms to run, in order: first the one with which delays are measured, if that is needed."""
    needed = any("auto" in json.dumps(arms[name], default=str) for name in chosen)
    first = [REFERENCE] if needed or REFERENCE in chosen else []
    return first + [name for name in chosen if name != REFERENCE]


def _labels_as_heard(recipe: Path, work_dir: Path) -> dict[str, Any]:
    """The setting for labels made without a lexicon; empty if the recipe's labels are."""
    settings = load_recipe(recipe / "label.yaml", {"work_dir": str(work_dir)}).arguments.get("settings")
    if settings is None or settings.words is None:
        return {}
    out = str(work_dir / FOLDER / "labels_as_heard")
    own = {"work_dir": str(work_dir), "out": out, "settings.words": None}
    run_recipe(recipe / "label.yaml", own, expected_stage="label")
    return {"labels": [out]}


def _no_transcripts(work_dir: Path, corpus: Path | None) -> str | None:
    """Why transcripts of the unlabelled audio are not available, or None if they are."""
    record = work_dir / "shards" / "unlabelled" / PREPARED
    if not record.is_file():
        return f"{record} is missing"
    name = json.loads(record.read_text())["source"]["corpus"]
    if name not in CORPORA:
        return f"unlabelled audio from the corpus {name}; expected {' or '.join(CORPORA)}"
    return "add --corpus DIR" if CORPORA[name] and corpus is None else None


def _transcribed(work_dir: Path, corpus: Path | None) -> Path:
    """The folder of the unlabelled audio with its transcripts, prepared in the same way as the shards.

    Raises:
        ConfigError: transcripts are not available, or the audio is not that of the shards.
    """
    own = work_dir / "shards" / "unlabelled" / PREPARED
    if reason := _no_transcripts(work_dir, corpus):
        raise ConfigError(
            "there are no transcripts for the unlabelled audio", where=f"--arms {TOPLINE}", got=reason
        )
    before = json.loads(own.read_text())
    source, out = before["source"], work_dir / FOLDER / "transcribed"
    settings = {**source["settings"], "unlabelled_transcripts": True}
    prepare(source["corpus"], corpus=corpus, out=out, seed=source["seed"], **settings)
    after = json.loads((out / "unlabelled" / PREPARED).read_text())
    for record in (before, after):  # the shards may have been made with transcripts, too
        record["source"]["settings"].pop("unlabelled_transcripts", None)
    if any(after[key] != before[key] for key in ("source", "count", "seconds")):
        raise ConfigError(
            "the audio with transcripts differs from that of the shards",
            where=out,
            expected="the release and the corpus that the shards were made with",
            fix="Prepare the shards again, or check --corpus.",
        )
    return out / "unlabelled"


def _row(options: argparse.Namespace, name: str, arm: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The result of one arm and seed; read from its file if that was made with these settings."""
    work_dir: Path = options.work_dir
    student = f"{FOLDER}/{name}-{seed}"
    settings: dict[str, Any] = {
        **arm,
        "work_dir": str(work_dir),
        "name": student,
        "seed": seed,
        "checkpoints": str(work_dir / f"{student}.checkpoints"),
        "delay_reference": str(work_dir / FOLDER / f"{REFERENCE}-{seed}"),
    }
    if options.steps is not None:
        settings["optimisation.steps"] = options.steps
    recipe = options.recipe / "student.yaml"
    # The text must not depend on the path of the work folder.
    resolved = load_recipe(recipe, settings).text.replace(str(work_dir), "WORK_DIR")
    teacher = read_card(work_dir / "teacher")["weights_sha256"]
    measured = [teacher, resolved, str(options.delay_utterances)]
    measured += manifests(work_dir, ("labels", "shards/test"))
    inputs = hash_of_inputs(*measured)
    file = work_dir / f"{student}.json"
    if (known := read_row(file, inputs)) is not None:
        return known
    began = time.time()
    facts = run_recipe(recipe, settings, expected_stage="train")
    row = {
        "arm": name,
        "seed": seed,
        "steps": facts["train_steps"],
        "dev_wer": facts["dev_wer"],
        "train_seconds": round(time.time() - began),
        **_measured(work_dir, work_dir / student, options.delay_utterances),
        "inputs": inputs,
    }
    _keep_log(Path(settings["checkpoints"]), work_dir / f"{student}.jsonl")
    write_row(file, row)
    return row


def _keep_log(checkpoints: Path, log: Path) -> None:
    """Keep only the log of a training: the checkpoints of sixty runs would take gigabytes."""
    shutil.copyfile(checkpoints / LOG_FILE, log)
    shutil.rmtree(checkpoints)


def _measured(work_dir: Path, student: Path, delay_utterances: int) -> dict[str, Any]:
    """Error rates, emission delays and spike offsets on the test shards."""
    shards = list_shards(work_dir / "shards" / "test")
    recogniser = open_recogniser(student)
    aligner = open_aligner(work_dir / "teacher", recogniser)
    utterances = (utterance for path in shards for utterance in read_shard(path) if utterance.text)
    delays = measure_delays(recogniser, list(islice(utterances, delay_utterances)), aligner)
    assert recogniser.offline_model is not None and aligner.offline_model is not None
    ours = evaluate(recogniser.offline_model, recogniser.units, shards)
    theirs = evaluate(aligner.offline_model, aligner.units, shards)
    pairs = ((one.tokens or [], two.tokens or []) for one, two in zip(theirs.heard, ours.heard, strict=True))
    frame_ms = float(FRAME_SHIFT_MS * recogniser.offline_model.subsampling)
    histogram = spike_histogram(pairs, frame_ms)
    return {
        "wer": round(ours.wer, 3),
        "cer": round(ours.cer, 3),
        "teacher_wer": round(theirs.wer, 3),
        "delay_frames": read_card(student).get("delay_frames"),
        "delays": asdict(delays),
        "spikes": {**asdict(histogram), "median_ms": histogram.median_ms, "matched": histogram.matched},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table in Markdown, one line for each arm; delays are medians over the seeds."""
    by_arm = grouped(rows, "arm")
    means = mean_wers(by_arm)
    rival = min((name for name in RIVALS if name in means), key=lambda name: means[name], default=RIVALS[0])
    lines = [
        "| arm | WER %, each seed | mean | against transcripts only | against pseudo-labels "
        "| WER recovery | emission P50 / P90 ms | spikes against the teacher's: median ms, within 40 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in by_arm.items():
        cells = [
            name,
            " ".join(f"{row['wer']:.1f}" for row in group),
            f"{means[name]:.1f}",
            *(change(means, name, other) for other in (REFERENCE, rival)),
            _recovery(means, name),
            " / ".join(_ms([row["delays"][f"emission_{p}_ms"] for row in group]) for p in ("p50", "p90")),
            f"{_ms([row['spikes']['median_ms'] for row in group])}, {_near(group)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _recovery(means: Mapping[str, float], name: str) -> str:
    """The gain over transcripts alone as a share of the gain from transcripts of all audio."""
    if name in (REFERENCE, TOPLINE) or not {REFERENCE, TOPLINE} <= means.keys():
        return "–"
    gained, possible = means[REFERENCE] - means[name], means[REFERENCE] - means[TOPLINE]
    # A share of a tiny gain would be meaningless.
    return f"{100 * gained / possible:.0f} %" if possible > 0.05 * means[REFERENCE] else "–"


def _ms(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):+.0f}" if known else "–"


def _near(group: Sequence[Mapping[str, Any]]) -> str:
    """Share of matched spikes that are at most 40 ms (a frame) from the teacher's."""
    pairs = [
        pair
        for row in group
        for pair in zip(row["spikes"]["offsets_ms"], row["spikes"]["counts"], strict=True)
    ]
    total = sum(count for _, count in pairs)
    return f"{100 * sum(count for ms, count in pairs if abs(ms) <= 40) / total:.0f} %" if total else "–"


if __name__ == "__main__":
    main()
