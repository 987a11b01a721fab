"""Whisper, a teacher without frame posteriors: transcripts, as sequence-level labels.

    teacher: !new:kdasr.teachers.whisper.Whisper
        path: openai/whisper-small.en

An encoder-decoder gives the words but not their times. Its transcript is normalised, spelled in kdasr's
characters, and stored as the shortest CTC path that spells it; every unit gets the mean log-probability of
the model's tokens. Students learn from it with CTC (`kdasr.losses.best_path_ctc`); frame-level losses reject
it. Tokens that cannot be normalised, such as digits, are suppressed, so that numbers are written as words.
Whisper sometimes repeats the same words confidently: a transcript with more tokens than can be spoken in the
time is discarded. The language is English by default. Needs `kdasr[hf]`.
"""

from __future__ import annotations

import copy
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
from kdasr.teachers.hugging_face import (
    AS_IT_IS,
    find_folder,
    import_transformers,
    load_network,
    public_name,
    weight_files,
)
from kdasr.text import CharUnits, letters_in, normalise

_MAX_SECONDS = 30.0
# More tokens than anybody speaks: English has about four a second.
_TOKENS_PER_SECOND, _FIRST_TOKENS = 16, 16
_PROMPT_TOKENS = 4
# In the text of a token: bytes that are not a whole character.
_NOT_WHOLE = "\ufffd"


