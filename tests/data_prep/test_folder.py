"""data_prep.folder: any audio below a folder, with keys from its paths."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import soundfile

from data_prep import prepare
from data_prep.support.dropped import conversion
from data_prep.support.listed import key_of
from kdasr.audio import load
from kdasr.errors import ConfigError, CorpusError
from kdasr.interfaces import Utterance
from kdasr.manifest import KEY_PATTERN
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

DOCUMENTS = Path(__file__).parents[2] / "docs"


def prepared(corpus: Path, **settings: Any) -> list[Utterance]:
    out = corpus.parent / "out"
    prepare("folder", corpus=corpus, out=out, **settings)
    return read_folder(out / "unlabelled")


def readable(utterance: Utterance) -> str:
    """The key without its hash."""
    name, _, number = utterance.key.rsplit("-", 2)
    return f"{name}-{number}"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


def test_all_kinds_of_audio_are_found_in_order(corpus: Path) -> None:
    for name in ("b/2.flac", "a/1.WAV", "c.mp3", "b/a/3.ogg", "top.wav"):
        write_tone(corpus / name, 0.5)
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    soundfile.write(corpus / "d.opus", noise, 48_000, format="OGG", subtype="OPUS")
    for name in ("notes.txt", "cover.jpg", ".hidden.wav", ".cache/x.wav"):
        (corpus / name).parent.mkdir(exist_ok=True)
        (corpus / name).write_bytes(b"not audio")
    utterances = prepared(corpus)
    names = ["c-0000", "d-0000", "top-0000", "a_1-0000", "b_2-0000", "b_a_3-0000"]
    assert [readable(one) for one in utterances] == names
    assert all(one.text is None and one.speaker is None for one in utterances)
    np.testing.assert_array_equal(utterances[2].samples, load(corpus / "top.wav"))
    record = record_of(corpus.parent / "out" / "unlabelled")
    assert (record["dropped"], record["notes"]) == (0, {"resampled from 48000 Hz": 1})


def test_audio_of_other_formats_is_named_and_the_commonest_reason_comes_first(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(corpus / "good.wav", 0.5)
    for name in ("1.m4a", "2.M4A", "3.wma", "notes.txt"):
        (corpus / name).write_bytes(b"x")
    (corpus / "4.wav").write_bytes(b"no audio")
    assert len(prepared(corpus)) == 1
    dropped = dropped_in(corpus.parent / "out/unlabelled")
    assert sorted(dropped) == ["1.m4a", "2.M4A", "3.wma", "4.wav"]
    assert "convert it to wav or flac" in dropped["2.M4A"] and str(corpus) not in dropped["4.wav"]
    told = capsys.readouterr().err
    summary, formats, damaged, advice = told.splitlines()
    assert summary.endswith("1 utterance, 0.5 s, 1 shard; 4 left out (see dropped.json)")
    assert formats.startswith("  left out: 1.m4a and 2 more: unsupported format")
    assert damaged.startswith(f"  left out: {corpus}/4.wav: the audio cannot be decoded")
    assert advice == f"  {conversion('1.m4a')}"


def test_files_that_may_be_audio_are_counted_by_their_ends(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.mkdir()
    for name in ("a.mkv", "b.MKV", "c.oga", "d", "e.m4a", "notes.txt", "list.json", "t.csv", ".hidden.mkv"):
        (corpus / name).write_bytes(b"x")
    with pytest.raises(
        CorpusError, match=r"\.mp3; got 2 \.mkv, 1 \.oga, 1 without an extension, 1 \.m4a\. To con.*\*\.m4a;"
    ):
        prepared(corpus)
    write_tone(corpus / "good.wav", 0.5)
    prepared(corpus)
    said = capsys.readouterr().err
    assert "unlabelled: other files, ignored: 2 .mkv, 1 .oga, 1 without an extension\n" in said
    assert "left out: e.m4a" in said


def test_the_name_of_a_file_does_not_direct_the_terminal(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(corpus / "good.wav", 0.5)
    (corpus / "a\x1b]0;b\x07.wav").write_bytes(b"nonsense")
    prepared(corpus)
    said = capsys.readouterr().err
    assert r"a\u001b]0;b\u0007.wav: the audio cannot be decoded" in said and "\x1b" not in said


def test_linked_folders_are_followed_once(corpus: Path) -> None:
    write_tone(corpus / "a/1.wav", 0.5)
    write_tone(corpus.parent / "disk2/2.wav", 0.6)
    (corpus / "more").symlink_to(corpus.parent / "disk2")
    (corpus / "again").symlink_to(corpus / "more")
    (corpus.parent / "disk2/round").symlink_to(corpus)
    assert sorted(len(one.samples) for one in prepared(corpus)) == [8_000, 9_600]
    write_tone(corpus.parent / "disk2/3.wav", 0.7)
    with pytest.raises(ConfigError, match="files"):  # the fingerprint of the corpus sees it
        prepared(corpus)


def test_names_that_look_alike_have_different_keys(corpus: Path) -> None:
    names = ["a/b.wav", "a_b.wav", "a b.wav", "a-b.wav", "a.b.wav", "a_b.flac", "ä_b.wav", "é_b.wav"]
    for name in names:
        write_tone(corpus / name, 0.3)
    keys = [one.key for one in prepared(corpus)]
    assert len(set(keys)) == len(names)
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)


def test_a_key_is_short_readable_and_fixed() -> None:
    assert key_of(PurePath("talks/Monday 1.mp3")) == "talks_Monday_1-e93d5b82"
    assert len(key_of(PurePath("x" * 300 + "/" + "y" * 300 + ".wav"))) <= 160


def test_adding_a_file_changes_no_other_key(corpus: Path) -> None:
    write_tone(corpus / "b.wav", 0.3)
    (before,) = prepared(corpus)
    write_tone(corpus / "a.wav", 0.3)
    prepare("folder", corpus=corpus, out=corpus.parent / "again")
    assert before.key in [one.key for one in read_folder(corpus.parent / "again" / "unlabelled")]


def test_long_files_are_cut_into_segments(corpus: Path) -> None:
    write_tone(corpus / "long.flac", 5.0)
    write_tone(corpus / "short.flac", 1.0)
    utterances = prepared(corpus, max_seconds=2)
    assert [readable(one) for one in utterances] == ["long-0000", "long-0001", "long-0002", "short-0000"]
    assert all(26_667 - 4_000 <= len(one.samples) <= 32_000 for one in utterances[:3])
    assert len(utterances[3].samples) == 16_000
    joined = np.concatenate([one.samples for one in utterances[:3]])
    np.testing.assert_array_equal(joined, load(corpus / "long.flac"))
    places = places_in(corpus.parent / "out" / "unlabelled")
    assert [source for source, _ in places] == ["long.flac"] * 3 + ["short.flac"]
    starts = [0, len(utterances[0].samples), len(utterances[0].samples) + len(utterances[1].samples), 0]
    assert [offset for _, offset in places] == [round(start / 16_000, 3) for start in starts]


def test_a_name_that_is_not_utf_8_is_a_source_all_the_same(corpus: Path) -> None:
    write_tone(corpus / "talks/1.wav", 0.5)
    (corpus / "talks/1.wav").rename(corpus / os.fsdecode(b"talks/\xff 1.wav"))
    prepared(corpus)
    assert places_in(corpus.parent / "out" / "unlabelled") == [("talks/? 1.wav", 0.0)]


def test_cutting_can_be_turned_off(corpus: Path) -> None:
    write_tone(corpus / "long.wav", 65.0)
    assert [len(one.samples) for one in prepared(corpus, max_seconds="none")] == [65 * 16_000]


def test_a_file_that_does_not_know_its_length_needs_no_memory_for_the_longest(corpus: Path) -> None:
    write_tone(corpus / "piped.flac", 65.0)
    data = bytearray((corpus / "piped.flac").read_bytes())
    data[21] &= 0xF0  # the count of samples, in STREAMINFO
    data[22:26] = bytes(4)
    (corpus / "piped.flac").write_bytes(data)
    assert [len(one.samples) for one in prepared(corpus, max_seconds="none")] == [65 * 16_000]


def test_files_are_too_short_and_not_the_equal_parts_of_long_ones(corpus: Path) -> None:
    for name, seconds in (("long", 4.2), ("short", 2.9), ("whole", 3.5)):
        write_tone(corpus / f"{name}.wav", seconds)
    utterances = prepared(corpus, min_seconds=3, max_seconds=4)
    assert [readable(one) for one in utterances] == ["long-0000", "long-0001", "whole-0000"]
    lengths = [len(one.samples) for one in utterances]
    assert lengths[0] < 48_000 and lengths[1] < 48_000 and lengths[2] == 56_000
    assert sum(lengths[:2]) == round(4.2 * 16_000)
    assert dropped_in(corpus.parent / "out" / "unlabelled") == {
        "short.wav": "2.900 s is shorter than min_seconds"
    }


def test_nothing_but_the_audio_decides_whether_it_is_the_same(corpus: Path) -> None:
    write_tone(corpus / "a.wav", 0.5)
    for _ in range(2):
        prepare("folder", corpus=corpus, out=corpus / "shards")  # which lie there the second time
        (corpus / ".DS_Store").write_bytes(b"x")
        (corpus / "notes.md").write_text("x")
    write_tone(corpus / "b.wav", 0.5)
    with pytest.raises(ConfigError, match="the corpus has changed since"):
        prepare("folder", corpus=corpus, out=corpus / "shards")


def test_what_cannot_be_used_is_counted(corpus: Path) -> None:
    for name in ("good.wav", "cut.wav", "long.mp3"):
        write_tone(corpus / name, 6.0)
    (corpus / "cut.wav").write_bytes((corpus / "cut.wav").read_bytes()[:5000])
    data = (corpus / "long.mp3").read_bytes()
    (corpus / "long.mp3").write_bytes(data[: len(data) // 2])
    (corpus / "empty.flac").write_bytes(b"")
    (corpus / "text.ogg").write_bytes(b"this is text")
    write_tone(corpus / "click.wav", 0.05)
    utterances = prepared(corpus, max_seconds=2.0)
    names = [readable(one) for one in utterances]
    assert names[:4] == [f"good-000{n}" for n in range(4)]
    assert names[4:] in (["long-0000"], ["long-0000", "long-0001"])
    record = record_of(corpus.parent / "out" / "unlabelled", "dropped.json")
    reasons = {item["file"]: item["reason"] for item in record["dropped"]}
    assert list(reasons) == ["click.wav", "cut.wav", "empty.flac", "long.mp3", "text.ogg"]
    assert reasons["click.wav"] == "0.050 s is shorter than min_seconds"
    assert reasons["cut.wav"].startswith("the audio is cut short")
    assert reasons["empty.flac"].startswith("the audio is empty")
    assert reasons["long.mp3"].endswith(f"; segments kept before that: {len(names) - 4}")
    assert reasons["text.ogg"].startswith("the audio cannot be decoded")


def test_stereo_and_other_rates_become_mono_at_16_khz(corpus: Path) -> None:
    corpus.mkdir()
    stereo = np.stack([np.full(22_050, 0.5), np.full(22_050, -0.1)], axis=1)
    soundfile.write(corpus / "s.wav", stereo, 22_050)
    (utterance,) = prepared(corpus)
    assert len(utterance.samples) == 16_000
    np.testing.assert_allclose(utterance.samples[1000:15000], 0.2, atol=1e-3)
    notes = record_of(corpus.parent / "out" / "unlabelled")["notes"]
    assert notes == {"resampled from 22050 Hz": 1, "averaged 2 channels": 1}


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_each_channel_may_be_an_utterance_of_its_own(kind: str, corpus: Path) -> None:
    write_call(corpus / f"call.{kind}", 2.5, 44_100)
    write_tone(corpus / "one.wav", 0.5)
    (corpus / "text.wav").write_bytes(b"this is text")
    utterances = prepared(corpus, channels="each", max_seconds=1.5)
    key = key_of(f"call.{kind}")
    ends = ["c0-0000", "c0-0001", "c1-0000", "c1-0001"]
    assert [one.key for one in utterances] == [*(f"{key}-{end}" for end in ends), f"{key_of('one.wav')}-0000"]
    assert [channels_of(one) for one in utterances[:4]] == [[0], [0], [1], [1]]
    out = corpus.parent / "out/unlabelled"
    assert record_of(out)["notes"] == {"resampled from 44100 Hz": 2}
    assert [*dropped_in(out)] == ["text.wav"]
    with pytest.raises(ConfigError, match="expected channels=None; got channels=each"):
        prepared(corpus, max_seconds=1.5)


def test_each_channel_is_no_way_to_use_one_transcript(corpus: Path) -> None:
    write_call(corpus / "call.wav", 0.5)
    with pytest.raises(ConfigError, match=r"--channels: NAME\.txt is the transcript of all channels"):
        prepared(corpus, channels="each", transcripts=True)
    with pytest.raises(ConfigError, match="--channels: .*; expected average or each; got left"):
        prepared(corpus, channels="left")


def test_a_folder_without_audio_is_refused(corpus: Path) -> None:
    corpus.mkdir()
    (corpus / "a.txt").write_text("hello")
    with pytest.raises(CorpusError, match=r"no audio in this folder; expected files that end in \.wav"):
        prepared(corpus)


def test_segments_of_less_than_a_second_are_refused(corpus: Path) -> None:
    write_tone(corpus / "a.wav", 0.5)
    with pytest.raises(ConfigError, match=r"max_seconds is too short; expected at least 1 s"):
        prepared(corpus, max_seconds=0.1)


def test_the_same_folder_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    for name in ("b.wav", "a/c.mp3"):
        write_tone(corpus / name, 1.0, 44_100)
    for name in ("one", "two"):
        prepare("folder", corpus=corpus, out=tmp_path / name)
    assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "two")


def test_a_language_is_written_to_every_utterance_and_changes_nothing_where_none_is_said(
    corpus: Path, tmp_path: Path
) -> None:
    write_tone(corpus / "a.wav", 1.0)
    for name, language in (("said", "pt-BR"), ("unsaid", None)):
        prepare("folder", corpus=corpus, out=tmp_path / name, language=language)
    assert [one.language for one in read_folder(tmp_path / "said" / "unlabelled")] == ["pt-BR"]
    assert [one.language for one in read_folder(tmp_path / "unsaid" / "unlabelled")] == [None]
    settings = json.loads((tmp_path / "unsaid" / "unlabelled" / "prepared.json").read_text())["source"][
        "settings"
    ]
    assert "language" not in settings
    for wrong in ("Portuguese", "pt_BR", "p"):
        with pytest.raises(ConfigError, match="this is not a language tag"):
            prepare("folder", corpus=corpus, out=tmp_path / "wrong", language=wrong)


def test_a_transcript_belongs_to_audio_whose_accents_are_encoded_differently(
    corpus: Path, tmp_path: Path
) -> None:
    for name, text in (("Ju\u0308rgen", "Jürgen"), ("s\u0327u", "s\u0327u"), ("şu", "şu")):
        write_tone(corpus / f"{name}.wav", 0.5)
        (corpus / f"{text}.txt").write_text(text.encode("ascii", "ignore").decode() or "x")
    (corpus / "şu.txt").write_text("another")
    prepare("folder", corpus=corpus, out=tmp_path / "out", transcripts=True)
    texts = {one.source: one.text for one in read_folder(tmp_path / "out" / "labelled")}
    assert texts == {"Ju\u0308rgen.wav": "jrgen", "s\u0327u.wav": "su", "şu.wav": "another"}
    assert dropped_in(tmp_path / "out" / "labelled") == {}


def test_transcripts_beside_the_audio_make_labelled_audio(corpus: Path, tmp_path: Path) -> None:
    for name, seconds in (("a/1.wav", 1.0), ("a/2.flac", 0.5), ("b.mp3", 3.0), ("c.wav", 0.5)):
        write_tone(corpus / name, seconds)
    for name, text in (("a/1.txt", "\ufeffIt's a\nday.\n"), ("a/2.txt", "4"), ("b.txt", "b"), ("d.txt", "d")):
        (corpus / name).write_text(text)
    write_tone(corpus / "e.wav", 0.5)
    (corpus / "e.txt").write_bytes("schön".encode("latin1"))
    prepare("folder", corpus=corpus, out=tmp_path / "out", transcripts=True, max_seconds=2)
    (one,) = read_folder(tmp_path / "out" / "labelled")
    assert (one.key, one.text, len(one.samples)) == (key_of("a/1.wav"), "it's a day", 16_000)
    dropped = dropped_in(tmp_path / "out" / "labelled")
    assert "'4' cannot be normalised" in dropped.pop("a/2.flac")
    assert dropped["b.mp3"].endswith(" s is longer than max_seconds")
    assert dropped["c.wav"] == "audio without transcript"
    assert dropped["d.txt"] == "transcript without audio"
    assert dropped["e.wav"].startswith("the text is not UTF-8, or letters in it were lost")
    assert "with an ENCODING such as cp1252 (Western), cp1250 (Polish, Czech)" in dropped["e.wav"]
    (corpus / "a/1.txt").write_text("\ufeffIt's a\nway.\n")
    with pytest.raises(ConfigError, match="the corpus has changed since"):
        prepare("folder", corpus=corpus, out=tmp_path / "out", transcripts=True, max_seconds=2)


def test_transcripts_with_times_are_pointed_to_the_document(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tone(corpus / "a/1.wav", 0.5)
    write_tone(corpus / "b.wav", 0.5)
    for name in ("a/1.srt", "b.VTT", "c.srt", "all.stm", "all.ctm"):
        (corpus / name).write_text("one")
    (section,) = re.findall("^## (Sub.*)$", (DOCUMENTS / "your-data.md").read_text("utf-8"), re.MULTILINE)
    hint = f'list for kdasr prepare manifest: docs/your-data.md, "{section}"'
    with pytest.raises(CorpusError, match=rf"no utterance can be used.*To use.*\(2 \.srt, .*{hint}"):
        prepare("folder", corpus=corpus, out=tmp_path / "out", transcripts=True)
    (corpus / "b.txt").write_text("two")
    prepare("folder", corpus=corpus, out=tmp_path / "2", transcripts=True)
    assert capsys.readouterr().err.endswith(f"{hint}\n")
    prepare("folder", corpus=corpus, out=tmp_path / "3")
    assert hint not in capsys.readouterr().err


def test_one_recording_in_two_formats_is_taken_once(corpus: Path, tmp_path: Path) -> None:
    """Else it may be trained on and tested with."""
    for name in ("1.flac", "1.wav", "2.wav"):
        write_tone(corpus / name, 0.5)
    for name in ("1.txt", "2.TXT"):
        (corpus / name).write_text("one")
    prepare("folder", corpus=corpus, out=tmp_path / "out", transcripts=True)
    keys = [one.key for one in read_folder(tmp_path / "out" / "labelled")]
    assert keys == [key_of("1.flac"), key_of("2.wav")]
    dropped = dropped_in(tmp_path / "out" / "labelled")
    assert dropped == {"1.wav": "the transcript is already used for 1.flac"}


def test_a_share_of_the_files_with_transcripts_is_held_out(corpus: Path, tmp_path: Path) -> None:
    for number in range(30):
        write_tone(corpus / f"{number}.wav", 0.3)
        (corpus / f"{number}.txt").write_text("one")
    prepare("folder", corpus=corpus, out=tmp_path, transcripts=True, held_out_share=0.2)
    names = [{one.key for one in read_folder(tmp_path / f"labelled{part}")} for part in ("", "-dev", "-test")]
    assert all(names) and len(set.union(*names)) == sum(map(len, names)) == 30
    with pytest.raises(
        ConfigError, match="only audio with transcripts can be held out; expected --transcripts true"
    ):
        prepare("folder", corpus=corpus, out=tmp_path, held_out_share=0.2)
    held_out = read_folder(tmp_path / "labelled-test")
    for number in range(30):
        if any(one.key == key_of(f"{number}.wav") for one in held_out):
            (corpus / f"{number}.txt").write_text("1")
    said = rf"labelled-test: no utterance .*got {len(held_out)} left out: .*hold out a larger share"
    with pytest.raises(CorpusError, match=said):
        prepare("folder", corpus=corpus, out=tmp_path / "2", transcripts=True, held_out_share=0.2)


def test_settings_that_came_later_leave_the_record_as_it_was(corpus: Path) -> None:
    write_tone(corpus / "a.wav", 0.5)
    prepared(corpus)
    settings = record_of(corpus.parent / "out" / "unlabelled")["source"]["settings"]
    assert set(settings) == {"max_seconds", "min_seconds", "max_shard_utterances"}
