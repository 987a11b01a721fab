"""Which classes of a posterior are stored: dense log-probs (T, V) in, `SoftLabels` out.

Every codec keeps blank in every frame. Of the other classes, `top_p` and `top_k` keep the
likeliest and the total mass of the rest (the tail; computed by logsumexp over the classes left
out, since 1 minus the kept mass would lose precision), `full` keeps all, and `sampled` draws at
random so that the expected target is the full posterior.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.errors import ConfigError, SoftLabelError
from kdasr.interfaces import BLANK_ID, SoftLabels
from kdasr.soft_labels.codec_base import Codec
from kdasr.soft_labels.planes import Layout


@dataclass(frozen=True)
class TopP(Codec):
    """Blank and the likeliest classes until they reach `mass`, at most `cap`, and the mass of the tail.

    Log-probs are stored in steps of `step_nats` below the frame's best class and renormalised
    when read, so a stored frame always sums to 1.

    Attributes:
        mass: probability that the kept classes reach, unless `cap` is reached first; at least 0.5 is reached.
        cap: most classes kept in a frame, blank included.
        step_nats: quantisation step; 0 stores float32.
        floor_nats: log-probs are stored as at most this far below the best class.
    """

    name: ClassVar[str] = "top_p"
    mass: float = 0.99
    cap: int = 16
    step_nats: float = 0.25
    floor_nats: float = 12.0

    def __post_init__(self) -> None:
        _require(0.0 < self.mass <= 1.0, "mass", "above 0, at most 1", self.mass)
        _require_classes(self.cap, "cap", self.step_nats)
        _check_steps(self.step_nats, self.floor_nats)

    def layout(self, vocab_size: int) -> Layout:
        return _truncated_layout(vocab_size, self.cap, self.step_nats, self.floor_nats)

    def select(self, log_probs_tv: Tensor, utterances: Sequence[tuple[str, int]]) -> SoftLabels:
        blank = log_probs_tv[:, BLANK_ID]
        mass = max(self.mass, 0.5)  # with less, blank alone might do, and the likeliest class be lost
        # No search in frames where blank alone reaches the mass (most frames of a peaky teacher).
        rows = torch.nonzero(blank.exp() < mass).flatten()
        others = log_probs_tv[:, 1:].clone()
        num_extra = min(self.cap - 1, others.shape[1])
        values, indices = others[rows].topk(num_extra, dim=1)
        mass_before = blank[rows, None].exp() + values.exp().cumsum(1) - values.exp()
        return _assemble(blank, others, rows, values, indices, mass_before < mass)


@dataclass(frozen=True)
class TopK(Codec):
    """Blank and the likeliest others, `k` classes in every frame, and the mass of the tail.

    Attributes:
        k: classes kept in a frame, blank included.
        step_nats: quantisation step; 0 stores float32.
        floor_nats: see `TopP`.
    """

    name: ClassVar[str] = "top_k"
    k: int = 20
    step_nats: float = 0.0
    floor_nats: float = 12.0

    def __post_init__(self) -> None:
        _require_classes(self.k, "k", self.step_nats)
        _check_steps(self.step_nats, self.floor_nats)

    def layout(self, vocab_size: int) -> Layout:
        return _truncated_layout(vocab_size, self.k, self.step_nats, self.floor_nats)

    def select(self, log_probs_tv: Tensor, utterances: Sequence[tuple[str, int]]) -> SoftLabels:
        others = log_probs_tv[:, 1:].clone()
        values, indices = others.topk(min(self.k - 1, others.shape[1]), dim=1)
        rows = torch.arange(len(others), device=others.device)
        keep = torch.ones_like(values, dtype=torch.bool)
        return _assemble(log_probs_tv[:, BLANK_ID], others, rows, values, indices, keep)


@dataclass(frozen=True)
class Full(Codec):
    """Every class as exact float32: for tests of exactness and small vocabularies."""

    name: ClassVar[str] = "full"

    def layout(self, vocab_size: int) -> Layout:
        return Layout("floats", vocab_size, vocab_size, implicit_ids=True)

    def select(self, log_probs_tv: Tensor, utterances: Sequence[tuple[str, int]]) -> SoftLabels:
        num_frames, vocab_size = log_probs_tv.shape
        return SoftLabels(
            np.full(num_frames, vocab_size, np.int64),
            np.tile(np.arange(vocab_size, dtype=np.int64), num_frames),
            log_probs_tv.cpu().numpy().reshape(-1).astype(np.float32),
            np.full(num_frames, -np.inf, np.float32),
        )


@dataclass(frozen=True)
class Sampled(Codec):
    """`num_draws` random draws from each frame's posterior: in expectation, the target is exact.

    Random sampling as in Sparse Logit Sampling (arXiv 2503.16870), with systematic draws (evenly
    spaced points of the cumulative distribution with one random offset): unbiased like
    independent draws, and a class of probability p is drawn floor or ceil of p * num_draws
    times. Blank is listed in every frame, with log-prob -inf if it was not drawn.

    Attributes:
        num_draws: draws for each frame.
        seed: determines the offsets, together with the utterance's key.
    """

    name: ClassVar[str] = "sampled"
    num_draws: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        draws_fit = _is_int(self.num_draws) and 1 <= self.num_draws < 65_536
        _require(draws_fit, "num_draws", "1 to 65535", self.num_draws)

    def layout(self, vocab_size: int) -> Layout:
        return Layout("draws", vocab_size, min(vocab_size, self.num_draws + 1), num_draws=self.num_draws)

    def select(self, log_probs_tv: Tensor, utterances: Sequence[tuple[str, int]]) -> SoftLabels:
        probs = log_probs_tv.cpu().double().exp().numpy()
        cumulative = np.cumsum(probs, axis=1)
        cumulative /= cumulative[:, -1:]
        offsets = np.concatenate([np.zeros((0, 1)), *(self._offsets(*item) for item in utterances)])
        points_below = np.ceil(cumulative * self.num_draws - offsets).astype(np.int64)
        points_below[:, -1] = self.num_draws
        draws = np.diff(points_below, axis=1, prepend=0)
        listed = draws > 0
        listed[:, BLANK_ID] = True
        with np.errstate(divide="ignore"):
            log_draws = np.log(draws[listed] / self.num_draws).astype(np.float32)
        return SoftLabels(
            listed.sum(1).astype(np.int64),
            np.nonzero(listed)[1].astype(np.int64),
            log_draws,
            np.full(len(probs), -np.inf, np.float32),
        )

    def _offsets(self, key: str, num_frames: int) -> NDArray[np.float64]:
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
        return generator.random((num_frames, 1))


CODECS: dict[str, type[Codec]] = {cls.name: cls for cls in (TopP, TopK, Full, Sampled)}


def make_codec(name: str, params: dict[str, Any]) -> Codec:
    """The codec with the name and parameters in a header.

    Raises:
        SoftLabelError: there is no such codec, or it does not take these parameters.
    """
    if name not in CODECS:
        raise SoftLabelError(
            f"unknown soft-label codec {name!r}",
            expected=f"one of {', '.join(CODECS)}",
            fix="Use a version of kdasr that supports it, or label again.",
        )
    try:
        codec = CODECS[name](**params)
    except (TypeError, ConfigError) as error:
        raise SoftLabelError(f"codec {name!r} does not accept the parameters {params}: {error}") from error
    return codec


def _assemble(
    blank: Tensor, others: Tensor, rows: Tensor, values: Tensor, indices: Tensor, keep: Tensor
) -> SoftLabels:
    """Labels from the chosen classes of `rows`; `others` (T, V-1) is overwritten."""
    # Tail: mask out the chosen classes and sum the rest in the log domain.
    chosen_rows = rows[:, None].expand_as(indices)[keep]
    others[chosen_rows, indices[keep]] = -torch.inf
    tail = torch.logsumexp(others, dim=1)
    extra = torch.zeros(len(blank), dtype=torch.int64, device=blank.device)
    extra[rows] = keep.sum(1)
    counts = extra.cpu().numpy() + 1
    starts = np.cumsum(counts) - counts
    is_entry = np.ones(int(counts.sum()), bool)
    is_entry[starts] = False
    ids = np.full(len(is_entry), BLANK_ID, np.int64)
    ids[is_entry] = indices[keep].cpu().numpy() + 1
    log_probs = np.empty(len(is_entry), np.float32)
    log_probs[starts] = blank.cpu().numpy()
    log_probs[is_entry] = values[keep].cpu().numpy()
    return SoftLabels(counts, ids, log_probs, tail.cpu().numpy().astype(np.float32))


def _truncated_layout(vocab_size: int, most: int, step_nats: float, floor_nats: float) -> Layout:
    most = min(most, vocab_size)
    if step_nats == 0:
        return Layout("floats", vocab_size, most)
    return Layout("levels", vocab_size, most, step_nats, floor_nats)


def _check_steps(step_nats: float, floor_nats: float) -> None:
    _require(step_nats == 0 or 0.001 <= step_nats <= 4, "step_nats", "0, or 0.001 to 4", step_nats)
    _require(1 <= floor_nats <= 50, "floor_nats", "1 to 50", floor_nats)


def _require_classes(number: int, name: str, step_nats: float) -> None:
    # Levels are relative to the likeliest class, which must be kept but need not be blank.
    least = 2 if step_nats > 0 else 1
    _require(_is_int(number) and number >= least, name, f"an integer >= {least}", number)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ConfigError("codec parameter out of range", where=name, expected=expected, got=got)
