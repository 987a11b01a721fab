"""data_prep.table: TSV and CSV, columns by name, tables that are no lists of audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep import prepare
from kdasr.errors import ConfigError, CorpusError
from tests.data_prep.fakes import dropped_in, read_folder, write_tone

HEADER = "client_id\tpath\tsentence\tup_votes\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "cv"
    for name in ("1.mp3", "2.mp3", "3.mp3"):
        write_tone(folder / "clips" / name, 0.5)
    write_tone(folder / "top.wav", 0.4)
    return folder


def prepared(corpus: Path, **settings: Any) -> Path:
    out = corpus.parent / "out"
    prepare("table", corpus=corpus, out=out, **settings)
    return out


def test_a_folder_of_common_voice(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "train.tsv").write_text(HEADER + 'ann\t1.mp3\t"Well," he said.\t2\n\n\t2.mp3\tTwo\t0\n')
    (corpus / "dev.tsv").write_text("\ufeff" + HEADER + 'bob\t3.mp3\t"Open\t2\n')
    (corpus / "clip_durations.tsv").write_text("clip\tduration[ms]\n1.mp3\t500\n")
    (corpus / "reported.tsv").write_text("sentence\treason\nx\ty\n")
    out = prepared(corpus)
    assert sorted(path.name for path in out.iterdir()) == ["dev", "train"]
    train, (dev,) = read_folder(out / "train"), read_folder(out / "dev")
    assert [(one.key[:2], one.text, one.speaker) for one in (*train, dev)] == [
        ("1-", "well he said", "ann"),
        ("2-", "two", None),
        ("3-", "open", "bob"),
    ]
    assert (
        "ignored, since they are not lists of audio files: clip_durations, reported"
        in capsys.readouterr().err
    )


def test_columns_and_the_folder_can_be_named(corpus: Path) -> None:
    (corpus / "own.csv").write_text('file,said,who\ntop.wav,"Yes, that is\nit",ann\n')
    columns = {"audio_column": "file", "text_column": "said", "speaker_column": "who"}
    (one,) = read_folder(prepared(corpus, audio_folder=".", **columns) / "own")
    assert (one.text, one.speaker, len(one.samples)) == ("yes that is it", "ann", 6_400)


@pytest.mark.parametrize(
    ("name", "given", "delimiter"),
    [
        ("own.csv", None, ";"), ("own.csv", None, "\t"), ("own.tsv", None, "|"), ("own.tsv", None, ","),
        ("own.csv", "tab", "\t"), ("own.csv", "/", "/"),
    ],
)  # fmt: skip
def test_cells_stand_between_what_the_header_shows(
    corpus: Path, name: str, given: str | None, delimiter: str
) -> None:
    rows = ["path", "sentence"], ["1.mp3", f'"one{delimiter} two"'], ["2.mp3", "three. four"]
    (corpus / name).write_text("\ufeff\n" + "".join(delimiter.join(row) + "\n" for row in rows))
    found = read_folder(prepared(corpus, delimiter=given) / "own")
    assert [one.text for one in found] == ["one two", "three four"]


def test_a_delimiter_is_one_character(corpus: Path) -> None:
    for wrong in ("", ";;", '"'):
        with pytest.raises(
            ConfigError, match=r"--delimiter: this is not a delimiter; expected one character, such as ;"
        ):
            prepared(corpus, delimiter=wrong)


def test_cells_of_a_tsv_that_are_quoted_as_a_whole_are_read_without(corpus: Path) -> None:
    rows = ('"path"', '"sentence"'), ('"1.mp3"', '"one ""two"" "'), ("2.mp3", '"three" four')
    (corpus / "own.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert [one.text for one in read_folder(prepared(corpus) / "own")] == ["one two", "three four"]


def test_a_table_of_utf_16_is_named_beside_others(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "own.tsv").write_text(HEADER + "ann\t1.mp3\tone\t0\n")
    (corpus / "wide.tsv").write_text(HEADER + "ann\t2.mp3\ttwo\t0\n", encoding="utf-16")
    prepared(corpus)
    assert "wide.tsv: the list is UTF-16; expected UTF-8" in capsys.readouterr().err
    with pytest.raises(CorpusError, match=r"wide\.tsv: the list is UTF-16"):
        prepared(corpus, split="wide")


def test_a_speaker_column_of_another_name_is_missed(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        write_tone(corpus / "clips" / f"{number}.wav", 0.3)
    rows = [f"{number}.wav\tone\ts{number % 20}\n" for number in range(30)]
    (corpus / "own.tsv").write_text("path\tsentence\tspeaker\n" + "".join(rows))
    prepared(corpus, held_out_share=0.2)
    said = (
        "may be in several parts; its other columns are sentence, speaker (to use one: --speaker_column NAME)"
    )
    assert said in capsys.readouterr().err


def test_audio_folders_of_hugging_face_are_read(corpus: Path) -> None:
    (corpus / "clips").rename(corpus / "data")
    (corpus / "metadata.csv").write_text("file_name,transcription\ndata/1.mp3,One\n")
    columns = {"audio_column": "file_name", "text_column": "transcription"}
    assert [one.text for one in read_folder(prepared(corpus, **columns) / "metadata")] == ["one"]


def test_a_missing_column_is_named_with_those_there_are(corpus: Path) -> None:
    (corpus / "own.csv").write_text("file,said\n1.mp3,one\n")
    message = (
        r"own\.csv: the table has no column path and no sentence; expected path \(--audio_column NAME for "
        r"another\) and sentence \(--text_column NAME for another\); got the columns file, said"
    )
    with pytest.raises(CorpusError, match=message):
        prepared(corpus)
    with pytest.raises(CorpusError, match="no column who;.*--speaker_column"):
        prepared(corpus, audio_column="file", text_column="said", speaker_column="who")
    (corpus / "empty.tsv").write_text("")
    message = (
        r"none of these is a list of audio files;.* got empty\.tsv \(an empty file\), own\.csv \(the columns"
    )
    with pytest.raises(CorpusError, match=message):
        prepared(corpus)


def test_an_unlabelled_table_needs_no_texts(corpus: Path) -> None:
    (corpus / "own.csv").write_text("path\n1.mp3\n2.mp3\n")
    utterances = read_folder(prepared(corpus, unlabelled="own") / "own")
    assert [one.text for one in utterances] == [None, None]


def test_lines_that_do_not_fit_the_header_are_listed(corpus: Path) -> None:
    (corpus / "own.csv").write_text("path,sentence\n1.mp3,yes, that\n2.mp3\n,two\n3.mp3,three\n")
    out = prepared(corpus)
    assert [one.text for one in read_folder(out / "own")] == ["three"]
    assert dropped_in(out / "own") == {
        "own.csv:2": "the line and the header have different numbers of cells; expected 2; got 3",
        "own.csv:3": "the line and the header have different numbers of cells; expected 2; got 1",
        "own.csv:4": "the audio path is empty or invalid; expected the path of an audio file; got ''",
    }


def test_a_quotation_mark_that_is_never_closed_is_named(corpus: Path) -> None:
    (corpus / "own.csv").write_text('path,sentence\n1.mp3,"one\n' + "2.mp3,two\n" * 20_000)
    with pytest.raises(
        CorpusError, match=r"own\.csv:\d+: the table cannot be read.*Close the quotation marks"
    ):
        prepared(corpus)
