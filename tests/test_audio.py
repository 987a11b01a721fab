"""kdasr.audio: what is decoded, resampled, refused and written back."""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from kdasr.audio import (
    SAMPLE_RATE_HZ,
    AudioReader,
    Cut,
    decode,
    decode_with_rate,
    encode_flac,
    load,
    load_with_rate,
)
from kdasr.errors import AudioError
from kdasr.resampling import resample
from kdasr.storage import StorageError
from tests.test_resampling import tone

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav_float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def encoded(samples: NDArray[np.float32], rate_hz: int = SAMPLE_RATE_HZ, kind: str = "wav") -> bytes:
    container, subtype = FORMATS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_tone_back(kind: str) -> None:
    samples = tone(1.0, 48_000)
    decoded, rate_hz, _ = decode_with_rate(encoded(samples, 48_000, kind), kind)
    assert rate_hz == 48_000
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - SAMPLE_RATE_HZ) <= 0.08 * SAMPLE_RATE_HZ
    spectrum = np.abs(np.fft.rfft(decoded[4000:12000]))
    assert np.argmax(spectrum) * SAMPLE_RATE_HZ / 8000 == 440
    assert np.abs(decoded[4000:12000]).max() == pytest.approx(0.3, abs=0.02)


def test_flac_gives_back_the_rounded_samples_exactly() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5001).astype(np.float32)
    expected = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767) / 32768
    np.testing.assert_array_equal(decode(encode_flac(samples), "x"), expected.astype(np.float32))


def test_flac_clips_instead_of_wrapping_around() -> None:
    decoded = decode(encode_flac(np.array([2.0, -2.0, 0.0], np.float32)), "x")
    np.testing.assert_array_equal(decoded, np.array([32767 / 32768, -1.0, 0.0], np.float32))


def test_the_same_samples_give_the_same_flac() -> None:
    assert encode_flac(tone(0.5)) == encode_flac(tone(0.5))


def test_channels_are_counted() -> None:
    for channels in (1, 2, 3):
        data = encoded(np.stack([tone(0.1)] * channels, axis=1))
        assert decode_with_rate(data, "here.wav").source_channels == channels


def test_channels_are_averaged() -> None:
    stereo = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1).astype(np.float32)
    np.testing.assert_allclose(decode(encoded(stereo, kind="wav_float"), "x"), 0.125)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_rate_that_only_a_damaged_header_has_is_refused_before_memory_is_taken(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"slow.{kind}"
    path.write_bytes(encoded(tone(0.1, 8_000), 1, kind))
    message = f"slow.{kind}: no speech has such a low sample rate; expected 2000 Hz or more; got 1 Hz"
    with pytest.raises(AudioError, match=message):
        load(path)
    with AudioReader(path) as reader, pytest.raises(AudioError, match=message):
        reader.promised()


@pytest.mark.parametrize("rate_hz", [22_254, 44_101])
def test_a_rate_whose_filter_would_take_gigabytes_is_refused(rate_hz: int, tmp_path: Path) -> None:
    message = f"unsupported sample rate.*got {rate_hz} Hz.*ffmpeg"
    path = tmp_path / "odd.wav"
    path.write_bytes(encoded(tone(0.1, rate_hz), rate_hz))
    with pytest.raises(AudioError, match=rf"odd\.wav: {message}"):
        load(path)
    with AudioReader(path) as reader, pytest.raises(AudioError, match=rf"odd\.wav: {message}"):
        next(reader.segments(1.0))
    with pytest.raises(AudioError, match=f"x: {message}"):
        decode(path.read_bytes(), "x")
    with pytest.raises(AudioError, match=message):
        resample(tone(0.1, rate_hz), rate_hz, SAMPLE_RATE_HZ)
    assert load_with_rate(path, rate_hz).source_rate_hz == rate_hz


def test_another_rate_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(0.5, 8_000), 8_000))
    samples, rate_hz, _ = load_with_rate(path, 8_000)
    assert (len(samples), rate_hz) == (4000, 8_000)
    assert len(load(path)) == 8000


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_audio_is_refused_by_name(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    data = encoded(noise, kind=kind)
    with pytest.raises(AudioError, match=r"here\.x.*(cut short|cannot be decoded)"):
        decode(data[: int(len(data) * share)], "here.x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the audio is empty"),
        (b"not audio at all, but text", "cannot be decoded"),
        (encoded(tone(0.0)), "holds no samples"),
        (encoded(tone(0.1))[:30], "cannot be decoded"),
        (encoded(np.array([0.0, np.nan], np.float32), kind="wav_float"), "NaN or infinite"),
        (encoded(np.array([0.0, np.inf], np.float32), kind="wav_float"), "NaN or infinite"),
    ],
    # Not by the bytes: a wav of floats holds the time at which it was written.
    ids=["empty", "text", "no samples", "cut short", "nan", "infinite"],
)
def test_what_is_no_audio_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=f"^some-name: .*{message}"):
        decode(data, "some-name")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_wav_that_never_knew_its_length_is_read(size: int) -> None:
    whole = encoded(tone(0.1))
    at = whole.index(b"data") + 4
    unknown, riff = size.to_bytes(4, "little"), (size + 36).to_bytes(5, "little")[:4]
    for riff_size in (riff, unknown):
        piped = whole[:4] + riff_size + whole[8:at] + unknown + whole[at + 4 :]
        np.testing.assert_array_equal(decode(piped, "piped.wav"), decode(whole, "whole.wav"))


