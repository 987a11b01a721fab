"""What soft labels cost and what they lose, measured on a trained teacher.

    python -m benchmarks.soft_labels --work-dir runs/mini

prints a table with a row for each codec and setting, for plain ways of storing posteriors and for
the entropy bound, then throughputs; everything is also written to WORK_DIR/soft_labels.json.

    bytes/frame    of the whole label file, including header, index and checksums
    KL             KL(full || stored) in nats per frame, over the classes that the loss uses (kept
                   classes and the tail); for a renormalised top-k KL(stored || full), since the
                   other direction is infinite
    gradient       error of the gradient of the student's loss with respect to its logits: root mean
                   square over frames, relative to the gradient with the full posterior
    ×RT            times real time on one core, by CPU time
    bias           error of the gradient's mean over all frames, which averaging does not remove
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.label_losses import dense_losses, losses, renormalised
from benchmarks.posterior_bank import Bank, fill
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import Codec, Full, Header, LabelShard, Sampled, TopK, TopP, container, pad_soft_labels

FRAMES_PER_HOUR = 25 * 3600
CODECS: list[Codec] = [
    Full(),
    TopK(20),
    TopK(8, step_nats=0.25),
    TopP(0.999, 16, 0.05),
    TopP(0.999, 16, 0.25),
    TopP(0.99, 32, 0.25),
    TopP(0.99, 16, 0.1),
    TopP(0.99, 16, 0.25),
    TopP(0.99, 16, 0.5),
    TopP(0.99, 16, 1.0),
    TopP(0.98, 16, 0.25),
    TopP(0.95, 16, 0.25),
    TopP(0.9, 16, 0.5),
    TopP(0.9, 4, 1.0),
    TopP(0.5, 16, 1.0),
    TopP(0.5, 2, 2.0),
    TopK(2, step_nats=1.0),
    Sampled(2),
    Sampled(12),
    Sampled(50),
]


@dataclass
class Row:
    """One way of storing posteriors."""

    name: str
    bytes_per_frame: float
    mb_per_hour: float
    tb_per_million_hours: float
    kept_per_frame: float | None
    kl_nats: float | None
    gradient_error: float | None
    gradient_bias: float | None
    encode_times_real_time: float | None = None
    decode_times_real_time: float | None = None


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print, write; returns the rows."""
    options = _options(arguments)
    torch.set_num_threads(1)
    bank = fill(options.teacher, options.audio, options.student, options.minutes)
    rows = [*_plain_rows(bank), *(_codec_row(codec, bank) for codec in CODECS)]
    rows.append(_entropy_row(TopP(), bank, order=0))
    rows.append(_entropy_row(TopP(), bank, order=1))
    facts = {
        "teacher": str(options.teacher),
        "student": str(options.student) if options.student else "the teacher at temperature 2",
        "audio_minutes": bank.audio_s / 60,
        "frames": bank.num_frames,
        "vocab_size": bank.vocab_size,
        **_sharpness(bank),
        "log_mel_times_real_time": bank.audio_s / bank.feature_s,
        "teacher_times_real_time": bank.audio_s / bank.teacher_s,
    }
    _print(rows, facts)
    content = {"facts": facts, "rows": [asdict(row) for row in rows]}
    (options.work_dir / "soft_labels.json").write_text(json.dumps(content, indent=1) + "\n")
    return rows


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work-dir", type=Path, required=True, help="work folder of a finished run")
    parser.add_argument("--teacher", type=Path, help="default: WORK_DIR/teacher")
    parser.add_argument("--audio", type=Path, help="default: WORK_DIR/shards/unlabelled")
    parser.add_argument("--student", type=Path, help="default: WORK_DIR/student_distilled, if it exists")
    parser.add_argument("--minutes", type=float, default=60, help="minutes of audio to measure on")
    options = parser.parse_args(arguments)
    options.teacher = options.teacher or options.work_dir / "teacher"
    options.audio = options.audio or options.work_dir / "shards" / "unlabelled"
    student = options.student or options.work_dir / "student_distilled"
    options.student = student if options.student or student.is_dir() else None
    return options


# -- rows -----------------------------------------------------------------------------------------


def _codec_row(codec: Codec, bank: Bank) -> Row:
    started = time.process_time()
    encoded = codec.encode_many(bank.teacher, bank.keys)
    labels = [item for item in encoded if isinstance(item, SoftLabels)]
    assert len(labels) == len(encoded), "the teacher's posteriors are distributions"
    header = Header(
        "t", "0" * 64, "0" * 64, bank.vocab_size, "0" * 16, 10.0, 4, codec.name, codec.params, "", "0" * 64
    )
    data = container.build(asdict(header), codec.layout(bank.vocab_size), zip(bank.keys, labels, strict=True))
    encode_s = time.process_time() - started
    started = time.process_time()
    shard = LabelShard(lambda start, count: data[start : start + count], len(data), "memory")
    stored = [shard.read(key) for key in bank.keys]
    for first in range(0, len(stored), 16):
        pad_soft_labels(stored[first : first + 16])
    decode_s = time.process_time() - started
    found, errors = losses(stored, bank)
    kl: float | None = found
    if isinstance(codec, Sampled):
        kl = None  # draws in one frame are not meant to be close to the distribution
    params = ", ".join(f"{value:g}" for value in codec.params.values())
    row = _row(f"{codec.name}({params})", len(data), bank, sum(len(item.ids) for item in stored), kl, errors)
    row.encode_times_real_time = bank.audio_s / encode_s
    row.decode_times_real_time = bank.audio_s / decode_s
    return row


