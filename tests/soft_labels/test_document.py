"""The reader in docs/soft-labels.md reads what kdasr writes, and is as short as it says."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdasr.soft_labels import Codec, Failure, Full, Sampled, TopK, TopP, write_label_shard
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


@pytest.mark.parametrize("vocab_size", [30, 700])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.name}-{codec.params}")
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
