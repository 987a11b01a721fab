"""The named sizes of recipes/students: each is a student, and as large as its header says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from kdasr.interfaces import StreamingModel
from kdasr.models import count_parameters
from kdasr.recipe import load_recipe
from kdasr.streaming import set_chunk_ms
from kdasr.text import CharUnits

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = sorted((RECIPES / "students").glob("*.yaml"))


def test_there_are_sizes_from_half_a_million_to_twenty_million() -> None:
    names = {path.stem for path in SIZES}
    assert {
        f"{kind}-{size}m" for kind in ("conformer", "recurrent", "zipformer") for size in ("0.5", "20")
    } <= names


@pytest.mark.parametrize("path", SIZES, ids=lambda path: path.stem)
def test_a_size_is_what_its_name_and_header_say(path: Path) -> None:
    header = path.read_text().split("model:")[0]
    stated = int(re.search(r"([\d,]+) parameters with 29 units", header)[1].replace(",", ""))  # type: ignore[index]
    assert f"kdasr train recipes/mini/student.yaml --model recipes/students/{path.name}" in header
    build = load_recipe(RECIPES / "mini" / "student.yaml", {"model": str(path)}).arguments["model"]
    with torch.device("meta"):
        model = build(vocab_size=CharUnits().vocab_size)
    assert isinstance(model, StreamingModel) and count_parameters(model) == stated
    size = float(path.stem.partition("-")[2].removesuffix("m"))
    assert stated == pytest.approx(1e6 * size, rel=0.1)
    for chunk_ms in (80, 320, 960):
        set_chunk_ms(model, chunk_ms)
