"""Models with a CTC head in Hugging Face's format, as teachers.

    teacher: !new:kdasr.teachers.hugging_face.HuggingFaceCTC
        path: facebook/wav2vec2-base-960h

Wav2Vec2ForCTC, HubertForCTC, WavLMForCTC and similar models take samples, Wav2Vec2BertForCTC takes
features; each model's own feature extractor prepares its input. Needs `kdasr[hf]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.compat import import_torchaudio
from kdasr.errors import MissingDependencyError, ModelError
from kdasr.symbols import shorten
from kdasr.teachers.base import (
    Pretrained,
    Teacher,
    hash_files,
    not_in_cache,
    not_there,
    options_of,
    pretrained_teacher,
    rows,
)

_WEIGHTS = ("*.safetensors", "*.bin")
# How the library reads a folder. Without the second, it asks at a terminal whether to run the folder's code.
AS_IT_IS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}

# Models of samples that mask padding everywhere, unless their configuration adds parts that do not.
_MASKING = {"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"}
# Used only by SpecAugment in training, and missing in published weights (facebook/wav2vec2-base-960h).
_OF_TRAINING = "masked_spec_embed"


@dataclass(frozen=True)
class HuggingFaceCTC:
    """A `…ForCTC` model: a folder written by `save_pretrained`, or a repository in the hub's cache.

    Attributes:
        path: the folder, or the name of a repository that is in the cache on this machine.
        revision: of the repository; None for the cached revision of `main`.
        target_lang: language to recognise, for a model with an adapter for each language, such as `deu` for
            facebook/mms-1b-all.
    """

    path: str | Path
    revision: str | None = None
    target_lang: str | None = None

    def load(self, device: str) -> Teacher:
        """The teacher on `device`.

        Raises:
            MissingDependencyError: transformers is not installed.
            ModelError: the model is not on this machine, has no CTC head, or has adapters for languages
                but none for `target_lang`.
        """
        transformers = import_transformers()
        folder = find_folder(self.path, self.revision)
        network, extractor, tokenizer = _load(transformers, folder, self.target_lang)
        if extractor.sampling_rate != SAMPLE_RATE_HZ:
            raise ModelError(
                "the model is for another sample rate",
                where=folder,
                expected=f"{SAMPLE_RATE_HZ} Hz",
                got=f"{extractor.sampling_rate} Hz",
            )
        classes = network.config.vocab_size
        names = {unit: symbol for symbol, unit in tokenizer.get_vocab().items()}
        return pretrained_teacher(
            _Model(network, extractor),
            kind=type(network).__name__,
            source=public_name(self.path),
            symbols=[names.get(unit, f"<{unit}>") for unit in range(classes)],
            weights_hash=hash_files(
                [*weight_files(folder), *_adapter(folder, self.target_lang)],
                extractor.to_dict() | options_of(network.config),
            ),
            device=device,
            pads=_pads(network, extractor),
        )


def _pads(network: Any, extractor: Any) -> bool:
    """Whether a model is known to be unaffected by padding. Norms over time and unmasked convolutions are
    affected by it, and a feature extractor rounds the length of a single input up."""
    config = network.config
    hears_samples = extractor.model_input_names[0] == "input_values"
    masks = config.model_type in _MASKING and getattr(config, "feat_extract_norm", None) == "layer"
    others = getattr(config, "add_adapter", False) or getattr(config, "conv_pos_batch_norm", False)
    return hears_samples and masks and not others


class _Model(Pretrained):
    def __init__(self, network: Any, extractor: Any) -> None:
        super().__init__(blank_id=int(network.config.pad_token_id))
        self.network, self.extractor = network, extractor

    def posteriors(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        samples = [item.cpu().numpy() for item in rows(inputs, lengths_b)]
        padded = len({len(item) for item in samples}) > 1
        heard = self.extractor(
            samples,
            sampling_rate=SAMPLE_RATE_HZ,
            padding=True,
            return_attention_mask=True if padded else None,  # None: as the model was trained
            return_tensors="pt",
        ).to(inputs.device)
        logits_btv = self.network(**heard).logits
        frames_b = lengths_b.new_full((len(samples),), logits_btv.shape[1])
        if padded:
            mask_bl = heard["attention_mask"]
            frames_b = self.network._get_feat_extract_output_lengths(mask_bl.sum(-1))
            frames_b = frames_b.clamp_max(logits_btv.shape[1]).to(lengths_b)
        return logits_btv.float().log_softmax(-1), frames_b


def import_transformers() -> Any:
    """The package transformers.

    Raises:
        MissingDependencyError: it is not installed.
    """
    # Its audio code imports torchaudio, which works with every build of torch only if imported this way.
    import_torchaudio()
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", "hf") from error
    # Without these, each worker would show a progress bar for loading weights amid the job's own, warnings
    # about the library's own calls, and tables of weights; `load_network` reports those that matter.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def find_folder(path: str | Path, revision: str | None) -> Path:
    """The folder of a model: `path` itself, or that of the repository of this name in the hub's cache.

    Raises:
        ModelError: neither exists.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(str(path), revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise not_in_cache(f"the model {path}", path) from error
    return found


def public_name(path: str | Path) -> str:
    """The name of a repository; empty for a folder."""
    return "" if Path(path).is_dir() else str(path)


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of the model in `folder`.

    Raises:
        ModelError: there are none.
    """
    for pattern in _WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise not_there("the weights file", folder, f"Fetch the whole model: {' or '.join(_WEIGHTS)} is missing.")


def load_network(kind: Any, folder: Path, **settings: Any) -> Any:
    """Load the network of the library's class `kind` in `folder` as float32, whatever it was saved as:
    autocast applies the precision of labelling.

    Raises:
        ModelError: weights are missing, which the library would initialise at random.
    """
    network, found = kind.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **AS_IT_IS, **settings
    )
    if missing := sorted(name for name in found["missing_keys"] if not name.endswith(_OF_TRAINING)):
        raise ModelError(
            "the weights belong to another kind of model, or to one that has not been fine-tuned",
            where=folder,
            expected=f"all weights of a {type(network).__name__}",
            got=f"none for {shorten(', '.join(missing))}",
        )
    return network


def _adapter(folder: Path, language: str | None) -> list[Path]:
    """The file of a language's adapter, whose weights replace some of the model's."""
    return [] if language is None else [*folder.glob(f"adapter.{language}.*")]


def _check_language(config: Any, folder: Path, language: str | None) -> None:
    """Raise ModelError unless `language` names an adapter of the model, or is None and there is no choice."""
    known = sorted({path.name.split(".")[1] for path in folder.glob("adapter.*.*")})
    has_adapters = getattr(config, "adapter_attn_dim", None) is not None
    if has_adapters and len(known) > 1 and language not in known:
        raise ModelError(
            "the model has adapters for several languages, so one must be chosen",
            where=folder,
            expected=f"target_lang: one of {shorten(', '.join(known))}",
            got=language or "no target_lang",
        )
    if language is not None and not (has_adapters and language in known):
        raise ModelError(
            "the model has no adapter for the language",
            where=folder,
            expected=shorten(", ".join(known)) or "no target_lang",
            got=language,
            fix="Load it with this target_lang once with network access: the hub's cache keeps the adapter.",
        )


def _load(transformers: Any, folder: Path, language: str | None) -> tuple[Any, Any, Any]:
    weight_files(folder)
    settings = {} if language is None else {"target_lang": language, "ignore_mismatched_sizes": True}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **AS_IT_IS)
        _check_language(config, folder, language)
        network = load_network(transformers.AutoModelForCTC, folder, **settings)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, **AS_IT_IS)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **AS_IT_IS)
        if language is not None:
            tokenizer.set_target_lang(language)
    except ModelError:
        raise
    except Exception as error:  # the library raises many types of error for missing or unsuitable files
        raise ModelError(
            "not a model with a CTC head that transformers can load",
            where=folder,
            expected="config, preprocessor and vocabulary of a …ForCTC model",
            got=f"{type(error).__name__}: {error}",
            fix="Code from a model's folder is never run." if "trust_remote_code" in str(error) else None,
        ) from error
    return network, extractor, tokenizer
