"""Every way to quantise gives a student that runs and is quantised in that way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks import quantisation
from benchmarks.quantisation import SHIPPED, VARIANTS, main, write_variants
from export.parity import compare, probe_sound
from export.runtime import OnnxChunkModel
from export.transcribe import open_recogniser
from kdasr.interfaces import Utterance
from kdasr.models import save_model
from kdasr.shards import write_shards
from tests.export.small_models import UNITS, conformer

MARKS = {
    "float32": "MatMul",
    SHIPPED: "MatMulInteger",
    "dynamic, per tensor": "MatMulInteger",
    "dynamic, per channel, convolutions too": "ConvInteger",
    "static, smallest to largest": "QuantizeLinear",
    "static, percentile 99.999": "QuantizeLinear",
    "weights only, 8 bit": "MatMulNBits",
    "weights only, 8 bit, int8 products": "MatMulNBits",
    "weights only, 4 bit": "MatMulNBits",
    "weights only, 4 bit, int8 products": "MatMulNBits",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantisation")
    save_model(root / "student", conformer(), UNITS)
    recogniser = open_recogniser(root / "student")
    audio = [probe_sound(30_000, seed) for seed in range(2)]
    utterances = [
        Utterance(f"u{n}", one, text=recogniser.transcribe(one) or "a") for n, one in enumerate(audio)
    ]
    write_shards(utterances, root / "test")
    return root


@pytest.mark.slow
def test_each_file_is_quantised_as_its_name_says_and_still_hears(place: Path, tmp_path: Path) -> None:
    files = write_variants(place / "student", tmp_path, [Utterance("u", probe_sound(30_000, 5), text="a")])
    assert set(files) == set(MARKS)
    reference = OnnxChunkModel(files["float32"])
    for name, path in files.items():
        assert MARKS[name] in {node.op_type for node in onnx.load(path).graph.node}, name
        agreement = compare(reference, OnnxChunkModel(path), num_chunks=8)
        assert agreement.same_argmax > 0.7 and (agreement.max_abs_difference > 0) == (name != "float32"), name


@pytest.mark.slow
def test_figures_stand_side_by_side(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "weights only, 8 bit"
    monkeypatch.setattr(quantisation, "VARIANTS", {name: VARIANTS[name]})
    shards = ["--dev", str(place / "test"), "--test", str(place / "test")]
    figures: dict[str, Any] = main(["--model", str(place / "student"), *shards, "--rounds", "1"])
    assert list(figures) == ["float32", SHIPPED, name]
    float_row = figures["float32"]
    assert float_row["wer"] == float_row["wer_rise"] == 0 and float_row["same_class"] == 1
    for row in figures.values():
        assert 0.7 < row["same_class"] <= 1 and 0 < row["rtf"] <= row["rtf_median"] and row["model_mib"] > 0
    assert figures[name]["bytes"] < float_row["bytes"]
    assert capsys.readouterr().out.count("\n| ") == 3
