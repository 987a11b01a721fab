"""Encoded audio bytes in, mono float32 samples at 16 kHz out; and 16-bit FLAC back."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from kdasr.compat import import_torchaudio
from kdasr.errors import AudioError

SAMPLE_RATE_HZ = 16_000
_PCM16_SCALE = 32_768.0
_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)
_UNKNOWN_FRAMES = 2**62


class Decoded(NamedTuple):
    """Decoded audio and the sample rate that it was stored with.

    Attributes:
        samples: (N,) float32 in [-1, 1], mono, at the rate that was asked for.
        source_rate_hz: the rate of the file; another one means that it was resampled.
    """

    samples: NDArray[np.float32]
    source_rate_hz: int


def decode(data: bytes, where: str) -> NDArray[np.float32]:
    """A whole audio file's bytes to (N,) float32 samples in [-1, 1], mono, 16 kHz.

    Reads what libsndfile reads (wav, flac, ogg, mp3, opus). Channels are averaged and other
    sample rates resampled. `where` names the audio in errors.

    Raises:
        AudioError: no bytes, not decodable, cut short, no samples, or NaN/infinite samples.
    """
    return decode_with_rate(data, where).samples


def decode_with_rate(data: bytes, where: str, rate_hz: int = SAMPLE_RATE_HZ) -> Decoded:
    """As `decode`, at `rate_hz`, telling also which sample rate the audio had."""
    if not data:
        raise AudioError("the audio is empty", where=where, expected="an audio file", got="0 bytes")
    _refuse_cut_wav(data, where)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised_frames, source_rate_hz = file.frames, file.samplerate
            frames_nc = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(
            "the audio cannot be decoded",
            where=where,
            expected="wav, flac, ogg, mp3 or opus",
            got=f"{len(data)} bytes ({error})",
            fix="The file is damaged or of another type: replace it or remove it.",
        ) from error
    _check_frames(frames_nc, promised_frames, where)
    mono = frames_nc[:, 0] if frames_nc.shape[1] == 1 else frames_nc.mean(axis=1, dtype=np.float32)
    return Decoded(resample(np.ascontiguousarray(mono), source_rate_hz, rate_hz), source_rate_hz)


def load(path: Path) -> NDArray[np.float32]:
    """The audio file at `path` as `decode` gives it.

    Raises:
        AudioError: as `decode`, or the file cannot be read.
    """
    return load_with_rate(path).samples


def load_with_rate(path: Path) -> Decoded:
    """As `load`, telling also which sample rate the file had."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise AudioError("the audio file cannot be read", where=path, got=error.strerror) from error
    return decode_with_rate(data, str(path))


def resample(samples: NDArray[np.float32], from_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> NDArray[np.float32]:
    """(N,) samples at `from_hz` to (ceil(N * to_hz / from_hz),) at `to_hz`: windowed-sinc polyphase."""
    if from_hz == to_hz:
        return samples
    with torch.no_grad():
        resampled = _resampler(from_hz, to_hz)(torch.from_numpy(np.array(samples, dtype=np.float32)))
    return np.asarray(resampled.numpy(), dtype=np.float32)


@lru_cache(maxsize=64)
def _resampler(from_hz: int, to_hz: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Kept between calls: to build the filter costs more than to apply it to one utterance."""
    resampler: Callable[[torch.Tensor], torch.Tensor] = import_torchaudio().transforms.Resample(
        from_hz, to_hz
    )
    return resampler


def encode_flac(samples: NDArray[np.float32]) -> bytes:
    """(N,) samples at 16 kHz to 16-bit FLAC; the same samples give the same bytes.

    Values are rounded to multiples of 2^-15 and clipped, so that decoding gives back exactly
    `round(samples * 32768) / 32768`.

    Raises:
        AudioError: no samples, or NaN/infinite samples.
    """
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise AudioError("only finite, non-empty audio can be stored", got=f"{len(samples)} samples")
    scaled = np.rint(np.asarray(samples, dtype=np.float64) * _PCM16_SCALE)
    pcm = np.clip(scaled, -_PCM16_SCALE, _PCM16_SCALE - 1).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _refuse_cut_wav(data: bytes, where: str) -> None:
    """libsndfile reads a cut WAV without a word; its data chunk says how long it should be."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(data):
        name, size = (
            data[position : position + 4],
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        available = len(data) - position - 8
        if name == b"data":
            # Streams written to a pipe promise nothing: they hold 0 or the largest number.
            if available < size and size not in _UNKNOWN_LENGTHS:
                raise AudioError(
                    "the audio is cut short",
                    where=where,
                    expected=f"{size} bytes of samples",
                    got=f"{available} bytes",
                    fix="Copy the file again from its source.",
                )
            return
        position += 8 + size + size % 2


def _check_frames(frames_nc: NDArray[np.float32], promised_frames: int, where: str) -> None:
    if len(frames_nc) == 0:
        raise AudioError("the audio holds no samples", where=where, expected="at least one sample", got=0)
    if len(frames_nc) < promised_frames < _UNKNOWN_FRAMES:
        raise AudioError(
            "the audio is cut short",
            where=where,
            expected=f"{promised_frames} frames",
            got=f"{len(frames_nc)} frames",
            fix="Copy the file again from its source.",
        )
    if not np.isfinite(frames_nc).all():
        raise AudioError("the audio holds NaN or infinite samples", where=where, expected="finite samples")
