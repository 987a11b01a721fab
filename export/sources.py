"""Sources of live audio: pieces of samples from a pipe or a microphone."""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from export import require
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import AudioError, ConfigError
from kdasr.reasons import counted
from kdasr.streaming import StreamingResampler

Samples = NDArray[np.float32]
T = TypeVar("T")

# How much audio is read at a time, which may delay the text of live audio by as much.
PIECE_MS = 20
_BYTES_PER_SAMPLE = 2
# Bytes needed to tell a container from samples; an MP3 needs the most, two frames.
_HEAD_BYTES = 1_536
_CONTAINERS = {
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"caff": "CAF",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"\x1aE\xdf\xa3": "WebM",
    b"ID3": "MP3",
}
# MPEG layer III, by the bits in the frame header: kbit/s of MPEG 1 and of MPEG 2, Hz of MPEG 1.
_MP3_KBITS = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MP3_RATES_HZ = (44_100, 48_000, 32_000)
# Time without a piece after which a microphone counts as gone: some drivers do not report it.
_GONE_AFTER_S = 5.0
_log = logging.getLogger(__name__)


class Gap(NamedTuple):
    """Audio that was lost between two pieces.

    Attributes:
        seconds: its duration if the driver knows it, otherwise 0.
    """

    seconds: float


def pieces_of(samples: Samples, piece_ms: int = PIECE_MS) -> Iterator[Samples]:
    """Whole audio cut into pieces, as it would arrive."""
    size = _piece_samples(piece_ms, SAMPLE_RATE_HZ)
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _piece_samples(piece_ms: int, rate_hz: int) -> int:
    assert piece_ms >= 1, piece_ms
    return max(1, piece_ms * rate_hz // 1000)


def pcm_pieces(stream: BinaryIO, *, rate_hz: int = SAMPLE_RATE_HZ) -> Iterator[Samples]:
    """Raw mono 16-bit little-endian PCM from a pipe, as soon as it arrives, until its end or Ctrl-C.

    At most `PIECE_MS` are read at a time, without waiting for more than is available.

    Args:
        rate_hz: sample rate of the stream and of the pieces; pass it to `Recogniser.listen`, too.

    Raises:
        AudioError: the stream ends without a sample, or begins like a WAV or another audio file instead of
            raw samples.
    """
    size = _piece_samples(PIECE_MS, rate_hz) * _BYTES_PER_SAMPLE
    read = getattr(stream, "read1", stream.read)
    rest, checked = b"", False
    with _CtrlC() as ctrl_c:
        while data := ctrl_c.unless_pressed(lambda: read(size)):
            rest += data
            if not checked:
                _refuse_container(rest)
                checked = len(rest) >= _HEAD_BYTES
            # Hold back the samples until it is certain that the stream is raw.
            whole = len(rest) // _BYTES_PER_SAMPLE * _BYTES_PER_SAMPLE if checked else 0
            yield _to_float(rest[:whole])
            rest = rest[whole:]
        whole = len(rest) // _BYTES_PER_SAMPLE * _BYTES_PER_SAMPLE
        if data is not None and not checked and not whole:
            raise AudioError(
                "the audio contains no samples",
                where="standard input",
                expected="mono 16-bit little-endian PCM",
                got=counted(len(rest), "byte"),
            )
        yield _to_float(rest[:whole])
    if len(rest) > whole:
        _log.warning("the PCM stream ended in the middle of a sample: its last byte was ignored")


def _to_float(data: bytes) -> Samples:
    return np.frombuffer(data, "<i2") * np.float32(1 / 32_768)


def _refuse_container(data: bytes) -> None:
    if (name := _container(data)) is not None:
        raise AudioError(
            f"this is a {name} file, not raw samples",
            where="standard input",
            expected="mono 16-bit little-endian PCM",
            fix="Give the file on the command line, or convert it: ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -",
        )


def _container(data: bytes) -> str | None:
    """The container format of a file that begins with `data`; None for samples or too little data."""
    if data[4:8] == b"ftyp":
        return "MP4"
    if (size := _mp3_frame_bytes(data)) and _mp3_frame_bytes(data[size:]) and data[1] == data[size + 1]:
        return "MP3"
    return next((name for begin, name in _CONTAINERS.items() if data.startswith(begin)), None)


def _mp3_frame_bytes(data: bytes) -> int:
    """Length of the MPEG layer III frame whose header `data` begins with; 0 if it is no such header."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE6 != 0xE2:
        return 0
    version, kbits, rate = data[1] >> 3 & 3, data[2] >> 4, data[2] >> 2 & 3  # 0: MPEG 2.5, 2: 2, 3: 1
    if version == 1 or kbits in (0, 15) or rate == 3:
        return 0
    first = version == 3
    rate_hz = _MP3_RATES_HZ[rate] // (1 if first else 2 if version == 2 else 4)
    return (144 if first else 72) * 1000 * _MP3_KBITS[not first][kbits - 1] // rate_hz + (data[2] >> 1 & 1)


def microphone_pieces(
    *, device: str | int | None = None, on_open: Callable[[], None] = lambda: None
) -> Iterator[Samples | Gap]:
    """The microphone at 16 kHz in pieces of `PIECE_MS`, until Ctrl-C, or until it is gone, which gives a
    warning; all audio before that is returned. NaN and infinite samples become silence, with one warning.
    A `Gap` stands for audio that the driver lost because it was not fetched in time.

    Args:
        device: name or number as listed by `python -m sounddevice`; None for the default.
        on_open: called when the microphone is open.

    Raises:
        MissingDependencyError: sounddevice is not installed.
        AudioError: there is no such device, or it cannot record.
    """
    sounddevice = _sounddevice()
    with _CtrlC() as ctrl_c, ExitStack() as opened:
        try:
            rate_hz = _microphone_rate_hz(sounddevice, device)
            resampler, driver = StreamingResampler(rate_hz), _Driver(rate_hz)
            opened.enter_context(
                sounddevice.InputStream(
                    samplerate=rate_hz,
                    channels=1,
                    dtype="float32",
                    device=device,
                    blocksize=_piece_samples(PIECE_MS, rate_hz),
                    callback=driver.hear,
                    finished_callback=driver.end,
                )
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(
                "the microphone cannot be opened",
                where=f"device {device}" if device is not None else "default device",
                got=error,
                fix="List the devices with: python -m sounddevice",
            ) from error
        on_open()
        while (heard := ctrl_c.unless_pressed(driver.wait)) is not None:
            yield from _resampled(resampler, heard)
        opened.close()  # the computation from here on needs no microphone
        for heard in driver.rest():  # recorded before Ctrl-C, during a computation
            yield from _resampled(resampler, heard)
        yield resampler.flush()


def _resampled(resampler: StreamingResampler, heard: Samples | Gap) -> Iterator[Samples | Gap]:
    if isinstance(heard, Gap):
        yield resampler.flush()
        yield heard
        resampler.reset()
    else:
        yield resampler.accept(heard)


class _Driver:
    """A queue of pieces from a microphone's driver, which calls it in its own thread, for another thread.

    Args:
        rate_hz: sample rate.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._arrived: queue.SimpleQueue[Samples | Gap | None] = queue.SimpleQueue()  # None after the last
        self._end_s: float | None = None  # end of the last piece, by the device's clock
        self._told = False

    def hear(self, frames: NDArray[np.float32], count: int, time: Any, status: Any) -> None:
        """Receives a piece; see `callback` of sounddevice.InputStream."""
        if status:
            _log.warning("microphone: %s", status)
        start_s = float(getattr(time, "inputBufferAdcTime", 0.0))
        if getattr(status, "input_overflow", False) and self._end_s is not None:
            # Audio was lost before this piece. Some drivers have no clock, and some start with an overflow.
            self._arrived.put(Gap(max(0.0, start_s - self._end_s)))
        self._end_s = start_s + count / self._rate_hz
        self._arrived.put(self._finite(frames[:, 0].copy()))

    def end(self) -> None:
        """Notes that no piece follows."""
        self._arrived.put(None)

    def wait(self) -> Samples | Gap | None:
        """The next piece or gap; None, with a warning, if the microphone is gone."""
        try:
            heard = self._arrived.get(timeout=_GONE_AFTER_S)
        except queue.Empty:
            heard = None
        if heard is None:
            _log.warning("the microphone has stopped delivering audio: the transcript ends there")
        return heard

    def rest(self) -> Iterator[Samples | Gap]:
        """The pieces and gaps that have not been fetched yet."""
        while not self._arrived.empty():
            if (heard := self._arrived.get()) is not None:
                yield heard

    def _finite(self, samples: Samples) -> Samples:
        """The samples, with zeros for NaN and infinity: a driver's glitch is no reason to stop listening."""
        if np.isfinite(samples).all():
            return samples
        if not self._told:
            _log.warning("microphone: NaN and infinite samples are replaced by silence")
        self._told = True
        return np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)


