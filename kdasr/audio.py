"""Decode audio to mono float32 samples at 16 kHz, and encode such samples as 16-bit FLAC."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, Union

import numpy as np
import soundfile
from numpy.typing import NDArray

from kdasr.errors import AudioError
from kdasr.resampling import check_rates, resample
from kdasr.storage import StorageError

SAMPLE_RATE_HZ = 16_000
# No cut begins or ends after this: 30 years.
MOST_SECONDS = 1e9
_PCM16_SCALE = 32_768.0
# A WAV written to a pipe has an unknown length: its header holds 0 or, depending on the program, a number
# from here on (0x7FFFF000 by sox, 0x80000000 by arecord, 0xFFFFFFFF by ffmpeg).
_UNKNOWN_BYTES = 0x7FFF0000
_UNKNOWN_FRAMES = 2**62
_BLOCK_SECONDS = 60.0
# With a rate of 1 Hz in its header, resampling a minute of audio would take 57 GB.
_LOWEST_HZ = 2_000
# The share of a segment, at its end, in which it may be cut: the last 2.5 of 20 s.
_SLACK_SHARE = 0.125
# Decoding starts this long before a cut, since frames of mp3 or opus depend on earlier ones. If a cut begins
# at most _READ_ON_SECONDS after the last one, the file is read on rather than sought in.
_LEAD_SECONDS = 1.0
_READ_ON_SECONDS = 30.0
_PASSED_FRAMES = 1 << 20
# A cut may end this far beyond the audio, and then ends with it: times in lists are rounded.
_OVERSHOOT_SECONDS = 0.1
# Audio formats that are not decoded; known here so that users are told.
_NOT_DECODED = (".3gp", ".aac", ".amr", ".m4a", ".mp4", ".sph", ".webm", ".wma")
# With formats that libsndfile decodes: they work if a single file is named, but not in a corpus.
OTHER_AUDIO = (*_NOT_DECODED, ".aif", ".aiff", ".au", ".caf")
NOT_READ = "unsupported format: convert it to wav or flac"
_COPY_AGAIN = "Copy the file again from its source."
# Errors of the file itself. All others (a lost mount, a bad disk, too many open files) may be temporary.
_OF_THE_FILE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP,
    errno.EINVAL,
)  # fmt: skip


_Source = Union[BinaryIO, "_OnDisk"]


class Decoded(NamedTuple):
    """Decoded audio, with the sample rate and number of channels of the file.

    Attributes:
        samples: (N,) float32 in [-1, 1], mono, at the requested rate.
        source_rate_hz: the rate of the file; if it differs, the samples were resampled.
        source_channels: the number of channels of the file, or 1 if one was selected; if more than one, they
            were averaged.
    """

    samples: NDArray[np.float32]
    source_rate_hz: int
    source_channels: int


class Cut(NamedTuple):
    """A part of an audio file.

    Attributes:
        start_seconds: where it begins.
        seconds: its duration; None: to the end.
        channel: the channel of the file, counted from 0; None: all channels, averaged.
    """

    start_seconds: float = 0.0
    seconds: float | None = None
    channel: int | None = None


WHOLE = Cut()


class Promised(NamedTuple):
    """What the header of a file says.

    Attributes:
        samples: number of samples at the reader's rate; 0 if unknown.
        num_segments: number of segments that `AudioReader.segments` gives; 0 if unknown.
        source_rate_hz: the rate of the file.
    """

    samples: int
    num_segments: int
    source_rate_hz: int


# Floating point audio may overshoot 1 after resampling; a peak like this is integer PCM.
_PEAK_OF_UNSCALED_PCM = 100.0


def decode(data: bytes, where: str, most_samples: float = math.inf) -> NDArray[np.float32]:
    """Decode a whole audio file's bytes to (N,) float32 samples in [-1, 1], mono, 16 kHz.

    Reads what libsndfile reads (wav, flac, ogg, mp3, opus). Channels are averaged and other
    sample rates resampled. `where` names the audio in errors. Of audio with more than `most_samples`, at
    most another minute is decoded: hours of silence take few bytes.

    Raises:
        AudioError: no bytes, not decodable, truncated (if the format reveals it: ogg does not),
            no samples, NaN/infinite samples, or a rate that `check_rates` refuses.
    """
    return decode_with_rate(data, where, most_samples).samples


def decode_with_rate(data: bytes, where: str, most_samples: float = math.inf) -> Decoded:
    """As `decode`, with the sample rate and channels of the audio."""
    with _opened(io.BytesIO(data), where, SAMPLE_RATE_HZ) as file:
        most_frames = most_samples * file.samplerate / SAMPLE_RATE_HZ
        return _joined(_up_to(most_frames, _blocks(file, where)), file.samplerate, SAMPLE_RATE_HZ)


def load(path: Path) -> NDArray[np.float32]:
    """The audio file at `path`, decoded as by `decode`.

    Raises:
        AudioError: as `decode`, or the file does not exist or may not be read.
        StorageError: the disk or its mount failed.
    """
    return load_with_rate(path).samples


def load_with_rate(path: Path, rate_hz: int = SAMPLE_RATE_HZ) -> Decoded:
    """As `load`, at `rate_hz`, with the sample rate and channels of the file."""
    with AudioReader(path, rate_hz) as reader:
        return reader.load()


class AudioReader:
    """An audio file that stays open while cuts of it are read. In order, they cost at most one decoding of
    the file; to reach a distant place in an mp3, all frame headers before it are scanned, once.

    A cut begins and ends at the nearest frames of the file and is resampled by itself, so that no audio
    around it leaks into it.
    """

    def __init__(self, path: Path, rate_hz: int = SAMPLE_RATE_HZ) -> None:
        self._path, self._rate_hz = path, rate_hz
        self._file: _Forward | None = None
        self._disk: _OnDisk | None = None
        self._close = ExitStack()

    @property
    def channels(self) -> int:
        """Number of channels of the file, averaged unless a cut selects one; 0 before the first read."""
        return 0 if self._file is None else int(self._file.channels)

    def load(self, cut: Cut = WHOLE) -> Decoded:
        """A cut, or all of the file.

        Raises:
            AudioError, StorageError: as `load`, or the cut is not within the file, or of a channel that this
                lacks.
        """
        with self._reading() as file:
            return _joined(_blocks(file, str(self._path), cut), file.samplerate, self._rate_hz)

    def segments(self, max_seconds: float, cut: Cut = WHOLE) -> Iterator[Decoded]:
        """A cut in about equal segments of at most `max_seconds`, each cut off at the quietest place
        towards its end, so that few words are split. At most two are held in memory.

        Raises:
            AudioError, StorageError: as `load`; a truncated file gives its segments before the error.
        """
        with self._reading() as file:
            for frames_nc in _segments(file, max_seconds, str(self._path), cut):
                yield _joined([frames_nc], file.samplerate, self._rate_hz)

    def promised(self, cut: Cut = WHOLE, max_seconds: float = math.inf) -> Promised:
        """What the header says of a cut and of its `segments`, without decoding.

        Raises:
            AudioError, StorageError: as `load`, for what the header reveals.
        """
        with self._reading() as file:
            start, end = _ends(file, str(self._path), cut)
            if end >= _UNKNOWN_FRAMES:
                return Promised(0, 0, file.samplerate)
            samples = math.ceil((end - start) * self._rate_hz / file.samplerate)
            return Promised(samples, _parts(file, max_seconds, end - start)[0], file.samplerate)

    @contextmanager
    def _reading(self) -> Iterator[_Forward]:
        try:
            # A file of unknown length cannot seek back.
            if self._file is None or self._file.frames >= _UNKNOWN_FRAMES:
                self._close.close()
                with ExitStack() as opened:
                    self._disk = opened.enter_context(_on_disk(self._path))
                    self._file = opened.enter_context(_opened(self._disk, str(self._path), self._rate_hz))
                    self._close = opened.pop_all()
            assert self._disk is not None
            with _decoding(str(self._path), self._disk.num_bytes):
                yield self._file
            self._check_disk()  # in a file of unknown length, a disk error looks like the end
        except AudioError:
            # The state after an error is unusable: the next cut opens the file again.
            self._file = None
            self._check_disk()
            raise

    def _check_disk(self) -> None:
        if self._disk is not None and (error := self._disk.error) is not None:
            self._file = None
            raise _not_read(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()


def check_scale(samples: NDArray[np.float32], where: str) -> None:
    """Refuse floating point samples, of any shape, that are plainly on the scale of integer PCM.

    Raises:
        AudioError: the samples are on that scale.
    """
    if samples.size and (peak := float(np.abs(samples).max())) > _PEAK_OF_UNSCALED_PCM:
        raise AudioError(
            "the samples are not scaled",
            where=where,
            expected="values in [-1, 1]",
            got=f"a peak of {peak:.0f}",
            fix="Divide 16-bit samples by 32768.",
        )


def encode_flac(samples: NDArray[np.float32]) -> bytes:
    """Encode (N,) samples at 16 kHz as 16-bit FLAC; the same samples give the same bytes.

    Values are rounded to multiples of 2^-15 and clipped, so that decoding returns exactly
    `round(samples * 32768) / 32768`.

    Raises:
        AudioError: no samples, NaN/infinite samples, or other than floating point, mono samples in [-1, 1].
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            "only mono floating point samples can be stored",
            expected="float32 of shape (N,) in [-1, 1]",
            got=f"{samples.dtype} of shape {samples.shape}",
            fix="Divide 16-bit samples by 32768, and take one channel, or the mean of all.",
        )
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise AudioError("only finite, non-empty audio can be stored", got=f"{len(samples)} samples")
    check_scale(samples, "samples")
    scaled = np.rint(np.asarray(samples, dtype=np.float64) * _PCM16_SCALE)
    pcm = np.clip(scaled, -_PCM16_SCALE, _PCM16_SCALE - 1).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class _Forward(soundfile.SoundFile):
    """Appears not seekable to soundfile, which would seek to the end: a FLAC of unknown length cannot.

    Attributes:
        position: the next frame to be read.
    """

    position = 0

    def seekable(self) -> bool:
        return False

    def read(self, *args: Any, **settings: Any) -> NDArray[Any]:
        samples: NDArray[Any] = super().read(*args, **settings)
        self.position += len(samples)
        return samples

    def seek(self, frame: int) -> None:
        super().seek(frame)
        self.position = frame


