"""Whisper, a teacher without frame posteriors: transcripts, as sequence-level labels.

    teacher: !new:kdasr.teachers.whisper.Whisper
        path: openai/whisper-small.en

An encoder-decoder says what was spoken and not when. Its transcript is normalised, spelled in kdasr's
characters, and stored as the shortest CTC path that spells it, with the model's mean log-probability of
a token as that of every unit. A student learns from it by CTC (`kdasr.losses.best_path_ctc`); losses on
frames refuse it. Tokens that cannot be normalised, digits among them, are suppressed, so that numbers come
as words. A transcript that does not end is cut off where nobody would have spoken on: Whisper sometimes
says the same words again and again, and is sure of them (the `MaxUnitRate` of a label job drops these).
The speech is taken to be English where nothing else is said. Needs `kdasr[hf]`.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ModelError, UnitsError
from kdasr.symbols import shorten
from kdasr.teachers.base import WAVEFORM, Teacher, hash_files, options_of, rows, spell
from kdasr.teachers.hugging_face import find_folder, import_transformers, public_name, weight_files
from kdasr.text import CharUnits, letters_in, normalise

_MAX_SECONDS = 30.0
# More tokens than anybody speaks: of English, some four a second.
_TOKENS_PER_SECOND, _FIRST_TOKENS = 16, 16
_PROMPT_TOKENS = 4
# What transformers 5 says of the arguments that it passes to itself, and of a limit below the model's own.
_OF_ITSELF = ("Passing `generation_config` together with", "Both `max_new_tokens`")


@dataclass(frozen=True)
class Whisper:
    """A Whisper model: a folder as `save_pretrained` writes it, or a repository of the hub's cache.

    Attributes:
        path: the folder, or the name of a repository that is in the cache on this machine.
        revision: of the repository; None for the one that the cache calls main.
        language: what is spoken, as Whisper abbreviates it.
        letters: that the language has beyond a-z: `äöüß`.
    """

    path: str | Path
    revision: str | None = None
    language: str = "en"
    letters: str = ""

    def load(self, device: str) -> Teacher:
        """The teacher on `device`.

        Raises:
            MissingDependencyError: transformers is not installed.
            ModelError: the model is not on this machine, is no Whisper, or does not know the language.
            UnitsError: `letters` are something else.
        """
        transformers = import_transformers()
        logging.getLogger("transformers.generation.utils").addFilter(_not_of_itself)
        folder = find_folder(self.path, self.revision)
        weights = weight_files(folder)
        try:
            network = transformers.WhisperForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32
            )
            processor = transformers.WhisperProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the library raises all kinds for what is missing or of another kind
            raise ModelError(
                "not a Whisper model that transformers can load",
                where=folder,
                got=f"{type(error).__name__}: {error}",
            ) from error
        units, source = CharUnits(self.letters), public_name(self.path)
        asked = _asked(network.generation_config, self.language, folder)
        model = _Model(network, processor, units, asked).eval().to(device).requires_grad_(False)
        return Teacher(
            model,
            f"Whisper {source}".strip(),
            hash_files(
                weights,
                options_of(network.config, network.generation_config),
                processor.feature_extractor.to_dict(),
                *([self.language] if self.language != "en" else []),
            ),
            units.hash,
            WAVEFORM.hash,
            torch.device(device),
            units,
            WAVEFORM,
            level="sequence",
            max_seconds=_MAX_SECONDS,
            facts={
                "kind": "Whisper",
                "source": source,
                "hears": WAVEFORM.name,
                "level": "sequence",
            },
        )


class _Model(torch.nn.Module):
    """An `AcousticModel` whose frames are the units of a transcript."""

    subsampling = 1

    def __init__(self, network: Any, processor: Any, units: CharUnits, asked: dict[str, str]) -> None:
        super().__init__()
        self.network, self.processor = network, processor
        self.config: dict[str, Any] = {}
        self.units, self.letters, self.asked = units, letters_in(units.symbols), asked
        self.vocab_size = units.vocab_size
        self.how = copy.deepcopy(network.generation_config)
        self.how.update(return_dict_in_generate=True, output_scores=True, do_sample=False, num_beams=1)
        self.how.suppress_tokens = sorted(
            {*(self.how.suppress_tokens or []), *_unspoken(processor.tokenizer, self.letters)}
        )

    def offline(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) samples and (B,) lengths to (B, L, V) log-probs of spelled transcripts, and (B,) L: 0 where
        there are no words.

        Raises:
            UnitsError: there are words that kdasr's characters cannot spell.
        """
        found = self.transcribe(rows(inputs, lengths_b))
        paths = [spell(self.units.encode(text), score, self.vocab_size) for text, score in found]
        padded = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True).to(inputs.device)
        return padded, torch.tensor([len(path) for path in paths])

    def transcribe(self, samples: Sequence[Tensor]) -> list[tuple[str, float]]:
        """The normalised transcript of each, and its mean log-probability of a token.

        Raises:
            UnitsError: a transcript cannot be normalised.
        """
        device = next(self.network.parameters()).device
        heard = self.processor.feature_extractor(
            [item.cpu().numpy() for item in samples],
            sampling_rate=SAMPLE_RATE_HZ,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        limits_b = torch.tensor([self._most_tokens(len(item) / SAMPLE_RATE_HZ) for item in samples])
        said = self.network.generate(
            heard["input_features"],
            attention_mask=heard["attention_mask"],
            generation_config=self.how,
            max_new_tokens=int(limits_b.max()),
            return_dict_in_generate=True,
            **self.asked,
        )
        scores_bu = self.network.compute_transition_scores(
            said["sequences"], said["scores"], normalize_logits=True
        )
        tokens_bu = said["sequences"][:, -scores_bu.shape[1] :]
        # Each as if it were alone, whatever its batch was given time for.
        within_bu = torch.arange(tokens_bu.shape[1], device=device) < limits_b.to(device)[:, None]
        tokens_bu = tokens_bu.where(within_bu, self.how.eos_token_id)
        texts = self.processor.tokenizer.batch_decode(tokens_bu, skip_special_tokens=True)
        ends_bu = (tokens_bu == self.how.eos_token_id).int().cumsum(1)
        # Up to the first end of the text, and with it.
        counts_bu = ((ends_bu == 0) | ((ends_bu == 1) & (tokens_bu == self.how.eos_token_id))) & within_bu
        means_b = (scores_bu.nan_to_num(neginf=-1e4) * counts_bu).sum(1) / counts_bu.sum(1)
        normal = [normalise(text, self.letters) for text in texts]
        return [(text, float(mean)) for text, mean in zip(normal, means_b, strict=True)]

    def _most_tokens(self, seconds: float) -> int:
        room = self.network.config.max_target_positions - _PROMPT_TOKENS
        return min(_FIRST_TOKENS + math.ceil(_TOKENS_PER_SECOND * seconds), room)


def _not_of_itself(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_OF_ITSELF)


def _asked(how: Any, language: str, where: Path) -> dict[str, str]:
    """What a multilingual Whisper is asked for; others hear English."""
    multilingual = bool(getattr(how, "is_multilingual", False))
    codes = how.lang_to_id if multilingual else ["en"]
    known = sorted(code.strip("<|>") for code in codes)
    if language not in known:
        raise ModelError(
            "this Whisper does not know the language",
            where=where,
            expected=shorten(", ".join(known)),
            got=language,
        )
    return {"language": language, "task": "transcribe"} if multilingual else {}


def _unspoken(tokenizer: Any, letters: str) -> list[int]:
    """Tokens whose text has no certain spoken form, such as digits."""
    vocabulary = {*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}
    texts = zip(
        sorted(vocabulary), tokenizer.batch_decode([[unit] for unit in sorted(vocabulary)]), strict=True
    )
    return [unit for unit, text in texts if not _is_spoken(text, letters)]


def _is_spoken(text: str, letters: str) -> bool:
    try:
        normalise(text, letters)
    except UnitsError:
        return False
    return True
