"""An export computes what torch computes, or there is no file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch

import export.publish
from export.card import refusal
from export.load import exported_file, load_exported
from export.parity import compare, probe_sound, run_chunks
from export.publish import Measured, export_student
from export.runtime import OnnxChunkModel
from export.to_onnx import OnnxFormat
from export.transcribe import open_recogniser
from kdasr.errors import ConfigError, ExportError, MissingDependencyError, ModelError
from kdasr.models import load_model, save_model
from kdasr.storage import temporary_name
from kdasr.streaming import StreamingSession, TorchChunkModel, silence_controls
from kdasr.symbols import TableUnits
from tests.export.small_models import STUDENTS, UNITS, RecurrentStudent, conformer, recurrent

FILES = {"model.onnx", "model.int8.onnx", "tokens.txt", "units.json", "model.json"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One export of each student."""
    made = {}
    for kind, build in STUDENTS.items():
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = (build(), folder, export_student(build(), UNITS, folder, weights_sha256="ab" * 32))
    return made


@pytest.mark.parametrize("kind", sorted(STUDENTS))
def test_the_folder_holds_what_the_card_says(folders: Any, kind: str) -> None:
    student, folder, exported = folders[kind]
    assert {path.name for path in folder.iterdir()} == FILES
    card = json.loads((folder / "model.json").read_text())
    assert card == json.loads(json.dumps(exported.card))
    for name in ("float32", "int8"):
        facts = card["files"][name]
        data = (folder / facts["file"]).read_bytes()
        assert facts["bytes"] == len(data) and facts["sha256"] == hashlib.sha256(data).hexdigest()
    parity = card["files"]["float32"]["parity_with_torch"]
    assert parity["max_abs_difference"] < 1e-3 and parity["tokens_identical"]
    assert parity["batch_sizes"] == [1, 3] and parity["num_chunks"] >= 20
    assert card["streaming"]["latency_ms"] == 10 * student.window + 7.5
    padding_s = 0.32 + 0.01 * (student.window + 2)  # the tail, and what flushes the last window
    assert f"--right-padding={padding_s:g} " in card["run"]["sherpa-onnx"]
    assert card["student"]["weights_sha256"] == "ab" * 32
    assert card["units"] == {
        "count": 29,
        "blank": "<blk>",
        "blank_id": 0,
        "word_mark": "▁",
        "word_pause_s": 1.0,
        "hash": UNITS.hash,
    }
    assert (folder / "tokens.txt").read_text().splitlines()[:3] == ["<blk> 0", "▁ 1", "' 2"]


@pytest.mark.slow
def test_a_second_export_to_the_same_folder_is_refused_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_card(*arguments: Any, **settings: Any) -> dict[str, Any]:
        monkeypatch.undo()
        with pytest.raises(
            ConfigError, match=f"{tmp_path}: another command is writing to this folder.*--out"
        ):
            export_student(recurrent(), UNITS, tmp_path, weights_sha256="cd" * 32, int8=False)
        return real(*arguments, **settings)

    real = export.publish.build_card
    monkeypatch.setattr(export.publish, "build_card", build_card)
    export_student(conformer(), UNITS, tmp_path, weights_sha256="ab" * 32, int8=False)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.int8.onnx"}
    assert load_exported(tmp_path / "model.onnx")[0].facts.weights_sha256 == "ab" * 32


