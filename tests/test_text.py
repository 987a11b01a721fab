"""Normalisation, character and SentencePiece units: round trips, reproducibility, refusals."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from kdasr.errors import UnitsError
from kdasr.interfaces import BLANK_ID
from kdasr.text import (
    ALPHABET,
    CharUnits,
    SentencePieceUnits,
    Units,
    check_letters,
    letters_in,
    load_units,
    normalise,
    normalise_by_word,
    train_sentencepiece,
    write_tokens_txt,
)

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = st.text(alphabet=ALPHABET, min_size=1, max_size=8).filter(lambda word: word.strip("'"))
SENTENCES = st.lists(WORDS, max_size=6).map(" ".join)


def digit_strings(seed: int = 0, count: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(DIGITS, k=rng.randint(1, 6))) for _ in range(count)]


@functools.cache
def trained_pieces() -> SentencePieceUnits:
    return train_sentencepiece(digit_strings(), 26)


@pytest.fixture
def pieces() -> SentencePieceUnits:
    return trained_pieces()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,\tWORLD!\n", "hello world"),
        ("it’s the rock-and-roll café", "it's the rock and roll cafe"),
        ("' well ' — o'clock", "well o'clock"),
        ("the ﬁnal ‘quote’", "the final 'quote'"),
        ("", ""),
        ("...", ""),
        ("«oui» ‹non› · ‚si„ • 。a、b", "oui non si a b"),
        ("\ufeffsoft\u00adly\u200b \u200fthere\u200c", "softly there"),
    ],
)
def test_normalise_gives_plain_lower_case_words(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "char"),
    [
        ("in 1984", "'1'"),
        ("50% off", "'5'"),
        ("a & b", "'&'"),
        ("ten ％", "'％'"),
        ("§ five", "'§'"),
        ("ъ", "'ъ'"),
        ("Acme™", "'™'"),
        ("ward Ⅳ", "'Ⅳ'"),
    ],
)
def test_normalise_refuses_what_has_no_certain_spoken_form(text: str, char: str) -> None:
    with pytest.raises(UnitsError) as refusal:
        normalise(text)
    assert char in str(refusal.value) and text in str(refusal.value)


@given(st.text(alphabet=ALPHABET + " ABCé’-,.!", max_size=40))
def test_normalise_is_idempotent_and_speaks_only_the_alphabet(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert set(once) <= set(ALPHABET + " ")
    assert CharUnits().decode(CharUnits().encode(once)) == once


@given(SENTENCES)
def test_characters_round_trip_without_blank(text: str) -> None:
    units = CharUnits()
    ids = units.encode(text)
    assert BLANK_ID not in ids
    assert len(ids) == len(text)
    assert units.decode(ids) == text


@pytest.mark.parametrize(
    ("text", "letters", "expected"),
    [
        ("Für die Straße – „schön!“", "äöüß", "für die straße schön"),
        ("Fu\u0308r die Stra\u1e9ee", "äöüß", "für die straße"),  # decomposed, and the capital ß
        ("Für ein Café", "äöüß", "für ein cafe"),
        ("Für ein Café", "", "fur ein cafe"),
        ("Это ёж, don't", "абвгдежзийклмнопрстуфхцчшщъыьэюяё", "это ёж don't"),
        ("It’s ＡＢＣ", "äöüß", "it's abc"),
        ("हिन्दी।", "".join(sorted({*"हिन्दी"})), "हिन्दी"),  # letters with their marks
        ("IŞIK İSTANBUL, ısı", "çğıöşü", "ışık istanbul ısı"),
        ("IŞIK", "ş", "işik"),  # where nobody knows of "ı"
        ("مـرحبا، كيف؟", "ابحرفكمي", "مرحبا كيف"),  # drawn out
        ("می\u200cخواهم", "اخمهوی\u200c", "می\u200cخواهم"),  # a joiner that is part of the spelling
        ("· la col·lecció ·", "ó·", "la col·lecció"),  # marks within words, but no others
        ("«La col·lecció»", "ó", "la col lecció"),
        ("״ג׳ירפה״ וצה״ל", "אגהוילפצר׳״", "ג׳ירפה וצה״ל"),
    ],
)
def test_letters_of_a_language_are_kept_and_other_accents_dropped(
    text: str, letters: str, expected: str
) -> None:
    assert normalise(text, check_letters(letters)) == expected
    assert letters_in([expected, None, "a'b"]) == "".join(c for c in check_letters(letters) if c in expected)
    units = CharUnits(letters)
    assert units.decode(units.encode(expected)) == expected


def test_a_letter_that_nobody_named_is_refused_with_what_to_say() -> None:
    with pytest.raises(UnitsError, match=r"'ё' cannot be normalised.*add it: letters абё"):
        normalise("аё", "аб")
    with pytest.raises(UnitsError, match=r"'4'.*expected English letters or äß, apostrophes.*Spell it out"):
        normalise("ä4", "äß")


@pytest.mark.parametrize(
    ("text", "expected", "is_normal"),
    [
        ("It was 1984, he said to the Man.", "it was 1984, he said to the man", False),
        ("Nineteen eighty-four, he said.", "nineteen eighty four he said", True),
        ("Grüße 3 ™ ... an 'Alle'", "grüße 3 ™ an 'alle'", False),
        ("", "", True),
    ],
)
def test_a_word_that_cannot_be_normalised_leaves_the_others_alone(
    text: str, expected: str, is_normal: bool
) -> None:
    assert normalise_by_word(text, "üß") == (expected, is_normal)


@pytest.mark.parametrize("letters", ["ä,ö", "Ä", "ab", "4", "ä ö", "’", "'", "مـر"])
def test_letters_that_are_none_beyond_a_to_z_are_refused(letters: str) -> None:
    with pytest.raises(UnitsError, match=r"letters: .* cannot be an additional letter; .*such as äöüß"):
        check_letters(letters)


def test_units_of_a_language_are_its_own_and_load_again(tmp_path: Path) -> None:
    german = CharUnits("üßäöä")
    assert german.symbols == [*CharUnits().symbols, "ß", "ä", "ö", "ü"]
    assert len({german.hash, CharUnits().hash, CharUnits("äöü").hash}) == 3
    german.save(tmp_path)
    assert load_units(tmp_path).symbols == german.symbols and load_units(tmp_path).hash == german.hash
    pieces = train_sentencepiece(["zwölf fünf", "fünf zwölf", "über zwölf"], 14)
    assert letters_in(pieces.symbols) == "öü" and pieces.decode(pieces.encode("zwölf")) == "zwölf"


def test_character_ids_are_these_for_ever() -> None:
    units = CharUnits()
    assert units.symbols[:4] == ["<blk>", "▁", "'", "a"]
    assert units.vocab_size == 29
    assert units.encode("a 'z") == [3, 1, 2, 28]
    # A change here makes every stored soft label unreadable: rename NORMALISATION or the format.
    assert units.hash == "766642221c57a909667125cff69a4c7673f24e0f19de1cabe27d5bf678f75774"


@pytest.mark.parametrize("kind", ["char", "pieces"])
def test_encode_names_the_text_and_the_character(kind: str, pieces: SentencePieceUnits) -> None:
    units: Units = CharUnits() if kind == "char" else pieces
    with pytest.raises(UnitsError) as refusal:
        units.encode("one Two")
    assert "one Two" in str(refusal.value) and "'T'" in str(refusal.value)


@pytest.mark.parametrize("unit", [0, -1, 29])
def test_decode_refuses_ids_without_a_symbol(unit: int) -> None:
    with pytest.raises(UnitsError, match=f"got {unit}"):
        CharUnits().decode([3, unit])


@given(st.lists(st.sampled_from(DIGITS), max_size=8).map(" ".join))
def test_pieces_round_trip_without_blank(text: str) -> None:
    units = trained_pieces()
    ids = units.encode(text)
    assert all(0 < unit < units.vocab_size for unit in ids)
    assert units.decode(ids) == text


def test_training_gives_the_same_bytes_twice_in_any_order(pieces: SentencePieceUnits) -> None:
    texts = digit_strings()
    random.Random(1).shuffle(texts)
    again = train_sentencepiece([*texts, "", "  "], 26)
    assert again.model_bytes == pieces.model_bytes
    assert again.hash == pieces.hash
    assert pieces.symbols[0] == "<blk>" and pieces.vocab_size == 26


def test_pieces_spell_letters_that_their_texts_lack() -> None:
    roots = (
        "wander water north mother father summer winter butter letter number tender under thunder lantern "
    )
    roots += (
        "pattern planet basin sand hand river silver ever forever turn burn return fortune moon noon spoon"
    )
    texts = [" ".join(random.Random(n).choices(roots.split(), k=6)) for n in range(200)]
    units = train_sentencepiece(texts, 56)
    assert not {"'", "q", "z", "x"} & {*"".join(texts)}
    assert units.decode(units.encode("it's quick jazz")) == "it's quick jazz"
    # Other alphabets have no use for these letters.
    rng = random.Random(0)
    words = ["".join(rng.choices("абвгдежзиклмнопрст", k=rng.randint(2, 6))) for _ in range(300)]
    russian = [" ".join(rng.choices(words, k=6)) for _ in range(300)]
    assert not {*ALPHABET} & {*train_sentencepiece(russian, 100).symbols}
    # A small vocabulary is for these texts alone.
    with pytest.raises(UnitsError, match="""the character "'" is not among"""):
        train_sentencepiece(texts, 50).encode("it's quick jazz")


def test_the_seed_chooses_among_too_many_texts() -> None:
    texts = digit_strings(count=400)
    first, second, other = (train_sentencepiece(texts, 26, seed, max_texts=40) for seed in (1, 1, 2))
    assert first.model_bytes == second.model_bytes
    assert first.model_bytes != other.model_bytes


def test_training_says_what_the_texts_allow() -> None:
    with pytest.raises(UnitsError, match=r"500 units from 200 texts.*<= \d+"):
        train_sentencepiece(digit_strings(), 500)
    with pytest.raises(UnitsError, match="no text"):
        train_sentencepiece(["", " "], 26)


@pytest.mark.parametrize("kind", ["char", "pieces"])
def test_save_and_load_give_the_same_units(kind: str, pieces: SentencePieceUnits, tmp_path: Path) -> None:
    units: Units = CharUnits() if kind == "char" else pieces
    units.save(tmp_path)
    loaded = load_units(tmp_path)
    assert (loaded.symbols, loaded.hash) == (units.symbols, units.hash)
    assert loaded.encode("seven eight") == units.encode("seven eight")
    assert not list(tmp_path.glob(".*"))


def test_hashes_tell_units_apart(pieces: SentencePieceUnits) -> None:
    other = train_sentencepiece(digit_strings(), 22)
    assert len({CharUnits().hash, pieces.hash, other.hash}) == 3


def test_load_refuses_a_missing_folder_and_one_without_units(tmp_path: Path) -> None:
    with pytest.raises(UnitsError, match=r"the units cannot be read: this folder has none; .*units\.json"):
        load_units(tmp_path)
    with pytest.raises(UnitsError, match=r"gone: the units cannot be read: there is no such folder"):
        load_units(tmp_path / "gone")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a units file"),
        ("[" * 200_000, "not valid JSON"),
        (
            '{"format": "kdasr-units", "version": 1, "kind": "table", "symbols": ["<blk>", "a", "a"]}',
            "invalid table of symbols",
        ),
        ('{"format": "kdasr-units", "version": 2}', "version"),
        ('{"format": "kdasr-units", "version": 1, "kind": "phone"}', "unknown kind"),
    ],
)
def test_load_refuses_a_foreign_card(damage: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "units.json").write_text(damage)
    with pytest.raises(UnitsError, match=message) as refusal:
        load_units(tmp_path)
    assert "units.json" in str(refusal.value)


def test_load_refuses_symbols_that_do_not_match_the_hash(tmp_path: Path) -> None:
    CharUnits().save(tmp_path)
    card = json.loads((tmp_path / "units.json").read_text())
    card["symbols"][3], card["symbols"][4] = card["symbols"][4], card["symbols"][3]
    (tmp_path / "units.json").write_text(json.dumps(card))
    with pytest.raises(UnitsError, match="do not match their hash"):
        load_units(tmp_path)


def test_load_refuses_the_model_of_other_units(tmp_path: Path, pieces: SentencePieceUnits) -> None:
    pieces.save(tmp_path)
    (tmp_path / "units.model").write_bytes(train_sentencepiece(digit_strings(), 22).model_bytes)
    with pytest.raises(UnitsError, match="do not match their hash"):
        load_units(tmp_path)
    (tmp_path / "units.model").write_bytes(pieces.model_bytes[:100])
    with pytest.raises(UnitsError, match=r"units\.model: not a SentencePiece model"):
        load_units(tmp_path)
    (tmp_path / "units.model").unlink()
    with pytest.raises(UnitsError, match=r"units\.model: the SentencePiece model cannot be read"):
        load_units(tmp_path)


def test_load_refuses_a_model_that_splits_text_in_another_way(
    tmp_path: Path, pieces: SentencePieceUnits
) -> None:
    pieces.save(tmp_path)
    file, model = tmp_path / "units.model", pieces.model_bytes
    piece = pieces.encode("seven eight")[0]
    at = model.index(pieces.symbols[piece].encode()) + len(pieces.symbols[piece].encode())
    assert model[at : at + 1] == b"\x15"  # the score, a float32, comes next
    damaged = model[: at + 4] + bytes([model[at + 4] ^ 4]) + model[at + 5 :]
    other = SentencePieceUnits(damaged)
    assert other.hash == pieces.hash and other.encode("seven eight") != pieces.encode("seven eight")
    file.write_bytes(damaged)
    with pytest.raises(
        UnitsError, match=r"units\.model: the SentencePiece model is not the one that was saved"
    ):
        load_units(tmp_path)
    # As saved by an older release.
    card = json.loads((tmp_path / "units.json").read_text())
    del card["model_sha256"]
    (tmp_path / "units.json").write_text(json.dumps(card))
    assert load_units(tmp_path).hash == pieces.hash


def test_a_model_whose_pieces_are_no_text_is_refused(tmp_path: Path, pieces: SentencePieceUnits) -> None:
    pieces.save(tmp_path)
    (tmp_path / "units.model").write_bytes(pieces.model_bytes.replace("▁".encode(), b"\xe2\x96\xff", 1))
    with pytest.raises(UnitsError, match=r"units\.model: not a SentencePiece model"):
        load_units(tmp_path)


def test_a_model_with_other_special_pieces_is_refused(tmp_path: Path) -> None:
    prefix = tmp_path / "plain"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(digit_strings()), model_prefix=str(prefix), vocab_size=28, minloglevel=2
    )
    with pytest.raises(UnitsError, match="wrong special pieces"):
        SentencePieceUnits(prefix.with_suffix(".model").read_bytes())


def test_tokens_txt_lists_every_symbol_with_its_id(tmp_path: Path) -> None:
    units = CharUnits()
    write_tokens_txt(units, tmp_path / "tokens.txt")
    lines = (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["<blk> 0", "▁ 1", "' 2"]
    assert [line.rsplit(" ", 1) for line in lines] == [[s, str(i)] for i, s in enumerate(units.symbols)]
