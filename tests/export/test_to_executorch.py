"""An ExecuTorch program says what torch says. Needs the executorch extra in an environment of its
own: run by `make test-executorch`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.formats import available_formats
from export.parity import probe_sound
from export.publish import export_student
from export.to_executorch import ExecutorchFormat, _partitioner
from export.transcribe import open_recogniser
from kdasr.errors import ModelError
from kdasr.streaming import StreamingSession, TorchChunkModel
from tests.export.small_models import ALL, KINDS, UNITS

pytestmark = [pytest.mark.executorch, pytest.mark.timeout(1_200)]


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    export_student(ALL[request.param](), UNITS, folder, weights_sha256="cd" * 32, format="executorch")
    return request.param, folder


def test_the_format_is_available() -> None:
    assert "executorch" in available_formats()


def test_parity_is_in_the_card(exported: tuple[str, Path]) -> None:
    _, folder = exported
    card = json.loads((folder / "model.json").read_text())
    assert card["file_format"] == "executorch"
    parity = card["files"]["float32"]["parity_with_torch"]
    assert parity["max_abs_difference"] < 5e-3 and parity["tokens_identical"]
    assert parity["batch_sizes"] == [1]
    assert card["files"]["int8"]["agreement_with_torch"]["same_argmax"] > 0.9
    assert {path.name for path in folder.iterdir()} == {
        "model.pte", "model.int8.pte", "tokens.txt", "units.json", "model.json"
    }  # fmt: skip


@pytest.mark.parametrize("num_samples", [79, 5_281, 40_000])
def test_text_is_that_of_torch(exported: tuple[str, Path], num_samples: int) -> None:
    kind, folder = exported
    samples = probe_sound(40_000, 8)[:num_samples]
    ours = StreamingSession(TorchChunkModel(ALL[kind]()), UNITS, keep_log_probs=True)
    theirs = open_recogniser(folder).session(keep_log_probs=True)
    ours.accept(samples)
    for start in range(0, num_samples, 777):
        theirs.accept(samples[start : start + 777])
    assert ours.finish() == theirs.finish()
    assert not ours.num_frames or np.abs(ours.log_probs_tv - theirs.log_probs_tv).max() < 5e-3


def test_int8_gives_text(exported: tuple[str, Path]) -> None:
    recogniser = open_recogniser(exported[1] / "model.int8.pte")
    assert len(recogniser.transcribe(probe_sound(40_000, 8))) > 10


def test_it_runs_one_stream(exported: tuple[str, Path]) -> None:
    with pytest.raises(ModelError, match="one stream; expected 1; got 2"):
        open_recogniser(exported[1]).streaming_model().initial_state(2)


@pytest.mark.parametrize("keep", [0, 100, 5_000])
def test_a_truncated_program_is_refused(exported: tuple[str, Path], tmp_path: Path, keep: int) -> None:
    (tmp_path / "model.pte").write_bytes((exported[1] / "model.pte").read_bytes()[:keep])
    with pytest.raises(ModelError, match="ExecuTorch cannot run the file"):
        open_recogniser(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_depends_on_no_input_is_computed_once(kind: str) -> None:
    format = ExecutorchFormat(ALL[kind](), UNITS, "")
    before = torch.export.export(format._module, format._module.example(1))
    names = [str(node.target) for node in format._program.graph.nodes]
    assert any("arange" in str(node.target) for node in before.graph.nodes)
    assert not any("arange" in name for name in names)
    # Where a device has a last bit of its own, it still computes it.
    assert any(name.startswith("aten.cos") for name in names) == (kind in ("conformer", "zipformer"))
    samples, valid_frames, state = format._module.example(1)
    inputs = (torch.randn_like(samples), valid_frames, torch.randn_like(state).abs())
    with torch.inference_mode():
        want, got = format._module(*inputs), format._program.module()(*inputs)
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("stride", "taken"), [(2, True), (3, False)])
def test_whether_xnnpack_takes_all_that_it_asks_to_keep(stride: int, taken: bool) -> None:
    program = torch.export.export(nn.MaxPool2d(2, stride), (torch.zeros(1, 1, 6, 6),))
    kept, takes = _partitioner().ops_to_not_decompose(program)
    assert torch.ops.aten.max_pool2d.default in kept
    if taken:
        assert takes is None
    else:
        assert [takes(node) for node in program.graph.nodes if node.target in kept] == [False]