@contextmanager
def _opened(stream: _Source, where: str, rate_hz: int) -> Iterator[_Forward]:
    """Open a stream with libsndfile, checking that it is not empty or truncated and has samples that can be
    resampled to `rate_hz`."""
    num_bytes = stream.seek(0, os.SEEK_END)
    if num_bytes == 0:
        raise AudioError("the audio is empty", where=where, expected="an audio file", got="0 bytes")
    whole = _whole_wav(stream, num_bytes, where)
    whole.seek(0)
    with _decoding(where, num_bytes), _Forward(whole) as file:
        if file.frames == 0:
            expected, got = "at least one sample", "only a header"
            raise AudioError("the audio holds no samples", where=where, expected=expected, got=got)
        if file.samplerate < _LOWEST_HZ:
            raise AudioError(
                "no speech has such a low sample rate",
                where=where,
                expected=f"{_LOWEST_HZ} Hz or more",
                got=f"{file.samplerate} Hz",
                fix=f"The header is damaged or wrong. {_COPY_AGAIN}",
            )
        check_rates(file.samplerate, rate_hz, where)
        yield file


@contextmanager
def _decoding(where: str, num_bytes: int) -> Iterator[None]:
    """Turn libsndfile's errors into AudioError; other RuntimeErrors are not the file's fault."""
    try:
        yield
    except soundfile.SoundFileError as error:
        # Without the message's prefix, which names the stream object: `where` already names the file.
        said = getattr(error, "error_string", None) or error
        if where.lower().endswith(_NOT_DECODED):
            raise AudioError(NOT_READ, where=where, got=f"{num_bytes} bytes ({said})") from error
        raise AudioError(
            "the audio cannot be decoded",
            where=where,
            expected="a whole wav, flac, ogg, mp3 or opus file",
            got=f"{num_bytes} bytes ({said})",
            fix="The file is damaged, cut short or of another type: replace it or remove it.",
        ) from error


