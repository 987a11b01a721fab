"""What is printed for files, pipes and microphones."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.cells import cell_len

import export.show
from export.parity import probe_sound
from export.publish import export_student
from export.show import Request, show_transcripts
from export.sources import Gap
from export.transcribe import Recogniser, Transcript, open_recogniser
from kdasr.errors import AudioError, ConfigError, ModelError
from kdasr.models import save_model
from kdasr.resampling import resample
from kdasr.streaming import EndpointRules
from tests.export.small_models import UNITS, conformer
from tests.streaming.scripted import Scripted, silence, spell


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("show")
    student = conformer(num_layers=1)
    save_model(root / "torch", student, UNITS)
    export_student(student, UNITS, root / "onnx")
    soundfile.write(root / "a.wav", probe_sound(40_000, 1), 16_000)
    soundfile.write(root / "b.wav", probe_sound(30_000, 2), 16_000)
    return root


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(request: Request, **changes: Any) -> tuple[list[str], list[str]]:
    out, err = io.StringIO(), io.StringIO()
    show_transcripts(request, **{"out": out, "err": err, **changes})
    return out.getvalue().splitlines(), err.getvalue().splitlines()


def files(place: Path) -> tuple[str, ...]:
    return str(place / "a.wav"), str(place / "b.wav")


def test_a_line_for_each_file_and_partials_beside_them(place: Path) -> None:
    expected = [f"{name}\t{text(place, name)}" for name in files(place)]
    assert shown(Request(place / "torch", files(place))) == (expected, [])
    out, err = shown(Request(place / "onnx", files(place), stream=True))
    assert out == expected
    assert len(err) > 6 and all(line.endswith(" …") for line in err)
    assert err[0].startswith(files(place)[0] + "\t")


def text(place: Path, name: str) -> str:
    return open_recogniser(place / "torch").transcribe(soundfile.read(name, dtype="float32")[0])


def test_json_lines_hold_words_that_make_up_the_text(place: Path) -> None:
    for stream in (False, True):
        request = Request(place / "torch", files(place), stream=stream, json_lines=True)
        lines = [json.loads(line) for line in shown(request)[0]]
        final = [line for line in lines if line["type"] == "final"]
        assert [line["source"] for line in final] == list(files(place))
        for line in final:
            assert line["text"] == text(place, line["source"])
            assert " ".join(word["word"] for word in line["words"]) == line["text"]
            assert all(0 <= word["start"] < word["end"] <= 2.6 for word in line["words"])
            assert all(0 < word["confidence"] <= 1 for word in line["words"])
        assert (len(lines) > len(final)) == stream


def test_torch_and_onnx_give_the_same_times(place: Path) -> None:
    lines = [
        [json.loads(line)["words"] for line in shown(Request(model, files(place), json_lines=True))[0]]
        for model in (place / "torch", place / "onnx")
    ]
    for torch_words, onnx_words in zip(*lines, strict=True):
        for one, two in zip(torch_words, onnx_words, strict=True):
            assert one["confidence"] == pytest.approx(two.pop("confidence"), abs=1e-3)
            assert {key: one[key] for key in two} == two


def test_a_pipe_gives_the_text_of_the_file(place: Path) -> None:
    name = files(place)[0]
    data = (soundfile.read(name, dtype="int16")[0]).astype("<i2").tobytes()
    out, _ = shown(Request(place / "onnx", ("-",), endpoint=False), stdin=io.BytesIO(data))
    assert out == [f"-\t{text(place, name)}"]


@pytest.mark.parametrize("rate_hz", [8_000, 48_000])
def test_a_pipe_of_another_rate_gives_the_text_of_its_resampled_samples(place: Path, rate_hz: int) -> None:
    samples = resample(probe_sound(40_000, 1), 16_000, rate_hz)
    data = np.rint(samples * 32_767).astype("<i2")
    request = Request(place / "onnx", ("-",), endpoint=False, rate_hz=rate_hz)
    out, _ = shown(request, stdin=io.BytesIO(data.tobytes()))
    heard = resample((data / 32_768).astype(np.float32), rate_hz, 16_000)
    expected = open_recogniser(place / "torch").transcribe(heard)
    assert out == [f"-\t{expected}"] and len(expected) > 5


def test_a_rate_that_cannot_be_is_refused_before_the_pipe_is_read(place: Path) -> None:
    stdin = io.BytesIO(bytes(1_000))
    with pytest.raises(ConfigError, match="the sample rate must be positive.*got 0"):
        shown(Request(place / "onnx", ("-",), rate_hz=0), stdin=stdin)
    with pytest.raises(AudioError, match="unsupported sample rate.*got 44101 Hz"):
        shown(Request(place / "onnx", ("-",), rate_hz=44_101), stdin=stdin)
    assert stdin.tell() == 0


def test_a_pipe_is_cut_at_pauses_by_itself_and_a_file_on_request(place: Path, tmp_path: Path) -> None:
    pause = np.zeros(32_000, np.float32)
    audio = np.concatenate([probe_sound(20_000, 1), pause, probe_sound(20_000, 2), pause])
    soundfile.write(tmp_path / "two.wav", audio, 16_000)
    pause_s = 0.5
    data = soundfile.read(tmp_path / "two.wav", dtype="int16")[0].astype("<i2").tobytes()
    piped, _ = shown(Request(place / "onnx", ("-",), min_silence_s=pause_s), stdin=io.BytesIO(data))
    name = str(tmp_path / "two.wav")
    whole, _ = shown(Request(place / "onnx", (name,), stream=True))
    cut, _ = shown(Request(place / "onnx", (name,), endpoint=True, min_silence_s=pause_s))
    assert len(whole) == 1 and len(cut) >= 2
    assert [line.split("\t")[1] for line in cut] == [line.split("\t")[1] for line in piped]


def test_a_file_is_shown_in_parts_with_stream_alone(place: Path) -> None:
    name = files(place)[0]
    for json_lines in (False, True):
        parts = {}
        for stream in (False, True):
            request = Request(place / "onnx", (name,), endpoint=True, stream=stream, json_lines=json_lines)
            out, err = shown(request)
            partials = [line for line in out if '"partial"' in line] if json_lines else err
            parts[stream] = len(partials), [line for line in out if line not in partials]
        assert parts[False][0] == 0 and parts[True][0] > 3
        assert parts[False][1] == parts[True][1] != []


def test_the_microphone_is_shown_to_its_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(*, on_open: Callable[[], None], **settings: Any) -> Any:
        assert settings == {"device": "kitchen"}
        assert err.getvalue() == ""  # nobody listens yet
        on_open()
        yield probe_sound(40_000, 1)
        yield probe_sound(8_000, 2)

    monkeypatch.setattr(export.show, "microphone_pieces", speak)
    out, err = io.StringIO(), io.StringIO()
    show_transcripts(Request(place / "onnx", microphone=True, device="kitchen"), out=out, err=err)
    assert out.getvalue().startswith("microphone\t") and "microphone\t" in err.getvalue()
    assert err.getvalue().startswith("listening (Ctrl-C to stop)\n")


def test_a_terminal_line_is_written_over(place: Path) -> None:
    out, err = io.StringIO(), Terminal()
    show_transcripts(Request(place / "onnx", files(place)[:1], stream=True), out=out, err=err)
    parts = err.getvalue().split("\r\x1b[K")
    assert parts[0] == "" and parts[-1] == "" and len(parts) > 4
    assert "\n" not in err.getvalue()


@pytest.mark.parametrize("word", ["안녕하세요", "हिन्दी", "salut"])
def test_a_terminal_line_fits_whatever_the_width_of_its_letters(word: str) -> None:
    err, width, columns = Terminal(), shutil.get_terminal_size().columns - 1, cell_len(word)
    export.show._show_partial(Transcript("a", " ".join([word] * 40), [], False), err)
    shown = err.getvalue().removeprefix("\r\x1b[K")
    assert width - columns - 2 <= cell_len(shown) <= width and shown.endswith(f" {word}")
    few = (width - 4) // (columns + 1)
    export.show._show_partial(Transcript("a", " ".join([word] * few), [], False), err)
    assert err.getvalue().endswith(f"\x1b[Ka: {word}{f' {word}' * (few - 1)}")


def test_another_rate_is_resampled_and_said_so(place: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "8k.wav", probe_sound(20_000, 1)[::2], 8_000)
    out, err = shown(Request(place / "onnx", (str(tmp_path / "8k.wav"),)))
    assert len(out) == 1 and err == [f"{tmp_path / '8k.wav'}: resampled from 8000 Hz to 16000 Hz"]


def test_averaged_channels_are_said_so_even_where_nothing_is_left(place: Path, tmp_path: Path) -> None:
    sound = probe_sound(20_000, 1)
    name = str(tmp_path / "opposed.wav")
    soundfile.write(name, np.stack([sound, -sound], axis=1), 16_000)
    out, err = shown(Request(place / "onnx", (name,)))
    assert len(out) == 1 and err == [f"{name}: 2 channels averaged"]


def test_a_file_name_that_is_no_text_is_printed_escaped(place: Path, tmp_path: Path) -> None:
    name = str(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    Path(name).write_bytes(Path(files(place)[0]).read_bytes())
    for json_lines in (False, True):
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        request = Request(place / "onnx", (name, files(place)[1], name), stream=True, json_lines=json_lines)
        show_transcripts(request, out=out, err=err)
        out.seek(0)
        lines = out.read().splitlines()
        if json_lines:
            sources = [line["source"] for line in map(json.loads, lines) if line["type"] == "final"]
            assert sources == [name, files(place)[1], name]
        else:
            assert lines[0] == f"{tmp_path}/caf\\udce9.wav\t{text(place, files(place)[0])}"
            assert len(lines) == 3
    with pytest.raises(AudioError, match="1 of 2 sources"):
        show_transcripts(Request(place / "onnx", (name + "x", name)), out=out, err=err)
    err.seek(0)
    assert "caf\\udce9.wavx: the audio file cannot be read" in err.read()


def test_a_closed_standard_input_matters_to_a_pipe_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert len(shown(Request(place / "onnx", files(place)))[0]) == 2
    with pytest.raises(ConfigError, match="^-: standard input is closed"):
        shown(Request(place / "onnx", ("-",)))


def test_chunk_ms_changes_a_student_but_not_a_file(place: Path) -> None:
    recogniser = open_recogniser(place / "torch", chunk_ms=80)
    assert recogniser.streaming_model().shift == 8
    assert len(shown(Request(place / "torch", files(place), chunk_ms=1_000, stream=True))[0]) == 2
    assert len(shown(Request(place / "onnx", files(place), chunk_ms=160))[0]) == 2
    with pytest.raises(
        ConfigError, match=r"the chunk size of an exported model is fixed; expected --chunk-ms 160"
    ):
        shown(Request(place / "onnx", files(place), chunk_ms=320))
    with pytest.raises(ModelError, match=r"got a student with full context.*without --stream .*--chunk-ms"):
        shown(Request(place / "torch", files(place), chunk_ms=0, stream=True))
    with pytest.raises(ConfigError, match="^--chunk-ms: .*a multiple of 40, or 0 for full context; got 50"):
        shown(Request(place / "torch", files(place), chunk_ms=50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to transcribe"),
        ({"sources": ("-", "-")}, "a live source cannot be combined with other sources"),
        ({"sources": ("a.wav",), "microphone": True}, "got a.wav --microphone"),
        ({"sources": ("a.wav",), "rate_hz": 0}, "--rate: this option has no effect here"),
        (
            {"microphone": True, "rate_hz": 8_000},
            "--rate: .*expected - for PCM on standard input as well",
        ),
        ({"sources": ("-",), "device": "kitchen"}, "--device: .*expected --microphone as well"),
        (
            {"sources": ("a.wav",), "min_silence_s": 2.0},
            "--pause: .*expected live audio or --endpoint as well",
        ),
        ({"sources": ("-",), "endpoint": False, "min_silence_s": 2.0}, "--pause"),
        ({"sources": ("-",), "min_silence_s": -1.0}, "^--pause: .*expected > 0; got -1.0"),
    ],
)
def test_requests_that_make_no_sense_are_refused(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        show_transcripts(Request(place / "onnx", **changes))


def test_a_missing_file_is_named(place: Path) -> None:
    with pytest.raises(AudioError, match=r"nowhere\.wav: the audio file cannot be read"):
        shown(Request(place / "onnx", ("nowhere.wav",)))


@pytest.mark.parametrize("stream", [False, True])
def test_files_after_a_bad_one_are_transcribed_all_the_same(
    place: Path, tmp_path: Path, stream: bool
) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    first, second = files(place)
    out, err = io.StringIO(), io.StringIO()
    request = Request(
        place / "onnx", (first, "nowhere.wav", str(tmp_path / "noise.wav"), second), stream=stream
    )
    with pytest.raises(AudioError, match=r"^2 of 4 sources could not be transcribed$"):
        show_transcripts(request, out=out, err=err)
    assert out.getvalue().splitlines() == [f"{name}\t{text(place, name)}" for name in (first, second)]
    told = [line for line in err.getvalue().splitlines() if line.startswith("kdasr: ")]
    assert len(told) == 2 and "nowhere.wav: " in told[0] and "noise.wav: " in told[1]


def scripted(script: dict[int, str]) -> Recogniser:
    return Recogniser(Path("scripted"), UNITS, None, Scripted(script))


def test_no_empty_partial_follows_a_stretch() -> None:
    recogniser = scripted({**spell("one two", 5), **spell("three", 60)})
    pieces = [silence(2)] * 50
    heard = list(recogniser.listen(pieces, "pipe", EndpointRules()))
    assert [one.text for one in heard if one.final] == ["one two", "three"]
    partials = [one.text for one in heard if not one.final]
    assert partials[:3] == ["o", "on", "one"] and partials[-1] == "three" and all(partials)


@pytest.mark.parametrize("rules", [None, EndpointRules()])
def test_bad_samples_take_no_words_along(rules: EndpointRules | None) -> None:
    """A word that is not over yet, and one that comes in the tail."""
    recogniser = scripted(spell("one two", 5))
    heard = []
    with pytest.raises(AudioError, match="pipe: .*NaN"):
        for transcript in recogniser.listen([silence(17), np.full(5, np.nan, np.float32)], "pipe", rules):
            heard.append(transcript)
    assert [one.text for one in heard if one.final] == ["one two"]
    assert [word.text for word in heard[-1].words] == ["one", "two"]


@pytest.mark.parametrize("rules", [None, EndpointRules()])
def test_a_source_that_fails_takes_no_words_along(rules: EndpointRules | None) -> None:
    def pieces() -> Iterator[Any]:
        yield silence(17)
        raise OSError("the device is lost")

    heard = []
    with pytest.raises(OSError, match="the device is lost"):
        for transcript in scripted(spell("one two", 5)).listen(pieces(), "mine", rules):
            heard.append(transcript)
    assert [one.text for one in heard if one.final] == ["one two"] and heard[-1].final


def test_a_model_that_fails_again_at_the_end_is_told_of_by_its_first_error() -> None:
    class Failing(Scripted):
        def step(self, features_btf: Any, state: Any) -> Any:
            if state >= 16:
                self.failures = getattr(self, "failures", 0) + 1
                raise RuntimeError(f"failure {self.failures}")
            return super().step(features_btf, state)

    model = Failing(spell("one two", 5))
    heard = []
    with pytest.raises(RuntimeError, match="failure 1"):
        for transcript in Recogniser(Path("failing"), UNITS, None, model).listen([silence(20)] * 2, "mine"):
            heard.append(transcript)
    assert heard == [] and model.failures == 2


def test_an_empty_text_says_that_nothing_was_heard_at_all() -> None:
    def finals(pieces: list[Any], script: dict[int, str]) -> list[str]:
        return [one.text for one in scripted(script).listen(pieces, "pipe") if one.final]

    assert finals([silence(20)], {}) == [""] and finals([silence(20), Gap(0.5)], {}) == [""]
    assert finals([silence(20), Gap(0.5)], spell("one", 5)) == ["one"]
    assert finals([silence(4), Gap(0.5), silence(20)], spell("one", 15)) == ["one"]


@pytest.mark.parametrize("rules", [None, EndpointRules()])
def test_a_gap_ends_a_stretch_and_times_go_on(rules: EndpointRules | None) -> None:
    recogniser = scripted(spell("one two", 5))
    heard = list(recogniser.listen([silence(18), Gap(1.0), silence(20)], "pipe", rules))
    finals = [one for one in heard if one.final]
    assert [one.text for one in finals] == ["one two", "one two"]
    starts = [one.words[0].start_s for one in finals]
    assert starts == pytest.approx([5 * 0.04, 5 * 0.04 + 18 * 0.04 + 1.0])
    assert [one.text for one in heard if not one.final] == ["one tw", "one two"]  # before either


def test_bad_samples_before_the_first_word_are_an_error_alone() -> None:
    with pytest.raises(AudioError, match="NaN"):
        assert list(scripted({}).listen([np.full(5, np.nan, np.float32)], "pipe")) == []


def test_a_log_grows_as_the_audio_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recogniser = scripted(spell("lorem " * 400, 5))
    monkeypatch.setattr(export.show, "open_recogniser", lambda path, chunk_ms: recogniser)
    sizes = []
    for frames in (500, 1_000, 2_000):
        soundfile.write(tmp_path / "a.wav", silence(frames), 16_000)
        out, err = shown(Request(Path("scripted"), (str(tmp_path / "a.wav"),), stream=True))
        sizes.append(sum(map(len, err)))
        assert len(err[-1].split("\t")[1]) == 102 and out[0].split("\t")[1].startswith("lorem lorem")
    assert sizes[2] < 2.2 * sizes[1] < 5 * sizes[0]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_chunk_is_computed_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed(Scripted):
        def step(self, features_btf: Any, state: Any) -> Any:
            if state == 30:
                signal.raise_signal(signal.SIGINT)
            return super().step(features_btf, state)

    script = spell("what was heard until then", 2, spacing=1)
    recogniser = Recogniser(Path("scripted"), UNITS, None, Pressed(script))
    monkeypatch.setattr(export.show, "open_recogniser", lambda path, chunk_ms: recogniser)
    stdin = io.BytesIO(bytes(2 * len(silence(400))))
    out, _ = shown(Request(Path("scripted"), ("-",)), stdin=stdin)
    assert out == ["-\twhat was heard until then"]
    assert len(stdin.read()) > 0  # what came after it was not waited for
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_lexicon_keeps_every_engine_to_its_words(place: Path) -> None:
    (place / "words.txt").write_text("A be\nsee\n")
    kept = {"lexicon": (str(place / "words.txt"),)}
    whole, _ = shown(Request(place / "torch", files(place), **kept))
    live, partials = shown(Request(place / "onnx", files(place), stream=True, **kept))
    assert live == whole and partials
    words = {word for line in whole for word in line.split("\t")[1].split()}
    assert words and words <= {"a", "be", "see"}
    narrow, _ = shown(Request(place / "torch", files(place), beam=1, **kept))
    assert narrow != whole


def test_a_search_for_any_text_hears_the_same_live(place: Path) -> None:
    searched, _ = shown(Request(place / "torch", files(place), beam=16))
    streamed, _ = shown(Request(place / "torch", files(place), beam=16, stream=True))
    assert searched == streamed


def test_a_beam_without_prefixes_and_a_lexicon_that_is_not_there_are_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="at least one prefix.*0"):
        shown(Request(place / "torch", files(place), beam=0))
    (place / "blank.txt").touch()
    for name, wrong in (
        ("nowhere", "the file or folder with the words of a lexicon does not exist"),
        ("blank.txt", "the lexicon has no words"),
    ):
        with pytest.raises(
            ConfigError, match=rf"{name}: {wrong}.* Without a lexicon, any word can be recognised\."
        ):
            shown(Request(place / "torch", files(place), lexicon=(str(place / name),)))
