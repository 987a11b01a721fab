"""Where live audio comes from: pieces of 16 kHz samples from a pipe or a microphone."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from export import require
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import AudioError, ConfigError
from kdasr.streaming import StreamingResampler

Samples = NDArray[np.float32]
T = TypeVar("T")

_BYTES_PER_SAMPLE = 2
_NAME_BYTES = 4  # of a container's name, at its start
_log = logging.getLogger(__name__)


def pieces_of(samples: Samples, piece_ms: int) -> Iterator[Samples]:
    """Whole audio cut into pieces, as it would arrive."""
    size = piece_samples(piece_ms, SAMPLE_RATE_HZ)
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def piece_samples(piece_ms: int, rate_hz: int) -> int:
    """Samples in a piece.

    Raises:
        ConfigError: the piece does not last.
    """
    if piece_ms < 1:
        raise ConfigError("a piece of audio must last", where="piece_ms", expected=">= 1", got=piece_ms)
    return max(1, piece_ms * rate_hz // 1000)


def pcm_pieces(stream: BinaryIO, *, rate_hz: int = SAMPLE_RATE_HZ, piece_ms: int = 100) -> Iterator[Samples]:
    """Raw mono 16-bit little-endian PCM from a pipe, as soon as it comes, until its end or Ctrl-C.

    Args:
        rate_hz: its sample rate; other rates than 16 kHz are resampled on the way.
        piece_ms: the most that is read at a time; what is there is taken without waiting for more.

    Raises:
        AudioError: the stream begins like a WAV or another audio file instead of raw samples.
        ConfigError: a rate or piece that is not positive.
    """
    resampler = StreamingResampler(rate_hz)
    size = piece_samples(piece_ms, rate_hz) * _BYTES_PER_SAMPLE
    read = getattr(stream, "read1", stream.read)
    rest, checked = b"", False
    while data := _until_interrupted(lambda: read(size)):
        rest += data
        if not checked:
            _refuse_container(rest)
            checked = len(rest) >= _NAME_BYTES
        # Samples wait until it is certain that they are samples.
        whole = len(rest) // _BYTES_PER_SAMPLE * _BYTES_PER_SAMPLE if checked else 0
        yield resampler.accept(_to_float(rest[:whole]))
        rest = rest[whole:]
    whole = len(rest) // _BYTES_PER_SAMPLE * _BYTES_PER_SAMPLE
    yield resampler.accept(_to_float(rest[:whole]))
    yield resampler.flush()
    if len(rest) > whole:
        _log.warning("the PCM stream ended in the middle of a sample: its last byte was left out")


def _to_float(data: bytes) -> Samples:
    return np.frombuffer(data, "<i2") * np.float32(1 / 32_768)


def _refuse_container(data: bytes) -> None:
    names = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3\x03": "MP3", b"ID3\x04": "MP3"}
    name = names.get(data[:_NAME_BYTES])
    if name is not None:
        raise AudioError(
            f"this is a {name} file, not raw samples",
            where="standard input",
            expected="mono 16-bit little-endian PCM",
            fix="Name the file on the command line, or convert it: ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -",
        )


def microphone_pieces(*, device: str | int | None = None, piece_ms: int = 100) -> Iterator[Samples]:
    """The microphone, until Ctrl-C: what was heard before it is complete.

    Args:
        device: name or number as `python -m sounddevice` lists them; None for the default.
        piece_ms: how much arrives at a time.

    Raises:
        MissingDependencyError: sounddevice is not installed.
        AudioError: there is no such device, or it does not record.
    """
    sounddevice = _sounddevice()
    arrived: queue.SimpleQueue[Samples] = queue.SimpleQueue()

    def hear(frames: NDArray[np.float32], count: int, time: Any, status: Any) -> None:
        if status:
            _log.warning("microphone: %s", status)
        arrived.put(frames[:, 0].copy())

    try:
        rate_hz = _microphone_rate_hz(sounddevice, device)
        microphone = sounddevice.InputStream(
            samplerate=rate_hz,
            channels=1,
            dtype="float32",
            device=device,
            blocksize=piece_samples(piece_ms, rate_hz),
            callback=hear,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(
            "the microphone cannot be opened",
            where=f"device {device}" if device is not None else "default device",
            got=error,
            fix="List the devices with: python -m sounddevice",
        ) from error
    resampler = StreamingResampler(rate_hz)
    with microphone:
        while (frames := _until_interrupted(arrived.get)) is not None:
            yield resampler.accept(frames)
    yield resampler.flush()


def _microphone_rate_hz(sounddevice: Any, device: str | int | None) -> int:
    """16 kHz, or the device's own rate where it has no other."""
    try:
        sounddevice.check_input_settings(
            device=device, channels=1, dtype="float32", samplerate=SAMPLE_RATE_HZ
        )
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(device, "input")["default_samplerate"])
    return SAMPLE_RATE_HZ


def _until_interrupted(read: Callable[[], T]) -> T | None:
    """What `read` gives; None once Ctrl-C is pressed: it ends what is heard, and not its transcript."""
    try:
        return read()
    except KeyboardInterrupt:
        return None


def _sounddevice() -> Any:
    try:
        return require("sounddevice", "mic")
    except OSError as error:  # the package is there, the library it wraps is not
        raise ConfigError(
            "the PortAudio library is missing", got=error, fix="Install it: apt-get install libportaudio2"
        ) from error
