"""Models in Hugging Face's format: the library's own posteriors, whatever the batch, and nothing fetched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdasr.errors import MissingDependencyError, ModelError
from kdasr.teachers.base import options_of
from kdasr.teachers.hugging_face import HuggingFaceCTC, _pads, import_transformers
from kdasr.teachers.whisper import Whisper
from tests.teachers.tiny_models import hugging_face_model, noise, whisper_model

pytestmark = pytest.mark.slow  # transformers takes five seconds to import
KINDS = [("Wav2Vec2", "layer", True), ("Wav2Vec2", "group", False), ("Hubert", "layer", True)]
KINDS += [("WavLM", "layer", True), ("Wav2Vec2Bert", "", False), ("Wav2Vec2Conformer", "layer", False)]


@pytest.mark.parametrize(("kind", "norm", "pads"), KINDS)
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@torch.inference_mode()
def test_posteriors_are_the_librarys_own(tmp_path: Path, kind: str, norm: str, pads: bool) -> None:
    network, extractor = hugging_face_model(tmp_path, kind, norm)
    teacher = HuggingFaceCTC(tmp_path).load("cpu")
    audio = [noise(seconds, seed) for seed, seconds in enumerate((0.9, 0.4, 0.61))]
    samples = [torch.from_numpy(item) for item in audio]
    lengths = torch.tensor([len(item) for item in samples])
    alone = []
    for row, item in enumerate(audio):
        heard = extractor(item, sampling_rate=16_000, return_tensors="pt")
        wanted = network(**heard).logits.log_softmax(-1)
        got, frames = teacher.model.offline(samples[row][None], lengths[row : row + 1])
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        assert frames.tolist() == [got.shape[1]]
        alone.append(got[0])
    assert teacher.pads is pads
    if pads:
        padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
        together, frames = teacher.model.offline(padded, lengths)
        assert frames.tolist() == [len(item) for item in alone]
        for row, item in enumerate(alone):
            torch.testing.assert_close(together[row, : len(item)], item, atol=1e-5, rtol=0)
    assert teacher.facts["frame_shift_ms"] == 20.0 and teacher.facts["kind"] == f"{kind}ForCTC"
    assert teacher.units.symbols[:7] == ["<blk>", "<s>", "</s>", "<unk>", "▁", "e", "t"]


@pytest.mark.parametrize(("kind", "option"), [("Wav2Vec2", "add_adapter"), ("Hubert", "conv_pos_batch_norm")])
def test_what_does_not_mask_the_padding_is_heard_alone(tmp_path: Path, kind: str, option: str) -> None:
    network, extractor = hugging_face_model(tmp_path, kind)
    assert _pads(network, extractor)
    setattr(network.config, option, True)
    assert not _pads(network, extractor)


def test_a_blank_elsewhere_comes_first(tmp_path: Path) -> None:
    network, _ = hugging_face_model(tmp_path)
    network.config.pad_token_id = 9
    network.config.save_pretrained(tmp_path)
    teacher = HuggingFaceCTC(tmp_path).load("cpu")
    assert teacher.facts["blank_id"] == 9
    assert teacher.units.symbols[:3] == ["<blk>", "<pad>", "<s>"]
    samples = torch.from_numpy(noise(0.5))[None]
    with torch.inference_mode():
        theirs = teacher.model.posteriors(samples, torch.tensor([8000]))[0]  # type: ignore[attr-defined]
        ours = teacher.model.offline(samples, torch.tensor([8000]))[0]
    assert torch.equal(ours[..., 0], theirs[..., 9]) and torch.equal(ours[..., 1:10], theirs[..., :9])
    assert torch.equal(ours[..., 10:], theirs[..., 10:])


def test_weights_that_were_saved_in_half_precision_are_heard_in_single(tmp_path: Path) -> None:
    network, _ = hugging_face_model(tmp_path)
    network.half().save_pretrained(tmp_path)
    teacher = HuggingFaceCTC(tmp_path).load("cpu")
    assert {weight.dtype for weight in teacher.model.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    samples = torch.from_numpy(noise(0.5))
    with torch.inference_mode():
        heard = torch.nn.functional.layer_norm(samples, samples.shape)[None]
        wanted = network.float()(heard).logits.log_softmax(-1)
        got, _ = teacher.model.offline(samples[None], torch.tensor([8000]))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", [HuggingFaceCTC, Whisper])
def test_what_is_not_on_this_machine_is_not_fetched(
    source: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"not on this machine.*hf download someone/something"):
        source("someone/something").load("cpu")
    with pytest.raises(ModelError, match="the weights file is not on this machine"):
        source(tmp_path).load("cpu")


@pytest.mark.parametrize("source", [HuggingFaceCTC, Whisper])
def test_a_mistyped_path_is_not_to_be_fetched(
    source: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("../models/hff", "/gone", "~/models/hff", "some/where/else"):
        with pytest.raises(ModelError, match=rf"{path}: the model was not found; .*OWNER/NAME") as told:
            source(path).load("cpu")
        assert "hf download" not in str(told.value)
    with pytest.raises(
        ModelError, match=r"hf download models/hff` .*; there is no local folder of this name"
    ):
        source("models/hff").load("cpu")


def test_without_the_package_its_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install -c .*\[hf\]'"):
        HuggingFaceCTC("any").load("cpu")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    whisper_model(tmp_path)
    with pytest.raises(ModelError, match="CTC head"):
        HuggingFaceCTC(tmp_path).load("cpu")


@pytest.mark.parametrize("source", [HuggingFaceCTC, Whisper])
def test_weights_that_the_library_would_draw_at_random_are_refused(
    source: type, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As those of facebook/wav2vec2-base, to which a head is still to be trained."""
    if source is HuggingFaceCTC:
        network, _ = hugging_face_model(tmp_path)
        missing, weights = r"lm_head\.bias, lm_head\.weight", network.wav2vec2.state_dict()
        weights = {f"wav2vec2.{name}": weight for name, weight in weights.items()}
    else:
        network = whisper_model(tmp_path)
        missing, weights = r"model\.decoder\.embed_positions\.weight", network.state_dict()
        del weights["model.decoder.embed_positions.weight"]
    network.save_pretrained(tmp_path, state_dict=weights)
    capfd.readouterr()
    with pytest.raises(ModelError, match=rf"has not been fine-tuned; .*ForC.*; got none for {missing}"):
        source(tmp_path).load("cpu")
    assert capfd.readouterr().err == ""


