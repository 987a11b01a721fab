"""SpeechBrain's `EncoderASR` models, as teachers.

    teacher: !new:kdasr.teachers.speechbrain_ctc.SpeechBrainCTC
        path: speechbrain/asr-wav2vec2-librispeech

Its hyperparams.yaml builds the model including its features, so its input is samples. That file is
HyperPyYAML, which runs code: load only models from people you trust. Batches hold utterances of equal
length only, since padding would affect SpeechBrain's convolutions and recurrent layers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.compat import import_torchaudio
from kdasr.errors import ModelError
from kdasr.symbols import shorten
from kdasr.teachers.base import Pretrained, Teacher, not_in_cache, not_there, pretrained_teacher


@dataclass(frozen=True)
class SpeechBrainCTC:
    """An `EncoderASR`: a folder with its hyperparams.yaml, or a repository in the hub's cache.

    Attributes:
        path: the folder, or the name of a repository that is in the cache on this machine.
        hparams_file: name of the YAML in it.
        blank_id: class of blank; None to read it from the YAML or the tokenizer.
    """

    path: str | Path
    hparams_file: str = "hyperparams.yaml"
    blank_id: int | None = None

    def load(self, device: str) -> Teacher:
        """The teacher on `device`.

        Raises:
            ModelError: the model is not on this machine, or is not a CTC model.
        """
        asr, hparams = _load(str(self.path), self.hparams_file, device)
        rate = getattr(asr.hparams, "sample_rate", SAMPLE_RATE_HZ)
        if int(rate) != SAMPLE_RATE_HZ:
            raise ModelError("the model is for another sample rate", where=str(self.path), got=rate)
        symbols, model_bytes = _symbols(asr.tokenizer, str(self.path))
        blank_id = self.blank_id if self.blank_id is not None else _blank(asr)
        return pretrained_teacher(
            _Model(asr, blank_id),
            kind="SpeechBrain EncoderASR",
            source="" if Path(self.path).exists() else str(self.path),
            symbols=symbols,
            weights_hash=_hash(asr, hparams),
            device=device,
            pads=False,
            model_bytes=model_bytes,
        )


class _Model(Pretrained):
    def __init__(self, asr: Any, blank_id: int) -> None:
        super().__init__(blank_id)
        self.asr = asr

    def posteriors(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        # All inputs have the same length, since `pads` is False.
        log_probs_btv = self.asr.encode_batch(inputs, torch.ones(len(inputs), device=inputs.device))
        frames_b = lengths_b.new_full((len(inputs),), log_probs_btv.shape[1])
        return log_probs_btv.float().log_softmax(-1), frames_b


def _load(path: str, hparams_file: str, device: str) -> tuple[Any, bytes]:
    import_torchaudio()
    from speechbrain.inference.ASR import EncoderASR
    from speechbrain.utils.fetching import FetchConfig, fetch

    offline = FetchConfig(allow_network=False)
    try:
        # SpeechBrain takes anything that is not a folder for the name of a repository.
        source = str(Path(path).absolute()) if Path(path).exists() else path
        hparams = Path(fetch(hparams_file, source, fetch_config=offline)).read_bytes()
    except Exception as error:  # the library raises many types of error for a missing file
        what = f"{hparams_file} of the model {path}"
        if Path(path).is_dir():
            raise not_there(what, path, "Fetch the whole model.") from error
        raise not_in_cache(what, path) from error
    try:
        with _no_network(), _not_found() as missing:
            asr = EncoderASR.from_hparams(
                source, hparams_file=hparams_file, fetch_config=offline, run_opts={"device": device}
            )
    except Exception as error:  # the constructors in the YAML may raise anything
        raise ModelError(
            "SpeechBrain cannot load the model",
            where=path,
            expected="the files that its hyperparams.yaml names, on this machine",
            got=f"{type(error).__name__}: {error}",
        ) from error
    if missing:
        raise ModelError(
            "the weights do not belong to the model that its YAML builds",
            where=path,
            expected="all of its weights",
            got=f"none for {shorten(', '.join(missing))}",
        )
    return asr, hparams


@contextmanager
def _no_network() -> Iterator[None]:
    """Keep the hub's library offline: objects in the YAML may try to fetch models of their own."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _not_found() -> Iterator[list[str]]:
    """Collect the weights for which SpeechBrain finds no values: it leaves them random, with only a line in
    the log of the first process."""
    missing: list[str] = []
    load = torch.nn.Module.load_state_dict

    def listen(module: torch.nn.Module, *given: Any, **settings: Any) -> Any:
        found = load(module, *given, **settings)
        missing.extend(found.missing_keys)
        return found

    torch.nn.Module.load_state_dict = listen  # type: ignore[method-assign, assignment]
    try:
        yield missing
    finally:
        torch.nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _symbols(tokenizer: Any, where: str) -> tuple[list[str], bytes | None]:
    """The symbols of a CTCTextEncoder or a SentencePiece model, and the serialised model of the latter."""
    if hasattr(tokenizer, "ind2lab"):
        return [str(tokenizer.ind2lab[unit]) for unit in range(len(tokenizer.ind2lab))], None
    if hasattr(tokenizer, "id_to_piece"):
        pieces = [tokenizer.id_to_piece(unit) for unit in range(tokenizer.get_piece_size())]
        return pieces, tokenizer.serialized_model_proto()
    raise ModelError(
        "the tokenizer has no symbols",
        where=where,
        expected="a CTCTextEncoder or a SentencePiece model",
        got=type(tokenizer).__name__,
    )


def _blank(asr: Any) -> int:
    """The class of blank, from the YAML (which has several places for it) or the tokenizer."""
    function = asr.hparams.decoding_function
    said: dict[str, Any] = dict(function.keywords) if isinstance(function, functools.partial) else {}
    said |= dict(getattr(asr.hparams, "test_beam_search", {}))
    for name in ("blank_id", "blank_index"):
        if name in said:
            return int(said[name])
    if hasattr(asr.hparams, "blank_index"):
        return int(asr.hparams.blank_index)
    if hasattr(asr.tokenizer, "blank_label"):
        return int(asr.tokenizer.get_blank_index())
    raise ModelError("the model does not say which class is blank", fix="Give its id as `blank_id`.")


def _hash(asr: Any, hparams: bytes) -> str:
    """sha256 of the YAML and all weights, from whichever files they were read."""
    digest = hashlib.sha256(hparams)
    for name, tensor in sorted(asr.mods.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
