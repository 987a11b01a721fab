"""The stages that export and prepare: what they pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import data_prep
from export import gate, publish
from kdasr import stages
from kdasr.errors import ConfigError
from kdasr.models import read_card, save_model
from kdasr.shards import list_shards
from kdasr.students.conformer import ChunkConformer
from kdasr.text import CharUnits
from tests.speech import shards


def test_what_a_recipe_says_reaches_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = CharUnits()
    student = ChunkConformer(
        vocab_size=units.vocab_size, width=16, num_layers=1, num_heads=2, kernel_frames=3, chunk_frames=8
    )
    save_model(tmp_path / "model", student, units)
    dev, out = shards(tmp_path / "dev", 1), tmp_path / "out"

    def write(model: Any, units: Any, out: Path, **settings: Any) -> None:
        raise InterruptedError((model.chunk_frames, units.hash, out, settings))

    monkeypatch.setattr(publish, "export_student", write)
    monkeypatch.setattr(gate, "wer_gate", lambda units, tars: (units.hash, tars))
    said: dict[str, Any] = {"format": "onnx", "name": "mine", "int8": False, "max_wer_rise": 0.25}
    weights = {"weights_sha256": read_card(tmp_path / "model")["weights_sha256"]}
    with pytest.raises(InterruptedError) as stop:
        stages.export(model=str(tmp_path / "model"), out=str(out), chunk_ms=640, dev=[str(dev)], **said)
    measured = {"gate": (units.hash, list_shards(dev))}
    assert stop.value.args[0] == (16, units.hash, out, {**said, **weights, **measured})
    with pytest.raises(InterruptedError) as stop:
        stages.export(model=str(tmp_path / "model"), out=str(out), **said)
    assert stop.value.args[0] == (8, units.hash, out, {**said, **weights, "gate": None})
    with pytest.raises(ConfigError, match="chunk_ms: a chunk must be a whole number .*; got 0"):
        stages.export(model=str(tmp_path / "model"), out=str(out), chunk_ms=0)


def test_what_a_recipe_says_reaches_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def prepare(name: str, **settings: Any) -> dict[str, list[Path]]:
        asked.append((name, settings))
        return {"train": [tmp_path, tmp_path], "dev": [tmp_path]}

    monkeypatch.setattr(data_prep, "prepare", prepare)
    made = stages.prepare(
        name="folder", out="shards", corpus="one", unlabelled_corpus="two", seed=5, readers=3, share=0.5
    )
    assert made == {"train": 2, "dev": 1}
    stages.prepare(name="folder", out="shards", unlabelled_corpus="two")
    assert asked == [
        ("folder", {"corpus": Path("one"), "out": Path("shards"), "seed": 5, "readers": 3, "share": 0.5}),
        ("folder", {"corpus": Path("two"), "out": Path("shards"), "seed": 1, "readers": 1}),
    ]