def test_a_weight_of_training_alone_may_be_missing(tmp_path: Path) -> None:
    """facebook/wav2vec2-base-960h has none."""
    network, _ = hugging_face_model(tmp_path)
    weights = network.state_dict()
    del weights["wav2vec2.masked_spec_embed"]
    network.save_pretrained(tmp_path, state_dict=weights)
    assert HuggingFaceCTC(tmp_path).load("cpu").units.vocab_size == network.config.vocab_size


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("source", [HuggingFaceCTC, Whisper])
def test_code_in_the_folder_is_not_run_even_if_somebody_would_say_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: type, file: str
) -> None:
    import_transformers()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("builtins.input", lambda _="": "y")
    folder = tmp_path / "model"
    hugging_face_model(folder) if source is HuggingFaceCTC else whisper_model(folder)
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nclass Theirs: pass\n")
    names = ("AutoConfig", "AutoModelForCTC", "AutoFeatureExtractor", "AutoProcessor")
    kinds = {"model_type": "theirs", "feature_extractor_type": "Theirs"}
    asks = {**kinds, "auto_map": dict.fromkeys(names, "theirs.Theirs")}
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **asks}))
    with pytest.raises(ModelError, match="is never run" if source is HuggingFaceCTC else None):
        source(folder).load("cpu")
    assert not (tmp_path / "was_run").exists()


def test_a_folder_of_another_model_is_no_whisper(tmp_path: Path) -> None:
    hugging_face_model(tmp_path)
    with pytest.raises(ModelError, match="not a Whisper model; expected whisper; got wav2vec2"):
        Whisper(tmp_path).load("cpu")


def test_transformers_comes_up_beside_this_torchaudio() -> None:
    """Its audio code imports torchaudio, whose extension may not load: in a process of its own."""
    program = "from kdasr.teachers.hugging_face import import_transformers as t; t().WhisperFeatureExtractor"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


def test_options_are_those_that_decide_and_in_order() -> None:
    class Config:
        def to_dict(self) -> dict[str, object]:
            return {"transformers_version": "1", "hidden_size": 4, "_name_or_path": "here", "act": "gelu"}

    assert list(options_of(Config()).items()) == [("act", "gelu"), ("hidden_size", 4)]


def test_of_a_model_of_many_languages_one_is_asked_for(tmp_path: Path) -> None:
    """Its own weights are of one, and the folder has an adapter for each."""
    network, _ = hugging_face_model(tmp_path, adapter_attn_dim=8)
    german = {piece: unit for unit, piece in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "a", "ä"])}
    vocabularies = {"eng": json.loads((tmp_path / "vocab.json").read_text()), "deu": german}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabularies))
    tokenizer = import_transformers().Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), word_delimiter_token="|", target_lang="eng"
    )
    tokenizer.save_pretrained(tmp_path)
    adapters = {name: weights.detach().clone() for name, weights in network._get_adapters().items()}
    save_file(adapters, tmp_path / "adapter.eng.safetensors")
    adapters |= {"lm_head.weight": torch.randn(7, 32), "lm_head.bias": torch.randn(7)}
    save_file(adapters, tmp_path / "adapter.deu.safetensors")
    teachers = {name: HuggingFaceCTC(tmp_path, target_lang=name).load("cpu") for name in ("deu", "eng")}
    assert teachers["deu"].units.symbols == ["<blk>", "<s>", "</s>", "<unk>", "▁", "a", "ä"]
    assert teachers["deu"].weights_hash != teachers["eng"].weights_hash
    samples = torch.from_numpy(noise(1.0, 3))[None]
    with torch.inference_mode():
        found, _ = teachers["deu"].model.offline(samples, torch.tensor([16_000]))
    assert found.shape[2] == 7
    with pytest.raises(ModelError, match=r"expected target_lang: one of deu, eng; got no target_lang"):
        HuggingFaceCTC(tmp_path).load("cpu")
    with pytest.raises(ModelError, match=r"one of deu, eng; got pol"):
        HuggingFaceCTC(tmp_path, target_lang="pol").load("cpu")
    hugging_face_model(tmp_path / "english")
    with pytest.raises(ModelError, match=r"no adapter for the language; expected no target_lang; got deu"):
        HuggingFaceCTC(tmp_path / "english", target_lang="deu").load("cpu")