def _plain_rows(bank: Bank) -> list[Row]:
    frames = bank.num_frames
    half = [item.half().float() for item in bank.teacher]
    rows = [
        _row(
            "dense fp16",
            2 * bank.vocab_size * frames,
            bank,
            frames * bank.vocab_size,
            *dense_losses(half, bank),
        )
    ]
    rows.append(
        _row(
            "dense float32, of a pass in bfloat16",
            4 * bank.vocab_size * frames,
            bank,
            frames * bank.vocab_size,
            *dense_losses(bank.teacher_bf16, bank),
        )
    )
    count = min(20, bank.vocab_size)
    top = [renormalised(item, count) for item in bank.teacher]
    # 16-bit id and fp16 value, as in other distillation toolkits.
    rows.append(
        _row(
            "top-20 id + fp16, renormalised",
            4 * count * frames,
            bank,
            count * frames,
            *dense_losses(top, bank, True),
        )
    )
    return rows


def _entropy_row(codec: TopP, bank: Bank, order: int) -> Row:
    """Bits that an ideal coder of the given order would need for the planes of `codec`."""
    labels = [item for item in codec.encode_many(bank.teacher, bank.keys) if isinstance(item, SoftLabels)]
    layout = codec.layout(bank.vocab_size)
    run = container.concatenate(labels)
    frames, entries = run.num_frames, len(run.ids) - run.num_frames
    raw = np.frombuffer(layout.pack(run), np.uint8)
    widths = [layout.count_bytes, *[layout.value_bytes] * 2]
    sizes = [frames] * sum(widths) + [entries] * (layout.id_bytes + layout.value_bytes)
    planes = np.split(raw, np.cumsum(sizes)[:-1])
    bits = sum(_entropy_bits(plane, order) for plane in planes)
    return _row(
        f"order-{order} entropy of {codec.name}({codec.mass:g}, {codec.cap}, {codec.step_nats:g})",
        bits / 8,
        bank,
        len(run.ids),
        None,
        None,
    )


def _row(
    name: str,
    num_bytes: float,
    bank: Bank,
    kept: int,
    kl: float | None,
    errors: tuple[float, float] | None,
) -> Row:
    per_frame = num_bytes / bank.num_frames
    return Row(
        name,
        per_frame,
        per_frame * FRAMES_PER_HOUR / 1e6,
        per_frame * FRAMES_PER_HOUR * 1e6 / 1e12,
        kept / bank.num_frames,
        kl,
        errors[0] if errors else None,
        errors[1] if errors else None,
    )


def _entropy_bits(plane: NDArray[np.uint8], order: int) -> float:
    def bits(values: NDArray[np.int64]) -> float:
        counts = np.bincount(values).astype(np.float64)
        counts = counts[counts > 0]
        return float(-(counts * np.log2(counts / counts.sum())).sum())

    values = plane.astype(np.int64)
    if order == 0 or len(values) < 2:
        return bits(values)
    return bits(values[:-1] * 256 + values[1:]) - bits(values[:-1])


def _sharpness(bank: Bank) -> dict[str, float]:
    run = torch.cat(bank.teacher)
    return {
        "mean_best_probability": float(run.max(1).values.exp().mean()),
        "blank_best_share": float((run.argmax(1) == 0).float().mean()),
        "entropy_nats": float(-(run.exp() * run).sum(1).mean()),
    }


# -- printing -------------------------------------------------------------------------------------


def _print(rows: list[Row], facts: dict[str, object]) -> None:
    console = Console(width=150)
    table = Table(title="Soft labels: what they cost and what they lose")
    columns: list[tuple[str, Callable[[Row], object], str]] = [
        ("stored as", lambda row: row.name, "{}"),
        ("bytes/frame", lambda row: row.bytes_per_frame, "{:.2f}"),
        ("MB/h", lambda row: row.mb_per_hour, "{:.3f}"),
        ("TB/1M h", lambda row: row.tb_per_million_hours, "{:.3f}"),
        ("kept", lambda row: row.kept_per_frame, "{:.2f}"),
        ("KL nats", lambda row: row.kl_nats, "{:.1e}"),
        ("gradient", lambda row: row.gradient_error, "{:.2%}"),
        ("bias", lambda row: row.gradient_bias, "{:.2%}"),
        ("encode ×RT", lambda row: row.encode_times_real_time, "{:,.0f}"),
        ("decode ×RT", lambda row: row.decode_times_real_time, "{:,.0f}"),
    ]
    for title, _, _ in columns:
        table.add_column(title, justify="left" if title == "stored as" else "right")
    for row in rows:
        cells = [(form, value(row)) for _, value, form in columns]
        table.add_row(*("" if value is None else form.format(value) for form, value in cells))
    console.print(table)
    for name, value in facts.items():
        console.print(
            f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value}", markup=False
        )


if __name__ == "__main__":
    main()
