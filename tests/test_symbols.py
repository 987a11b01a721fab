"""Symbol tables from elsewhere as units: blank first, one spelling, texts cut into symbols and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdasr.errors import UnitsError
from kdasr.symbols import TableUnits, blank_path, control_ids
from kdasr.text import load_units, normalise, train_sentencepiece

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "H", "L", "O", "'"]
PIECES = ["<unk>", "▁he", "l", "lo", "▁", "o", "h", "e", "▁l", "<blk>"]


def test_letters_get_the_spelling_of_normalised_text() -> None:
    units = TableUnits.from_foreign(LETTERS, blank_id=0)
    assert units.symbols == ["<blk>", "<s>", "</s>", "<unk>", "▁", "e", "h", "l", "o", "'"]
    assert units.encode("hello ole") == [6, 5, 7, 7, 8, 4, 8, 7, 5]
    assert units.decode([6, 5, 7, 8, 4, 3, 8, 2]) == "helo o"


def test_classes_that_stand_for_no_text_are_those_in_brackets_but_for_blank() -> None:
    assert control_ids(TableUnits.from_foreign(LETTERS, blank_id=0).symbols) == [1, 2, 3]
    assert control_ids(["<blk>", "a", "", "[PAD]", "<", "<|en|>", "<>", "[]"]) == [2, 3, 5, 6, 7]


def test_blank_moves_to_the_front_and_pieces_are_cut_as_few_as_possible() -> None:
    units = TableUnits.from_foreign(PIECES, blank_id=9)
    assert units.symbols == ["<blk>", "<unk>", "▁he", "l", "lo", "▁", "o", "h", "e", "▁l"]
    assert units.encode("hello") == [2, 3, 4]
    assert units.encode("loo") == [9, 6, 6]
    assert units.decode([2, 3, 4, 1, 9, 6]) == "hello lo"


def test_capitals_of_other_languages_become_their_small_letters() -> None:
    german = TableUnits.from_foreign(["<pad>", "|", "S", "Ö", "ß"], blank_id=0)
    assert german.symbols == ["<blk>", "▁", "s", "ö", "ß"]
    turkish = TableUnits.from_foreign(["<pad>", "|", "I", "İ", "Ş"], blank_id=0)
    assert turkish.symbols == ["<blk>", "▁", "ı", "i", "ş"]
    assert TableUnits.from_foreign(["<pad>", "I"], blank_id=0).symbols == ["<blk>", "i"]
    # The same symbols of other texts: I was taken for i.
    assert TableUnits(["<blk>", "ı"]).hash != TableUnits(["<blk>", "i"]).hash


def test_letters_are_composed_as_in_normalised_text() -> None:
    hindi = TableUnits.from_foreign(["<pad>", "|", *"लका", "\u095c"], blank_id=0)  # NFC parts this letter
    text = normalise("लड़का", "लड़का")
    assert hindi.symbols[-1] == "\u0921\u093c" and hindi.encode(text) == [2, 5, 3, 4]
    assert hindi.decode([2, 5, 3, 4]) == text
    german = TableUnits.from_foreign(["<pad>", "U\u0308", "S"], blank_id=0)
    assert german.symbols == ["<blk>", "ü", "s"]
    both = TableUnits.from_foreign(["<pad>", "u\u0308", "ü"], blank_id=0)
    assert both.symbols == ["<blk>", "u\u0308", "ü"] and both.encode("ü") == [2]


def test_mixed_case_and_a_mark_that_is_there_already_stay() -> None:
    units = TableUnits.from_foreign(["a", "A", "<b>", "▁", "|"], blank_id=2)
    assert units.symbols == ["<blk>", "a", "A", "▁", "|"]


@pytest.mark.parametrize(
    ("symbols", "blank_id", "message"),
    [
        (["a", "b"], 2, "the blank id is not in the table"),
        (["<b>", "a", "a"], 0, "more than once"),
        ([], 0, "not in the table"),
    ],
)
def test_what_is_no_table_is_refused(symbols: list[str], blank_id: int, message: str) -> None:
    with pytest.raises(UnitsError, match=message):
        TableUnits.from_foreign(symbols, blank_id)


@pytest.mark.parametrize(("text", "char"), [("hex", "x"), ("<s>", "<"), ("h e é", "é")])
def test_text_that_the_table_cannot_spell_is_named(text: str, char: str) -> None:
    with pytest.raises(UnitsError, match=char):
        TableUnits.from_foreign(LETTERS, 0).encode(text)


def test_its_own_sentencepiece_model_cuts_as_it_was_trained(tmp_path: Path) -> None:
    texts = [f"{a} {b}" for a in ("one two", "to one", "tone") for b in ("two one", "owe ten", "net")]
    trained = train_sentencepiece(texts, 12)
    foreign = ["<blk>", "<unk>", *trained.symbols[1:]]
    units = TableUnits.from_foreign(foreign, 0, trained.model_bytes)
    assert units.encode("two ten") == [unit + 1 for unit in trained.encode("two ten")]
    units.save(tmp_path)
    again = load_units(tmp_path)
    assert again.hash == units.hash and again.encode("tone owe") == units.encode("tone owe")
    with pytest.raises(UnitsError, match="'z'"):
        units.encode("z")


def test_a_table_survives_saving(tmp_path: Path) -> None:
    units = TableUnits.from_foreign(LETTERS, 0)
    units.save(tmp_path)
    assert load_units(tmp_path).symbols == units.symbols
    text = (tmp_path / "units.json").read_text()
    (tmp_path / "units.json").write_text(text.replace('"e"', '"f"'))
    with pytest.raises(UnitsError, match="hash"):
        load_units(tmp_path)


def test_the_shortest_path_has_blanks_between_equal_neighbours_only() -> None:
    assert blank_path([3, 3, 4, 4, 4, 5]) == [3, 0, 3, 4, 0, 4, 0, 4, 5]
    assert blank_path([]) == []
