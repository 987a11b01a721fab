"""What labelling costs beyond the teacher's bare forward pass, as ratios in one run.

    python -m benchmarks.labelling --work-dir runs/mini

labels shards of WORK_DIR/shards/unlabelled with WORK_DIR/teacher (decode, log-mel, batches, forward,
codec, commit) and compares with the forward passes alone on the same batches, features in memory,
one after the other in turns so that a noisy machine disturbs both alike. Also: audio shard to log-mel
on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from kdasr.features import LOG_MEL_FLOOR, log_mel, num_frames
from kdasr.labelling import FolderTeacher, Settings, Teacher, label_shard
from kdasr.labelling.batches import cut_segments, make_batches
from kdasr.shards import list_shards, open_shard, read_utterance

Prepared = list[tuple[torch.Tensor, torch.Tensor]]


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print, write to WORK_DIR/labelling.json; returns the figures."""
    parser = argparse.ArgumentParser(description="overhead of labelling over the bare forward pass")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="default: WORK_DIR/teacher")
    parser.add_argument("--audio", type=Path, help="default: WORK_DIR/shards/unlabelled")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    teacher = FolderTeacher(options.teacher or options.work_dir / "teacher").load(options.device)
    shards = list_shards(options.audio or options.work_dir / "shards" / "unlabelled")[: options.shards]
    figures = measure(teacher, shards, options.rounds)
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}")
    (options.work_dir / "labelling.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def measure(teacher: Teacher, shards: Sequence[Path], rounds: int) -> dict[str, float]:
    """The figures, each the median over `rounds` rounds over `shards`."""
    settings = Settings(threads=1)
    audio_s = sum(open_shard(path).seconds for path in shards)
    feature_cpu_s, prepared = _prepare(teacher, shards, settings)
    _bare(teacher, prepared[:2])
    ratios, bare_s, job_s = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            bare_s.append(_bare(teacher, prepared))
            started = time.perf_counter()
            for path in shards:
                label_shard(teacher, path, Path(folder) / str(number), settings)
            job_s.append(time.perf_counter() - started)
            ratios.append(job_s[-1] / bare_s[-1])
    return {
        "audio_minutes": audio_s / 60,
        "log_mel_times_real_time_per_core": audio_s / feature_cpu_s,
        "bare_forward_times_real_time": audio_s / median(bare_s),
        "labelling_times_real_time": audio_s / median(job_s),
        "overhead_percent": 100 * (median(ratios) - 1),
    }


def _prepare(teacher: Teacher, shards: Sequence[Path], settings: Settings) -> tuple[float, Prepared]:
    """CPU time of tar to log-mel, and the very batches that labelling makes, padded."""
    spent, prepared = 0.0, []
    subsampling = teacher.model.subsampling
    window, overlap = settings.window_frames(subsampling), settings.overlap_frames(subsampling)
    for path in shards:
        shard = open_shard(path)
        started = time.process_time()
        features = [log_mel(read_utterance(shard, entry).samples) for entry in shard.entries]
        spent += time.process_time() - started
        segments = [
            segment
            for number, entry in enumerate(shard.entries)
            for segment in cut_segments(number, num_frames(entry.num_samples), window, overlap, subsampling)
        ]
        for batch in make_batches(segments, settings.batch_frames):
            lengths_b = torch.tensor([segment.frames for segment in batch])
            batch_btf = torch.full((len(batch), int(lengths_b.max()), 80), LOG_MEL_FLOOR)
            for row, segment in zip(batch_btf, batch, strict=True):
                row[: segment.frames] = features[segment.number][segment.first : segment.last]
            prepared.append((batch_btf, lengths_b))
    return spent, prepared


def _bare(teacher: Teacher, prepared: Prepared) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for features_btf, lengths_b in prepared:
            log_probs, _ = teacher.model.offline(
                features_btf.to(teacher.device), lengths_b.to(teacher.device)
            )
    log_probs.sum().item()  # wait for the device
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