def _segments(
    file: _Forward, max_seconds: float, where: str, cut: Cut = WHOLE
) -> Iterator[NDArray[np.float32]]:
    """(n, channels) frames, segment by segment, each but the last cut off at a quiet place; (n, 1) if the cut
    selects a channel."""
    start, end = _ends(file, where, cut)
    count, part, slack = _parts(file, max_seconds, end - start)
    longest = part + slack
    # A file of unknown length is read in small steps, and cut only if it exceeds the longest segment.
    blocks = _blocks(file, where, cut, part if count else max(1, slack))
    held_nc: NDArray[np.float32] | None = None
    try:
        for block_nc in blocks:
            if held_nc is not None and (count or len(held_nc) + len(block_nc) > longest):
                at = _quietest(held_nc, len(held_nc) - slack, file.samplerate)
                yield held_nc[:at]
                held_nc = held_nc[at:]
            held_nc = block_nc if held_nc is None else np.concatenate([held_nc, block_nc])
    except AudioError:
        if held_nc is not None and len(held_nc):  # what came before a fault is not lost
            yield held_nc
        raise
    if held_nc is not None:
        yield held_nc


def _parts(file: soundfile.SoundFile, max_seconds: float, num_frames: int) -> tuple[int, int, int]:
    """How many segments there are (0: unknown), how many frames each reads from the file, and how many of
    these it may leave to the next one."""
    longest = max(1, int(min(max_seconds * file.samplerate, _UNKNOWN_FRAMES)))
    if num_frames <= longest:
        return 1, num_frames, 0
    slack = int(longest * _SLACK_SHARE)
    if num_frames >= _UNKNOWN_FRAMES:
        return 0, longest - slack, slack
    # Equal parts: a last one of a few samples would be useless.
    count = math.ceil(num_frames / (longest - slack))
    return count, math.ceil(num_frames / count), slack