@pytest.mark.parametrize("kind", sorted(STUDENTS))
def test_the_files_have_the_shapes_of_the_contract(folders: Any, kind: str) -> None:
    _, folder, _ = folders[kind]
    model = onnx.load(folder / "model.onnx")
    meta = {entry.key: entry.value for entry in model.metadata_props}
    encoder_dims, kernel, left = (
        int(meta[key]) for key in ("encoder_dims", "cnn_module_kernels", "left_context_len")
    )
    shapes = [
        [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in model.graph.input
    ]
    assert shapes[0] == ["batch", int(meta["T"]), 80]
    assert shapes[1:] == [
        [left, "batch", int(meta["query_head_dims"]) * int(meta["num_heads"])],
        [1, "batch", left, 3 * encoder_dims // 4],
        [left, "batch", int(meta["value_head_dims"]) * int(meta["num_heads"])],
        [left, "batch", int(meta["value_head_dims"]) * int(meta["num_heads"])],
        ["batch", encoder_dims, kernel // 2],
        ["batch", encoder_dims, kernel // 2],
        ["batch", 128, 3, 19],
        ["batch"],
    ]
    assert len(model.graph.output) == len(model.graph.input)
    for file in ("model.onnx", "model.int8.onnx"):
        model = onnx.load(folder / file)
        onnx.checker.check_model(model, full_check=True)
        outputs = [
            [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
            for entry in model.graph.output
        ]
        frames = int(meta["decode_chunk_len"]) // int(meta["subsampling"])
        assert outputs == [["batch", frames, int(meta["vocab_size"])], *shapes[1:]]
    assert meta["model_type"] == "zipformer2" and meta["num_encoder_layers"] == "1"


@pytest.mark.parametrize("kind", sorted(STUDENTS))
def test_streams_of_a_batch_do_not_touch_each_other(folders: Any, kind: str) -> None:
    _, folder, _ = folders[kind]
    model = OnnxChunkModel(folder / "model.onnx")
    random = np.random.default_rng(0)
    chunks = random.standard_normal((6, 3, model.window, 80)).astype(np.float32)
    together, state = [], model.initial_state(3)
    for chunk in chunks:
        log_probs, state = model.step(chunk, state)
        together.append(log_probs[1])
    alone, state = [], model.initial_state()
    for chunk in chunks:
        log_probs, state = model.step(chunk[1:2], state)
        alone.append(log_probs[0])
    assert np.abs(np.array(together) - np.array(alone)).max() < 1e-5


@pytest.mark.parametrize("kind", sorted(STUDENTS))
def test_text_from_pcm_is_that_of_torch(folders: Any, kind: str) -> None:
    student, folder, _ = folders[kind]
    model, units = load_exported(folder / "model.onnx")
    samples = probe_sound(40_000, 8)
    ours, theirs = StreamingSession(TorchChunkModel(student), UNITS), StreamingSession(model, units)
    ours.accept(samples), theirs.accept(samples)
    assert len(ours.finish()) > 10 and ours.text == theirs.finish()
    assert [token[:2] for token in ours.tokens] == [token[:2] for token in theirs.tokens]


def test_int8_quantises_matrix_products_only(folders: Any) -> None:
    _, folder, exported = folders["conformer"]
    model = onnx.load(folder / "model.int8.onnx")
    quantised = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(quantised) >= 10
    assert not {node.op_type for node in model.graph.node} & {"ConvInteger", "QLinearConv"}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = [tensor for name, tensor in weights.items() if name.endswith("_scale")]
    assert any(list(scale.dims) and scale.dims[0] > 1 for scale in scales), "one scale for each channel"
    agreement = exported.card["files"]["int8"]["agreement_with_torch"]
    assert agreement["max_abs_difference"] > 0 and agreement["same_argmax"] > 0.9


class Drifting(RecurrentStudent):
    """Computes in Python what tracing freezes: the export cannot agree."""

    calls = 0

    def forward(self, features_btf: Any, state: Any) -> Any:
        self.calls += 1
        log_probs, state = super().forward(features_btf, state)
        return (log_probs + 0.01 * self.calls * torch.arange(log_probs.shape[-1])).log_softmax(-1), state


def test_missed_parity_leaves_no_file_and_tells_the_figure(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ExportError, match=r"log-probs within 0.001.*a difference of [0-9.]+"):
        export_student(Drifting(vocab_size=29), UNITS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_earlier_one(folders: Any, tmp_path: Path) -> None:
    shutil.copytree(folders["recurrent"][1], tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ExportError):
        export_student(Drifting(vocab_size=29), UNITS, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nan_weights_are_not_exported(tmp_path: Path) -> None:
    student = recurrent()
    with torch.no_grad():
        student.head.weight[3, 3] = float("nan")
    with pytest.raises(ExportError, match="original: a log-probability is not finite"):
        export_student(student, UNITS, tmp_path)


def test_the_gate_measures_both_files(tmp_path: Path) -> None:
    seen = []

    def gate(model: Any) -> Measured:
        seen.append(model.path.name)
        return Measured(10.0 + 0.4 * len(seen), 250, ("shards/dev", "shards/labelled"))

    card = export_student(recurrent(), UNITS, tmp_path, gate=gate).card
    assert len(seen) == 2 and "int8" in seen[1] and "int8" not in seen[0]
    assert card["files"]["float32"]["wer_percent"] == 10.4
    assert card["files"]["int8"]["wer_rise_points"] == pytest.approx(0.4)
    for facts in card["files"].values():
        assert facts["wer_data"].pop("purpose").startswith("to compare int8 with float32; ")
        assert facts["wer_data"] == {"words": 250, "folders": ("shards/dev", "shards/labelled")}
    assert card["refused"] == {}


def test_int8_that_was_not_asked_for_is_no_riddle_to_an_evaluation(tmp_path: Path) -> None:
    exported = export_student(recurrent(), UNITS, tmp_path, int8=False)
    assert refusal(tmp_path / "model.int8.onnx") == "model.int8.onnx was not requested at export"
    assert refusal(exported.float_path) is None
    exported.float_path.unlink()
    assert refusal(exported.float_path) is None  # written, and lost: an error


def test_int8_that_misses_the_gate_is_left_out_and_no_earlier_one_survives(
    folders: Any, tmp_path: Path
) -> None:
    def gate(model: Any) -> Measured:
        return Measured(10.4 if "int8" in model.path.name else 10.0, 250, ("shards/dev",))

    shutil.copytree(folders["conformer"][1], tmp_path, dirs_exist_ok=True)
    exported = export_student(recurrent(), UNITS, tmp_path, gate=gate, max_wer_rise=0.3)
    assert exported.int8_path is None
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.int8.onnx"}
    card = json.loads((tmp_path / "model.json").read_text())
    assert set(card["files"]) == {"float32"} and card["files"]["float32"]["wer_percent"] == 10.0
    int8 = card["refused"]["int8"]
    assert int8["file"] == "model.int8.onnx" and int8["wer_percent"] == 10.4
    assert int8["wer_rise_points"] == pytest.approx(0.4) and int8["agreement_with_torch"]["num_chunks"] == 24
    assert exported.refused == int8["reason"]
    assert int8["reason"].startswith(
        "int8 costs too much accuracy; expected at most 0.3 points of WER more than float32; "
        "got 0.40 points (10.00 % to 10.40 % of 250 words). "
    )
    assert load_exported(exported.float_path)[0].vocab_size == UNITS.vocab_size
    with pytest.raises(
        ModelError, match=r"int8\.onnx: the export does not include this file; got int8 costs too much"
    ):
        load_exported(tmp_path / "model.int8.onnx")


def test_int8_that_is_another_model_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_another(format: OnnxFormat, path: Path, float_path: Path) -> None:
        other = recurrent()
        with torch.no_grad():
            other.head.weight.neg_()
        OnnxFormat(other, UNITS, "").write_float(path)

    monkeypatch.setattr(OnnxFormat, "write_int8", write_another)
    exported = export_student(recurrent(), UNITS, tmp_path)
    assert exported.int8_path is None and "in at least half of all frames; got" in (exported.refused or "")
    assert exported.card["refused"]["int8"]["agreement_with_torch"]["same_argmax"] < 0.5
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.int8.onnx"}


def test_int8_that_does_not_run_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxFormat, "write_int8", lambda format, path, float_path: path.write_bytes(b"no"))
    exported = export_student(recurrent(), UNITS, tmp_path)
    assert exported.int8_path is None and "ONNX Runtime cannot read the file" in (exported.refused or "")
    assert set(exported.card["refused"]["int8"]) == {"file", "reason"}
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.int8.onnx"}


def test_float32_is_there_whatever_becomes_of_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(format: OnnxFormat, path: Path, float_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxFormat, "write_int8", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_student(recurrent(), UNITS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.int8.onnx"}
    load_exported(tmp_path / "model.onnx")


def test_without_int8_there_is_one_model_and_no_stale_one(folders: Any, tmp_path: Path) -> None:
    shutil.copytree(folders["recurrent"][1], tmp_path, dirs_exist_ok=True)
    exported = export_student(recurrent(), UNITS, tmp_path, int8=False)
    assert exported.int8_path is None and "int8" not in exported.card["files"]
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.int8.onnx"}


def test_an_export_never_destroys_a_model(tmp_path: Path) -> None:
    save_model(tmp_path / "student", conformer(), UNITS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()}
    with pytest.raises(ConfigError, match=r"student: this is the folder of a model.*another --out"):
        export_student(conformer(), UNITS, tmp_path / "student")
    assert {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()} == before
    load_model(tmp_path / "student")


@pytest.mark.parametrize("content", ['{"model_type": "other"}', '["a list"]', '{"format": "other"}', ""])
@pytest.mark.parametrize("name", ["model.json", "units.json"])
def test_an_export_never_writes_over_files_of_other_programs(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "tokens.txt").write_text("a 0\n")
    with pytest.raises(
        ConfigError, match=rf"{name}: this file was not written by an export.*Choose another --out"
    ):
        export_student(recurrent(), UNITS, tmp_path, int8=False)
    assert {path.name for path in tmp_path.iterdir()} == {name, "tokens.txt"}
    assert (tmp_path / name).read_text() == content


def test_what_a_killed_export_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    killed = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    dead, living = int(killed.stdout), os.getppid()
    own = temporary_name(Path("of"))
    names = (
        "model.onnx{}",
        "model.int8.onnx{}",
        "model.int8.onnx{}.prepared",
        "tokens.txt{}",
        "model.json{}",
    )

    def left(process: int) -> set[str]:
        end = own.name.removeprefix(".of").replace(f"-{os.getpid()}-", f"-{process}-")
        return {f".{name.format(end)}" for name in names}

    for name in (*left(dead), *left(living), ".mine.1.tmp"):
        (tmp_path / name).touch()
    export_student(recurrent(), UNITS, tmp_path, int8=False)
    kept = left(living) | {".mine.1.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.int8.onnx"} | kept


def test_the_card_says_the_chunk_that_was_exported(tmp_path: Path) -> None:
    student = conformer(num_layers=1)
    student.chunk_frames = 16
    card = export_student(student, UNITS, tmp_path, int8=False).card
    assert card["student"]["config"] == {**student.config, "chunk_frames": 16}
    assert card["streaming"]["chunk_ms"] == 640 and student.config["chunk_frames"] == 4


def test_another_format_replaces_the_export_before(folders: Any, tmp_path: Path) -> None:
    shutil.copytree(folders["conformer"][1], tmp_path, dirs_exist_ok=True)
    student = conformer(width=24, num_layers=1)
    card = export_student(student, UNITS, tmp_path, format="wave-onnx", int8=False).card
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.onnx", "model.int8.onnx"} | {
        "model.wave.onnx"
    }
    file = exported_file(tmp_path)
    assert file is not None
    assert load_exported(file)[0].facts.state_floats == card["student"]["state_floats"]


def test_without_a_gate_the_card_says_that_nothing_was_measured(folders: Any) -> None:
    card = json.loads((folders["conformer"][1] / "model.json").read_text())
    for facts in card["files"].values():
        assert facts["wer_percent"] is None and facts["wer_data"].startswith("not measured: ")


FOREIGN = TableUnits.from_foreign(["<s>", "<pad>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"], 1)


def table_student() -> Any:
    """A student that would say <s>, </s> and <unk> more often than anything else."""
    student = conformer(vocab_size=FOREIGN.vocab_size)
    with torch.no_grad():
        student.head.bias[1:4] += 1.5
    return student


@pytest.mark.parametrize(
    ("format", "file"),
    [("onnx", "model.onnx"), pytest.param("wave-onnx", "model.wave.onnx", marks=pytest.mark.slow)],
)
def test_classes_that_stand_for_no_text_are_never_emitted(tmp_path: Path, format: str, file: str) -> None:
    student, sound = table_student(), probe_sound(40_000, 1)
    assert FOREIGN.symbols[:4] == ["<blk>", "<s>", "</s>", "<unk>"]
    loud = run_chunks(TorchChunkModel(student), [sound]).argmax(-1)
    assert np.isin(loud, [1, 2, 3]).mean() > 0.3
    exported = export_student(student, FOREIGN, tmp_path, format=format)
    assert exported.card["files"]["float32"]["parity_with_torch"]["max_abs_difference"] < 5e-3
    for path in (exported.float_path, exported.int8_path):
        assert path is not None
        log_probs_btv = run_chunks(load_exported(path)[0], [sound])
        assert log_probs_btv[..., 1:4].max() < -100
        assert np.allclose(np.exp(log_probs_btv).sum(-1), 1, atol=1e-3)
    save_model(tmp_path / "student", student, FOREIGN)
    texts = [open_recogniser(path).transcribe(sound) for path in (tmp_path / "student", tmp_path / file)]
    assert texts[0] == texts[1] and len(texts[0]) > 5
    # The student that was handed in goes on as it was.
    assert np.array_equal(run_chunks(TorchChunkModel(student), [sound]).argmax(-1), loud)


@pytest.mark.parametrize("kind", ["a layer in a layer", "no bias"])
def test_only_a_linear_head_with_a_bias_can_be_silenced(kind: str) -> None:
    student = table_student()
    width, classes = student.head.in_features, student.head.out_features
    student.head = (
        torch.nn.Linear(width, classes, bias=False)
        if kind == "no bias"
        else torch.nn.Sequential(student.head)
    )
    with pytest.raises(ModelError, match="cannot be suppressed"):
        silence_controls(student, FOREIGN)
    assert silence_controls(student, UNITS) is student


def test_a_silenced_class_is_as_unlikely_whatever_is_heard() -> None:
    student = table_student()
    silenced: Any = silence_controls(student, FOREIGN)
    heard = 1e3 * torch.randn(5, student.head.in_features)
    said = silenced.head(heard)
    assert (said[:, 1:4] == -200).all()
    assert torch.equal(said[:, [0, *range(4, 32)]], student.head(heard)[:, [0, *range(4, 32)]])


class NotZero(RecurrentStudent):
    def initial_state(self, batch_size: Any = 1) -> Any:
        return super().initial_state(batch_size)._replace(hidden_bd=torch.ones(batch_size, self.width))


class TimeFirst(RecurrentStudent):
    def initial_state(self, batch_size: Any = 1) -> Any:
        return super().initial_state(batch_size)._replace(hidden_bd=torch.zeros(1, batch_size, self.width))


class HalfPrecision(RecurrentStudent):
    def initial_state(self, batch_size: Any = 1) -> Any:
        return (
            super().initial_state(batch_size)._replace(hidden_bd=torch.zeros(batch_size, self.width).half())
        )


class PlainTuple(RecurrentStudent):
    def initial_state(self, batch_size: Any = 1) -> Any:
        return tuple(super().initial_state(batch_size))


class OddCounterState(NamedTuple):
    hidden_bd: torch.Tensor
    processed: torch.Tensor


class OddCounter(RecurrentStudent):
    def initial_state(self, batch_size: Any = 1) -> Any:
        return OddCounterState(torch.zeros(batch_size, 2), torch.zeros(batch_size, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("student_class", "message"),
    [
        (NotZero, "field 'hidden_bd': the initial state is not zero"),
        (TimeFirst, "field 'hidden_bd': the batch is not on axis 0"),
        (HalfPrecision, "field 'hidden_bd': the state tensor has the wrong type"),
        (PlainTuple, "not a NamedTuple"),
        (OddCounter, "field 'processed': the counter must have one axis"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path: Path, student_class: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_student(student_class(vocab_size=29), UNITS, tmp_path)


class DataDependent(RecurrentStudent):
    def forward(self, features_btf: Any, state: Any) -> Any:
        torch._assert_async(torch.linalg.matrix_exp(features_btf[0, :2, :2]).isfinite().all())
        return super().forward(features_btf + torch.linalg.matrix_exp(features_btf[0, :2, :2]).sum(), state)


def test_an_operation_that_onnx_lacks_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="DataDependent: torch cannot export this student"):
        export_student(DataDependent(vocab_size=29), UNITS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_units_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected 30 units; got 29"):
        export_student(conformer(vocab_size=30), UNITS, tmp_path)


def test_a_missing_package_is_named_with_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.publish.find_spec
    monkeypatch.setattr(
        export.publish, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    with pytest.raises(MissingDependencyError, match=r"'onnxruntime'.*pip install -c .*\[export\]'"):
        export_student(recurrent(), UNITS, tmp_path)


def test_compare_sees_a_wrong_state() -> None:
    student = TorchChunkModel(conformer())

    class Forgetful(TorchChunkModel):
        def step(self, features_btf: Any, state: Any) -> Any:
            return super().step(features_btf, self.initial_state(len(features_btf)))

    agreement = compare(student, Forgetful(conformer()))
    assert agreement.max_abs_difference > 0.1 and not agreement.tokens_identical


def test_models_of_others_are_not_replaced(tmp_path: Path) -> None:
    for name in ("model.onnx", "tokens.txt"):
        (tmp_path / name).write_text("of sherpa-onnx")
    with pytest.raises(
        ConfigError, match=r"model files that no export wrote.*got model\.onnx, tokens\.txt.*--out"
    ):
        export_student(recurrent(), UNITS, tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"of sherpa-onnx"}


@pytest.mark.parametrize("name", ["shard-000000.kdsl", "shard-000000.tar"])
def test_an_export_never_replaces_the_units_of_labels(tmp_path: Path, name: str) -> None:
    UNITS.save(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"labels or audio.*got {name}. Choose another --out"):
        export_student(recurrent(), UNITS, tmp_path, int8=False)


def test_a_folder_of_an_export_may_have_the_name_of_a_file(tmp_path: Path) -> None:
    exported = export_student(recurrent(), UNITS, tmp_path / "student.onnx", int8=False)
    assert exported_file(tmp_path / "student.onnx") == exported.float_path
