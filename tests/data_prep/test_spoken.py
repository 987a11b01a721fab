"""data_prep.support.spoken: transcripts as they are spoken, in lists and in folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep import prepare
from data_prep.support.spoken import read_spoken_forms, spoken_form
from kdasr.errors import ConfigError, CorpusError, MissingDependencyError
from kdasr.text import normalise
from tests.data_prep.fakes import dropped_in, read_folder, write_tone

FORMS = "\n".join(
    [
        "# titles",
        "Mr.\tmister",
        "dr\tdoctor",
        "",
        "%\tpercent",
        "<noise>\t",
        "rock 'n' roll\trock and roll",
        "c++\tc plus plus",
    ]
)


def spoken(text: str, numbers: str | None = "en-US", forms: Path | None = None) -> str:
    function = spoken_form(SimpleNamespace(numbers=numbers, spoken_forms=forms and str(forms)))
    assert function is not None
    return function(text)


@pytest.mark.parametrize(
    ("text", "american", "british"),
    [
        ("7 of 21, and 100.", "seven of twenty one and one hundred", None),
        ("room 305", "room three hundred five", "room three hundred and five"),
        (
            "2,512 or 1,200,000",
            "two thousand five hundred twelve or one million two hundred thousand",
            "two thousand five hundred and twelve or one million two hundred thousand",
        ),
        ("40000 and 0", "forty thousand and zero", None),
        ("(1984)", "nineteen eighty four", None),
        ("in 1905, in 1900", "in nineteen oh five in nineteen hundred", None),
        ("in 2007", "in two thousand seven", "in two thousand and seven"),
        ("in 2010 and 2024", "in twenty ten and twenty twenty four", None),
        ("1984’s best", "nineteen eighty four's best", None),
        ("the 1980s, the ’60s, 1900s", "the nineteen eighties the sixties nineteen hundreds", None),
        ("5% or 2.5%", "five percent or two point five percent", "five per cent or two point five per cent"),
        ("3.14!", "three point one four", None),
        ("the 3rd, 21st, 100TH", "the third twenty first one hundredth", None),
        ("March 3rd", "march third", None),
        ("at 9:05 or 10:30", "at nine oh five or ten thirty", None),
        ("$1, £20 and €2,500", "one dollar twenty pounds and two thousand five hundred euros", None),
        ("5 million", "five million", None),
        ("a 20-year-old and 9-to-5", "a twenty year old and nine to five", None),
        ("mid-1980s covid", "mid nineteen eighties covid", None),
        ("“12”…", "twelve", None),
        ("'12' or \"13\"", "twelve or thirteen", None),
    ],
)
def test_numbers_with_one_usual_reading(text: str, american: str, british: str | None) -> None:
    assert normalise(spoken(text)) == american
    assert normalise(spoken(text, "en-GB")) == (british or american)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "555-1234",
            "call 555 1234",
            "10 000",
            "10-20",
            "-5",
            "#1",
            "007",
            "90210",
            "1066",
            "2500",
            "1st-2nd",
        ),
        *("1/2", "5½", "5²", "٣", "0.5", "2.0", "10.05", "2,5", "1,00", "1,2345", "5%%", "6'", "6’", '12"'),
        *("10:00", "24:05", "9/11", "May 5", "5 May", "Sept. 5, then", "1985s", "100s"),
        *("$2.50", "$5 million", "$1984", "4K", "MP3", "F-16s"),
    ],
)
def test_other_numbers_stay_and_so_their_transcripts_are_refused(text: str) -> None:
    assert spoken(text) == text
    assert spoken(text, "en-GB") == text


def test_spoken_forms_replace_whole_words_and_symbols(tmp_path: Path) -> None:
    forms = tmp_path / "forms.tsv"
    forms.write_text("\ufeff" + FORMS, encoding="utf-8")
    said = spoken("MR. Drake <noise> and Dr Drew: Rock  'n'\nroll in C++, 5%", None, forms)
    assert " ".join(said.split()) == "mister Drake and doctor Drew: rock and roll in c plus plus , 5 percent"
    assert normalise(spoken("21% of MR. 3's", "en-GB", forms)) == "twenty one percent of mister three's"
    assert spoken_form(SimpleNamespace(numbers=None, spoken_forms=None)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("İng. dersi", "ingilizce dersi"),
        ("İNG. DERSİ", "ingilizce DERSİ"),
        ("Ing.", "ingilizce"),
        ("I\u0307ng. dersi", "ingilizce dersi"),
        ("c\u0327ev. Ali", "çeviren Ali"),
        ("IŞK", "ışık"),
        ("Ing, c\u0327ok", "Ing, c\u0327ok"),
    ],
)
def test_spoken_forms_are_found_in_every_case_and_encoding(text: str, said: str, tmp_path: Path) -> None:
    forms = tmp_path / "forms.tsv"
    forms.write_text("İng.\tingilizce\nçev.\tçeviren\nışk\tışık\n", encoding="utf-8")
    assert " ".join(spoken(text, None, forms).split()) == said


def test_the_longest_form_wins(tmp_path: Path) -> None:
    forms = tmp_path / "forms.tsv"
    forms.write_text("st\tstreet\nst. john\tsaint john\n24/7\ttwenty four seven\n")
    said = spoken("St. John St, 24/7", None, forms)
    assert " ".join(said.split()) == "saint john street , twenty four seven"
    assert spoken("ſt", None, forms).strip() == "ſt", "which a pattern that ignores case takes for st"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"mr. mister\n", r"forms\.tsv:1: .*a tab.*'mr\. mister'"),
        (
            b"mr.\tmister\nMR.\tmaster\n",
            r"forms\.tsv:2: a second spoken form for 'mr\.'; .*'mister'.*'master'",
        ),
        (b"\tmister\n", r"forms\.tsv:1: "),
        (b"m\xfcller\tm\n", r"forms\.tsv: .*UTF-8"),
        (None, r"forms\.tsv: .*No such file"),
    ],
)
def test_a_bad_list_of_spoken_forms(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "forms.tsv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_spoken_forms(tmp_path / "forms.tsv")
    with pytest.raises(ConfigError, match=message):
        prepare("folder", corpus=tmp_path, out=tmp_path / "out", spoken_forms=str(tmp_path / "forms.tsv"))


def test_numbers_of_another_language_and_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--numbers: .*expected en-US .* or en-GB .*; got de\."):
        prepare("folder", corpus=tmp_path, out=tmp_path / "out", numbers="de")
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(MissingDependencyError, match=r"num2words.*pip install -c .*\[numbers\]'"):
        prepare("folder", corpus=tmp_path, out=tmp_path / "out", numbers="en-US")


def test_lists_and_folders_are_rewritten_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, forms = tmp_path / "corpus", tmp_path / "forms.tsv"
    forms.write_text(FORMS)
    texts = ["Mr. Lee paid $21 in 1984.", "<noise> two", "call 555 1234", "half of Mr. 10", "plain"]
    for number, text in enumerate(texts):
        write_tone(corpus / f"{number}.wav", 0.5)
        (corpus / f"{number}.txt").write_text(text)
    lines = [{"audio_filepath": f"{number}.wav", "text": text} for number, text in enumerate(texts)]
    (corpus / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))

    settings = {"numbers": "en-US", "spoken_forms": str(forms)}
    prepare("manifest", corpus=corpus, out=tmp_path / "list", **settings)
    prepare("folder", corpus=corpus, out=tmp_path / "folder", transcripts=True, **settings)
    said = capsys.readouterr().err
    for folder, name in ((tmp_path / "list/train", "train.jsonl:3"), (tmp_path / "folder/labelled", "2.wav")):
        assert [one.text for one in read_folder(folder)] == [
            "mister lee paid twenty one dollars in nineteen eighty four",
            "two",
            "half of mister ten",
            "plain",
        ]
        (left_out,) = dropped_in(folder)
        assert left_out.startswith(name)
        assert said.count("3 rewritten as spoken") == 2, "the list and the folder"
        record = json.loads((folder / "prepared.json").read_text())
        assert record["notes"]["rewritten as spoken"] == 3
        assert record["source"]["settings"]["spoken_forms"].startswith("sha256 ")
    assert (
        "'Mr. Lee paid $21 in 1984.' → 'mister Lee paid twenty-one dollars in nineteen eighty-four.'" in said
    )
    assert "words in brackets" not in said
    assert "1 of the transcripts left out have digits" in said

    prepare("manifest", corpus=corpus, out=tmp_path / "plain")
    assert len(read_folder(tmp_path / "plain/train")) == 2
    said = capsys.readouterr().err
    assert "3 of the transcripts left out have digits; --numbers and --spoken_forms" in said
    assert "rewritten" not in said
    record = json.loads((tmp_path / "plain/train/prepared.json").read_text())
    assert not {"numbers", "spoken_forms"} & set(record["source"]["settings"])


def test_numbers_of_another_language_are_not_written_in_english(tmp_path: Path) -> None:
    write_tone(tmp_path / "1.wav", 0.5)
    (tmp_path / "train.jsonl").write_text('{"audio_filepath": "1.wav", "text": "3 elma"}')
    with pytest.raises(ConfigError, match=r"English words; expected an English --language.*; got tr\. Spell"):
        prepare("manifest", corpus=tmp_path, out=tmp_path / "tr", numbers="en-US", language="tr")
    prepare("manifest", corpus=tmp_path, out=tmp_path / "en", numbers="en-US", language="en-AU")
    assert [one.text for one in read_folder(tmp_path / "en/train")] == ["three elma"]


@pytest.mark.parametrize("setting", ["numbers", "spoken_forms"])
def test_audio_without_transcripts_cannot_be_rewritten(tmp_path: Path, setting: str) -> None:
    (tmp_path / "forms.tsv").write_text("dr\tdoctor\n")
    settings = {setting: {"numbers": "en-GB", "spoken_forms": str(tmp_path / "forms.tsv")}[setting]}
    write_tone(tmp_path / "1.wav", 0.5)
    with pytest.raises(ConfigError, match=f"--{setting}: only transcripts .*; expected --transcripts true"):
        prepare("folder", corpus=tmp_path, out=tmp_path / "out", **settings)
    (tmp_path / "pool.jsonl").write_text('{"audio_filepath": "1.wav"}')
    with pytest.raises(CorpusError, match="has no transcripts.*add --unlabelled pool"):
        prepare("manifest", corpus=tmp_path, out=tmp_path / "out", **settings)
    prepare("manifest", corpus=tmp_path, out=tmp_path / "out", unlabelled="pool", **settings)
    source = json.loads((tmp_path / "out/pool/prepared.json").read_text())["source"]
    assert setting not in source["settings"]


def test_a_folder_of_other_spoken_forms_is_not_finished(tmp_path: Path) -> None:
    corpus, forms = tmp_path / "corpus", tmp_path / "forms.tsv"
    write_tone(corpus / "1.wav", 0.5)
    (corpus / "train.jsonl").write_text('{"audio_filepath": "1.wav", "text": "dr one"}')
    (corpus / "pool.jsonl").write_text('{"audio_filepath": "1.wav"}')
    forms.write_text("dr\tdoctor\n")
    prepare("manifest", corpus=corpus, out=tmp_path / "out", unlabelled="pool", spoken_forms=str(forms))
    elsewhere = forms.rename(tmp_path / "same.tsv")
    prepare("manifest", corpus=corpus, out=tmp_path / "out", unlabelled="pool", spoken_forms=str(elsewhere))
    elsewhere.write_text("dr\tdrive\n")
    # Audio without transcripts depends on none.
    settings = {"split": "pool", "spoken_forms": str(elsewhere)}
    prepare("manifest", corpus=corpus, out=tmp_path / "out", unlabelled="pool", **settings)
    with pytest.raises(ConfigError, match="spoken_forms=sha256 .*got spoken_forms=sha256 "):
        prepare("manifest", corpus=corpus, out=tmp_path / "out", split="train", spoken_forms=str(elsewhere))
