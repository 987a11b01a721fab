"""Which utterances are worth learning from: a filter returns the reason for dropping one, or None.

Filters see an utterance's length, its language if the shards store one, and its soft labels.
Utterances dropped by length or language cost nothing: their audio is not even decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from kdasr.errors import ConfigError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels.runs import best_path

Measure = Literal["best_path", "spikes", "entropy"]
MEASURES: tuple[Measure, ...] = ("best_path", "spikes", "entropy")


class Confidence(NamedTuple):
    """How confident a teacher is about an utterance.

    Attributes:
        best_path: geometric mean of the best class's probability over all frames; 0 to 1.
        spikes: the same over the frames whose best class is not blank; 0 if there are none.
        entropy: mean entropy of the stored posteriors in nats (the tail counts as one class); 0 is
            the most confident.
        num_spikes: frames whose best class is not blank.
    """

    best_path: float
    spikes: float
    entropy: float
    num_spikes: int


def confidence(labels: SoftLabels) -> Confidence:
    """The teacher's confidence; the lowest possible for labels without frames."""
    if labels.num_frames == 0:
        return Confidence(0.0, 0.0, np.inf, 0)
    starts = np.cumsum(labels.kept_counts) - labels.kept_counts
    best_t = np.maximum.reduceat(labels.log_probs, starts).astype(np.float64)
    # Blank is the first class of every frame.
    spike_t = labels.log_probs[starts] < best_t
    kept_p, tail_p = (
        np.exp(labels.log_probs.astype(np.float64)),
        np.exp(labels.tail_log_probs.astype(np.float64)),
    )
    with np.errstate(invalid="ignore"):
        kept_terms = np.where(kept_p > 0, kept_p * labels.log_probs, 0.0)
        tail_terms = np.where(tail_p > 0, tail_p * labels.tail_log_probs, 0.0)
    entropy = -(kept_terms.sum() + tail_terms.sum()) / labels.num_frames
    num_spikes = int(spike_t.sum())
    spikes = float(np.exp(best_t[spike_t].mean())) if num_spikes else 0.0
    return Confidence(float(np.exp(best_t.mean())), spikes, float(entropy), num_spikes)


def score(labels: SoftLabels, measure: Measure) -> float:
    """Confidence by `measure`; larger is more confident, so entropy is negated."""
    found = confidence(labels)
    return -found.entropy if measure == "entropy" else float(getattr(found, measure))


def own_scale(score: float, measure: Measure) -> float:
    """Convert what `score` returns back to the measure's own scale, which `MinConfidence` uses."""
    # Not "-score", which would print an entropy of 0 as -0.
    return 0.0 - score if measure == "entropy" else score


def bound(measure: Measure) -> str:
    """Whether a threshold on `measure` is an upper or a lower bound, in words."""
    return "at most" if measure == "entropy" else "at least"


def threshold(score: float, measure: Measure) -> float:
    """The `MinConfidence` threshold, with three decimals, that keeps utterances of at least this `score`."""
    # Rounded down: rounding to nearest would often drop the very utterance that has this score.
    return own_scale(math.floor(1000 * score) / 1000 if math.isfinite(score) else score, measure)


class Filter:
    """Keeps or drops utterances; subclasses are frozen dataclasses of their parameters.

    Attributes:
        name: its name in the headers of labels.
        reads_language: whether `before` needs the language, which must be read from the shard.
    """

    name: ClassVar[str]
    reads_language: ClassVar[bool] = False

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's keyword arguments, JSON-serialisable."""
        return asdict(self)  # type: ignore[call-overload]

    def before(self, seconds: float, language: str | None = None) -> str | None:
        """Why to drop an utterance of this length and language before the teacher hears it, or None."""
        return None

    def after(self, labels: SoftLabels, seconds: float) -> str | None:
        """Why to drop an utterance with these labels, or None."""
        return None


