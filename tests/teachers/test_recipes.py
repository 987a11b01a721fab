"""The YAMLs in recipes/teachers, through the command line, with tiny models in place of published ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdasr.cli import main
from kdasr.interfaces import Utterance
from kdasr.shards import write_shards
from kdasr.text import CharUnits, load_units
from tests.teachers.test_speechbrain_ctc import save_letters
from tests.teachers.tiny_models import hugging_face_model, noise, torchaudio_model, whisper_model
from tests.teachers.tiny_onnx import write

RECIPES = Path(__file__).parents[2] / "recipes" / "teachers"


def torchaudio(folder: Path) -> list[str]:
    torchaudio_model(folder)
    return ["--teacher.bundle", "null", "--teacher.architecture", str(folder / "model.json")]


def hugging_face(folder: Path) -> list[str]:
    hugging_face_model(folder)
    return ["--teacher.path", str(folder)]


def speechbrain(folder: Path) -> list[str]:
    folder.mkdir()
    save_letters(folder)
    return ["--teacher.path", str(folder)]


def onnx(folder: Path) -> list[str]:
    return ["--teacher.model", str(write(folder, "zipformer")[0])]


def whisper(folder: Path) -> list[str]:
    whisper_model(folder)
    return ["--teacher.path", str(folder), "--settings.filters", "[]"]


TEACHERS: dict[str, Callable[[Path], list[str]]] = {
    "torchaudio": torchaudio,
    "hugging_face": hugging_face,
    "speechbrain": speechbrain,
    "onnx": onnx,
    "whisper": whisper,
}


def test_every_recipe_is_run_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*TEACHERS, "retokenise"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHERS)
def test_a_recipe_labels_and_what_it_heard_is_retokenised(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, labels, text = (str(tmp_path / part) for part in ("shards", "labels", "text"))
    write_shards([Utterance(f"utt-{n}", noise(0.8 + n / 7, n)) for n in range(3)], Path(shards))
    told = TEACHERS[name](tmp_path / "model")
    assert main(["label", str(RECIPES / f"{name}.yaml"), "--audio", shards, "--out", labels, *told]) == 0
    manifest = json.loads((tmp_path / "labels" / "shard-000000.json").read_text())
    assert manifest["labelled"] == 3 and manifest["frames"] > 3
    assert load_units(labels).hash == manifest["header"]["units_hash"]
    assert manifest["header"]["settings"]["teacher"]["level"] == (
        "sequence" if name == "whisper" else "frame"
    )
    recipe, units = str(RECIPES / "retokenise.yaml"), "{kind: characters}"
    given = ["--audio", shards, "--labels", labels, "--out", text, "--units", units]
    assert main(["retokenise", recipe, *given]) == 0
    assert "labelled\t3" in capsys.readouterr().out
    assert load_units(text).hash == CharUnits().hash
