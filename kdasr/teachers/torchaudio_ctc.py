"""torchaudio's wav2vec 2.0, HuBERT and WavLM with a CTC head, as teachers.

    teacher: !new:kdasr.teachers.torchaudio_ctc.TorchaudioCTC
        bundle: WAV2VEC2_ASR_BASE_960H

takes samples and gives posteriors of letters every 20 ms. torchaudio comes with kdasr; weights do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.compat import import_torchaudio
from kdasr.errors import ConfigError, ModelError
from kdasr.teachers.base import (
    Pretrained,
    Teacher,
    hash_files,
    normalise_samples,
    not_there,
    pretrained_teacher,
    rows,
)

_WORD_MARK = "|"


@dataclass(frozen=True)
class TorchaudioCTC:
    """A CTC model of torchaudio: a bundle by name, or an architecture with weights of your own.

    Attributes:
        bundle: name of a bundle with letters in `torchaudio.pipelines`, e.g. WAV2VEC2_ASR_BASE_960H or
            HUBERT_ASR_LARGE.
        weights: a state dict, .pt or .safetensors; None for the bundle's in torch.hub's cache, or for the
            .safetensors file named like `architecture`.
        architecture: instead of a bundle, a JSON file: `{"model": "wav2vec2_model" or "wavlm_model",
            "parameters": {…}, "labels": […], "normalize_waveform": false}`; blank is the first label.
    """

    bundle: str | None = None
    weights: str | Path | None = None
    architecture: str | Path | None = None

    def load(self, device: str) -> Teacher:
        """The teacher on `device`.

        Raises:
            ConfigError: not exactly one of bundle and architecture is given, or there is no such bundle.
            ModelError: the weights are not on this machine or do not fit.
        """
        if (self.bundle is None) == (self.architecture is None):
            raise ConfigError(
                "a torchaudio teacher needs either a bundle or an architecture",
                where="teacher",
                expected="one of `bundle` and `architecture`, and null for the other",
                got="both" if self.bundle is not None else "neither",
            )
        if self.bundle is not None:
            network, labels, normalise, path, built_by = _from_bundle(self.bundle, self.weights)
        else:
            architecture = Path(str(self.architecture))
            network, labels, normalise, path, built_by = _from_architecture(architecture, self.weights)
        # Padding affects group norm over time and WavLM's attention.
        pads = not any(isinstance(part, nn.GroupNorm) for part in network.feature_extractor.modules())
        pads = pads and not any(type(part).__name__ == "WavLMSelfAttention" for part in network.modules())
        return pretrained_teacher(
            _Model(network, normalise),
            kind="torchaudio CTC",
            source=self.bundle or "",
            symbols=labels,
            weights_hash=hash_files([path], normalise, *built_by),
            device=device,
            pads=pads,
        )


class _Model(Pretrained):
    def __init__(self, network: nn.Module, normalise: bool) -> None:
        super().__init__(blank_id=0)
        self.network, self.normalise = network, normalise

    def posteriors(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalise:
            # One by one: the library's own wrapper would normalise over the whole batch.
            inputs = inputs.clone()
            for item in rows(inputs, lengths_b):
                item.copy_(normalise_samples(item, 1e-5))
        if len(inputs) == 1 or bool((lengths_b == inputs.shape[1]).all()):
            logits_btv, _ = self.network(inputs)
            frames_b = lengths_b.new_full((len(inputs),), logits_btv.shape[1])
        else:
            logits_btv, frames_b = self.network(inputs, lengths_b)
        return logits_btv.float().log_softmax(-1), frames_b


# Network, labels, whether samples are normalised, file of weights, and what else the posteriors depend on.
_Parts = tuple[Any, Sequence[str], bool, Path, tuple[str, ...]]


def _from_bundle(name: str, weights: str | Path | None) -> _Parts:
    pipelines = import_torchaudio().pipelines
    found = {one: getattr(pipelines, one) for one in pipelines.__all__}
    known = {one: bundle for one, bundle in found.items() if _WORD_MARK in getattr(bundle, "_labels", ())}
    bundle = known.get(name)
    if bundle is None or bundle.sample_rate != SAMPLE_RATE_HZ:
        raise ConfigError(
            "no bundle with letters has this name", where="bundle", expected=", ".join(known), got=name
        )
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(bundle._path).name
    path = Path(weights) if weights is not None else cached
    if not path.is_file():
        raise not_there(
            f"the weights file of {name}",
            path,
            # Not `import torchaudio`, which fails with some builds of torch (see kdasr.compat).
            "With network access, "
            f"`python -c 'import kdasr.compat as c; c.import_torchaudio().pipelines.{name}.get_model()'` "
            f"fetches {cached.name} into torch.hub's cache; or set `weights` to a copy of it.",
        )
    # torch.hub uses the existing file and fetches nothing.
    where = {"model_dir": str(path.parent), "file_name": path.name, "map_location": "cpu"}
    try:
        network = bundle.get_model(dl_kwargs={**where, "weights_only": True})
    except Exception as error:  # unpickling invalid files may raise anything
        raise ModelError("the weights cannot be read", where=path, got=repr(error)) from error
    # Models that need normalised samples come in a wrapper.
    normalise = bool(getattr(network, "normalize_waveform", False))
    return network.model if normalise else network, bundle.get_labels(), normalise, path, ()


def _from_architecture(file: Path, weights: str | Path | None) -> _Parts:
    try:
        card: Mapping[str, Any] = json.loads(file.read_text())
        kind, parameters, labels = card["model"], card["parameters"], [*card["labels"]]
        if kind not in ("wav2vec2_model", "wavlm_model"):
            raise ValueError(f"model {kind!r}")
        network: nn.Module = getattr(import_torchaudio().models, kind)(**parameters)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the architecture cannot be read",
            where=f"architecture: {file}",
            expected='a file of {"model": "wav2vec2_model" or "wavlm_model", '
            '"parameters": {…}, "labels": […]}',
            got=repr(error),
        ) from error
    path = Path(weights) if weights is not None else file.with_suffix(".safetensors")
    if not path.is_file():
        raise not_there("the state dict", path, "Set `weights` to its path.")
    return (
        _with_state(network, _read_state(path), path),
        labels,
        bool(card.get("normalize_waveform", False)),
        path,
        (kind, json.dumps(parameters, sort_keys=True)),
    )


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading invalid files of either format may raise anything
        raise ModelError("the weights cannot be read", where=path, got=repr(error)) from error
    return state


def _with_state(network: nn.Module, state: dict[str, Tensor], where: object) -> nn.Module:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError("the weights do not fit the model", where=str(where), got=error) from error
    return network
