"""data_prep.manifest: lists of JSON lines; and for every kind of list faults, cuts, what is held out."""

from __future__ import annotations

import json
import re
import sys
import tarfile
import textwrap
import types
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from data_prep import prepare
from data_prep.support.listed import key_of, key_of_id
from kdasr.audio import AudioReader, Cut, load
from kdasr.errors import ConfigError, CorpusError
from kdasr.interfaces import Utterance
from kdasr.manifest import KEY_PATTERN
from kdasr.shards import list_shards
from kdasr.text import check_letters
from tests.data_prep.fakes import (
    bytes_below,
    channels_of,
    dropped_in,
    places_in,
    read_folder,
    record_of,
    write_call,
    write_tone,
)

Line = dict[str, Any] | str


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for number in range(1, 5):
        write_tone(folder / f"clips/{number}.wav", 0.4 + 0.1 * number)
    return folder


def line(number: int, text: str | None = "two", **more: Any) -> dict[str, Any]:
    return {"audio_filepath": f"clips/{number}.wav", "text": text, **more}


def write(corpus: Path, name: str, *lines: Line) -> None:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    (corpus / name).write_text("\n".join(texts) + "\n")


def prepared(corpus: Path, out: str = "out", **settings: Any) -> Path:
    prepare("manifest", corpus=corpus, out=corpus.parent / out, **settings)
    return corpus.parent / out


def keys(utterances: list[Utterance]) -> list[str]:
    return [one.key.rsplit("-", 1)[0] for one in utterances]


def test_every_list_becomes_a_split(corpus: Path) -> None:
    write(corpus, "train.jsonl", line(1, "It's a day.", speaker="ann", lang="en"), line(2, speaker=7))
    write(corpus, "dev.json", line(3, "  THREE ", duration=0.7, language="pt-BR"))
    out = prepared(corpus, language="de")
    train, (dev,) = read_folder(out / "train"), read_folder(out / "dev")
    assert [(one.text, one.speaker, one.language) for one in (*train, dev)] == [
        ("it's a day", "ann", "en"),
        ("two", "7", "de"),
        ("three", None, "pt-BR"),
    ]
    assert keys(train) == ["clips_1", "clips_2"]
    np.testing.assert_array_equal(dev.samples, load(corpus / "clips/3.wav"))


def test_audio_may_lie_anywhere(corpus: Path, tmp_path: Path) -> None:
    write_tone(tmp_path / "far/1.wav", 0.9)
    write(corpus, "a.jsonl", {"audio_filepath": str(tmp_path / "far/1.wav"), "text": "one"})
    write(corpus, "b.jsonl", {"audio_filepath": "1.wav", "text": "one"})
    out = prepared(corpus, split="a")
    prepared(corpus, split="b", audio_folder="../far")
    assert [len(read_folder(out / name)[0].samples) for name in "ab"] == [14_400, 14_400]


def test_a_list_without_any_text_is_unlabelled_and_cut_into_segments(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(corpus / "long.wav", 2.5)
    write(
        corpus, "talks.jsonl", line(1, None), line(2, " "), {"audio_filepath": "long.wav", "speaker": "ann"}
    )
    utterances = read_folder(prepared(corpus, max_seconds=1) / "talks")
    assert [len(one.samples) for one in utterances[:2]] == [8_000, 9_600] and len(utterances) == 5
    assert sum(len(one.samples) for one in utterances[2:]) == 40_000
    assert [(one.text, one.speaker) for one in utterances[1:3]] == [(None, None), (None, "ann")]
    assert utterances[4].key == f"{key_of('long.wav')}-0002"
    said = "talks: the list has no transcripts, so this is unlabelled audio; its other keys are text, speaker"
    assert said in capsys.readouterr().err


def test_segments_are_short_enough_for_training_and_utterances_as_long_as_before(corpus: Path) -> None:
    write_tone(corpus / "long.wav", 26.0)
    write(corpus, "talks.jsonl", {"audio_filepath": "long.wav"})
    write(corpus, "read.jsonl", {"audio_filepath": "long.wav", "text": "one"})
    out = prepared(corpus)
    assert [len(one.samples) for one in read_folder(out / "read")] == [26 * 16_000]
    talks = [len(one.samples) for one in read_folder(out / "talks")]
    assert len(talks) == 2 and sum(talks) == 26 * 16_000
    settings = {name: record_of(out / name)["source"]["settings"] for name in ("read", "talks")}
    assert settings["talks"]["segment_seconds"] == 20 and "segment_seconds" not in settings["read"]
    whole = prepared(corpus, "whole", segment_seconds="none")
    assert [len(one.samples) for one in read_folder(whole / "talks")] == [26 * 16_000]
    with pytest.raises(ConfigError, match=r"segment_seconds is too short; expected at least 1 s; got 0\.5"):
        prepared(corpus, "short", segment_seconds=0.5)


def test_keys_can_be_named(corpus: Path) -> None:
    write(corpus, "train.jsonl", {"file": "clips/1.wav", "said": "One.", "who": "ann"})
    out = prepared(corpus, audio_key="file", text_key="said", speaker_key="who")
    assert [(one.text, one.speaker) for one in read_folder(out / "train")] == [("one", "ann")]
    with pytest.raises(
        CorpusError, match=r"train\.jsonl: .*--audio_key NAME for another\); got the keys file, said, who"
    ):
        prepared(corpus, "other")


def test_transcripts_under_another_key_are_not_passed_over_without_a_word(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"audio_filepath": f"clips/{number}.wav", "sentence": "Grüße"} for number in range(1, 4)]
    write(corpus, "train.jsonl", *lines)
    prepared(corpus)
    keys_there = "its other keys are sentence (to use one: --text_key NAME)"
    said = f"train: the list has no transcripts, so this is unlabelled audio; {keys_there}"
    assert said in capsys.readouterr().err
    message = f"train.jsonl: train should be transcribed speech but has no transcripts; {keys_there}. If"
    for settings in ({"letters": "üß"}, {"held_out_share": 0.3}):
        with pytest.raises(CorpusError, match=re.escape(message) + ".*, add --unlabelled train"):
            prepared(corpus, "other", **settings)
    prepared(corpus, "other", letters="üß", unlabelled="train")