def _microphone_rate_hz(sounddevice: Any, device: str | int | None) -> int:
    """16 kHz, or the device's default rate if it does not support that."""
    try:
        sounddevice.check_input_settings(
            device=device, channels=1, dtype="float32", samplerate=SAMPLE_RATE_HZ
        )
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(device, "input")["default_samplerate"])
    return SAMPLE_RATE_HZ


class _CtrlC:
    """A context in which the first Ctrl-C ends the audio but not its transcription: it ends a read that is
    waiting for data, but does not interrupt computation. A second Ctrl-C does.

    If Ctrl-C does not raise KeyboardInterrupt anyway, as in other threads, nothing is changed.
    """

    def __init__(self) -> None:
        self._pressed = self._reading = self._installed = False

    def __enter__(self) -> _CtrlC:
        main = threading.current_thread() is threading.main_thread()
        self._installed = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._installed:
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def unless_pressed(self, read: Callable[[], T]) -> T | None:
        """The result of `read`; None once Ctrl-C has been pressed."""
        try:
            self._reading = True  # set before checking `_pressed`, so that no press is missed in between
            result = None if self._pressed else read()
            self._reading = False
            return result
        except KeyboardInterrupt:
            self._reading = False
            return None

    def _press(self, number: int, frame: FrameType | None) -> None:
        again, self._pressed = self._pressed, True
        if again or self._reading:
            raise KeyboardInterrupt


def _sounddevice() -> Any:
    try:
        return require("sounddevice", "mic")
    except OSError as error:  # the package is installed, but not the library that it wraps
        raise ConfigError(
            "the PortAudio library is missing", got=error, fix="Install it: apt-get install libportaudio2"
        ) from error
