"""SpeechBrain's EncoderASR as a teacher: its own posteriors, its YAML read without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdasr.errors import ModelError
from kdasr.recipe import load_hyperpyyaml
from kdasr.teachers.speechbrain_ctc import SpeechBrainCTC
from kdasr.text import train_sentencepiece
from tests.teachers.tiny_models import LETTERS, noise

YAML = """
sample_rate: 16000
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 40
normalizer: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
enc: !new:speechbrain.nnet.containers.Sequential
    input_shape: [null, null, 40]
    conv: !name:speechbrain.nnet.CNN.Conv1d
        out_channels: 24
        kernel_size: 5
        stride: 2
    rnn: !name:speechbrain.nnet.RNN.GRU
        hidden_size: 16
        bidirectional: true
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 32
    n_neurons: CLASSES
log_softmax: !new:speechbrain.nnet.activations.Softmax
    apply_log: true
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalizer: !ref <normalizer>
    enc: !ref <enc>
    ctc_lin: !ref <ctc_lin>
    log_softmax: !ref <log_softmax>
modules:
    encoder: !ref <encoder>
model: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <ctc_lin>]
tokenizer: !new:TOKENIZER
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: 0
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
        tokenizer: !ref <tokenizer>
"""
ENCODER = "speechbrain.dataio.encoder.CTCTextEncoder"


def save(folder: Path, classes: int, tokenizer: str = ENCODER) -> Any:
    """A folder with hyperparams.yaml and model.ckpt as SpeechBrain's recipes leave it; its modules."""
    torch.manual_seed(0)
    text = YAML.replace("CLASSES", str(classes)).replace("TOKENIZER", tokenizer)
    (folder / "hyperparams.yaml").write_text(text)
    built = load_hyperpyyaml(text)
    torch.save(built["model"].state_dict(), folder / "model.ckpt")
    return built["encoder"].eval()


def save_letters(folder: Path) -> Any:
    from speechbrain.dataio.encoder import CTCTextEncoder

    tokenizer = CTCTextEncoder()
    tokenizer.insert_blank(index=0)
    for letter in [" ", *LETTERS[5:]]:
        tokenizer.add_label(letter)
    tokenizer.save(folder / "tokenizer.ckpt")
    return save(folder, len(LETTERS) - 3)


@torch.inference_mode()
def test_posteriors_are_the_librarys_own(tmp_path: Path) -> None:
    encoder = save_letters(tmp_path)
    teacher = SpeechBrainCTC(tmp_path).load("cpu")
    samples = torch.from_numpy(noise(0.9))[None]
    wanted = encoder(samples, torch.ones(1))
    got, frames = teacher.model.offline(samples, torch.tensor([14_400]))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert frames.tolist() == [wanted.shape[1]] and wanted.shape[1] in (45, 46)
    assert teacher.pads is False and teacher.facts["frame_shift_ms"] == 20.0
    assert teacher.units.symbols[:4] == ["<blk>", "▁", "e", "t"]
    assert teacher.units.encode("to me") == teacher.units.encode("to  me")


def test_weights_decide_the_hash_and_the_place_does_not(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        save_letters(tmp_path / name)
    state = torch.load(tmp_path / "c" / "model.ckpt", weights_only=True)
    next(iter(state.values())).add_(0.5)
    torch.save(state, tmp_path / "c" / "model.ckpt")
    hashes = [SpeechBrainCTC(tmp_path / name).load("cpu").weights_hash for name in ("a", "b", "c")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_word_pieces_come_with_their_model(tmp_path: Path) -> None:
    units = train_sentencepiece(["one two ten", "net own tone", "to one two"], 12)
    (tmp_path / "tokenizer.ckpt").write_bytes(units.model_bytes)
    save(tmp_path, units.vocab_size, "sentencepiece.SentencePieceProcessor")
    teacher = SpeechBrainCTC(tmp_path).load("cpu")
    assert teacher.units.symbols == units.symbols
    assert teacher.units.encode("two ten") == units.encode("two ten")


def test_weights_that_would_stay_random_are_refused(tmp_path: Path) -> None:
    save_letters(tmp_path)
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)
    name = next(name for name in state if name.endswith("w.bias"))
    del state[name]
    torch.save(state, tmp_path / "model.ckpt")
    with pytest.raises(
        ModelError, match=rf"do not belong to the model that its YAML builds.*got none for {name}$"
    ):
        SpeechBrainCTC(tmp_path).load("cpu")


def test_what_is_missing_is_named_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"not on this machine.*hf download speechbrain/nothing"):
        SpeechBrainCTC("speechbrain/nothing").load("cpu")
    save_letters(tmp_path)
    yaml = tmp_path / "hyperparams.yaml"
    fetches = "extra: !apply:huggingface_hub.snapshot_download {repo_id: some/where}\n"
    yaml.write_text(yaml.read_text() + fetches)
    with pytest.raises(ModelError, match=r"cannot load.*(offline|Offline|LocalEntryNotFound)"):
        SpeechBrainCTC(tmp_path).load("cpu")
    save_letters(tmp_path)
    (tmp_path / "model.ckpt").unlink()
    with pytest.raises(ModelError, match=r"cannot load.*model\.ckpt"):
        SpeechBrainCTC(tmp_path).load("cpu")
