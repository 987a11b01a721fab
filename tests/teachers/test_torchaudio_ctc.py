"""torchaudio's models as teachers: the library's own posteriors, letters, and weights that must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr.errors import ConfigError, ModelError
from kdasr.teachers.torchaudio_ctc import TorchaudioCTC
from tests.teachers.tiny_models import noise, torchaudio_model

KINDS = [("wav2vec2_model", "layer_norm", True), ("wav2vec2_model", "group_norm", False)]
KINDS += [("wavlm_model", "layer_norm", False)]


@pytest.mark.parametrize(("kind", "norm", "pads"), KINDS)
@torch.inference_mode()
def test_posteriors_are_the_librarys_own(tmp_path: Path, kind: str, norm: str, pads: bool) -> None:
    file, network = torchaudio_model(tmp_path, kind, norm)
    teacher = TorchaudioCTC(architecture=file).load("cpu")
    samples = torch.from_numpy(noise(0.9))
    heard = torch.nn.functional.layer_norm(samples, samples.shape) if norm == "layer_norm" else samples
    wanted = network(heard[None])[0].log_softmax(-1)
    got, frames = teacher.model.offline(samples[None], torch.tensor([len(samples)]))
    assert frames.tolist() == [wanted.shape[1]] == [44]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert teacher.pads is pads
    assert teacher.facts["frame_shift_ms"] == 20.0 and teacher.facts["blank_id"] == 0
    assert teacher.units.symbols[:4] == ["<blk>", "▁", "e", "t"]


@torch.inference_mode()
def test_padding_changes_nothing_where_it_is_allowed(tmp_path: Path) -> None:
    teacher = TorchaudioCTC(architecture=torchaudio_model(tmp_path)[0]).load("cpu")
    samples = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in enumerate((0.9, 0.4, 0.61))]
    padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    lengths = torch.tensor([len(item) for item in samples])
    before = padded.clone()
    together, frames = teacher.model.offline(padded, lengths)
    assert torch.equal(padded, before), "what is heard stays as it is"
    for row, item in enumerate(samples):
        alone, count = teacher.model.offline(item[None], lengths[row : row + 1])
        assert int(count[0]) == int(frames[row])
        torch.testing.assert_close(together[row, : int(count[0])], alone[0], atol=1e-5, rtol=0)


def test_a_bundle_without_its_weights_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is fetched unasked")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(
        ModelError, match=r"not on this machine.*WAV2VEC2_ASR_BASE_960H\.get_model\(\)"
    ) as caught:
        TorchaudioCTC(bundle="WAV2VEC2_ASR_BASE_960H").load("cpu")
    assert str(tmp_path / "checkpoints") in str(caught.value)


def test_a_bundle_is_read_from_torch_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own way of building and loading, with an architecture made small."""
    import json

    from torchaudio import pipelines

    file, network = torchaudio_model(tmp_path, norm="layer_norm")
    bundle = pipelines.WAV2VEC2_ASR_LARGE_LV60K_960H
    monkeypatch.setattr(bundle, "_params", json.loads(file.read_text())["parameters"])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = network.state_dict()
    for name in ("aux.weight", "aux.bias"):  # fairseq's three classes that the bundle strikes out
        state[name] = torch.cat([state[name][:1], torch.full_like(state[name][:3], 7.0), state[name][1:]])
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / bundle._path)
    teacher = TorchaudioCTC(bundle="WAV2VEC2_ASR_LARGE_LV60K_960H").load("cpu")
    own = TorchaudioCTC(architecture=file).load("cpu")
    samples = torch.from_numpy(noise(0.5))[None]
    with torch.inference_mode():
        got, wanted = (one.model.offline(samples, torch.tensor([8000]))[0] for one in (teacher, own))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert teacher.units.hash == own.units.hash
    assert teacher.facts["source"] == "WAV2VEC2_ASR_LARGE_LV60K_960H"


@pytest.mark.parametrize("given", [{}, {"bundle": "WAV2VEC2_BASE"}, {"bundle": "MMS_FA"}])
def test_what_is_no_teacher_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="bundle"):
        TorchaudioCTC(**given).load("cpu")


def test_weights_that_do_not_fit_or_cannot_be_read_are_refused(tmp_path: Path) -> None:
    file, _ = torchaudio_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        TorchaudioCTC(architecture=file).load("cpu")
    torch.save({"odd": torch.ones(1)}, tmp_path / "odd.pt")
    with pytest.raises(ModelError, match="do not fit"):
        TorchaudioCTC(architecture=file, weights=tmp_path / "odd.pt").load("cpu")
    (tmp_path / "model.json").write_text('{"model": "os.system", "parameters": {}, "labels": []}')
    with pytest.raises(ModelError, match=r"architecture: .*model\.json: the architecture cannot be read"):
        TorchaudioCTC(architecture=file).load("cpu")
    with pytest.raises(ModelError, match=r"expected a file of \{.*got IsADirectoryError"):
        TorchaudioCTC(architecture=tmp_path).load("cpu")
    for given, got in (({}, "neither"), ({"bundle": "WAV2VEC2_ASR_BASE_960H", "architecture": file}, "both")):
        with pytest.raises(ConfigError, match=f"null for the other; got {got}"):
            TorchaudioCTC(**given).load("cpu")