def test_letters_that_a_language_may_have_are_named(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ("ŻÓŁTY ﬁ ʼtis", "Żal źle", "я 7", "i\u0307yi İki \u0131")
    write(corpus, "train.jsonl", *(line(number, text) for number, text in enumerate(texts, start=1)))
    write(corpus, "dev.jsonl", line(4, "świt"), line(3, "ął"))
    prepared(corpus)
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "if the language has these letters: --letters óąıłśźżя"
    assert said.count("--letters") == 1, "for both splits"
    prepared(corpus, "kept", letters="łżóźıяąś")
    assert "--letters" not in capsys.readouterr().err
    (corpus / "dev.jsonl").unlink()
    write(corpus, "train.jsonl", line(1, "шесть"), line(2, "हिन्दी"), line(3, "мـа"))
    with pytest.raises(
        CorpusError,
        match="If the language has these letters: --letters " + check_letters("аместьшहिन्दी") + "$",
    ):
        prepared(corpus, "none")
    write(corpus, "train.jsonl", line(1), line(2, "".join(chr(0x4E00 + number) for number in range(201))))
    prepared(corpus, "syllables")
    assert "--letters" not in capsys.readouterr().err


def test_a_language_may_be_written_with_underscores_and_one_that_is_no_tag_is_unknown(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = line(1, lang="de_DE"), line(2, lang="German"), line(3, language=["de"]), line(4)
    write(corpus, "train.jsonl", *lines)
    out = prepared(corpus)
    assert [one.language for one in read_folder(out / "train")] == ["de-DE", None, None, None]
    assert dropped_in(out / "train") == {}
    said = capsys.readouterr().err
    assert (
        "; 2 with a language that is not a tag such as en, which is ignored" in said
        and "no transcripts" not in said
    )


def test_lines_that_cannot_be_read_are_not_without_transcripts(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(corpus, "train.jsonl", line(1, offset="0"), line(2, offset="0"))
    with pytest.raises(CorpusError, match="no utterance can be used; got 2 left out"):
        prepared(corpus)
    assert "no transcripts" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_as_other_systems_write_them_are_found(corpus: Path, form: Literal["NFC", "NFD"]) -> None:
    for name in ("clips/żółć.wav", "clips/sub/ä.wav"):
        write_tone(corpus / unicodedata.normalize(form, name), 0.5)
    names = [unicodedata.normalize("NFC", "clips/żółć.wav"), "clips\\sub\\ä.wav", "clips/ö.wav"]
    write(corpus, "train.jsonl", *({"audio_filepath": name, "text": "one"} for name in names))
    parted = {"audio_filepath": unicodedata.normalize("NFD", names[0]), "text": "two"}
    write(corpus, "dev.jsonl", parted)
    out = prepared(corpus)
    assert [one.text for one in read_folder(out / "train")] == ["one", "one"]
    assert list(dropped_in(out / "train")) == ["train.jsonl:3 clips/ö.wav"]
    assert [one.text for one in read_folder(out / "dev")] == ["two"]


def test_the_documented_lines_write_a_list_of_a_hugging_face_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs/your-data.md").read_text(encoding="utf-8")
    found = re.search(r"^ {4}import json, .*\n(?: {4}.*\n)+", document, re.MULTILINE)
    assert found is not None
    tone = {"array": np.full(8_000, 0.1), "sampling_rate": 16_000}
    rows = [{"audio": tone, "text": text} for text in ("Fünf", "two")]
    fake = types.SimpleNamespace(load_dataset=lambda name, split: rows if split == "train" else [])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(found[0]), {})
    out = prepared(tmp_path / "speech", letters="ü")
    assert [(one.text, len(one.samples)) for one in read_folder(out / "train")] == [
        ("fünf", 8_000),
        ("two", 8_000),
    ]


def test_a_list_of_utf_16_is_named(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(corpus, "train.jsonl", line(1))
    (corpus / "wide.jsonl").write_text(json.dumps(line(2)), encoding="utf-16")
    prepared(corpus)
    said = capsys.readouterr().err
    assert "not lists of audio files: wide\n" in said
    assert (
        "wide.jsonl: the list is UTF-16; expected UTF-8; got UTF-16. Convert a copy of it with `iconv" in said
    )


def test_transcripts_keep_the_letters_of_their_language(corpus: Path) -> None:
    write(corpus, "train.jsonl", line(1, "Fünf Äpfel"), line(2, "ein Café"), line(3, "größer"))
    out = prepared(corpus, letters="üöäß")
    assert [one.text for one in read_folder(out / "train")] == ["fünf äpfel", "ein cafe", "größer"]
    record = json.loads((out / "train" / "prepared.json").read_text())
    assert record["notes"]["with accents removed"] == 1
    assert record["source"]["settings"]["letters"] == "ßäöü", "in one order, however they were given"
    plain = prepared(corpus, "plain")
    assert [one.text for one in read_folder(plain / "train")] == ["funf apfel", "ein cafe", "grosser"]
    assert "letters" not in json.loads((plain / "train" / "prepared.json").read_text())["source"]["settings"]
    with pytest.raises(
        ConfigError, match=r"--letters: 'A' cannot be an additional letter.*such as äöüß; got äA"
    ):
        prepared(corpus, "wrong", letters="äA")


def test_texts_that_are_missing_are_named_unless_the_list_is_to_be_unlabelled(corpus: Path) -> None:
    write(corpus, "train.jsonl", line(1), line(2, None), line(3, " . "), {"audio_filepath": "clips/4.wav"})
    out = prepared(corpus)
    assert keys(read_folder(out / "train")) == ["clips_1"]
    assert dropped_in(out / "train") == {
        "train.jsonl:2 clips/2.wav": "audio without transcript",
        "train.jsonl:3 clips/3.wav": "the transcript is empty after normalisation",
        "train.jsonl:4 clips/4.wav": "audio without transcript",
    }
    silent = read_folder(prepared(corpus, "silent", unlabelled="train") / "train")
    assert [one.text for one in silent] == [None] * 4
    with pytest.raises(ConfigError, match="unlabelled: dev is not among the chosen splits"):
        prepared(corpus, split="train", unlabelled="dev")


def test_a_cut_is_read_from_its_file(corpus: Path) -> None:
    write_tone(corpus / "long.flac", 9.0, 44_100)
    cuts = [(0.0, 1.0), (3.25, 0.5), (1.0, 2.25)]
    lines = [
        {"audio_filepath": "long.flac", "offset": start, "duration": seconds, "text": "one"}
        for start, seconds in cuts
    ]
    write(corpus, "train.jsonl", *lines, lines[1])
    out = prepared(corpus)
    utterances = read_folder(out / "train")
    assert [one.key for one in utterances] == [
        f"{key_of('long.flac')}-0000000-0001000",
        f"{key_of('long.flac')}-0001000-0003250",
        f"{key_of('long.flac')}-0003250-0003750",
    ]
    with AudioReader(corpus / "long.flac") as reader:
        expected = reader.load(Cut(3.25, 0.5)).samples
    np.testing.assert_allclose(utterances[2].samples, expected, atol=2**-15)
    assert dropped_in(out / "train") == {
        "train.jsonl:4 long.flac": "the key is a duplicate of an earlier one"
    }
    assert record_of(out / "train")["notes"] == {"resampled from 44100 Hz": 3}


def call(text: str | None, **more: Any) -> dict[str, Any]:
    return {"audio_filepath": "call.mp3", "text": text, **more}


def test_a_line_may_select_a_channel(corpus: Path) -> None:
    write_call(corpus / "call.mp3", 3.0, 44_100)
    write(
        corpus, "train.jsonl", line(1), call("one", channel=0), call("two", channel=1), call("all"),
        call("again", channel=1), call("mine", offset=0.5, duration=1.5, channel_selector=0),
        call("yours", offset=0.5, duration=1.5, channel_selector=1),
        call("ours", offset=0.5, duration=1.5, channel_selector="average"),
        call("late", offset=1.25, duration=1.5, channel=None, channel_selector=0),
    )  # fmt: skip
    out = prepared(corpus)
    key = key_of("call.mp3")
    assert [(one.text, channels_of(one), one.key) for one in read_folder(out / "train")[1:]] == [
        ("one", [0], f"{key}-c0"),
        ("two", [1], f"{key}-c1"),
        ("all", [0, 1], key),
        ("mine", [0], f"{key}-c0-0000500-0002000"),
        ("yours", [1], f"{key}-c1-0000500-0002000"),
        ("ours", [0, 1], f"{key}-0000500-0002000"),
        ("late", [0], f"{key}-c0-0001250-0002750"),
    ]
    assert dropped_in(out / "train") == {"train.jsonl:5 call.mp3": "the key is a duplicate of an earlier one"}
    assert record_of(out / "train")["notes"] == {"averaged 2 channels": 2, "resampled from 44100 Hz": 7}
    (tar,) = list_shards(out / "train")
    with tarfile.open(tar) as shard:
        files = [shard.extractfile(member) for member in shard if member.name.endswith("json")]
        assert [json.load(file).get("channel") for file in files if file] == [None, 0, 1, None, 0, 1, None, 0]


def test_channels_without_transcripts_are_cut_into_segments(corpus: Path) -> None:
    write_call(corpus / "call.mp3", 2.5)
    write(corpus, "talks.jsonl", call(None, channel=1), call(None, channel=0, offset=1.0))
    utterances = read_folder(prepared(corpus, max_seconds=2) / "talks")
    ends = ["c1-0000", "c1-0001", "c0-0001000-end-0000"]
    assert [one.key for one in utterances] == [f"{key_of('call.mp3')}-{end}" for end in ends]
    assert [channels_of(one) for one in utterances] == [[1], [1], [0]]


def test_what_is_no_channel_is_named(corpus: Path) -> None:
    write_call(corpus / "call.mp3", 1.0)
    given: tuple[Any, ...] = (0, 2, -1, [0, 1], "left", True, 1.5)
    write(corpus, "train.jsonl", *(call("one", side=one) for one in given), line(1, side=1))
    out = prepared(corpus, channel_key="side")
    assert [channels_of(one) for one in read_folder(out / "train")] == [[0]]
    dropped = dropped_in(out / "train")
    assert dropped.pop("train.jsonl:2 call.mp3") == "there is no channel 2: the file has 2; expected 0 or 1"
    assert dropped.pop("train.jsonl:8 clips/1.wav") == "there is no channel 1: the file has 1; expected 0"
    said = "the side is not a valid channel; expected 0, 1, … or average (--channel_key NAME if side means "
    assert dropped == {
        f"train.jsonl:{number}": f"{said}something else); got {given[number - 1]!r}" for number in range(3, 8)
    }
    write(corpus, "dev.jsonl", *(call("one", channel_selector=one) for one in ([0, 1], "left", 1)))
    out = prepared(corpus, "named", split="dev")
    assert [channels_of(one) for one in read_folder(out / "dev")] == [[1]]
    said = "the channel_selector is not a valid channel; expected 0, 1, … or average; got "
    assert list(dropped_in(out / "dev").values()) == [f"{said}[0, 1]", f"{said}'left'"]


def test_what_channel_says_of_something_else_is_ignored_and_counted(corpus: Path) -> None:
    write_call(corpus / "call.mp3", 1.0)
    given: tuple[Any, ...] = ("phone", [0, 1], True, 1.5, "average", None, 0)
    rows = [line(number % 4 + 1, text="one", offset=0.0, channel=one) for number, one in enumerate(given[:4])]
    write(
        corpus, "train.jsonl", *rows, *(call("one", offset=0.1 * n, channel=given[n]) for n in range(4, 7)),
        call("two", channel="radio", channel_selector=1), call("six", channel=-1),
    )  # fmt: skip
    write(corpus, "dev.jsonl", *rows)
    out = prepared(corpus)
    utterances = read_folder(out / "train")
    assert [channels_of(one) for one in utterances[4:]] == [[0, 1], [0, 1], [0], [1]]
    assert len(utterances) == 8 and "train.jsonl:9" in dropped_in(out / "train")
    noted = "with a channel that is not a number, which is ignored"
    assert record_of(out / "train")["notes"] == {"averaged 2 channels": 2, noted: 5}
    before = record_of(out / "dev")
    assert before["notes"] == {noted: 4} and before["source"]["generation"] == 2
    for channel_key in ("none", "side"):
        prepared(corpus, split="dev", channel_key=channel_key)
    prepared(corpus, "none", split="dev", channel_key="none")
    assert record_of(corpus.parent / "none/dev") == {**before, "notes": {}}


def test_the_cuts_of_a_file_are_read_together_whatever_the_order_of_the_list(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[Line] = []
    for name in ("a.mp3", "b.mp3"):
        write_call(corpus / name, 4.0)
        for start in range(4):
            for channel in (0, 1):
                cut = {"offset": start + 0.25 * channel, "duration": 0.75, "channel": channel}
                lines.append({"audio_filepath": name, "text": "one", **cut})
    opened, real = list[str](), AudioReader.__init__

    def opening(self: AudioReader, path: Path) -> None:
        opened.append(path.name)
        real(self, path)

    monkeypatch.setattr(AudioReader, "__init__", opening)
    order = np.random.default_rng(0).permutation(range(1, len(lines)))
    found = []
    for name, some in (("sorted", lines), ("shuffled", [lines[0], *(lines[number] for number in order)])):
        write(corpus, "all.jsonl", *some)
        written = bytes_below(prepared(corpus, name, max_shard_utterances=3))
        found.append({path: data for path, data in written.items() if "prepared" not in path})
    assert found[0] == found[1] and len(found[0]) == 2 * 6 + 1
    assert opened == ["a.mp3", "b.mp3"] * 2


def test_what_was_finished_before_is_refused_only_where_its_audio_would_be_other(corpus: Path) -> None:
    write_call(corpus / "call.mp3", 1.0)
    cuts = [line(number, offset=start, duration=0.2) for number in (1, 2) for start in (0.0, 0.2)]
    write(corpus, "order.jsonl", *cuts, line(3), line(1), line(2), line(1))
    write(corpus, "mixed.jsonl", cuts[0], cuts[2], cuts[1], call("all"))
    write(corpus, "mono.jsonl", *cuts, line(3, channel=0), line(4, channel_selector=0))
    write(corpus, "side.jsonl", *cuts, call("one", channel=0))
    write(corpus, "second.jsonl", *cuts, line(3, channel=0), line(3, channel=1))
    for name, generation, notes, accepted in (
        ("order", 2, {}, True),
        ("mixed", 3, {"averaged 2 channels": 1}, True),
        ("mono", 3, {}, True),
        ("side", 3, {"averaged 2 channels": 1}, False),
        ("second", 3, {}, False),
    ):
        out = prepared(corpus, split=name)
        record = record_of(out / name)
        assert record["source"]["generation"] == generation
        assert "channel_key" not in record["source"]["settings"]
        record["source"]["generation"], record["notes"] = 2, notes
        (out / name / "prepared.json").write_text(json.dumps(record))
        if accepted:
            prepared(corpus, split=name)
            assert record_of(out / name) == record
            continue
        with pytest.raises(ConfigError, match="an older release .* expected generation 3 of manifest; got"):
            prepared(corpus, split=name)


def test_what_is_unfinished_is_made_anew_where_its_order_would_be_another(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuts = [line(number, offset=start, duration=0.2) for start in (0.0, 0.2) for number in (1, 2)]
    write(corpus, "mixed.jsonl", *cuts)
    folder = prepared(corpus) / "mixed"
    written, source = bytes_below(folder), record_of(folder)["source"]
    (folder / "prepared.json").unlink()
    (folder / "preparing.json").write_text(json.dumps({"source": {**source, "generation": 2}}))
    prepared(corpus)
    assert bytes_below(folder) == written
    assert "1 finished shard replaced, because the interrupted run differed in" in capsys.readouterr().err


def test_a_huge_number_of_seconds_is_listed_as_none(corpus: Path) -> None:
    write(
        corpus,
        "train.jsonl",
        line(1),
        line(2, offset=10**400),
        line(2, offset=1e308),
        line(2, duration=-1e308),
    )
    out = prepared(corpus)
    assert keys(read_folder(out / "train")) == ["clips_1"]
    reasons = list(dropped_in(out / "train").values())
    assert len(reasons) == 3 and all("is not a number of seconds" in reason for reason in reasons)


def test_everything_left_out_is_listed_with_its_reason(corpus: Path) -> None:
    (corpus / "clips/text.wav").write_text("this is text")
    write_tone(corpus / "clips/long.wav", 31.0)
    write_tone(corpus / "clips/click.wav", 0.05)
    broken = '{"audio_filepath": "clips/1.wav", '
    write(
        corpus, "train.jsonl", line(1), line(1), broken, line(9), line(2, "chapter 7"), line(2, 5.5),
        {"text": "no audio"}, {**line(2), "audio_filepath": "clips/text.wav"}, line(2, offset="1"),
        {**line(2), "audio_filepath": "clips/long.wav"}, {**line(2), "audio_filepath": "clips/click.wav"},
        line(2, offset=0.5, duration=5), {**line(2), "audio_filepath": 5.5}, "[1]",
        {**line(2), "audio_filepath": "a\0.wav"}, {**line(2), "audio_filepath": "x" * 5000},
        {**line(2), "audio_filepath": "\ud800.wav"},
    )  # fmt: skip
    out = prepared(corpus)
    assert keys(read_folder(out / "train")) == ["clips_1"]
    reasons = {what.removeprefix("train.jsonl:"): why for what, why in dropped_in(out / "train").items()}
    assert reasons["2 clips/1.wav"] == "the key is a duplicate of an earlier one"
    assert reasons["3"] == reasons["14"] == "this is not a JSON object"
    assert reasons["4 clips/9.wav"] == "the audio file cannot be read; got No such file or directory"
    assert "'7' cannot be normalised" in reasons["5 clips/2.wav"]
    assert reasons["6"] == "the text is not a string; got 5.5"
    assert reasons["7"] == "the audio path is empty or invalid; expected the path of an audio file; got ''"
    assert reasons["8 clips/text.wav"].startswith("the audio cannot be decoded")
    assert reasons["9"] == "the offset is not a number of seconds; got '1'"
    assert reasons["10 clips/long.wav"] == "31.000 s is longer than max_seconds"
    assert reasons["11 clips/click.wav"] == "0.050 s is shorter than min_seconds"
    beyond = "the cut is not within the audio; expected a part of 0 to 0.60 s; got 0.50 s to 5.50 s"
    assert reasons["12 clips/2.wav"] == beyond
    assert reasons["13"] == "the audio_filepath is not a string; got 5.5"
    assert reasons["15"].startswith("the audio path is empty or invalid")
    assert reasons[f"16 {'x' * 5000}"].endswith("File name too long")
    assert len(reasons) == 16


def test_other_json_is_passed_over_unless_it_is_asked_for(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(corpus, "train.jsonl", "{", line(1))
    (corpus / "about.json").write_text('{\n "name": "x"\n}\n')
    assert [path.name for path in prepared(corpus).iterdir()] == ["train"]
    assert "ignored, since they are not lists of audio files: about" in capsys.readouterr().err
    with pytest.raises(
        CorpusError, match=r"about\.json: this is not a list of audio files; expected lines of"
    ):
        prepared(corpus, split="about")
    with pytest.raises(CorpusError, match=r"there is no list test; expected some of about, train"):
        prepared(corpus, split="test")
    write(corpus, "train.json", line(1))
    with pytest.raises(CorpusError, match=r"two lists have the same name; got train\.json and train\.jsonl"):
        prepared(corpus)


def test_a_folder_without_lists_is_refused(corpus: Path) -> None:
    with pytest.raises(CorpusError, match=r"no list of audio.*NAME\.jsonl or NAME\.json"):
        prepared(corpus)


def test_a_list_of_which_nothing_is_there_is_an_error(corpus: Path) -> None:
    write(corpus, "train.jsonl", {"audio_filepath": "/gone/1.wav", "text": "one"})
    message = r"no utterance can be used; got 1 left out: /gone/1\.wav: the audio file cannot be read"
    with pytest.raises(CorpusError, match=message):
        prepared(corpus)
    assert list(dropped_in(corpus.parent / "out/train")) == ["train.jsonl:1 /gone/1.wav"]


def test_a_split_depends_on_the_bytes_of_its_list_and_on_the_audio_it_names(corpus: Path) -> None:
    write(corpus, "train.jsonl", line(1), line(2))
    out = prepared(corpus)
    before = bytes_below(out)
    write(corpus, "other.jsonl", line(3))
    write_tone(corpus / "clips/unlisted.wav", 1.0)
    prepared(corpus, split="train")
    assert bytes_below(out) == before
    write(corpus, "train.jsonl", line(1), line(2, "six"))
    with pytest.raises(
        ConfigError, match=r"train: the corpus has changed since.*: a list, a transcript or .*--out"
    ):
        prepared(corpus, split="train")
    write(corpus, "train.jsonl", line(1), line(2))
    write_tone(corpus / "clips/2.wav", 0.9)
    with pytest.raises(ConfigError, match=r"has changed.*: 2 files of [\d,]+ bytes then, 2 files of"):
        prepared(corpus, split="train")


def test_a_share_of_the_speakers_is_held_out_and_nobody_moves_when_others_come(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sides(names: range, out: str) -> dict[str | None, str]:
        lines = [
            line(1 + number % 2, offset=0.1, duration=0.3 + 0.001 * name, speaker=f"s{name}")
            for name in names
            for number in (0, 1)
        ]
        write(corpus, "all.jsonl", *lines, "{broken")
        folder = prepared(corpus, out, held_out_share=0.2)
        assert sorted(path.name for path in folder.iterdir()) == ["all", "all-dev", "all-test"]
        assert len(dropped_in(folder / "all")) == 1
        assert dropped_in(folder / "all-dev") == dropped_in(folder / "all-test") == {}
        found = [(one.speaker, split.name) for split in folder.iterdir() for one in read_folder(split)]
        assert len(found) == len(lines)
        assert len(set(found)) == len(names), "each speaker on one side"
        assert "no speakers" not in capsys.readouterr().err
        return dict(found)

    few, more = sides(range(20, 40), "few"), sides(range(40), "more")
    assert few == {name: side for name, side in more.items() if name in few}
    counts = [list(more.values()).count(side) for side in ("all", "all-dev", "all-test")]
    assert counts == [22, 6, 12]


def test_without_speakers_files_are_held_out(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5, 41):
        write_tone(corpus / f"clips/{number}.wav", 0.5)
    cuts = [line(number, offset=start, duration=0.2) for number in range(1, 41) for start in (0.0, 0.2)]
    write(corpus, "all.jsonl", *cuts)
    out = prepared(corpus, held_out_share=0.2)
    files = {
        name: {one.key.split("-")[0] for one in read_folder(out / name)}
        for name in ("all", "all-dev", "all-test")
    }
    assert sum(map(len, files.values())) == 40, "no file is on two sides"
    assert len(files["all-dev"]) > 2 < len(files["all-test"])
    said = "all: no speakers are named, so files are held out, and the same speaker may be in several parts; "
    told = capsys.readouterr().err
    assert (
        told.count(f"{said}its other keys are text, offset, duration (to use one: --speaker_key NAME)") == 1
    )


@pytest.mark.parametrize("chosen", [("calls-dev",), ()])
def test_parts_are_of_the_list_whatever_it_is_called(corpus: Path, chosen: tuple[str, ...]) -> None:
    def made(numbers: range, text: str) -> list[dict[str, Any]]:
        spans = [{"offset": 0.1, "duration": 0.3 + 0.001 * number} for number in numbers]
        return [line(1, speaker=f"s{n}", text=text, **span) for n, span in zip(numbers, spans, strict=True)]

    lines = made(range(20, 60), "of the list")
    write(corpus, "calls-dev.jsonl", *lines)
    other = made(range(60), "of another")
    write(corpus, "calls.jsonl", *(other if chosen else ["no list"]))
    out = prepared(corpus, held_out_share=0.2, split=chosen)
    parts = {folder.name: read_folder(folder) for folder in out.iterdir()}
    assert sorted(parts) == ["calls-dev", "calls-dev-dev", "calls-dev-test"]
    assert sum(map(len, parts.values())) == len(lines)
    assert {one.text for part in parts.values() for one in part} == {"of the list"}


def test_what_cannot_be_held_out_is_refused(corpus: Path) -> None:
    write(corpus, "train.jsonl", line(1, speaker="ann"), line(2, speaker="bob"))
    write(corpus, "other.jsonl", line(3))
    with pytest.raises(ConfigError, match=r"held out of one list only.*got other, train\. Choose .* --split"):
        prepared(corpus, held_out_share=0.1)
    for share in (-0.1, 0.5, 0.6, 5):
        with pytest.raises(ConfigError, match="held_out_share: .*expected at least 0 and below 0.5, since"):
            prepared(corpus, held_out_share=share, split="train")
    message = (
        "train-dev and train-test would be empty; expected a share that holds out some of 2 speakers and "
        r"leaves some; got too few for 3 parts\. Put dev and test data into separate lists or "
        r"folders\.$"
    )
    with pytest.raises(ConfigError, match=message):
        prepared(corpus, held_out_share=0.01, split="train")
    write(corpus, "train.jsonl", *(line(1 + number % 4, speaker=f"s{number}") for number in range(20, 40)))
    said = (
        r"held_out_share: train-test would be empty;.*some of 20 .* got 0\.02\. Put .* or folders, or set "
        r"held_out_share to 0\.04: of 20 utterances, train 90% \(s20, s21, s22, s23, s24 and 13 more\), "
        r"train-dev 5% \(s39\), train-test 5% "
        r"\(s29\)"
    )
    with pytest.raises(ConfigError, match=said):
        prepared(corpus, held_out_share=0.02, split="train")


def test_far_more_than_the_share_is_told_with_who_is_where(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("george", "theo", "nicolas", "jackson")
    write(corpus, "all.jsonl", *(line(n, speaker=name) for n, name in enumerate(names, start=1)))
    with pytest.raises(
        ConfigError,
        match=r"held_out_share: all-test would be empty;.* or set .* to 0\.14: of 4 utterances, all 25%",
    ):
        prepared(corpus, held_out_share=0.05)
    capsys.readouterr()
    prepared(corpus, held_out_share=0.14)
    said = (
        "all: more than twice the held_out_share is held out: of 4 utterances, all 25% (nicolas), all-dev "
        "50% (george, theo), all-test 25% (jackson). Put dev and test data into separate lists or folders.\n"
    )
    assert capsys.readouterr().err.count(said) == 1
    prepared(corpus, "twice", held_out_share=0.25)
    assert "held_out_share" not in capsys.readouterr().err


def test_words_in_brackets_are_counted_and_the_first_is_shown(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ("one", "[noise] three eight", "four (laughs)\none", "five :) <")
    write(corpus, "all.jsonl", *(line(n, text) for n, text in enumerate(texts, start=1)))
    out = prepared(corpus)
    assert [one.text for one in read_folder(out / "all")][1:3] == ["noise three eight", "four laughs one"]
    assert record_of(out / "all")["notes"] == {"with words in brackets": 2}
    summary, advice = capsys.readouterr().err.splitlines()
    assert summary.endswith("; 2 with words in brackets")
    assert advice == (
        "  words in brackets are treated as spoken words; if they are tags, remove them from the "
        "transcripts: all.jsonl:2 clips/2.wav: [noise] three eight"
    )


def test_how_to_convert_what_is_not_read_is_told(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "clips/5.M4A").write_bytes(b"x")
    lost = {"audio_filepath": "clips/5.M4A", "text": "one"}
    write(corpus, "all.jsonl", line(1), lost)
    prepared(corpus, split="all")
    command = 'for f in *.M4A; do ffmpeg -i "$f" -ar 16000 -ac 1 "${f%.M4A}.flac"; done'
    assert capsys.readouterr().err.endswith(
        f"  to convert all .M4A files in a folder, run this there: {command}\n"
    )
    write(corpus, "none.jsonl", lost)
    with pytest.raises(
        CorpusError, match=r"no utterance can be used.* To convert all \.M4A files in a folder"
    ):
        prepared(corpus, split="none")


def test_cuts_and_segments_have_the_place_that_they_have_in_their_file(corpus: Path) -> None:
    write_tone(corpus / "long.wav", 2.5)
    part = {"audio_filepath": "long.wav", "offset": 1.25, "duration": 0.5, "text": "one"}
    write(corpus, "all.jsonl", line(1), part)
    write(corpus, "talks.jsonl", {**part, "duration": 1.25, "text": None})
    out = prepared(corpus, max_seconds=1)
    assert places_in(out / "all") == [("clips/1.wav", None), ("long.wav", 1.25)]
    first = len(read_folder(out / "talks")[0].samples) / 16_000
    assert places_in(out / "talks") == [("long.wav", 1.25), ("long.wav", round(1.25 + first, 3))]


def test_keys_of_names_that_are_none_are_readable_and_apart() -> None:
    assert key_of_id("utt-1_a") == "utt-1_a"
    names = ("utt.1", "utt 1", "utt_1", "é" * 300)
    made = [key_of_id(name) for name in names]
    assert len(set(made)) == len(names) and made[0].startswith("utt_1-")
    cuts = [key_of("x/y.wav", cut) for cut in (Cut(), Cut(0.5), Cut(0.5, 1.0), Cut(36_000.5, 1.25))]
    assert [key.removeprefix(cuts[0]) for key in cuts] == [
        "", "-0000500-end", "-0000500-0001500", "-36000500-36001750",
    ]  # fmt: skip
    sides = [key_of("x/y.wav", cut) for cut in (Cut(channel=1), Cut(0.5, None, 0), Cut(0.5, 1.0, 10))]
    assert [key.removeprefix(cuts[0]) for key in sides] == ["-c1", "-c0-0000500-end", "-c10-0000500-0001500"]
    assert all(KEY_PATTERN.fullmatch(key) for key in (*made, *cuts, *sides))
