"""Model folders on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

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


def test_the_old_model_is_whole_until_the_new_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a process that replaces it is killed, one whole model is there."""
    save_model(tmp_path / "model", student(0), UNITS)
    before, remove = weights(tmp_path / "model"), shutil.rmtree

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "model", student(1), UNITS)
    (old,) = tmp_path.glob(".model.*.old")
    assert torch.equal(weights(old), before)
    assert not torch.equal(weights(tmp_path / "model"), before)
    monkeypatch.setattr(shutil, "rmtree", remove)
    save_model(tmp_path / "model", student(2), UNITS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_replaces_nothing_but_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine/shards").mkdir(parents=True)
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match=r"mine: a model would replace.*got shards, thesis\.txt.*--out"):
        save_model(tmp_path / "mine", student(0), UNITS)
    assert (tmp_path / "mine/thesis.txt").read_text() == "all of it"
    for name in ("thesis.txt", "thesis.txt/a/b"):
        with pytest.raises(ConfigError, match=r"thesis\.txt: a model is a folder, and this is a file"):
            save_model(tmp_path / "mine" / name, student(0), UNITS)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["shards", "thesis.txt"]


def test_an_export_is_no_model_and_says_what_is(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text(json.dumps({"format": "kdasr-export", "version": 1}))
    with pytest.raises(ModelError, match=r"this is an export.* Name the folder of the model that was exp"):
        read_card(tmp_path)