def test_a_long_wav_is_read_whole_or_refused(tmp_path: Path) -> None:
    """RF64, the format of WAVs beyond 4 GB, has its sizes in a chunk before the others."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5), SAMPLE_RATE_HZ, format="RF64", subtype="PCM_16")
    data = buffer.getvalue()
    np.testing.assert_array_equal(decode(data, "long.wav"), decode(encoded(tone(0.5)), "short.wav"))
    path = tmp_path / "long.wav"
    path.write_bytes(data[:-2_000])
    with pytest.raises(AudioError, match=r"long\.wav.*cut short; expected 16000 bytes of samples; got 14000"):
        load(path)


def test_chunks_behind_no_samples_are_not_taken_for_samples() -> None:
    data = encoded(tone(0.0)) + b"LIST\x04\x00\x00\x00INFO"
    data = data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
    with pytest.raises(AudioError, match="holds no samples"):
        decode(data, "empty.wav")


def test_a_flac_that_never_knew_its_length_is_read() -> None:
    data = bytearray(encoded(tone(0.5), kind="flac"))
    # STREAMINFO holds the count of samples in the low 36 bits of bytes 18 to 25.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    np.testing.assert_allclose(decode(bytes(data), "piped.flac"), tone(0.5), atol=2e-5)


def test_a_missing_file_is_an_audio_error(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"absent\.wav.*cannot be read.*No such file"):
        load(tmp_path / "absent.wav")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav: this is a pipe, not a file\. Name a file"):
        load(tmp_path / "a.wav")


def test_a_machine_without_memory_is_not_the_file_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told as an AudioError is left out of a corpus for good."""
    (tmp_path / "good.wav").write_bytes(encoded(tone(2.0)))

    def resampled(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("kdasr.audio.resample", resampled)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load(tmp_path / "good.wav")


@pytest.mark.parametrize("when", ["opened", "read"])
def test_a_disk_that_fails_is_not_the_file_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Nobody may take a good file for a bad one: what is told of it is no AudioError."""
    path = tmp_path / "good.wav"
    path.write_bytes(encoded(tone(2.0)))
    fails = [True]
    opened, seeks = Path.open, []

    class Lost(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            seeks.append(self.tell())
            if fails and self.tell() > 20_000:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return super().read(size)  # type: ignore[arg-type]

    def failing(self: Path, *arguments: Any, **settings: Any) -> Any:
        if self != path:
            return opened(self, *arguments, **settings)
        if fails and when == "opened":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return Lost(path)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(StorageError, match=r"good\.wav: the audio cannot be read from the disk; got Stale"):
        load(path)
    assert (max(seeks, default=0) > 20_000) == (when == "read")
    fails.clear()
    np.testing.assert_allclose(load(path), tone(2.0), atol=4e-5)


def test_a_disk_that_fails_in_a_file_that_does_not_know_its_length_is_no_end_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(encoded(tone(8.0), kind="flac"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path = tmp_path / "piped.flac"
    path.write_bytes(data)
    opened, middle = Path.open, len(data) // 2

    class Lost(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > middle:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)  # type: ignore[arg-type]

    monkeypatch.setattr(
        Path, "open", lambda self, *a, **s: Lost(path) if self == path else opened(self, *a, **s)
    )
    with pytest.raises(StorageError, match=r"piped\.flac: the audio cannot be read from the disk"):
        load(path)


def test_a_folder_in_the_place_of_a_file_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=rf"Is a directory\. Name files, such as {tmp_path}/\*\.wav\."):
        load(tmp_path)


def test_audio_of_a_known_format_that_is_not_read_is_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "talk.M4A").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(AudioError, match=r"talk\.M4A: unsupported format: convert it to wav or flac"):
        load(tmp_path / "talk.M4A")
    (tmp_path / "cut.aiff").write_bytes(
        b"FORM\0\0\0\x20AIFF" + bytes(10)
    )  # which libsndfile reads when whole
    with pytest.raises(AudioError, match=r"cut\.aiff: the audio cannot be decoded"):
        load(tmp_path / "cut.aiff")


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.array([np.nan], np.float32)])
def test_nothing_and_nan_cannot_be_stored(samples: NDArray[np.float32]) -> None:
    with pytest.raises(AudioError):
        encode_flac(samples)


def words(pauses_s: Sequence[float], seconds: float, rate_hz: int = 16_000) -> NDArray[np.float32]:
    """Noise with pauses of 150 ms about these times."""
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)
    for middle in pauses_s:
        samples[round((middle - 0.075) * rate_hz) : round((middle + 0.075) * rate_hz)] *= 0.01
    return samples


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_segments_end_in_pauses_and_join_to_the_whole(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "long.flac"
    # Three parts of 3.3 s, which may end half a second earlier for a pause.
    path.write_bytes(encoded(words((1.2, 3.0, 4.8, 6.5, 9.0), 10.0, rate_hz), rate_hz, kind="flac"))
    with AudioReader(path, rate_hz) as reader:
        segments = [segment.samples for segment in reader.segments(4.0)]
    ends = np.cumsum([len(segment) for segment in segments]) / rate_hz
    assert ends == pytest.approx([3.0, 6.5, 10.0], abs=0.05), "in the pauses"
    np.testing.assert_array_equal(np.concatenate(segments), load_with_rate(path, rate_hz).samples)


@pytest.mark.parametrize("seconds", [3.01, 5.9, 10.0, 61.7])
def test_no_segment_is_too_long_or_next_to_nothing(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(encoded(words([0.4 + 0.35 * n for n in range(int((seconds - 0.5) / 0.35))], seconds)))
    with AudioReader(path) as reader:
        lengths = [len(segment.samples) / 16_000 for segment in reader.segments(3.0)]
    assert max(lengths) <= 3.0 and min(lengths) > 1.0 and sum(lengths) == pytest.approx(seconds, abs=1e-3)
    places = (np.cumsum(lengths)[:-1] - 0.4) / 0.35
    assert np.abs(places - places.round()).max() * 0.35 < 0.05, "in the pauses"


@pytest.mark.parametrize(("seconds", "ends_s"), [(2.6, [2.6]), (3.0, [3.0]), (7.0, [2.8, 5.5, 7.0])])
def test_a_file_that_does_not_know_its_length_is_cut_only_where_it_is_too_long(
    tmp_path: Path, seconds: float, ends_s: list[float]
) -> None:
    data = bytearray(encoded(words((2.2, 2.8, 4.0, 5.5), seconds), kind="flac"))
    data[21] &= 0xF0  # the count of samples, in STREAMINFO
    data[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(data)
    with AudioReader(tmp_path / "piped.flac") as reader:
        segments = [segment.samples for segment in reader.segments(3.0)]
    assert np.cumsum([len(segment) for segment in segments]) / 16_000 == pytest.approx(ends_s, abs=0.05)
    np.testing.assert_array_equal(np.concatenate(segments), load(tmp_path / "piped.flac"))


def test_what_comes_before_a_fault_is_not_lost(tmp_path: Path) -> None:
    samples = words((2.5, 5.0), 9.0)
    samples[round(6.1 * 16_000)] = np.nan
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(samples, kind="wav_float"))
    kept: list[NDArray[np.float32]] = []
    with AudioReader(path) as reader, pytest.raises(AudioError, match="NaN"):
        kept.extend(segment.samples for segment in reader.segments(3.0))
    np.testing.assert_array_equal(np.concatenate(kept), samples[: 2 * 36_000])


@pytest.mark.parametrize(("seconds", "rate_hz"), [(10.0, 16_000), (2.9, 16_000), (7.0, 44_100), (6.1, 8_000)])
def test_a_header_promises_the_segments_that_come(tmp_path: Path, seconds: float, rate_hz: int) -> None:
    path = tmp_path / "long.flac"
    path.write_bytes(encoded(words((1.3, 2.5, 3.9), seconds, rate_hz), rate_hz, kind="flac"))
    with AudioReader(path) as reader:
        lengths = [len(segment.samples) for segment in reader.segments(3.0)]
    with AudioReader(path) as reader:
        promised = reader.promised(max_seconds=3.0)
        assert promised[1:] == (len(lengths), rate_hz)
        assert 0 <= sum(lengths) - promised.samples < len(lengths)
        assert reader.promised()[1:] == (1, rate_hz)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_may_be_of_one_channel(kind: str, tmp_path: Path) -> None:
    rate_hz, path = 48_000, tmp_path / "call"
    stereo_nc = np.stack([tone(4.0, rate_hz), noisy(4.0, rate_hz)], axis=1)
    path.write_bytes(encoded(stereo_nc, rate_hz, kind))
    whole_nc = soundfile.read(path, dtype="float32")[0]
    with AudioReader(path, rate_hz) as reader:
        for channel in (1, 0):
            decoded = reader.load(Cut(1.5, 0.5, channel))
            np.testing.assert_allclose(decoded.samples, whole_nc[72_000:96_000, channel], atol=1e-6)
            assert (decoded.source_channels, reader.channels) == (1, 2)
        both = reader.load(Cut(1.5, 0.5))
        np.testing.assert_allclose(both.samples, whole_nc[72_000:96_000].mean(axis=1), atol=1e-6)


def test_the_segments_of_a_channel_end_in_its_own_pauses(tmp_path: Path) -> None:
    stereo_nc = np.stack([words((1.0, 3.3), 5.0), words((1.6, 3.0), 5.0)], axis=1)
    for name, samples in (("call", stereo_nc), ("second", stereo_nc[:, 1])):
        (tmp_path / f"{name}.flac").write_bytes(encoded(samples, kind="flac"))
    with AudioReader(tmp_path / "call.flac") as call, AudioReader(tmp_path / "second.flac") as second:
        found = list(call.segments(2.0, Cut(channel=1)))
        for segment, expected in zip(found, second.segments(2.0), strict=True):
            np.testing.assert_array_equal(segment.samples, expected.samples)
    assert len(found[0].samples) / 16_000 == pytest.approx(1.6, abs=0.05)


def test_what_is_wrong_with_another_channel_is_no_matter(tmp_path: Path) -> None:
    stereo_nc = np.stack([tone(0.5), np.full(8_000, np.nan, np.float32)], axis=1)
    (tmp_path / "a.wav").write_bytes(encoded(stereo_nc, kind="wav_float"))
    with AudioReader(tmp_path / "a.wav") as reader:
        np.testing.assert_array_equal(reader.load(Cut(channel=0)).samples, stereo_nc[:, 0])
        with pytest.raises(AudioError, match="NaN"):
            reader.load(Cut(channel=1))


@pytest.mark.parametrize(("channels", "expected"), [(1, "0"), (2, "0 or 1"), (3, "0 to 2")])
def test_a_channel_that_is_not_in_the_file_is_refused(channels: int, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(np.stack([tone(0.5)] * channels, axis=1)))
    message = rf"a\.wav: there is no channel {{}}: the file has {channels}; expected {expected}$"
    with AudioReader(tmp_path / "a.wav") as reader:
        for channel in (-1, channels):
            with pytest.raises(AudioError, match=message.format(channel)):
                reader.load(Cut(channel=channel))
        with pytest.raises(AudioError, match=message.format(channels)):
            next(reader.segments(1.0, Cut(channel=channels)))
        assert len(reader.load(Cut(channel=channels - 1)).samples) == 8_000


def test_of_a_cut_file_the_segments_before_the_cut_come_first(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp3"
    noise = np.random.default_rng(0).normal(0, 0.1, 160_000).astype(np.float32)
    data = encoded(noise, kind="mp3")
    path.write_bytes(data[: len(data) // 2])
    with AudioReader(path) as reader:
        segments = reader.segments(2.0)
        assert 24_000 < len(next(segments).samples) < 32_000
        with pytest.raises(AudioError, match=r"cut\.mp3.*cut short"):
            list(segments)


def noisy(seconds: float, rate_hz: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)
    # Louder and softer: frames of mp3 borrow bits from those before.
    return noise * np.abs(np.sin(np.arange(len(noise)) / rate_hz * 3)).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_is_what_the_whole_file_has_there(kind: str, tmp_path: Path) -> None:
    rate_hz, path = 48_000 if kind == "opus" else 44_100, tmp_path / "long"
    path.write_bytes(encoded(noisy(40.0, rate_hz), rate_hz, kind))
    whole = load_with_rate(path, rate_hz).samples
    starts = (35.30001, 3.5, 0.0, 4.5, 36.7)
    with AudioReader(path, rate_hz) as reader:
        cuts = [reader.load(Cut(start, 1.25)).samples for start in starts]
    for start, cut in zip(starts, cuts, strict=True):
        first = round(start * rate_hz)
        np.testing.assert_allclose(cut, whole[first : first + round(1.25 * rate_hz)], atol=1e-6)


def test_cuts_in_a_row_share_no_sample_and_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(2.0, 44_100), 44_100))
    ends = [0.0, 0.333333, 0.666666, 1.1, 2.0]
    with AudioReader(path, 44_100) as reader:
        cuts = [reader.load(Cut(start, end - start)).samples for start, end in itertools.pairwise(ends)]
    np.testing.assert_array_equal(np.concatenate(cuts), load_with_rate(path, 44_100).samples)


def test_a_cut_is_resampled_by_itself_and_its_segments_join_to_it(tmp_path: Path) -> None:
    path, samples = tmp_path / "a.wav", tone(3.0, 44_100)
    path.write_bytes(encoded(samples, 44_100, "wav_float"))
    with AudioReader(path) as reader:
        cut = reader.load(Cut(1.0, 0.9)).samples
        np.testing.assert_array_equal(cut, resample(samples[44_100 : 44_100 + 39_690], 44_100, 16_000))
        segments = [segment.samples for segment in reader.segments(0.5, Cut(1.0, 0.9))]
        assert len(reader.load(Cut(2.5)).samples) == 8_000
        promised = reader.promised(Cut(1.0, 0.9), 0.5)
    assert len(segments) == promised.num_segments == 3
    assert len(cut) == promised.samples == 14_400 and 0 <= sum(map(len, segments)) - 14_400 < 3


@pytest.mark.parametrize("cut", [Cut(1.5, 1.0), Cut(2.0), Cut(9.0, 1.0), Cut(1.0, 0.0), Cut(-0.5, 1.0)])
def test_a_cut_that_is_not_within_the_file_is_refused_and_the_next_one_read(tmp_path: Path, cut: Cut) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(2.0)))
    message = r"a\.wav: the cut is not within the audio; expected a part of 0 to 2\.00 s; got "
    with AudioReader(path) as reader:
        with pytest.raises(AudioError, match=message):
            reader.load(cut)
        # Lists round: what is a little too long ends with the file.
        assert len(reader.load(Cut(1.5, 0.59)).samples) == 8_000


def test_cuts_of_a_flac_that_never_knew_its_length_are_read(tmp_path: Path) -> None:
    data = bytearray(encoded(noisy(3.0, 16_000), kind="flac"))
    whole = decode(bytes(data), "whole")
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(data)
    with AudioReader(tmp_path / "piped.flac") as reader:
        for start in (1.5, 0.25):
            np.testing.assert_array_equal(
                reader.load(Cut(start, 1.0)).samples, whole[round(start * 16_000) :][:16_000]
            )
        with pytest.raises(AudioError, match="cut short"):
            reader.load(Cut(2.5, 1.0))


def test_a_long_file_is_not_decoded_from_its_beginning_for_each_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, decoded = tmp_path / "a.flac", []
    path.write_bytes(encoded(tone(100.0), kind="flac"))
    real = soundfile.SoundFile.read

    def counting(self: soundfile.SoundFile, frames: int, **settings: object) -> NDArray[np.float32]:
        decoded.append(frames)
        samples: NDArray[np.float32] = real(self, frames, **settings)
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    with AudioReader(path) as reader:
        for start in range(80, 100):
            reader.load(Cut(start, 1.0))
        reader.load(Cut(10.0, 1.0))
    assert sum(decoded) == (1 + 20 + 2) * SAMPLE_RATE_HZ


def test_samples_that_were_never_scaled_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", 9_000 * tone(0.1), SAMPLE_RATE_HZ, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"loud\.wav: the samples are not scaled.*peak of 27\d\d"):
        load(tmp_path / "loud.wav")
    soundfile.write(tmp_path / "over.wav", 1.2 * tone(0.1), SAMPLE_RATE_HZ, subtype="FLOAT")
    assert float(abs(load(tmp_path / "over.wav")).max()) > 0.2
