"""What labelling costs beyond the teacher's bare forward pass, as ratios in one run.

    python -m benchmarks.labelling --work-dir runs/mini

labels shards of WORK_DIR/shards/unlabelled with WORK_DIR/teacher (decode, log-mel, batches, forward,
codec, commit) and compares this, in alternating rounds, with only the forward passes on the same batches,
with features in memory. There are three ratios, for three kinds of cost:

    overhead_wall_percent      elapsed time. Meaningful if two cores are free: `load_average` says how
                               busy the machine was
    overhead_teacher_percent   CPU time of the teacher's own thread: the overhead if other cores
                               decode and encode. Other programs do not disturb it
    overhead_cpu_percent       CPU time of all threads: the overhead on a machine without idle cores.
                               It falls as teachers grow, since the rest takes the same time:
                               `cpu_percent_of_real_time` is the rest alone

and the speed from audio shard to log-mel on one core, by CPU time. With `--workers N`, N processes also label
the same shards, each with its own teacher on the device, as in `kdasr label --workers N`: one decodes,
encodes and commits during the forward pass of another. `overhead_workers_percent` compares their speed (all
their audio, until the last one is done) with that of the bare passes. With `--decoders N`, N threads also
decode the shards, as they do for a teacher on a GPU, and then decode and compute log-mel, which such a
teacher now computes itself; the threads wait for one another, as they share an interpreter.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.gpu import scales
from kdasr.features import LOG_MEL_FLOOR, log_mel, samples_under_windows
from kdasr.labelling import FolderTeacher, Settings, Teacher, label_shard
from kdasr.labelling.batches import cut_segments, make_batches
from kdasr.labelling.engines import on_one_machine
from kdasr.labelling.settings import PRECISIONS
from kdasr.shards import Shard, ShardEntry, list_shards, open_shard, read_utterance
from kdasr.text import CharUnits

Prepared = list[tuple[torch.Tensor, torch.Tensor]]


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print, write to WORK_DIR/labelling.json; returns the figures."""
    parser = argparse.ArgumentParser(
        description="measure the overhead of labelling over the bare forward pass"
    )
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="default: WORK_DIR/teacher")
    parser.add_argument(
        "--untrained",
        choices=list(scales()["full"].models),
        help="instead, an untrained teacher of benchmarks/gpu.py, such as teacher_600m",
    )
    parser.add_argument("--precision", default="float32", choices=list(PRECISIONS))
    parser.add_argument("--audio", type=Path, help="default: WORK_DIR/shards/unlabelled")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-seconds", type=float, default=Settings.batch_seconds)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[], help="also measure this many workers at once"
    )
    parser.add_argument(
        "--decoders", type=int, nargs="*", default=[], help="also measure this many decoder threads"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    folder = options.teacher or options.work_dir / "teacher"
    load = _Load(options.untrained, folder, options.device)
    shards = list_shards(options.audio or options.work_dir / "shards" / "unlabelled")[: options.shards]
    settings = Settings(threads=1, precision=options.precision, batch_seconds=options.batch_seconds)
    figures = measure(load(), shards, options.rounds, settings)
    _print(figures)
    for threads in options.decoders:
        of_threads = decoded_at_once(shards, threads, options.rounds)
        _print(of_threads)
        figures |= of_threads
    for workers in options.workers:
        at_once = labelled_at_once(load, shards, on_one_machine(settings, workers, options.device), workers)
        overhead = 100 * (figures["bare_forward_times_real_time"] / at_once - 1)
        found = {"labelling_times_real_time": at_once, "overhead_workers_percent": overhead}
        of_workers = {f"{name}_{workers}_workers": value for name, value in found.items()}
        _print(of_workers)
        figures |= of_workers
    (options.work_dir / "labelling.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _print(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}", flush=True)


class _Load(NamedTuple):
    """Loads the teacher in a process: an untrained one by name, or else that in the folder."""

    untrained: str | None
    folder: Path
    device: str

    def __call__(self) -> Teacher:
        if self.untrained:
            return _untrained(self.untrained, self.device)
        return FolderTeacher(self.folder).load(self.device)


def _untrained(name: str, device: str) -> Teacher:
    """A teacher with random weights, whose posteriors are as peaky as those of a trained one."""
    torch.manual_seed(1)
    model = scales()["full"].models[name]()
    with torch.no_grad():
        model.head.weight.mul_(8.0)
    return Teacher(model.eval().to(device), name, "0" * 64, CharUnits(), torch.device(device))


def measure(teacher: Teacher, shards: Sequence[Path], rounds: int, settings: Settings) -> dict[str, float]:
    """The figures, each the median over `rounds` rounds over `shards`."""
    audio_s = sum(open_shard(path).seconds for path in shards)
    feature_cpu_s, prepared = _prepare(teacher, shards, settings)
    _forward(teacher, prepared[:2], settings)
    bare, job = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            bare.append(_timed(partial(_forward, teacher, prepared, settings)))
            job.append(_timed(partial(_label, teacher, shards, Path(folder) / str(number), settings)))
    ratios = [
        [there / here for there, here in zip(*pair, strict=True)] for pair in zip(job, bare, strict=True)
    ]
    wall, thread, cpu = (100 * (median(column) - 1) for column in zip(*ratios, strict=True))
    return {
        "audio_minutes": audio_s / 60,
        "load_average": os.getloadavg()[0],
        "log_mel_times_real_time_per_core": audio_s / feature_cpu_s,
        "bare_forward_times_real_time": audio_s / median(spent.wall_s for spent in bare),
        "labelling_times_real_time": audio_s / median(spent.wall_s for spent in job),
        "overhead_wall_percent": wall,
        "overhead_teacher_percent": thread,
        "overhead_cpu_percent": cpu,
        "cpu_percent_of_real_time": 100
        * median(there.cpu_s - here.cpu_s for there, here in zip(job, bare, strict=True))
        / audio_s,
    }


def decoded_at_once(shards: Sequence[Path], threads: int, rounds: int) -> dict[str, float]:
    """Speed (times real time) of decoding in `threads` threads, without and with log-mel; best round."""
    opened = [open_shard(path) for path in shards]
    entries = [(shard, entry) for shard in opened for entry in shard.entries]

    def decode(place: tuple[Shard, ShardEntry]) -> torch.Tensor:
        return samples_under_windows(read_utterance(*place).samples)

    def decode_and_log_mel(place: tuple[Shard, ShardEntry]) -> torch.Tensor:
        return log_mel(read_utterance(*place).samples)

    figures = {}
    for work in (decode, decode_and_log_mel):
        with ThreadPoolExecutor(threads) as pool:
            spent = [_timed(lambda: list(pool.map(work, entries))) for _ in range(rounds)]  # noqa: B023  # at once
        name = f"{work.__name__}_times_real_time_{threads}_threads"
        figures[name] = sum(shard.seconds for shard in opened) / min(one.wall_s for one in spent)
    return figures


def labelled_at_once(
    load: Callable[[], Teacher], shards: Sequence[Path], settings: Settings, workers: int
) -> float:
    """Speed (times real time) of `workers` processes that each label all shards, after warm-up.

    Raises:
        RuntimeError: one of them failed.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # release the memory that this process used before
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe() for _ in range(workers)]
        processes = [
            context.Process(
                target=_work, args=(load, shards, Path(folder) / str(number), settings, there), daemon=True
            )
            for number, (_, there) in enumerate(ends)
        ]
        for process, (_, there) in zip(processes, ends, strict=True):
            process.start()
            there.close()
        for here, _ in ends:
            _wait_for(here, "warm")
        started = time.perf_counter()
        for here, _ in ends:
            here.send("go")
        for here, _ in ends:
            _wait_for(here, "done")
        spent_s = time.perf_counter() - started
        for process in processes:
            process.join()
    return workers * sum(open_shard(path).seconds for path in shards) / spent_s


def _wait_for(here: Connection, said: str) -> None:
    try:
        assert here.recv() == said
    except EOFError as error:  # the worker has ended and printed the reason on stderr
        raise RuntimeError("a worker ended before it had finished") from error


def _work(
    load: Callable[[], Teacher], shards: Sequence[Path], out: Path, settings: Settings, there: Connection
) -> None:
    torch.set_num_threads(1)
    teacher = load()
    _label(teacher, shards[:1], out / "warm", settings)
    there.send("warm")
    there.recv()
    _label(teacher, shards, out / "timed", settings)
    assert len(list((out / "timed").glob("*.kdsl"))) == len(shards)
    there.send("done")


class _Spent(NamedTuple):
    wall_s: float
    thread_s: float
    cpu_s: float


def _timed(action: Callable[[], object]) -> _Spent:
    """Time that `action` takes: elapsed, CPU time of this thread, CPU time of all threads."""
    clocks = (time.perf_counter, time.thread_time, time.process_time)
    before = [clock() for clock in clocks]
    action()
    return _Spent(*(clock() - start for clock, start in zip(clocks, before, strict=True)))


def _prepare(teacher: Teacher, shards: Sequence[Path], settings: Settings) -> tuple[float, Prepared]:
    """CPU time from tar to log-mel, and the padded batches that labelling makes."""
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
            for number, item in enumerate(features)
            for segment in cut_segments(number, len(item), window, overlap, subsampling)
        ]
        for batch in make_batches(segments, settings.batch_frames):
            lengths_b = torch.tensor([segment.frames for segment in batch])
            heard = [features[segment.number][segment.first : segment.last] for segment in batch]
            batch_btf = pad_sequence(heard, batch_first=True, padding_value=LOG_MEL_FLOOR)
            on_gpu = teacher.device.type == "cuda"
            prepared.append((batch_btf.pin_memory() if on_gpu else batch_btf, lengths_b))
    return spent, prepared


def _label(teacher: Teacher, shards: Sequence[Path], out: Path, settings: Settings) -> None:
    for path in shards:
        label_shard(teacher, path, out, settings)


def _forward(teacher: Teacher, prepared: Prepared, settings: Settings) -> None:
    with torch.inference_mode(), settings.autocast(teacher.device):
        for features_btf, lengths_b in prepared:
            log_probs, _ = teacher.model.offline(
                features_btf.to(teacher.device, non_blocking=True),
                lengths_b.to(teacher.device, non_blocking=True),
            )
    log_probs.sum().item()  # wait for the device


if __name__ == "__main__":
    main()