@dataclass(frozen=True)
class DurationLimits(Filter):
    """Drops utterances shorter than `min_seconds` or longer than `max_seconds`."""

    name: ClassVar[str] = "duration"
    min_seconds: float = 0.0
    max_seconds: float = float("1e9")

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds < np.inf:
            raise ConfigError(
                "invalid duration limits",
                where="DurationLimits",
                expected="finite numbers with 0 <= min_seconds <= max_seconds",
                got=f"min_seconds {self.min_seconds}, max_seconds {self.max_seconds}",
            )

    def before(self, seconds: float, language: str | None = None) -> str | None:
        if self.min_seconds <= seconds <= self.max_seconds:
            return None
        return f"filtered: {seconds:.2f} s is not within {self.min_seconds:g} to {self.max_seconds:g} s"


@dataclass(frozen=True)
class Languages(Filter):
    """Drops utterances in languages other than those in `keep`.

    Attributes:
        keep: tags such as `en` (which keeps `en-GB` too) or `pt-BR`.
        keep_unknown: whether to keep utterances without a language.
    """

    name: ClassVar[str] = "language"
    reads_language: ClassVar[bool] = True
    keep: Sequence[str]
    keep_unknown: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.keep, str) or not self.keep:
            raise ConfigError(
                "not a list of languages", where="keep", expected="a list such as [en, de]", got=self.keep
            )
        object.__setattr__(self, "keep", tuple(self.keep))  # YAML gives a list

    def before(self, seconds: float, language: str | None = None) -> str | None:
        if language is None:
            return None if self.keep_unknown else "filtered: its language is unknown"
        if any(f"{language}-".lower().startswith(f"{tag}-".lower()) for tag in self.keep):
            return None
        return f"filtered: its language is {language}, not {' or '.join(self.keep)}"


@dataclass(frozen=True)
class MinConfidence(Filter):
    """Drops utterances of which the teacher is not confident enough.

    Attributes:
        threshold: smallest `best_path` or `spikes` (0 to 1), or largest `entropy` (nats).
        measure: see `Confidence`.
    """

    name: ClassVar[str] = "confidence"
    threshold: float
    measure: Measure = "best_path"

    def __post_init__(self) -> None:
        check_measure(self.measure)
        if not np.isfinite(self.threshold):
            raise ConfigError(
                "the threshold is not finite",
                where="threshold",
                expected="a finite number",
                got=self.threshold,
            )

    def after(self, labels: SoftLabels, seconds: float) -> str | None:
        found = float(getattr(confidence(labels), self.measure))
        if self.measure == "entropy":
            return f"filtered: entropy {found:.3f} > {self.threshold:g}" if found > self.threshold else None
        return (
            f"filtered: {self.measure} {found:.3f} < {self.threshold:g}" if found < self.threshold else None
        )


@dataclass(frozen=True)
class MinSpikes(Filter):
    """Drops silence, noise and music: utterances with fewer than `per_second` non-blank frames a second.

    Attributes:
        per_second: smallest rate.
    """

    name: ClassVar[str] = "spikes"
    per_second: float = 0.5

    def after(self, labels: SoftLabels, seconds: float) -> str | None:
        rate = confidence(labels).num_spikes / seconds
        if rate >= self.per_second:
            return None
        return f"filtered: {rate:.2f} non-blank frames per second < {self.per_second:g}"


@dataclass(frozen=True)
class MaxUnitRate(Filter):
    """Drops what nobody could have spoken: more than `per_second` units a second on the teacher's best path.

    Encoder-decoders such as Whisper sometimes repeat the same words, confidently, up to their length limit.
    English is spoken at about 15 characters a second, 25 if fast.

    Attributes:
        per_second: largest rate.
    """

    name: ClassVar[str] = "unit_rate"
    per_second: float = 30.0

    def after(self, labels: SoftLabels, seconds: float) -> str | None:
        rate = len(best_path(labels)) / seconds
        if rate <= self.per_second:
            return None
        return f"filtered: {rate:.1f} units per second > {self.per_second:g}"


def check_measure(measure: str) -> None:
    """Raise ConfigError for an unknown measure."""
    if measure not in MEASURES:
        raise ConfigError("unknown measure", where="measure", expected=", ".join(MEASURES), got=measure)
