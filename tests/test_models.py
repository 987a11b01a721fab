"""Model folders on disk."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import kdasr.models
from export.card import read_export_card
from kdasr.errors import ConfigError, ModelError
from kdasr.models import CARD_FILE, load_model, read_card, save_model
from kdasr.students.conformer import ChunkConformer
from kdasr.text import CharUnits

UNITS = CharUnits()


def student(seed: int) -> ChunkConformer:
    torch.manual_seed(seed)
    return ChunkConformer(vocab_size=UNITS.vocab_size, width=16, num_layers=1)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([one.flatten() for one in load_model(folder).model.state_dict().values()])


def test_a_model_replaces_another_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    save_model(tmp_path / "model", student(0), UNITS)
    before = weights(tmp_path / "model")
    save_model(tmp_path / "model", student(1), UNITS, extra={"note": 2})
    assert not torch.equal(weights(tmp_path / "model"), before)
    assert load_model(tmp_path / "model").card["note"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("place", "name", "calls"),
    [(Path, "replace", 1), (Path, "replace", 2), (Path, "replace", 3), (shutil, "rmtree", 2)],
)
def test_a_whole_model_is_there_wherever_its_replacement_is_killed(
    tmp_path: Path, place: Any, name: str, calls: int
) -> None:
    """And the next one that is saved takes away what the killed process left."""
    save_model(tmp_path / "model", student(0), UNITS)
    before, real, left = weights(tmp_path / "model"), getattr(place, name), [calls]

    def killed(*arguments: Any, **settings: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return real(*arguments, **settings)

    def work() -> None:
        setattr(place, name, killed)
        save_model(tmp_path / "model", student(1), UNITS)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    there = [path for path in tmp_path.iterdir() if (path / CARD_FILE).exists()]
    assert any(torch.equal(weights(path), before) for path in there)
    save_model(tmp_path / "model", student(2), UNITS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fails", ["weights", "sync", "replace"])
def test_a_disk_that_refuses_a_model_loses_none_and_keeps_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    save_model(tmp_path / "model", student(0), UNITS)
    before, real = weights(tmp_path / "model"), Path.replace

    def full(*_: Any, **__: Any) -> Any:
        raise SafetensorError("No space left") if fails == "weights" else OSError(28, "No space left")

    def full_when_replaced(self: Path, target: Path) -> Path:
        return full() if self.name.endswith(".tmp") else real(self, target)

    with monkeypatch.context() as patched:
        if fails == "replace":
            patched.setattr(Path, "replace", full_when_replaced)
        else:
            patched.setattr(
                "safetensors.torch.save_file" if fails == "weights" else "kdasr.models.sync_path", full
            )
        with pytest.raises(
            ModelError, match=r"model.*the model cannot be written.*No space left.*Free some space"
        ):
            save_model(tmp_path / "model", student(1), UNITS)
    assert torch.equal(weights(tmp_path / "model"), before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_are_those_of_the_card_if_the_model_is_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        save_model(tmp_path / str(seed), student(seed), UNITS)
    save_model(tmp_path / "model", student(0), UNITS)
    build = kdasr.models._build

    def build_slowly(*arguments: Any) -> Any:
        save_model(tmp_path / "model", student(1), UNITS)
        return build(*arguments)

    monkeypatch.setattr(kdasr.models, "_build", build_slowly)
    loaded = load_model(tmp_path / "model")
    monkeypatch.undo()
    assert loaded.card["weights_sha256"] == read_card(tmp_path / "0")["weights_sha256"]
    found = torch.cat([one.flatten() for one in loaded.model.state_dict().values()])
    assert torch.equal(found, weights(tmp_path / "0"))
    assert not torch.equal(found, weights(tmp_path / "model"))


def test_a_model_replaces_nothing_but_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine/shards").mkdir(parents=True)
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match=r"mine: the model would replace.*got shards, thesis\.txt.*--out"):
        save_model(tmp_path / "mine", student(0), UNITS)
    assert (tmp_path / "mine/thesis.txt").read_text() == "all of it"
    for name in ("thesis.txt", "thesis.txt/a/b"):
        with pytest.raises(ConfigError, match=r"thesis\.txt: a model is a folder, but this is a file"):
            save_model(tmp_path / "mine" / name, student(0), UNITS)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["shards", "thesis.txt"]


def test_an_export_is_no_model_and_says_what_is(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text(json.dumps({"format": "kdasr-export", "version": 1}))
    with pytest.raises(ModelError, match=r"this is an export.* Name the folder of the model that was exp"):
        read_card(tmp_path)


OWN_PACKAGE = """
from torch import nn

