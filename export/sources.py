"""Where live audio comes from: pieces of samples from a pipe or a microphone."""

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

# How much audio is taken at a time: the text of live audio may come so much later than it could.
PIECE_MS = 20
_BYTES_PER_SAMPLE = 2
# What it takes to tell a container from samples: two frames of an MP3 are the longest.
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
# Of MPEG layer III, by the bits that say so: kbit/s of MPEG 1 and of MPEG 2, Hz of MPEG 1.
_MP3_KBITS = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MP3_RATES_HZ = (44_100, 48_000, 32_000)
# Of a microphone that gives a piece every `PIECE_MS`: some drivers tell nobody that theirs is gone.
_GONE_AFTER_S = 5.0
_log = logging.getLogger(__name__)


class Gap(NamedTuple):
    """Between two pieces: audio that was lost.

    Attributes:
        seconds: of it, where the driver knows; otherwise 0.
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
    """Raw mono 16-bit little-endian PCM from a pipe, as soon as it comes, until its end or Ctrl-C.

    At most `PIECE_MS` are read at a time; what is there is taken without waiting for more.

    Args:
        rate_hz: its sample rate, and that of the pieces: `Recogniser.listen` is to be told of it, too.

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
            # Samples wait until it is certain that they are samples.
            whole = len(rest) // _BYTES_PER_SAMPLE * _BYTES_PER_SAMPLE if checked else 0
            yield _to_float(rest[:whole])
            rest = rest[whole:]
        whole = len(rest) // _BYTES_PER_SAMPLE * _BYTES_PER_SAMPLE
        if data is not None and not checked and not whole:
            raise AudioError(
                "the audio holds no samples",
                where="standard input",
                expected="mono 16-bit little-endian PCM",
                got=counted(len(rest), "byte"),
            )
        yield _to_float(rest[:whole])
    if len(rest) > whole:
        _log.warning("the PCM stream ended in the middle of a sample: its last byte was left out")


def _to_float(data: bytes) -> Samples:
    return np.frombuffer(data, "<i2") * np.float32(1 / 32_768)


def _refuse_container(data: bytes) -> None:
    if (name := _container(data)) is not None:
        raise AudioError(
            f"this is a {name} file, not raw samples",
            where="standard input",
            expected="mono 16-bit little-endian PCM",
            fix="Name the file on the command line, or convert it: ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -",
        )


def _container(data: bytes) -> str | None:
    """What a file that begins so is called; None for samples, or for too little of it."""
    if data[4:8] == b"ftyp":
        return "MP4"
    if (size := _mp3_frame_bytes(data)) and _mp3_frame_bytes(data[size:]) and data[1] == data[size + 1]:
        return "MP3"
    return next((name for begin, name in _CONTAINERS.items() if data.startswith(begin)), None)


def _mp3_frame_bytes(data: bytes) -> int:
    """How long the frame of MPEG layer III is whose header `data` begins with; 0 where it is none."""
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
    """The microphone at 16 kHz in pieces of `PIECE_MS`, until Ctrl-C or until it is gone, which is warned of:
    what was heard before that is complete. Samples that are no numbers are silence, which is warned of once.
    A `Gap` stands where the driver lost what nobody fetched in time.

    Args:
        device: name or number as `python -m sounddevice` lists them; None for the default.
        on_open: called when the microphone listens.

    Raises:
        MissingDependencyError: sounddevice is not installed.
        AudioError: there is no such device, or it does not record.
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
        opened.close()  # what is computed from here on needs no microphone
        for heard in driver.rest():  # recorded before Ctrl-C, while something was computed
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
    """What a microphone's driver tells in a thread of its own, for another thread to fetch.

    Args:
        rate_hz: samples a second.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._arrived: queue.SimpleQueue[Samples | Gap | None] = queue.SimpleQueue()  # None after the last
        self._end_s: float | None = None  # of the last piece, by the device's clock
        self._told = False

    def hear(self, frames: NDArray[np.float32], count: int, time: Any, status: Any) -> None:
        """Takes a piece; see `callback` of sounddevice.InputStream."""
        if status:
            _log.warning("microphone: %s", status)
        start_s = float(getattr(time, "inputBufferAdcTime", 0.0))
        if getattr(status, "input_overflow", False) and self._end_s is not None:
            # What was lost lay before this piece. Some drivers have no clock, and others begin with this.
            self._arrived.put(Gap(max(0.0, start_s - self._end_s)))
        self._end_s = start_s + count / self._rate_hz
        self._arrived.put(self._finite(frames[:, 0].copy()))

    def end(self) -> None:
        """Takes it that nothing more comes."""
        self._arrived.put(None)

    def wait(self) -> Samples | Gap | None:
        """What is told next; None, and a warning, where the microphone gives nothing any more."""
        try:
            heard = self._arrived.get(timeout=_GONE_AFTER_S)
        except queue.Empty:
            heard = None
        if heard is None:
            _log.warning("the microphone is gone: what was heard until then is all")
        return heard

    def rest(self) -> Iterator[Samples | Gap]:
        """What was told and is not fetched yet."""
        while not self._arrived.empty():
            if (heard := self._arrived.get()) is not None:
                yield heard

    def _finite(self, samples: Samples) -> Samples:
        """The samples, zero where they are no numbers: a driver that stumbles over a sample is no reason to
        stop listening."""
        if np.isfinite(samples).all():
            return samples
        if not self._told:
            _log.warning("microphone: samples of NaN or infinity are heard as silence")
        self._told = True
        return np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)


def _microphone_rate_hz(sounddevice: Any, device: str | int | None) -> int:
    """16 kHz, or the device's own rate where it has no other."""
    try:
        sounddevice.check_input_settings(
            device=device, channels=1, dtype="float32", samplerate=SAMPLE_RATE_HZ
        )
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(device, "input")["default_samplerate"])
    return SAMPLE_RATE_HZ


class _CtrlC:
    """Within the block the first Ctrl-C ends what is heard and not its transcript: it ends the read that
    waits for more, and breaks off nothing that is computed meanwhile. A second one does.

    Where Ctrl-C does not raise KeyboardInterrupt anyway, as in other threads, it stays as it is.
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
        """What `read` gives; None once Ctrl-C was pressed."""
        try:
            self._reading = True  # before the look at what was pressed: no press falls between
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
    except OSError as error:  # the package is there, the library it wraps is not
        raise ConfigError(
            "the PortAudio library is missing", got=error, fix="Install it: apt-get install libportaudio2"
        ) from error
