"""An exported folder that is not whole is refused with the reason."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.card import CARD_FILE
from export.graph import set_metadata
from export.load import exported_file, load_exported
from export.publish import export_student
from export.runtime import OnnxChunkModel, OnnxWaveModel
from kdasr.errors import MissingDependencyError, ModelError
from kdasr.models import save_model
from kdasr.streaming import StreamingSession
from tests.export.small_models import UNITS, conformer, recurrent


@pytest.fixture(scope="module")
def _exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_student(recurrent(), UNITS, folder)
    return folder


@pytest.fixture
def folder(_exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(_exported, tmp_path / "model"))


def change_metadata(path: Path, **changes: str) -> None:
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    set_metadata(model, {**metadata, **changes})
    onnx.save(model, path)


def test_a_folder_means_its_float_file_and_a_file_means_itself(folder: Path, tmp_path: Path) -> None:
    assert exported_file(folder) == folder / "model.onnx"
    assert exported_file(folder / "model.int8.onnx") == folder / "model.int8.onnx"
    assert exported_file(tmp_path) is None
    assert exported_file(tmp_path / "other.pte") == tmp_path / "other.pte"
    assert exported_file(tmp_path / "notes.txt") is None


def test_without_a_card_the_float_file_of_the_first_format_is_meant(tmp_path: Path) -> None:
    for name in ("model.pte", "model.wave.onnx", "model.onnx"):
        (tmp_path / name).touch()
        assert exported_file(tmp_path) == tmp_path / name


def test_facts_and_initial_state_come_from_the_file(folder: Path) -> None:
    model = OnnxChunkModel(folder / "model.onnx")
    assert (model.shift, model.window, model.subsampling, model.vocab_size) == (12, 16, 4, 29)
    assert model.facts.units_hash == UNITS.hash and model.facts.state_floats == 4 * 80 + 24
    state = model.initial_state(3)
    assert [array.shape for array in state[4:]] == [(3, 4, 43), (3, 4, 43), (3, 128, 3, 19), (3,)]
    assert state[7].dtype == np.int64 and not any(array.any() for array in state)


def test_a_file_is_opened_once_and_runs_on_one_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, session = [], onnxruntime.InferenceSession

    def spy(path: str, options: Any, **rest: Any) -> Any:
        opened.append((path, options.intra_op_num_threads, options.inter_op_num_threads))
        return session(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    model, _ = load_exported(folder / "model.onnx")
    assert isinstance(model, OnnxChunkModel) and opened == [(str(folder / "model.onnx"), 1, 1)]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(folder: Path, keep: float) -> None:
    path = folder / "model.onnx"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError, match=r"model\.onnx: the file is not the one that was exported"):
        load_exported(folder / "model.onnx")
    (folder / CARD_FILE).unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: .*(cannot read|not a streaming model)"):
        load_exported(folder / "model.onnx")


def test_damage_that_onnx_runtime_does_not_notice_is_refused(folder: Path) -> None:
    path = folder / "model.int8.onnx"
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 2, len(data) // 2 + 200)
    data[middle] = bytes(byte ^ 0x5A for byte in data[middle])
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.int8\.onnx: .*expected sha256 .*as its card says"):
        load_exported(path)


def test_a_folder_means_the_file_of_its_card(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "other.onnx")
    card = json.loads((folder / CARD_FILE).read_text())
    card["files"]["float32"]["file"] = "other.onnx"
    (folder / CARD_FILE).write_text(json.dumps(card))
    assert exported_file(folder) == folder / "other.onnx"
    load_exported(folder / "other.onnx")


def test_a_file_of_another_student_beside_the_card_is_refused(folder: Path, tmp_path: Path) -> None:
    export_student(recurrent(width=20), UNITS, tmp_path / "a", weights_sha256="aa" * 32, int8=False)
    shutil.copyfile(tmp_path / "a" / "model.onnx", folder / "stale.onnx")
    with pytest.raises(ModelError, match=r"stale\.onnx: the card beside the file belongs to another student"):
        load_exported(folder / "stale.onnx")


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.update(version=2),
        lambda card: card["files"].clear(),
        lambda card: card["files"]["int8"].pop("sha256"),
        lambda card: card.pop("student"),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(folder: Path, edit: object) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    assert callable(edit)
    edit(card)
    (folder / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"model\.json: the card of the export cannot be used"):
        exported_file(folder)


def test_the_card_of_a_model_folder_is_no_export(tmp_path: Path) -> None:
    save_model(tmp_path / "student", conformer(), UNITS)
    assert exported_file(tmp_path / "student") is None


def test_a_graph_that_does_not_take_what_its_metadata_says_is_a_model_error(folder: Path) -> None:
    change_metadata(folder / "model.onnx", T="40")
    (folder / CARD_FILE).unlink()
    session = StreamingSession(*load_exported(folder / "model.onnx"))
    with pytest.raises(ModelError, match=r"model\.onnx: ONNX Runtime cannot run the file"):
        session.accept(np.zeros(16_000, np.float32))


def test_bytes_that_are_not_onnx_are_refused(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(np.random.default_rng(0).bytes(5_000))
    (folder / CARD_FILE).unlink()
    with pytest.raises(ModelError, match="ONNX Runtime cannot read the file"):
        load_exported(folder / "model.onnx")


def test_a_model_of_others_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "alien", [value], [out])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "alien.onnx",
    )
    with pytest.raises(ModelError, match="this is not a streaming model exported by kdasr"):
        OnnxChunkModel(tmp_path / "alien.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kdasr_version": "99"}, "the model file has a different version; expected 1; got 99"),
        ({"T": "many"}, "the metadata is incomplete or invalid"),
        ({"feature_hash": "0" * 16}, "the model was exported for different features"),
    ],
)
def test_metadata_is_checked(folder: Path, changes: dict[str, str], message: str) -> None:
    change_metadata(folder / "model.onnx", **changes)
    with pytest.raises(ModelError, match=message):
        OnnxChunkModel(folder / "model.onnx")


@pytest.mark.parametrize("changes", [{"units_hash": "f" * 64}, {"vocab_size": "30"}])
def test_units_of_another_model_are_refused(folder: Path, changes: dict[str, str]) -> None:
    change_metadata(folder / "model.onnx", **changes)
    (folder / CARD_FILE).unlink()
    with pytest.raises(ModelError, match="the units belong to another model"):
        load_exported(folder / "model.onnx")


def test_missing_units_are_named(folder: Path) -> None:
    (folder / "units.json").unlink()
    with pytest.raises(ModelError, match=rf"^{folder}: the units .* none; expected units\.json in it\. Keep"):
        load_exported(folder / "model.onnx")


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: lines[:-1],
        lambda lines: [*lines, "extra 29"],
        lambda lines: ["<blk> 28", *lines[1:]],
    ],
)
def test_tokens_that_do_not_match_are_refused(folder: Path, edit: Any) -> None:
    path = folder / "tokens.txt"
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")
    with pytest.raises(ModelError, match=r"tokens\.txt: the tokens do not match the units"):
        load_exported(folder / "model.onnx")


def test_missing_tokens_are_named(folder: Path) -> None:
    (folder / "tokens.txt").unlink()
    with pytest.raises(ModelError, match=r"tokens\.txt: the tokens cannot be read"):
        load_exported(folder / "model.onnx")


def test_no_file_is_said_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model file does not exist"):
        OnnxChunkModel(tmp_path / "model.onnx")
    (folder / "model.onnx").unlink()  # which the card beside it names
    with pytest.raises(ModelError, match="the model file does not exist"):
        load_exported(folder / "model.onnx")


def test_a_graph_of_other_inputs_or_outputs_is_refused(folder: Path) -> None:
    path = folder / "model.onnx"
    model = onnx.load(path)
    del model.graph.output[-1]
    onnx.save(model, path)
    with pytest.raises(
        ModelError, match=r"not have the inputs and outputs.*features and 8 states, in and out"
    ):
        OnnxChunkModel(path)
    # As many of both, but not those of the contract.
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "alien", [value], [out])
    alien = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    set_metadata(alien, metadata)
    onnx.save(alien, path)
    with pytest.raises(ModelError, match=r"not have the inputs and outputs.*got \['x'\]"):
        OnnxChunkModel(path)
    set_metadata(alien, {**metadata, "kdasr_format": "kdasr-wave-onnx"})
    onnx.save(alien, path)
    with pytest.raises(ModelError, match=r"not have the inputs of a waveform model.*got \['x'\]"):
        OnnxWaveModel(path)


def test_without_onnxruntime_the_pip_line_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"'onnxruntime'.*pip install -c .*\[export\]'"):
        OnnxChunkModel(folder / "model.onnx")


def test_the_card_names_a_command_that_exists(folder: Path) -> None:
    run = json.loads((folder / "model.json").read_text())["run"]
    assert run["kdasr"].startswith("kdasr transcribe --model ")
    assert "--zipformer2-ctc-model=model.onnx" in run["sherpa-onnx"]