class Mine(nn.Linear):
    def __init__(self, *, vocab_size):
        super().__init__(80, vocab_size)
        self.config = {"vocab_size": vocab_size}

def harmful(**arguments):
    raise AssertionError
"""


def test_a_class_of_another_package_is_built_if_the_user_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package_of_a_user.py").write_text(OWN_PACKAGE)
    monkeypatch.delenv("KDASR_PACKAGES", raising=False)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        model = importlib.import_module("package_of_a_user").Mine(vocab_size=UNITS.vocab_size)
        save_model(tmp_path / "model", model, UNITS)
        with pytest.raises(ModelError, match=r"If you trust .* set KDASR_PACKAGES=package_of_a_user in"):
            load_model(tmp_path / "model")
        patch.setenv("KDASR_PACKAGES", "another, package_of_a_user")
        assert torch.equal(load_model(tmp_path / "model").model.weight, model.weight)
        card = tmp_path / "model" / CARD_FILE
        card.write_text(card.read_text().replace("package_of_a_user.Mine", "package_of_a_user.harmful"))
        with pytest.raises(ModelError, match="harmful is not an nn.Module"):
            load_model(tmp_path / "model")
    monkeypatch.setenv("KDASR_PACKAGES", "package_of_a_user")
    monkeypatch.delitem(sys.modules, "package_of_a_user")
    with pytest.raises(ModelError, match="Put the folder that holds package_of_a_user on PYTHONPATH"):
        load_model(tmp_path / "model")


def edit(folder: Path, changed: dict[str, Any], *, no_hash: bool) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    card["config"].update(changed)
    if no_hash:
        del card["config_sha256"]  # as in cards of older releases
    (folder / CARD_FILE).write_text(json.dumps(card))


def test_a_config_that_was_not_written_is_refused_even_if_the_weights_fit(tmp_path: Path) -> None:
    save_model(tmp_path / "model", student(0), UNITS)
    edit(tmp_path / "model", {}, no_hash=False)
    assert load_model(tmp_path / "model").model.config["chunk_frames"] == 8
    edit(tmp_path / "model", {"chunk_frames": 9}, no_hash=False)
    with pytest.raises(
        ModelError, match=r"model\.json: the config in the model card is not what was written"
    ):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("changed", [{"width": -1}, {"num_heads": 0}, {"kernel_frames": 1 << 60}])
def test_a_card_whose_model_cannot_be_built_is_named(tmp_path: Path, changed: dict[str, Any]) -> None:
    save_model(tmp_path / "model", student(0), UNITS)
    edit(tmp_path / "model", changed, no_hash=True)
    with pytest.raises(ModelError, match=r"model\.json: the model cannot be built"):
        load_model(tmp_path / "model")


def test_a_card_that_is_nested_too_deep_is_named(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"model\.json: the model card cannot be read"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match=r"model\.json: .* cannot be used"):
        read_export_card(tmp_path)


class Odd(nn.Linear):
    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__(80, UNITS.vocab_size)
        self.config = {"sizes": sizes}


def test_a_config_with_numbers_as_keys_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Odd({2: 1, 10: 2})  # type: ignore[dict-item]
    save_model(tmp_path / "model", model, UNITS)
    monkeypatch.setenv("KDASR_PACKAGES", Odd.__module__.partition(".")[0])
    assert load_model(tmp_path / "model").model.config == {"sizes": {"2": 1, "10": 2}}


@pytest.mark.parametrize("name", ["kdasr.studenta.conformer.Student", "x"])
def test_a_damaged_class_is_no_package_to_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save_model(tmp_path / "model", student(0), UNITS)
    card = json.loads((tmp_path / "model" / CARD_FILE).read_text()) | {"class": name}
    (tmp_path / "model" / CARD_FILE).write_text(json.dumps(card))
    monkeypatch.setenv("KDASR_PACKAGES", "kdasr,x")
    with pytest.raises(ModelError, match="is not one of kdasr.* Copy the model folder again, or use the rel"):
        load_model(tmp_path / "model")
