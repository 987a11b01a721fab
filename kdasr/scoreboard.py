"""Measure models on test shards: rows of results.json, hypotheses, a spike histogram and an example."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from export.card import read_export_card, refusal
from export.measure import measure_chunks
from export.transcribe import Recogniser, open_recogniser
from kdasr.arguments import check_keywords, fitting
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ConfigError, ModelError, printable
from kdasr.evaluation import (
    Result,
    check_decoder,
    evaluate,
    evaluate_transcriber,
    measure_rtf,
    write_hypotheses,
)
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import Utterance
from kdasr.lexicon import Lexicon
from kdasr.manifest import read_manifest
from kdasr.models import read_card, weights_file
from kdasr.noise import noise_before
from kdasr.reasons import left_out_text
from kdasr.results import MISSING, append_result
from kdasr.shards import left_out_by_prepare, open_shard, read_shard, read_texts
from kdasr.spikes import SPIKES_FILE, spike_histogram, write_histogram
from kdasr.storage import commit_bytes
from kdasr.streaming import algorithmic_latency_ms
from kdasr.teachers.base import TeacherSource
from kdasr.text import CharUnits, Units, letters_in

EXAMPLE_FILE = "example.wav"
# Long enough to time a model, short enough not to take long.
_TIMED_SECONDS = 60
_SHOWN_WORDS = 10


class Scoreboard:
    """Rows of results for models evaluated on the same test shards.

    Args:
        shards: tars of labelled test shards.
        results: the results.json to add rows to; other files are written beside it.
        seed: the run's seed, for the rows.
        decoder: "greedy" or "beam".
        lexicon: sources of the words that the beam search may find, as for `kdasr.lexicon.Lexicon`; None:
            any words.
        test: name of the test set if there are several.
        device: where pretrained teachers run; everything else runs on the CPU.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        results: Path,
        *,
        seed: int,
        decoder: str = "greedy",
        lexicon: Sequence[str] | None = None,
        test: str | None = None,
        device: str = "cpu",
    ) -> None:
        check_decoder(decoder, lexicon)
        self.words: frozenset[str] | None = None
        self.oov_words: int | None = None
        if lexicon is not None:
            texts = [text or "" for path in shards for text in read_texts(open_shard(path))]
            without = "A lexicon is optional: `--lexicon null` searches without one."
            self.words = Lexicon(units=CharUnits(letters_in(texts)), sources=lexicon, without=without).words
            self.oov_words = _tell_oov(texts, self.words, test)
        self.left_out, self.listed = left_out_by_prepare(dict.fromkeys(path.parent for path in shards))
        if self.left_out:
            print(left_out_text(test or "test set", self.left_out, self.listed), file=sys.stderr)
        # What results depend on besides the model: rows that differ in it cannot be compared.
        self.measured = {
            "decoder": decoder,
            "words": None if self.words is None else _hash_of_words(self.words),
            "test_audio": _hash_of(shards),
        }
        self.shards, self.results, self.seed, self.test = list(shards), results, seed, test
        self.decoder, self.lexicon, self.device = decoder, lexicon, device
        self.heard: dict[str, Result] = {}
        self._frames_and_units: dict[str, tuple[int, str]] = {}
        # Names of rows measured on whole utterances, by path and chunk_ms.
        self._whole: dict[tuple[Path, int | None], str] = {}
        # Weight hashes of the models so far, by path.
        self._weights: dict[Path, str] = {}
        self.timed = self._timed_samples()

    def add(
        self,
        name: str,
        *,
        path: str | TeacherSource,
        chunk_by_chunk: bool = False,
        trained: str | None = None,
        chunk_ms: int | None = None,
        after_noise_s: float = 0.0,
    ) -> dict[str, Any]:
        """Measure the model at `path`, or a pretrained teacher, and write its row.

        The row of a file that its export refused has the reason instead of figures. A row measured chunk by
        chunk counts the texts that differ from an earlier row of the same model on whole utterances, if there
        is one; a line on stderr reports any.

        Args:
            chunk_by_chunk: stream each utterance through a session.
            trained: the folder of the model that was exported to `path`.
            chunk_ms: as in `open_recogniser`.
            after_noise_s: seconds of noise, as loud as the quietest 100 ms of an utterance, before it, as
                from an open microphone; only chunk by chunk.

        Raises:
            ModelError: there is no model that can be used in this way, or it is replaced meanwhile.
            ConfigError: a teacher without posteriors, or with settings that are for students only.
            ShardError: the test shards are damaged or have no transcripts.
        """
        if isinstance(path, TeacherSource):
            if chunk_by_chunk or trained is not None or chunk_ms is not None or after_noise_s:
                raise ConfigError(
                    "a pretrained teacher runs only on whole utterances, without chunk_by_chunk, trained, "
                    "chunk_ms or after_noise_s",
                    where=f"models.{name}",
                )
            return self._add_teacher(name, path)
        fitting(path, str, f"models.{name}.path")
        _check_noise(name, after_noise_s, chunk_by_chunk)
        if (reason := refusal(Path(path))) is not None:
            return self._leave_out(name, reason)
        folder = Path(trained or path)
        card = read_card(folder)
        self._check_same(folder, card)
        recogniser = open_recogniser(Path(path), chunk_ms=chunk_ms)
        lexicon = self._lexicon(recogniser.units)
        if self.decoder == "beam":
            recogniser = recogniser.searching(grammar=lexicon)
        _check_trained(recogniser, card, name, trained)
        result = self._hear(recogniser, lexicon, chunk_by_chunk, after_noise_s)
        self._check_same(folder, read_card(folder))
        self.heard[name] = result
        if recogniser.offline_model is not None and not chunk_by_chunk:
            self._frames_and_units[name] = recogniser.offline_model.subsampling, recogniser.units.hash
            self._whole[Path(path), chunk_ms] = name
        is_same = chunk_by_chunk and not after_noise_s
        whole = self._whole.get((Path(path), chunk_ms)) if is_same else None
        row = {
            **self._identity(name),
            **self._figures(result),
            "params": card["parameters"],
            "bytes": weights_file(Path(path)).stat().st_size,
            "latency_ms": algorithmic_latency_ms(recogniser.chunk_model) if recogniser.chunk_model else None,
            "train_steps": card.get("training", {}).get("train_steps", 0),
            **self._speed(recogniser, chunk_by_chunk),
            **self._same_text(name, whole),
            **({"after_noise_s": after_noise_s} if after_noise_s else {}),
        }
        return self._write(row, result)

    def _check_same(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Raise ModelError if a model has other weights than before: compared rows must be of one model."""
        known = self._weights.setdefault(folder, card["weights_sha256"])
        if card["weights_sha256"] != known:
            raise ModelError(
                "the model was replaced while it was being measured",
                where=folder,
                expected=f"weights {known[:12]}",
                got=card["weights_sha256"][:12],
                fix="Wait until its training and what is made from it have finished, then evaluate again.",
            )

    def _leave_out(self, name: str, reason: str) -> dict[str, Any]:
        """Write the row of a missing model."""
        return self._write({**self._identity(name), MISSING: reason}, None)

    def _add_teacher(self, name: str, source: TeacherSource) -> dict[str, Any]:
        """Write the row of a pretrained teacher. Its size is its weights' size, and its speed is not
        measured. Its spikes cannot be compared, since its frames and units are its own."""
        teacher = source.load(self.device)
        if teacher.level != "frame":
            raise ConfigError(
                "only teachers that give posteriors can be measured", where=f"models.{name}", got=teacher.name
            )
        # One utterance at a time: padding may affect a teacher, and it may be large.
        result = evaluate(
            teacher.model,
            teacher.units,
            self.shards,
            decoder=self.decoder,
            lexicon=self._lexicon(teacher.units),
            batch_utterances=1,
            device=teacher.device,
            front_end=teacher.front_end,
            spells_as_we_do=False,
        )
        weights = list(teacher.model.parameters()) if isinstance(teacher.model, torch.nn.Module) else []
        row = {
            **self._identity(name),
            **self._figures(result),
            # The weights of an ONNX model belong to its runtime, and are not counted.
            "params": sum(weight.numel() for weight in weights) or None,
            "bytes": sum(weight.numel() * weight.element_size() for weight in weights) or None,
            "latency_ms": None,
            "train_steps": 0,
            "rtf": None,
        }
        return self._write(row, result)

    def compare_spikes(self, teacher: str, student: str) -> None:
        """Write the histogram of the student's spikes against the teacher's on the test audio.

        Raises:
            ConfigError: one of them has no spikes, or they differ in units or frames.
        """
        known = self._frames_and_units
        for name in (teacher, student):
            if name not in known:
                expected = f"a model evaluated on whole utterances: {', '.join(known) or 'there is none'}"
                raise ConfigError(f"spikes of {name!r} cannot be compared", where="spikes", expected=expected)
        if known[teacher] != known[student]:
            raise ConfigError(
                "spikes can be compared only between models with the same units and frame rate",
                where="spikes",
                expected=f"{known[teacher][0]} feature frames per output frame and units "
                f"{known[teacher][1][:12]}, as in {teacher}",
                got=f"{known[student][0]} and {known[student][1][:12]} in {student}",
            )
        pairs = [
            (ours.tokens or [], theirs.tokens or [])
            for ours, theirs in zip(self.heard[teacher].heard, self.heard[student].heard, strict=True)
        ]
        frame_ms = FRAME_SHIFT_MS * known[teacher][0]
        on_test = f" on {self.test}" if self.test is not None else ""
        whose = f"{student} against those of {teacher}, seed {self.seed}{on_test}"
        histogram = dataclasses.replace(spike_histogram(pairs, frame_ms), whose=whose)
        write_histogram(self.results.parent / SPIKES_FILE, histogram)

    def write_example(self) -> Path:
        """Write a test utterance, if possible one of three words or more, as WAV for a live demonstration."""
        utterances = (utterance for path in self.shards for utterance in read_shard(path))
        first = next(utterances)
        among = itertools.chain([first], utterances)
        example = next((one for one in among if len((one.text or "").split()) >= 3), first)
        path = self.results.parent / EXAMPLE_FILE
        wav = io.BytesIO()  # libsndfile ignores a disk that is full when it completes the header
        soundfile.write(wav, example.samples, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
        commit_bytes(path, wav.getvalue())
        return path

    def _identity(self, name: str) -> dict[str, Any]:
        """The fields that identify a row."""
        test = {"test": self.test} if self.test is not None else {}
        lexicon = {"lexicon": list(self.lexicon)} if self.lexicon is not None else {}
        return {"model": name, **test, "seed": self.seed, **self.measured, **lexicon}

    def _figures(self, result: Result) -> dict[str, float]:
        errors = result.errors
        return {
            "wer": round(result.wer, 3),
            "cer": round(result.cer, 3),
            "reference_words": errors.words,
            "substitutions": errors.substitutions,
            "deletions": errors.deletions,
            "insertions": errors.insertions,
            **({} if self.oov_words is None else {"oov_words": self.oov_words}),
            **_exceptions(result),
            **({"left_out": self.left_out, "listed": self.listed} if self.left_out else {}),
        }

    def _write(self, row: dict[str, Any], result: Result | None) -> dict[str, Any]:
        """Write a row and its hypotheses. Rows measured in another way are set aside only now that there is
        a new one."""

        def write(heard: Path) -> None:
            if result is None:
                heard.unlink(missing_ok=True)  # an earlier model's hypotheses
            else:
                write_hypotheses(heard, result)

        if kept := append_result(self.results, row, self.measured, write):
            print(f"rows of {self.results} that were measured differently are now in {kept}", file=sys.stderr)
        return row

    def _lexicon(self, units: Units) -> Lexicon | None:
        return None if self.words is None else Lexicon(units=units, words=sorted(self.words))

    def _hear(
        self, recogniser: Recogniser, lexicon: Lexicon | None, chunk_by_chunk: bool, after_noise_s: float
    ) -> Result:
        if recogniser.offline_model is not None and not chunk_by_chunk:
            model, units = recogniser.offline_model, recogniser.units
            return evaluate(model, units, self.shards, decoder=self.decoder, lexicon=lexicon)

        def stream(utterance: Utterance) -> str:
            # Different noise for each utterance, but the same in every evaluation.
            rng = np.random.default_rng(list(utterance.key.encode()))
            noise = noise_before(utterance.samples, after_noise_s, SAMPLE_RATE_HZ, rng)
            return recogniser.session(where=utterance.key).hear(np.concatenate([noise, utterance.samples]))

        return evaluate_transcriber(stream, self.shards)

    def _speed(self, recogniser: Recogniser, chunk_by_chunk: bool) -> dict[str, float]:
        samples = np.concatenate(self.timed)
        if recogniser.chunk_model is not None and (chunk_by_chunk or recogniser.offline_model is None):
            timing = measure_chunks(recogniser.chunk_model, samples, decoder=recogniser.decoder)
            # From the median chunk: other work on the machine slows some chunks down.
            return {
                "rtf": timing.p50_ms / timing.chunk_ms,
                "chunk_p50_ms": timing.p50_ms,
                "chunk_p95_ms": timing.p95_ms,
            }
        seconds = len(samples) / SAMPLE_RATE_HZ
        return {"rtf": measure_rtf(lambda: [recogniser.transcribe(one) for one in self.timed], seconds)}

    def _same_text(self, name: str, whole: str | None) -> dict[str, int]:
        """How many texts differ from those of the row `whole`, of the same student on whole utterances."""
        if whole is None:
            return {}
        pairs = list(zip(self.heard[name].heard, self.heard[whole].heard, strict=True))
        unlike = sum(one.hypothesis != other.hypothesis for one, other in pairs)
        if unlike:
            print(
                f"{name}: {unlike} of {len(pairs)} texts recognised chunk by chunk differ from those of "
                f"{whole}, which processed whole utterances; expected 0",
                file=sys.stderr,
            )
        return {"texts_unlike_offline": unlike}

    def _timed_samples(self) -> list[NDArray[np.float32]]:
        timed: list[NDArray[np.float32]] = []
        for path in self.shards:
            for utterance in read_shard(path):
                timed.append(utterance.samples)
                if sum(map(len, timed)) > _TIMED_SECONDS * SAMPLE_RATE_HZ:
                    return timed
        return timed


def check_row(name: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if `Scoreboard.add` does not take the settings of a row."""
    check_keywords(Scoreboard.add, settings, f"models.{name}", positional=2)
    _check_noise(name, settings.get("after_noise_s", 0.0), settings.get("chunk_by_chunk", False))


def _check_noise(name: str, after_noise_s: float, chunk_by_chunk: bool) -> None:
    if not 0 <= after_noise_s < math.inf or (after_noise_s and not chunk_by_chunk):
        raise ConfigError(
            "noise before the speech is only possible chunk by chunk",
            where=f"models.{name}.after_noise_s",
            expected="a finite number of seconds, 0 or more, and chunk_by_chunk: true",
            got=after_noise_s,
        )


def check_model_of_row(name: str, settings: Mapping[str, Any]) -> None:
    """Check that the model of a row exists and can be measured with these settings.

    Raises:
        ConfigError: it is an export, and the settings do not name one of its files and its model.
        ModelError: there is no such model, nor an export that refused it.
    """
    for key in ("path", "trained"):
        place = settings.get(key)
        if isinstance(place, str) and not Path(place).exists() and refusal(Path(place)) is None:
            raise ModelError("there is no such model", where=f"models.{name}.{key}", got=place)
    path = settings.get("path")
    if isinstance(path, str) and Path(path).is_file() and settings.get("trained") is None:
        raise ConfigError(
            "an exported model needs `trained`, the model that it was exported from",
            where=f"models.{name}",
            expected=f"{{path: {path}, trained: FOLDER}} with the folder of the model that was exported",
        )
    if isinstance(path, str) and Path(path).is_dir() and read_export_card(Path(path)) is not None:
        raise ConfigError(
            "this is a folder of exported files",
            where=f"models.{name}.path",
            expected="one of the files in it, and the folder of the model that was exported as `trained`",
            got=path,
        )


def _check_trained(recogniser: Recogniser, card: Mapping[str, Any], name: str, trained: str | None) -> None:
    """Raise ModelError if a file was exported from other weights than `trained` has now."""
    facts = getattr(recogniser.chunk_model, "facts", None)
    if facts is not None and facts.weights_sha256 != card["weights_sha256"]:
        raise ModelError(
            "the file was exported from other weights than those of this model",
            where=f"models.{name}",
            expected=f"an export of {trained}, with weights {card['weights_sha256'][:12]}",
            got=f"{recogniser.path}, with weights {facts.weights_sha256[:12]}",
            fix="Export the model again, or name the model that it was exported from as `trained`.",
        )


def _exceptions(result: Result) -> dict[str, int]:
    """The number of utterances without transcript, and of texts with words that could not be normalised, if
    not 0."""
    counts = {"without_transcript": result.without_transcript, "not_normal": result.not_normal}
    return {name: count for name, count in counts.items() if count}


def _tell_oov(texts: Iterable[str], words: frozenset[str], test: str | None) -> int:
    """The number of words in the transcripts that are not in the lexicon and so cannot be recognised; if
    there are any, a line on stderr names the most frequent ones."""
    said = Counter(word for text in texts for word in text.split())
    absent = {word: count for word, count in said.most_common() if word not in words}
    if absent:
        shown = [*list(absent)[:_SHOWN_WORDS], *["…"] * (len(absent) > _SHOWN_WORDS)]
        counts = f"{sum(absent.values()):,} of {said.total():,} reference words"
        where = f"{test}: " if test else ""
        print(printable(f"{where}{counts} are not in the lexicon: {', '.join(shown)}"), file=sys.stderr)
    return sum(absent.values())


def _hash_of(shards: Sequence[Path]) -> str:
    """A hash of the audio and transcripts in shards, independent of their location."""
    return hashlib.sha256(" ".join(read_manifest(path).sha256 for path in shards).encode()).hexdigest()[:16]


def _hash_of_words(words: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()[:16]
