"""Students by size: their cost in computing, memory and training, and their accuracy.

    python -m benchmarks.students [--sizes recipes/students/*.yaml] [--chunk-ms 320]
    python -m benchmarks.students --train --work-dir runs/mini --steps 600 --seeds 1 2 3

Every size is built with random weights and measured on one core, at one chunk size, on synthetic sound.
With --train, each size is also trained with the student recipe in the work folder of a finished run, using
its shards, teacher and labels, and evaluated on the test shards at each of
--wer-chunk-ms (0 is full context). Trained students are not trained again, so this can be
stopped and continued:

    WORK_DIR/students/SIZE-SEED-…/  the student, with a hash of its training; delete it to train it again
    WORK_DIR/students.json          the rows of the last call

It prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rows import hash_of_inputs, manifests
from benchmarks.step import synthetic_batch
from export.measure import measure_chunks
from export.packing import StateLayout
from export.parity import probe_sound
from export.to_onnx import OnnxFormat
from export.transcribe import open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.devices import one_torch_thread
from kdasr.errors import ConfigError
from kdasr.evaluation import evaluate
from kdasr.features import FRAME_SHIFT_MS, NUM_MEL_BINS
from kdasr.models import CARD_FILE, count_parameters
from kdasr.pipeline import run_recipe
from kdasr.recipe import load_recipe
from kdasr.shards import list_shards
from kdasr.storage import commit_json
from kdasr.streaming import TorchChunkModel, set_chunk_ms
from kdasr.text import CharUnits

RECIPE = Path("recipes/mini/student.yaml")
SIZES = Path("recipes/students")
FOLDER = "students"
_UNITS = CharUnits()


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, train if asked to, print; returns a row for each size."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in ("steps", "dynamic_chunks", "wer_chunk_ms", "work_dir"):
        if getattr(options, name) is not None and not options.train:
            parser.error(f"--{name.replace('_', '-')} needs --train")
    if options.train and options.work_dir is None:
        raise ConfigError(
            "training needs the work folder of a finished run", where="--train", fix="Add --work-dir DIR."
        )
    rows = []
    for path in options.sizes or sorted(SIZES.glob("*.yaml")):
        row = {
            "size": path.stem,
            "chunk_ms": options.chunk_ms,
            **measured(_build(options, path), options.chunk_ms),
        }
        if options.train:
            row["seeds"] = options.seeds
            row["wers"] = [_wers(options, path, seed) for seed in options.seeds]
        rows.append(row)
        if options.work_dir is not None:
            commit_json(options.work_dir / f"{FOLDER}.json", rows)
    print(table(rows))
    return rows


def measured(model: Any, chunk_ms: int) -> dict[str, Any]:
    """The cost of a student with chunks of `chunk_ms`, by the keys below."""
    train_ms = train_step_ms(model)
    set_chunk_ms(model.eval(), chunk_ms)
    sound = probe_sound(10 * SAMPLE_RATE_HZ, 1)
    with tempfile.TemporaryDirectory() as folder:
        path, int8_path = Path(folder) / "model.onnx", Path(folder) / "model.int8.onnx"
        onnx = OnnxFormat(model, _UNITS, "")
        onnx.write_float(path)
        onnx.write_int8(int8_path, path)
        int8_bytes, int8 = (
            int8_path.stat().st_size,
            measure_chunks(onnx.open(int8_path), sound, min_chunks=100),
        )
    return {
        "parameters": count_parameters(model),
        "macs_per_second": round(macs_per_second(model)),
        # Of the median chunk: other work on the machine only disturbs some chunks.
        "rtf_torch": measure_chunks(TorchChunkModel(model), sound, min_chunks=100).p50_ms / chunk_ms,
        "rtf_int8": int8.p50_ms / chunk_ms,
        "int8_chunk_p95_ms": int8.p95_ms,
        "int8_bytes": int8_bytes,
        "state_bytes": 4 * StateLayout(model).num_floats + 8,
        "train_step_ms": train_ms,
    }


def macs_per_second(model: Any) -> float:
    """Multiply-accumulate operations per second of audio, chunk by chunk: matrix products (including
    attention to the full left context) and convolutions."""
    window = torch.zeros(1, model.window, NUM_MEL_BINS)
    counter = FlopCounterMode(display=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oneDNN settings that are not changed here
        # The counter does not know fused attention and fused LSTMs, but it knows their parts.
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            counter,
        ):
            model(window, model.initial_state(1))
    return counter.get_total_flops() / 2 / (model.shift * FRAME_SHIFT_MS / 1000)


def train_step_ms(model: Any, repeats: int = 5) -> float:
    """Milliseconds on one core for a forward and backward pass over 40 s of audio, the recipes' batch size:
    the median of CPU times, so that other work on the machine has little influence."""
    batch = synthetic_batch(10, 4.0, _UNITS.vocab_size, "cpu", units_per_second=7.5)

    def step() -> None:
        log_probs_btv, frames = model.offline(batch.features_btf, batch.feature_lengths_b)
        log_probs_tbv = log_probs_btv.transpose(0, 1)
        functional.ctc_loss(log_probs_tbv, batch.tokens_bu, frames, batch.token_lengths_b).backward()

    model.train()
    with one_torch_thread():
        return 1000 * median(_cpu_seconds(step) for _ in range(repeats + 1))


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="measure the cost and the error rates of students of each size"
    )
    parser.add_argument(
        "--sizes", type=Path, nargs="+", help=f"YAML files with a model (default: all of {SIZES})"
    )
    parser.add_argument("--chunk-ms", type=int, default=320, help="milliseconds of audio in a chunk")
    parser.add_argument(
        "--recipe", type=Path, default=RECIPE, help="recipe to train with, except for its model"
    )
    parser.add_argument("--train", action="store_true", help="also train and evaluate")
    parser.add_argument("--work-dir", type=Path, help="work folder of a finished run")
    parser.add_argument("--steps", type=int, help="number of training steps, in place of the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--dynamic-chunks", type=int, nargs="+", help="chunks to draw from in training, in frames of 40 ms"
    )
    parser.add_argument(
        "--wer-chunk-ms", type=int, nargs="+", help="chunks to evaluate with (default: --chunk-ms)"
    )
    return parser


def _build(options: argparse.Namespace, path: Path) -> Any:
    torch.manual_seed(1)
    return load_recipe(options.recipe, {"model": str(path)}).arguments["model"](vocab_size=_UNITS.vocab_size)


def _wers(options: argparse.Namespace, path: Path, seed: int) -> dict[str, float]:
    """WER in percent on the test shards by chunk size in ms; trains the student unless it exists."""
    trained_by = [path.read_text(), load_recipe(options.recipe).text, options.steps, options.dynamic_chunks]
    # The manifests of labels identify the teacher.
    by = hash_of_inputs(json.dumps(trained_by), *manifests(options.work_dir))[:8]
    name = f"{FOLDER}/{path.stem}-{seed}-{by}"
    folder: Path = options.work_dir / name
    if not (folder / CARD_FILE).exists():
        settings: dict[str, Any] = {
            "model": str(path),
            "work_dir": str(options.work_dir),
            "name": name,
            "seed": seed,
        }
        if options.steps is not None:
            settings["optimisation.steps"] = options.steps
        if options.dynamic_chunks:
            settings["model.dynamic_chunks"] = options.dynamic_chunks
        run_recipe(options.recipe, settings, expected_stage="train")
    shards = list_shards(options.work_dir / "shards" / "test")
    wers = {}
    for chunk_ms in options.wer_chunk_ms or [options.chunk_ms]:
        recogniser = open_recogniser(folder, chunk_ms=chunk_ms)
        assert recogniser.offline_model is not None
        wers[str(chunk_ms)] = round(evaluate(recogniser.offline_model, recogniser.units, shards).wer, 3)
    return wers


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table in Markdown; WERs are means over the seeds."""
    chunks = list(rows[0]["wers"][0]) if "wers" in rows[0] else []
    titles = ["student", "parameters", "M MAC/s", "RTF torch", "RTF int8", "int8 MB", "state KB"]
    wer_titles = (f"WER % at {'full context' if chunk == '0' else f'{chunk} ms'}" for chunk in chunks)
    titles += ["training ms/step", *wer_titles]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [
            row["size"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs_per_second'] / 1e6:.1f}",
            f"{row['rtf_torch']:.4f}",
            f"{row['rtf_int8']:.4f}",
            f"{row['int8_bytes'] / 1e6:.2f}",
            f"{row['state_bytes'] / 1e3:.0f}",
            f"{row['train_step_ms']:.0f}",
            *(f"{mean(wers[chunk] for wers in row['wers']):.1f}" for chunk in chunks),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
