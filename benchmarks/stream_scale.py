"""Startup time and memory of a training on thousands of hours.

    python -m benchmarks.stream_scale --hours 960 [--folder DIR]

Writes manifests, transcripts and soft labels for that many hours in shards of 500 utterances; the tars are
sparse files without audio, which starting does not read. Prints CPU seconds and MiB for each part, for label
reads in random order, as in an epoch, and the memory of its own that a DataLoader's worker process has after
an epoch in which it has accessed every utterance. Linux only.

9,600 hours (2.8 million utterances, those of 960 hours under ten names) on a core of an Intel Xeon: 37 s and
207 MiB for the transcribed stream, 0.5 s for the batches of an epoch, 18 s and 270 MiB for the soft-labelled
stream, of which a worker has 87 MiB of its own in the end, and 0.9 ms for a label read; 960 hours take a
tenth of that. With objects instead of arrays (commit 1e854f9) the soft-labelled stream took 1,633 MiB, and
1,497 in each worker.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from kdasr.features import num_frames
from kdasr.interfaces import SoftLabels
from kdasr.loader import Stream
from kdasr.manifest import Shard, ShardEntry, manifest_path, manifest_text
from kdasr.soft_labels import Header, LabelFolder, TopP, label_file, write_label_shard
from kdasr.text import CharUnits

PER_SHARD, MEAN_SECONDS = 500, 12.3  # LibriSpeech's mean
_CLASSES, _SUBSAMPLING = 256, 4


def write_corpus(folder: Path, hours: float) -> None:
    """Write audio manifests to `folder/audio` and soft labels of the same utterances to `folder/labels`."""
    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = _labels_of_a_shard(rng)
    for number in range(round(hours * 3600 / MEAN_SECONDS / PER_SHARD)):
        entries, offset = [], 512
        path = folder / "audio" / f"shard-{number:06d}.tar"
        with path.open("wb") as file:
            for place, item in enumerate(labels):
                samples, flac_bytes = 160 * (_SUBSAMPLING * item.num_frames + 2), 1_280 * item.num_frames
                key = f"{number:05d}-{place:06d}"
                meta = json.dumps({"key": key, "text": "a sentence of a few ordinary words"}).encode()
                json_offset = offset + flac_bytes + 512
                entries.append(ShardEntry(key, samples, offset, flac_bytes, json_offset, len(meta), 0))
                file.seek(json_offset)
                file.write(meta)
                offset = json_offset + 1536
            file.truncate(offset)
        seconds = sum(entry.num_samples for entry in entries) / 16_000
        shard = Shard(path, len(entries), seconds, f"{number:064x}", offset, tuple(entries))
        manifest_path(path).write_text(manifest_text(shard))
        keyed = [(entry.key, item) for entry, item in zip(entries, labels, strict=True)]
        write_label_shard(label_file(folder / "labels", path.name), _header(shard), keyed)


def _labels_of_a_shard(rng: np.random.Generator) -> list[SoftLabels]:
    seconds = np.clip(rng.gamma(8.0, MEAN_SECONDS / 8.0, PER_SHARD), 1.5, 35.0)
    torch.manual_seed(0)
    posteriors = [
        torch.log_softmax(20 * torch.randn(num_frames(int(16_000 * length)) // _SUBSAMPLING, _CLASSES), -1)
        for length in seconds
    ]
    encoded = TopP().encode_many(posteriors, [str(place) for place in range(PER_SHARD)])
    return [item for item in encoded if isinstance(item, SoftLabels)]


def _header(shard: Shard) -> Header:
    return Header(
        teacher="benchmark", teacher_hash="0", units_hash="0", vocab_size=_CLASSES, feature_hash="0",
        frame_shift_ms=10.0, subsampling=_SUBSAMPLING, codec=TopP().name, codec_params=TopP().params,
        audio_file=shard.path.name, audio_sha256=shard.sha256, settings={},
    )  # fmt: skip


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print the CPU time and memory that the block took."""
    before, started = _resident_mib(), time.process_time()
    yield
    print(f"{what:<44} {time.process_time() - started:7.2f} s  {_resident_mib() - before:+7.0f} MiB")


def _resident_mib() -> float:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def _own_mib() -> float:
    """Memory that this process does not share with others."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _look_at_all(stream: Stream, reply: Connection) -> None:
    before = _own_mib()
    for place in itertools.chain.from_iterable(stream.epoch_batches(1)):
        _ = astuple(stream.items[place].entry)
    reply.send(_own_mib() - before)


def worker_mib(stream: Stream) -> float:
    """Growth of a worker's own memory over an epoch; it is forked as by a DataLoader."""
    reply, theirs = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=_look_at_all, args=(stream, theirs))
    worker.start()
    figure: float = reply.recv()
    worker.join()
    return figure


def run(folder: Path) -> None:
    """Measure with the corpus written by `write_corpus`."""
    with measured("a stream of transcribed audio"):
        labelled = Stream([folder / "audio"], 250.0, 1, units=CharUnits())
    print(f"  {len(labelled.items)} utterances")
    with measured("the batches of an epoch"):
        labelled.epoch_batches(0)
    with measured("a stream of soft-labelled audio"):
        unlabelled = Stream([folder / "audio"], 250.0, 1, labels=[LabelFolder(folder / "labels")])
    order = np.random.default_rng(0).permutation(len(unlabelled.items))[:5_000]
    with measured(f"{len(order)} reads of labels in random order"):
        for place in order:
            unlabelled._soft_labels(unlabelled.items[place])
    print(f"{'a worker, of the soft-labelled audio':<44} {'':9}  {worker_mib(unlabelled):+7.0f} MiB")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=960)
    parser.add_argument("--folder", type=Path, help="where to write the test data; it is kept and reused")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        if not arguments.folder.exists():
            write_corpus(arguments.folder, arguments.hours)
        run(arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), arguments.hours)
        run(Path(folder))


if __name__ == "__main__":
    main()
