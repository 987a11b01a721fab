"""Measures whether an exported model computes the same as the torch student."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import collapse
from kdasr.errors import ExportError
from kdasr.features import HOP_SAMPLES
from kdasr.streaming import ChunkModel, SampleWindow

TOLERANCE = 1e-3
# The folded front end sums 400 products in float32, in another order than an FFT does.
WAVE_TOLERANCE = 5e-3
BATCH_SIZES = (1, 3)
MIN_CHUNKS = 24


@dataclass(frozen=True)
class Agreement:
    """How much two models differ over the same chunks.

    Attributes:
        max_abs_difference: largest difference of any log-probability.
        same_argmax: fraction of output frames whose most probable class agrees.
        tokens_identical: whether all decoded token sequences are the same.
        num_chunks: chunks compared at each batch size.
        batch_sizes: the batch sizes compared.
    """

    max_abs_difference: float
    same_argmax: float
    tokens_identical: bool
    num_chunks: int
    batch_sizes: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe_sounds(num_samples: int, batch_size: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Different synthetic sounds of the same length."""
    return [probe_sound(num_samples, seed + row) for row in range(batch_size)]


def probe_sound(num_samples: int, seed: int) -> NDArray[np.float32]:
    """(num_samples,) of synthetic sound, the same for the same seed: voiced bursts, hiss and pauses
    at several loudnesses, so that a comparison covers the range of features of real audio."""
    random = np.random.default_rng(seed)
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    sound = 10 ** random.uniform(-5, -2) * random.standard_normal(num_samples)
    for start in range(0, num_samples - 4000, 4000):
        length = int(random.integers(1500, 4000))
        piece = slice(start, start + length)
        if random.random() < 0.25:
            burst = 0.1 * random.standard_normal(length)
        else:
            pitch_hz = random.uniform(80, 300) * (1 + 0.1 * time_s[:length])
            harmonics = [
                random.uniform(0, 0.2) * np.sin(2 * np.pi * pitch_hz * n * time_s[:length])
                for n in range(1, 16)
            ]
            burst = np.sum(harmonics, axis=0)
        sound[piece] += random.uniform(0.05, 1) * np.hanning(length) * burst
    return np.clip(sound, -1, 1).astype(np.float32)


def run_chunks(model: ChunkModel, sounds: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(B, T', V) log-probs of sounds of the same length, run as a batch chunk by chunk."""
    front_ends = [model.front_end() for _ in sounds]
    rows = [
        [*front_end.accept(sound), *front_end.finish()]
        for front_end, sound in zip(front_ends, sounds, strict=True)
    ]
    state = model.initial_state(len(sounds))
    log_probs = []
    for windows in zip(*rows, strict=True):
        log_probs_btv, state = model.step(_stack(windows), state)
        log_probs.append(log_probs_btv)
    return np.concatenate(log_probs, axis=1)


def _stack(windows: tuple[Any, ...]) -> Any:
    """Stack windows of single streams into one of a batch."""
    if isinstance(windows[0], SampleWindow):
        return SampleWindow(*(np.concatenate(parts) for parts in zip(*windows, strict=True)))
    return np.concatenate(windows)


class Reference:
    """What a model computes from synthetic sound, chunk by chunk: computed once, compared with every file.

    Args:
        model: the original.
        batch_sizes: how many streams at once are compared.
        num_chunks: chunks of each batch size.
    """

    def __init__(
        self, model: ChunkModel, *, batch_sizes: tuple[int, ...] = BATCH_SIZES, num_chunks: int = MIN_CHUNKS
    ) -> None:
        self._batch_sizes, self._num_chunks = batch_sizes, num_chunks
        # A little less than whole chunks, so that the end of a stream is compared too.
        num_samples = num_chunks * model.shift * HOP_SAMPLES - 1_000
        self._sounds = [probe_sounds(num_samples, size, seed=size) for size in batch_sizes]
        self._wanted = [run_chunks(model, sounds) for sounds in self._sounds]

    def compare(self, candidate: ChunkModel) -> Agreement:
        """How much `candidate` differs.

        Raises:
            ExportError: the outputs differ in shape, or one of them is not finite.
        """
        worst, same, frames, identical = 0.0, 0, 0, True
        for sounds, want_btv in zip(self._sounds, self._wanted, strict=True):
            got_btv = run_chunks(candidate, sounds)
            if want_btv.shape != got_btv.shape:
                raise ExportError(
                    "the exported model's output has a different shape",
                    expected=want_btv.shape,
                    got=got_btv.shape,
                )
            if not (np.isfinite(want_btv).all() and np.isfinite(got_btv).all()):
                raise ExportError(
                    "a log-probability is not finite",
                    where="original" if not np.isfinite(want_btv).all() else "exported model",
                    fix="The weights are broken: choose another checkpoint.",
                )
            worst = max(worst, float(np.abs(want_btv - got_btv).max()))
            want_bt, got_bt = want_btv.argmax(-1), got_btv.argmax(-1)
            same, frames = same + int((want_bt == got_bt).sum()), frames + want_bt.size
            identical &= all(
                collapse(want.tolist()) == collapse(got.tolist())
                for want, got in zip(want_bt, got_bt, strict=True)
            )
        return Agreement(worst, same / frames, identical, self._num_chunks, self._batch_sizes)


def compare(
    reference: ChunkModel,
    candidate: ChunkModel,
    *,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    num_chunks: int = MIN_CHUNKS,
) -> Agreement:
    """How much `candidate` differs from `reference` on synthetic sound, chunk by chunk.

    Raises:
        ExportError: their outputs differ in shape, or one of them is not finite.
    """
    return Reference(reference, batch_sizes=batch_sizes, num_chunks=num_chunks).compare(candidate)


def require_parity(agreement: Agreement, where: str, tolerance: float = TOLERANCE) -> None:
    """Raises:
    ExportError: the difference is not below `tolerance`, or the tokens differ."""
    if not agreement.max_abs_difference < tolerance or not agreement.tokens_identical:
        raise ExportError(
            "the exported model's output differs from the original's",
            where=where,
            expected=f"log-probs within {tolerance:g} and the same tokens",
            got=f"a difference of {agreement.max_abs_difference:.3g}, "
            f"tokens {'the same' if agreement.tokens_identical else 'different'}",
            fix="The file was not written. Report the student's class and config.",
        )
