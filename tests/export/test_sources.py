"""Live audio from a pipe and from a (pretended) microphone."""

from __future__ import annotations

import io
import queue
import signal
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import soundfile

import export.sources
from export.parity import probe_sound
from export.sources import Gap, microphone_pieces, pcm_pieces
from kdasr.errors import AudioError, MissingDependencyError
from kdasr.resampling import resample


class Pipe(io.RawIOBase):
    """Gives out a stream in reads of odd sizes, as a pipe does."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sizes = iter([1, 1, 333, 0, 2_001] * 1_000)

    def read1(self, size: int) -> bytes:
        take = min(size, max(1, next(self._sizes)))
        piece, self._data = self._data[:take], self._data[take:]
        return piece


def pcm(samples: np.ndarray[Any, Any]) -> bytes:
    return np.rint(samples * 32_767).astype("<i2").tobytes()


def test_pcm_is_scaled_and_cut_nowhere() -> None:
    data = np.array([0, 1, -1, 32_767, -32_768, 12_345] * 500, "<i2")
    heard = np.concatenate(list(pcm_pieces(Pipe(data.tobytes()))))
    assert heard.dtype == np.float32
    assert np.array_equal(heard, data / 32_768)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_pcm_of_other_rates_keeps_its_samples(rate_hz: int) -> None:
    samples = probe_sound(20_000, 1)
    heard = np.concatenate(list(pcm_pieces(Pipe(pcm(samples)), rate_hz=rate_hz)))
    assert np.array_equal(heard, (np.rint(samples * 32_767) / 32_768).astype(np.float32))


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_pieces_last_a_fiftieth_of_a_second_at_most(rate_hz: int) -> None:
    size = rate_hz // 50
    pieces = list(pcm_pieces(io.BytesIO(pcm(np.zeros(rate_hz, np.float32))), rate_hz=rate_hz))
    # The first ones wait until it is certain that they are samples; the end has nothing more.
    waiting = -(-768 // size) - 1
    assert [len(piece) for piece in pieces] == [
        *[0] * waiting,
        (waiting + 1) * size,
        *[size] * (49 - waiting),
        0,
    ]


def test_half_a_sample_at_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    heard = np.concatenate(list(pcm_pieces(io.BytesIO(b"\x01\x00\x02\x00\x03"))))
    assert np.array_equal(heard, np.array([1, 2]) / 32_768)
    assert "in the middle of a sample" in caplog.text


def test_a_single_sample_is_not_lost() -> None:
    assert np.array_equal(np.concatenate(list(pcm_pieces(io.BytesIO(b"\x00\x40")))), [0.5])


@pytest.mark.parametrize(("data", "size"), [(b"", "0 bytes"), (b"\x01", "1 byte")])
def test_a_pipe_without_a_sample_is_refused(data: bytes, size: str) -> None:
    with pytest.raises(AudioError, match=f"standard input: the audio contains no samples.*got {size}$"):
        list(pcm_pieces(io.BytesIO(data)))


def test_ctrl_c_ends_a_pipe_and_loses_nothing() -> None:
    class Interrupted(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            if data := super().read1(size):
                return data
            raise KeyboardInterrupt

    for data in (np.arange(5_000, dtype="<i2"), np.zeros(0, "<i2")):
        heard = np.concatenate(list(pcm_pieces(Interrupted(data.tobytes()))))
        assert np.array_equal(heard, data / 32_768)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_between_two_reads_ends_the_pipe_and_a_second_one_everything() -> None:
    data = np.arange(5_000, dtype="<i2")
    pieces = pcm_pieces(io.BytesIO(data.tobytes()))
    heard = [next(pieces) for _ in range(10)]
    signal.raise_signal(signal.SIGINT)  # while a chunk is computed
    heard += pieces
    assert np.array_equal(np.concatenate(heard), data[:3_200] / 32_768)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pieces = pcm_pieces(io.BytesIO(data.tobytes()))
    next(pieces)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    pieces.close()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_read_that_waits() -> None:
    class Waiting(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            if not (data := super().read1(size)):
                signal.raise_signal(signal.SIGINT)
            return data

    data = np.arange(5_000, dtype="<i2")
    heard = np.concatenate(list(pcm_pieces(Waiting(data.tobytes()))))
    assert np.array_equal(heard, data / 32_768)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"RIFF", "WAV"),
        (b"RF64", "WAV"),
        (b"FORM", "AIFF"),
        (b".snd", "AU"),
        (b"caff", "CAF"),
        (b"fLaC", "FLAC"),
        (b"OggS", "Ogg"),
        (b"\x1a\x45\xdf\xa3", "WebM"),
        (b"\x00\x00\x00\x20ftypM4A ", "MP4"),
        (b"ID3\x02", "MP3"),
    ],
)
def test_a_file_in_place_of_raw_samples_is_refused(head: bytes, name: str) -> None:
    with pytest.raises(AudioError, match=f"this is a {name} file, not raw samples"):
        list(pcm_pieces(Pipe(head + bytes(1_000))))


@pytest.mark.parametrize("rate_hz", [11_025, 16_000, 44_100])
def test_an_mp3_is_known_by_two_frames_and_samples_like_one_are_samples(rate_hz: int) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, probe_sound(20_000, 1), rate_hz, format="MP3")
    data = buffer.getvalue()
    assert not data.startswith(b"ID3")
    with pytest.raises(AudioError, match="this is a MP3 file, not raw samples"):
        list(pcm_pieces(Pipe(data)))
    samples = data[:4] + bytes(8_000)
    heard = np.concatenate(list(pcm_pieces(Pipe(samples))))
    assert np.array_equal(heard, np.frombuffer(samples, "<i2") / 32_768)


class FakeStream:
    """sounddevice.InputStream: calls back with ten pieces when it is opened. Ctrl-C comes after them."""

    settings: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self, *, callback: Callable[..., None], finished_callback: Callable[[], None], **settings: Any
    ) -> None:
        type(self).settings = settings
        self._callback, self._finished = callback, finished_callback

    def __enter__(self) -> None:
        for number in range(10):
            size = self.settings["blocksize"]
            frames = np.full((size, 1), number / 10, np.float32)
            self._callback(frames, size, None, "input underflow" if number == 3 else "")
            frames[:] = 99  # the library reuses its buffer

    def __exit__(self, *error: object) -> None:
        self._finished()  # however the stream ends


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    class ThenCtrlC(queue.SimpleQueue[Any]):
        def get(self, *args: Any, **kwargs: Any) -> Any:
            if self.empty():
                raise KeyboardInterrupt
            return super().get(*args, **kwargs)

    fake = types.SimpleNamespace(
        InputStream=FakeStream, PortAudioError=RuntimeError, check_input_settings=lambda **settings: None
    )
    monkeypatch.setattr(queue, "SimpleQueue", ThenCtrlC)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    yield fake


def test_microphone_gives_what_the_device_gives(
    sounddevice: types.SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[bool] = []
    *pieces, rest = microphone_pieces(device=2, on_open=lambda: opened.append(True))
    assert opened == [True]
    assert [float(piece[0]) for piece in pieces] == pytest.approx([n / 10 for n in range(10)])
    assert all(piece.shape == (320,) for piece in pieces) and rest.shape == (0,)
    assert FakeStream.settings["samplerate"] == 16_000 and FakeStream.settings["device"] == 2
    assert "input underflow" in caplog.text


def test_a_microphone_without_16_khz_is_resampled(sounddevice: types.SimpleNamespace) -> None:
    def refuse(**settings: object) -> None:
        raise RuntimeError("Invalid sample rate")

    sounddevice.check_input_settings = refuse
    sounddevice.query_devices = lambda device, kind: {"default_samplerate": 48_000.0}
    heard = np.concatenate(list(microphone_pieces()))
    assert FakeStream.settings["samplerate"] == 48_000 and FakeStream.settings["blocksize"] == 960
    assert len(heard) == 3_200
    middles = heard[160::320]
    assert middles == pytest.approx([n / 10 for n in range(10)], abs=1e-3)


@pytest.mark.parametrize("when", ["made", "started"])
def test_a_microphone_that_is_not_there_is_said_so(sounddevice: types.SimpleNamespace, when: str) -> None:
    def refuse(*stream: object, **settings: object) -> None:
        raise RuntimeError("Error querying device -1")

    opened: list[bool] = []
    refusing = type("Refusing", (FakeStream,), {"__enter__": refuse})
    sounddevice.InputStream = refuse if when == "made" else refusing
    with pytest.raises(
        AudioError, match=r"device kitchen: .*Error querying device -1.*python -m sounddevice"
    ):
        next(microphone_pieces(device="kitchen", on_open=lambda: opened.append(True)))
    assert not opened


def test_without_sounddevice_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match=r"pip install -c .*\[mic\]'"):
        next(microphone_pieces())


@pytest.mark.usefixtures("ctrl_c")
def test_what_a_microphone_recorded_while_something_was_computed_is_heard(
    sounddevice: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes then, and nine pieces wait in the queue."""
    pieces = microphone_pieces()
    heard = [next(pieces)]
    signal.raise_signal(signal.SIGINT)
    heard += list(pieces)
    assert [float(piece[0]) for piece in heard[:-1]] == pytest.approx([n / 10 for n in range(10)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("driver", ["tells", "is silent"])
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_a_microphone_that_is_unplugged_ends_what_is_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, driver: str, rate_hz: int
) -> None:
    class Unplugged(FakeStream):
        def __enter__(self) -> None:
            super().__enter__()
            if driver == "tells":
                self._finished()

    def check(**settings: Any) -> None:
        if settings["samplerate"] != rate_hz:
            raise RuntimeError("Invalid sample rate")

    fake = types.SimpleNamespace(
        InputStream=Unplugged,
        PortAudioError=RuntimeError,
        check_input_settings=check,
        query_devices=lambda *device: {"default_samplerate": rate_hz},
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(export.sources, "_GONE_AFTER_S", 600 if driver == "tells" else 0.05)
    heard = np.concatenate(list(microphone_pieces()))
    assert len(heard) == 3_200 and heard[160::320] == pytest.approx([n / 10 for n in range(10)], abs=1e-3)
    assert [
        record.getMessage() for record in caplog.records if "the microphone has" in record.getMessage()
    ] == ["the microphone has stopped delivering audio: the transcript ends there"]


def test_ctrl_c_is_no_reason_to_say_that_the_microphone_is_gone(
    sounddevice: types.SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(list(microphone_pieces())) == 11
    assert "the microphone has stopped" not in caplog.text


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_a_sample_that_is_no_number_is_silence(
    sounddevice: types.SimpleNamespace, caplog: pytest.LogCaptureFixture, rate_hz: int
) -> None:
    class Stumbling(FakeStream):
        def __enter__(self) -> None:
            for value in (np.nan, np.inf, -np.inf):
                frames = np.full((self.settings["blocksize"], 1), 0.5, np.float32)
                frames[7] = value
                self._callback(frames, len(frames), None, "")

    def check(**settings: Any) -> None:
        if settings["samplerate"] != rate_hz:
            raise RuntimeError("Invalid sample rate")

    sounddevice.InputStream, sounddevice.check_input_settings = Stumbling, check
    sounddevice.query_devices = lambda *device: {"default_samplerate": rate_hz}
    heard = np.concatenate(list(microphone_pieces()))
    assert len(heard) == 960 and np.isfinite(heard).all()
    assert heard[100::320] == pytest.approx([0.5] * 3, abs=0.01)
    assert rate_hz != 16_000 or np.flatnonzero(heard != 0.5).tolist() == [7, 327, 647]
    assert caplog.text.count("NaN and infinite samples") == 1


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
@pytest.mark.parametrize("clock", [True, False])
def test_what_the_driver_lost_is_a_gap(
    sounddevice: types.SimpleNamespace, caplog: pytest.LogCaptureFixture, rate_hz: int, clock: bool
) -> None:
    """Two seconds and a half before the third piece. At the start nothing can have been lost."""

    class Overflow(types.SimpleNamespace):
        input_overflow = True

        def __str__(self) -> str:
            return "input overflow"

    class Late(FakeStream):
        def __enter__(self) -> None:
            size = self.settings["blocksize"]
            for number, start_s in enumerate((7.0, 7.02, 9.54, 9.56)):
                frames = np.full((size, 1), 0.1 + number / 10, np.float32)
                status = Overflow() if number in (0, 2) else ""
                time = types.SimpleNamespace(inputBufferAdcTime=start_s if clock else 0.0)
                self._callback(frames, size, time, status)

    def check(**settings: Any) -> None:
        if settings["samplerate"] != rate_hz:
            raise RuntimeError("Invalid sample rate")

    sounddevice.InputStream, sounddevice.check_input_settings = Late, check
    sounddevice.query_devices = lambda *device: {"default_samplerate": rate_hz}
    pieces = list(microphone_pieces())
    (place,) = [place for place, piece in enumerate(pieces) if isinstance(piece, Gap)]
    assert pieces[place].seconds == pytest.approx(2.5 if clock else 0.0)
    sides = [np.concatenate(side) for side in (pieces[:place], pieces[place + 1 :])]
    for side, values in zip(sides, ([0.1, 0.2], [0.3, 0.4]), strict=True):
        size = rate_hz // 50
        alone = np.repeat(np.array(values, np.float32), size)
        expected = alone if rate_hz == 16_000 else resample(alone, rate_hz, 16_000)
        assert len(side) == len(expected) == 640 and np.abs(side - expected).max() < 1e-6
    assert caplog.text.count("input overflow") == 2