def _quietest(frames_nc: NDArray[np.float32], first: int, rate_hz: int) -> int:
    """The middle of the quietest 100 ms after frame `first`, the last of equally quiet ones; the end if there
    are less than 100 ms."""
    hop = max(1, rate_hz // 100)
    mono_n = frames_nc[first:].mean(axis=1, dtype=np.float64)
    power_h = np.square(mono_n[: len(mono_n) // hop * hop]).reshape(-1, hop).mean(axis=1)
    if len(power_h) < 10:
        return len(frames_nc)
    sums = np.convolve(power_h, np.ones(10), "valid")
    return first + (len(sums) - 1 - int(sums[::-1].argmin()) + 5) * hop


def _blocks(
    file: _Forward, where: str, cut: Cut = WHOLE, num_frames: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """(n, channels) frames, block by block, to the end of the cut; (n, 1) if it selects a channel."""
    start, end = _ends(file, where, cut)
    _go_to(file, start)
    num_frames = num_frames or int(_BLOCK_SECONDS * file.samplerate)
    position = start
    while position < end:
        wanted = min(num_frames, end - position)
        frames_nc = _read(file, wanted, cut.channel)
        position += len(frames_nc)
        if not np.isfinite(frames_nc).all():
            raise AudioError(
                "the audio holds NaN or infinite samples", where=where, expected="finite samples"
            )
        check_scale(frames_nc, where)
        if len(frames_nc):
            yield frames_nc
        if len(frames_nc) < wanted:
            break
    known = end < _UNKNOWN_FRAMES
    if position == start or (known and position < end):
        expected, got = f"{end if known else 'some'} frames", position
        raise AudioError("the audio is cut short", where=where, expected=expected, got=got, fix=_COPY_AGAIN)


def _up_to(most_frames: float, blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Blocks up to the first with which there are more than `most_frames`."""
    for block in blocks:
        yield block
        most_frames -= len(block)
        if most_frames < 0:
            return


def _read(file: _Forward, num_frames: int, channel: int | None) -> NDArray[np.float32]:
    """(n, channels) frames, or (n, 1) of one channel, as many as there are up to `num_frames`, read in blocks
    since soundfile would allocate memory for all of `num_frames`."""
    blocks, most = [], int(_BLOCK_SECONDS * file.samplerate)
    while num_frames > 0:
        frames_nc = file.read(min(num_frames, most), dtype="float32", always_2d=True)
        # A copy: a view would keep the other channels in memory.
        blocks.append(frames_nc if channel is None else frames_nc[:, channel : channel + 1].copy())
        num_frames = num_frames - len(blocks[-1]) if len(blocks[-1]) == most else 0
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _ends(file: soundfile.SoundFile, where: str, cut: Cut) -> tuple[int, int]:
    """First frame of a cut, and the one after its last: a huge number if the end is unknown."""
    if cut.channel is not None and not 0 <= cut.channel < file.channels:
        expected = {1: "0", 2: "0 or 1"}.get(file.channels, f"0 to {file.channels - 1}")
        what = f"there is no channel {cut.channel}: the file has {file.channels}"
        raise AudioError(what, where=where, expected=expected)
    # Each end is rounded by itself, so that adjacent cuts neither share nor lose a frame.
    start = round(cut.start_seconds * file.samplerate)
    end = file.frames
    if cut.seconds is not None:
        end = round((cut.start_seconds + cut.seconds) * file.samplerate)
    last = min(end, file.frames)
    if 0 <= start < last and end <= file.frames + _OVERSHOOT_SECONDS * file.samplerate:
        return start, last
    known = file.frames < _UNKNOWN_FRAMES
    raise AudioError(
        "the cut is not within the audio",
        where=where,
        expected=f"a part of 0 to {file.frames / file.samplerate:.2f} s" if known else "one with samples",
        got=f"{cut.start_seconds:.2f} s"
        + (f" to {end / file.samplerate:.2f} s" if end < _UNKNOWN_FRAMES else ""),
    )


def _go_to(file: _Forward, frame: int) -> None:
    ahead = frame - file.position
    if file.frames < _UNKNOWN_FRAMES and not 0 <= ahead <= _READ_ON_SECONDS * file.samplerate:
        file.seek(max(0, frame - round(_LEAD_SECONDS * file.samplerate)))
    while file.position < frame:
        if not len(file.read(min(frame - file.position, _PASSED_FRAMES), always_2d=True)):
            return


def _joined(blocks: Iterable[NDArray[np.float32]], from_hz: int, to_hz: int) -> Decoded:
    frames_nc = np.concatenate(list(blocks))
    mono = frames_nc[:, 0] if frames_nc.shape[1] == 1 else frames_nc.mean(axis=1, dtype=np.float32)
    return Decoded(resample(np.ascontiguousarray(mono), from_hz, to_hz), from_hz, frames_nc.shape[1])


class _OnDisk:
    """An open file that keeps disk errors, which libsndfile would take for the end of the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        self.num_bytes = os.fstat(stream.fileno()).st_size
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            self.error = error
            return b""


@contextmanager
def _on_disk(path: Path) -> Iterator[_OnDisk]:
    try:
        if Path(path).is_fifo():  # opening it would wait for a writer, perhaps for ever
            fix = "Name a file of audio; `kdasr transcribe -` reads raw samples from a pipe."
            raise AudioError("this is a pipe, not a file", where=path, fix=fix)
        stream = Path(path).open("rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise _not_read(path, error) from error
    with stream:
        yield _OnDisk(stream)


def _not_read(path: Path, error: OSError) -> AudioError | StorageError:
    if error.errno not in _OF_THE_FILE:
        return StorageError(
            "the audio cannot be read from the disk",
            where=path,
            got=error.strerror,
            fix="The file may be intact: check the disk or its mount, then run it again.",
        )
    fix = f"Name files, such as {Path(path) / '*.wav'}." if isinstance(error, IsADirectoryError) else None
    return AudioError("the audio file cannot be read", where=path, got=error.strerror, fix=fix)


def _whole_wav(stream: _Source, num_bytes: int, where: str) -> _Source | _Unclosed:
    """The stream, made readable to its end if it is a WAV whose header does not give the length; a WAV
    shorter than its header says is refused, since libsndfile reads it without an error."""
    stream.seek(0)
    head = stream.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return stream
    position, long_size = 12, 0
    while position + 8 <= num_bytes:
        stream.seek(position)
        chunk = stream.read(8)
        size, available = int.from_bytes(chunk[4:], "little"), num_bytes - position - 8
        if chunk[:4] == b"ds64":  # of an RF64, whose data chunk then holds 0xFFFFFFFF
            long_size = int.from_bytes(stream.read(16)[8:], "little")
        if chunk[:4] == b"data":
            unknown = _UNKNOWN_BYTES
            if long_size and size >= unknown:
                size, unknown = long_size, _UNKNOWN_FRAMES
            if size < unknown and available < size:
                expected, got = f"{size} bytes of samples", f"{available} bytes"
                raise AudioError(
                    "the audio is cut short", where=where, expected=expected, got=got, fix=_COPY_AGAIN
                )
            # If the data are truly empty, other chunks may follow within the length of the RIFF.
            empty = position + 8 < int.from_bytes(head[4:8], "little") + 8 <= num_bytes
            return stream if size or empty else _Unclosed(stream, position + 4)
        position += 8 + size + size % 2
    return stream


class _Unclosed:
    """A WAV whose data length, at `position`, was left 0: read here as 0xFFFFFFFF, since libsndfile takes 0
    for no samples."""

    def __init__(self, stream: _Source, position: int) -> None:
        self._stream, self._position = stream, position
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        start = self.tell()
        data = bytearray(self._stream.read(size))
        for at in range(max(start, self._position), min(start + len(data), self._position + 4)):
            data[at - start] = 0xFF
        return bytes(data)
