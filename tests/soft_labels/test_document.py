"""The reader in docs/soft-labels.md reads what kdasr writes, and is as short as it says; its programs run."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdasr.errors import ConfigError
from kdasr.interfaces import frames_inside
from kdasr.manifest import sha256_of
from kdasr.soft_labels import Codec, Failure, Full, LabelFolder, Sampled, TopK, TopP, write_label_shard
from kdasr.soft_labels.runs import best_classes
from tests.soft_labels.posteriors import make_header, posteriors

DOCUMENT = Path(__file__).parents[2] / "docs" / "soft-labels.md"
CODECS: list[Codec] = [
    TopP(),
    TopP(step_nats=0.0),
    TopP(step_nats=0.02, cap=300),
    TopK(4, step_nats=0.25),
    Full(),
    Sampled(),
    Sampled(num_draws=400),
]


def reader_source() -> str:
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return str(source)


def test_the_reader_is_as_short_as_promised() -> None:
    assert len(reader_source().splitlines()) <= 100


# Where one more would need, or needs, a second byte: for counts, ids, draws and levels (floor + bias).
EDGES: list[tuple[Codec, int]] = [
    *((TopK(k), classes) for k, classes in ((256, 300), (257, 300), (4, 256), (4, 257))),
    *((Sampled(num_draws=draws), 30) for draws in (255, 256)),
    *((TopP(step_nats=0.1, floor_nats=nats), 30) for nats in (22.0, 22.05)),
]


@pytest.mark.parametrize(
    ("codec", "vocab_size"),
    [*((codec, size) for codec in CODECS for size in (30, 700)), *EDGES],
    ids=lambda value: f"{value.name}-{value.params}" if isinstance(value, Codec) else str(value),
)
def test_the_reader_of_the_document_reads_every_codec(tmp_path: Path, codec: Codec, vocab_size: int) -> None:
    labels = {key: codec.encode(posteriors(n, vocab_size, n), key) for key, n in (("a", 9), ("b", 31))}
    path = tmp_path / "shard-000000.kdsl"
    items = [*labels.items(), ("c", Failure("silence"))]
    write_label_shard(path, make_header(codec, vocab_size), items)
    namespace: dict[str, Any] = {"__name__": "reader"}
    exec(reader_source(), namespace)
    found = dict(namespace["read_shard"](path))
    assert found["c"] == "silence"
    for key, wanted in labels.items():
        assert len(found[key]) == wanted.num_frames
        start = 0
        for (kept, tail), count, tail_log in zip(
            found[key], wanted.kept_counts, wanted.tail_log_probs, strict=True
        ):
            entries = slice(start, start + int(count))
            start += int(count)
            assert list(kept) == wanted.ids[entries].tolist()
            assert list(map(math.exp, wanted.log_probs[entries])) == pytest.approx(
                list(kept.values()), abs=1e-6
            )
            assert math.exp(tail_log) == pytest.approx(tail, abs=1e-6)


def test_the_reader_runs_as_a_program(tmp_path: Path) -> None:
    codec = TopP(step_nats=0.0)  # rounding to levels would make ties
    path = tmp_path / "shard-000000.kdsl"
    write_label_shard(
        path, make_header(codec), [("a", codec.encode(posteriors(5))), ("b", Failure("silence"))]
    )
    script = tmp_path / "reader.py"
    script.write_text(reader_source())
    shown = subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=True).stdout
    best = posteriors(5).argmax(1).tolist()
    assert shown == f"a {best}\nb silence\n"


def program(begins: str) -> str:
    """The indented block that begins so."""
    (found,) = re.findall(
        rf"^ {{4}}{begins}\n(?:(?: {{4}}.*)?\n)+", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    return textwrap.dedent(found)


def test_a_program_of_your_own_writes_labels_reads_them_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a teacher with 500 pieces, blank last, frames of 20 ms, and tars that kdasr did not make."""
    monkeypatch.chdir(tmp_path)
    symbols = [*(f"▁p{n}" for n in range(500)), "<blank>"]
    tars, weights = [Path(f"train-{n}.tar") for n in range(2)], Path("weights.pt")
    for path in (*tars, weights):
        path.write_text(path.name)
    rng = np.random.default_rng(0)
    heard = {f"{tar.stem}_{n}": rng.integers(30, 90) * 2 for tar in tars for n in range(7)}
    features = {key: torch.randn(frames, 128) for key, frames in heard.items()}
    spikes = {key: torch.randint(501, (int(frames) // 2,)) for key, frames in heard.items()}
    spikes["train-1_3"][4] = 900  # no class

    def teacher(key: str) -> torch.Tensor:
        logits = torch.zeros(len(spikes[key]), 501)
        for frame, unit in enumerate(spikes[key].tolist()):
            logits[frame, unit if unit < 501 else 0] = 9.0 if unit < 501 else torch.nan
        return logits

    network = torch.nn.Linear(4 * 128, 501)

    def student(padded: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        four = torch.nn.functional.pad(padded, (0, 0, 0, -padded.shape[1] % 4)).unflatten(1, (-1, 4))
        return network(four.flatten(2)).log_softmax(-1), -(-lengths // 4)

    names: dict[str, Any] = {
        "symbols": symbols, "blank_id": 500, "tars": tars, "weights": weights, "teacher": teacher,
        "utterances": lambda tar: [(key, key) for key in heard if key.startswith(tar.stem)],
        "features_of": features.__getitem__, "student": student, "sha256_of": sha256_of,
    }  # fmt: skip
    exec(program("from kdasr.errors import SoftLabelError").replace("subsampling=4", "subsampling=2"), names)
    folder = LabelFolder("LABELS")
    shards = [folder.shard_for(tar, sha256_of(tar)) for tar in tars]
    assert list(shards[1].failures) == ["train-1_3"] and "do not sum to 1" in shards[1].failures["train-1_3"]
    key = shards[0].keys[2]
    kinds = [0 if unit == 500 else unit + 1 for unit in spikes[key].tolist()]
    assert best_classes(shards[0].read(key)).tolist() == kinds
    exec(program("from fractions import Fraction").replace("num_workers=2", "num_workers=0"), names)
    loss, batch = names["loss"], names["batch"]
    assert 3 < loss.item() < 9 and network.weight.grad is not None and len(names["batches"].dataset) == 13
    assert batch.soft_labels.lengths_b.tolist() == [-(-int(heard[key]) // 4) for key in batch.keys]
    with pytest.raises(ConfigError, match="the delay cannot be measured"):  # this student knows nothing
        exec(program("from kdasr.decoding import greedy"), names)
    total = names["dense_btv"].sum(2) + names["rest_bt"]
    inside = frames_inside(batch.soft_labels.lengths_b, total.shape[1])
    torch.testing.assert_close(total[inside], torch.ones(int(inside.sum())))
    assert float(total[~inside].sum()) == 0