@dataclass(frozen=True)
class Whisper:
    """A Whisper model: a folder written by `save_pretrained`, or a repository in the hub's cache.

    Attributes:
        path: the folder, or the name of a repository that is in the cache on this machine.
        revision: of the repository; None for the cached revision of `main`.
        language: Whisper's code of the spoken language.
        letters: of the language beyond a-z, such as `äöüß`, or `""` if it has none. None is allowed for
            English only: without its letters, another language would be written in a-z.
    """

    path: str | Path
    revision: str | None = None
    language: str = "en"
    letters: str | None = None

    def load(self, device: str) -> Teacher:
        """The teacher on `device`.

        Raises:
            MissingDependencyError: transformers is not installed.
            ModelError: the model is not on this machine, is not Whisper, or does not know the language.
            UnitsError: `letters` contains something else, or is missing.
        """
        if self.letters is None and self.language != "en":
            raise UnitsError(
                "the letters of the language are not given",
                where="letters",
                expected='those beyond a-z, such as äöüß, or "" if there are none',
                got=f"no letters for language {self.language}",
            )
        transformers = import_transformers()
        folder = find_folder(self.path, self.revision)
        weights = weight_files(folder)
        try:
            kind = transformers.AutoConfig.from_pretrained(folder, **AS_IT_IS).model_type
            if kind != "whisper":
                raise ModelError("not a Whisper model", where=folder, expected="whisper", got=kind)
            network = load_network(transformers.WhisperForConditionalGeneration, folder)
            processor = transformers.WhisperProcessor.from_pretrained(folder, **AS_IT_IS)
        except ModelError:
            raise
        except Exception as error:  # the library raises many types of error for missing or unsuitable files
            raise ModelError(
                "not a Whisper model that transformers can load",
                where=folder,
                got=f"{type(error).__name__}: {error}",
            ) from error
        units, source = CharUnits(self.letters or ""), public_name(self.path)
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
            units,
            torch.device(device),
            WAVEFORM,
            level="sequence",
            max_seconds=_MAX_SECONDS,
            facts={
                "kind": "Whisper",
                "source": source,
                "hears": WAVEFORM.name,
                "level": "sequence",
                "most_tokens_per_second": _TOKENS_PER_SECOND,
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
        self.how.update(do_sample=False, num_beams=1)
        self.how.suppress_tokens = sorted(
            {*(self.how.suppress_tokens or []), *_unspoken(processor.tokenizer, self.letters)}
        )

    def offline(self, inputs: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) samples and (B,) lengths to (B, L, V) log-probs of spelled transcripts and (B,) L, which is
        0 if there are no words."""
        found = self.transcribe(rows(inputs, lengths_b))
        paths = [spell(self.units.encode(text), score, self.vocab_size) for text, score in found]
        padded = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True).to(inputs.device)
        return padded, torch.tensor([len(path) for path in paths])

    def transcribe(self, samples: Sequence[Tensor]) -> list[tuple[str, float]]:
        """Normalised transcripts with their mean log-probability per token; one that does not end by itself,
        or has a letter that the language lacks, is empty."""
        device = next(self.network.parameters()).device
        heard = self.processor.feature_extractor(
            [item.cpu().numpy() for item in samples],
            sampling_rate=SAMPLE_RATE_HZ,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        limits_b = torch.tensor([self._most_tokens(len(item) / SAMPLE_RATE_HZ) for item in samples])
        listener = _Listener(limits_b.to(device), self.how.eos_token_id)
        said = self.network.generate(
            heard["input_features"],
            attention_mask=heard["attention_mask"],
            generation_config=self.how,
            logits_processor=[listener],
            max_new_tokens=int(limits_b.max()) + 1,
            **self.asked,
        )
        texts = self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        ends = zip(texts, listener.endless_b.tolist(), strict=True)
        normal = ["" if is_endless else _normal(text, self.letters) or "" for text, is_endless in ends]
        return list(zip(normal, listener.means().tolist(), strict=True))

    def _most_tokens(self, seconds: float) -> int:
        room = self.network.config.max_target_positions - _PROMPT_TOKENS - 1  # for the end
        return min(_FIRST_TOKENS + math.ceil(_TOKENS_PER_SECOND * seconds), room)


class _Listener:
    """Sums the log-probabilities of the greedily chosen tokens and ends transcripts that do not end by
    themselves. This is a logits processor, which runs after all others, because keeping the scores of all
    tokens would take gigabytes.

    Args:
        limits_b: (B,) most tokens of each transcript before its end.
        end: the token that ends a transcript.

    Attributes:
        endless_b: (B,) whether a transcript was ended here.
    """

    def __init__(self, limits_b: Tensor, end: int) -> None:
        self._limits_b, self._end = limits_b, end
        self._sums_b = torch.zeros(len(limits_b), device=limits_b.device)
        self._counts_b = torch.zeros_like(limits_b)
        self._ended_b = torch.zeros_like(limits_b, dtype=torch.bool)
        self.endless_b = torch.zeros_like(self._ended_b)

    def __call__(self, input_ids: Tensor, scores_bv: Tensor) -> Tensor:
        best_b, tokens_b = scores_bv.float().log_softmax(-1).max(-1)
        goes_on_b = ~self._ended_b
        too_many_b = goes_on_b & (tokens_b != self._end) & (self._counts_b >= self._limits_b)
        counted_b = goes_on_b & ~too_many_b
        self._sums_b += torch.where(counted_b, best_b, 0.0)
        self._counts_b += counted_b
        self.endless_b |= too_many_b
        self._ended_b |= too_many_b | (tokens_b == self._end)
        ended = torch.full_like(scores_bv, -torch.inf)
        ended[:, self._end] = 0.0
        return torch.where(too_many_b[:, None], ended, scores_bv)

    def means(self) -> Tensor:
        """(B,) mean log-probability per token, including the end token."""
        return self._sums_b / self._counts_b.clamp_min(1)


def _asked(how: Any, language: str, where: Path) -> dict[str, str]:
    """The options of generation for a multilingual Whisper; none for an English one."""
    multilingual = bool(getattr(how, "is_multilingual", False))
    codes = how.lang_to_id if multilingual else ["en"]
    known = sorted(code.strip("<|>") for code in codes)
    if language not in known:
        raise ModelError(
            "this Whisper model does not support the language",
            where=where,
            expected=shorten(", ".join(known)),
            got=language,
        )
    return {"language": language, "task": "transcribe"} if multilingual else {}


def _unspoken(tokenizer: Any, letters: str) -> list[int]:
    """Tokens whose text has no definite spoken form, such as digits. Tokens with only some bytes of one of
    `letters`, alone or beside whole ones, have no valid text of their own and are not included."""
    cases = sorted({case for letter in letters for case in (letter, letter.upper())})
    spelled = [
        tokenizer(mark + case, add_special_tokens=False).input_ids for case in cases for mark in ("", " ")
    ]
    of_letters = {unit for units in spelled for unit in units}
    # As the vocabulary writes bytes: a character for each.
    written = ["".join(tokenizer.convert_ids_to_tokens(units)) for units in spelled[::2]]
    begun = {one[:end] for one in written for end in range(len(one))} | {""}
    ended = {one[start:] for one in written for start in range(1, len(one))} | {""}
    vocabulary = sorted({*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids})
    texts = tokenizer.batch_decode([[unit] for unit in vocabulary])

    def is_spoken(token: str, text: str) -> bool:
        whole = text.strip(_NOT_WHOLE)
        rest = len(token) - len(whole.encode()) if whole != text else 0
        return _normal(whole, letters) is not None and any(
            token[:first] in ended and token[len(token) - rest + first :] in begun
            for first in range(rest + 1)
        )

    tokens = zip(vocabulary, tokenizer.convert_ids_to_tokens(vocabulary), texts, strict=True)
    return [unit for unit, token, text in tokens if unit not in of_letters and not is_spoken(token, text)]


def _normal(text: str, letters: str) -> str | None:
    """The normalised text; None if it cannot be normalised."""
    try:
        return normalise(text, letters)
    except UnitsError:
        return None
