"""Convert transcripts to class ids and back: normalisation and the units of a CTC model.

Id 0 is blank in every set of units. A symbol that begins a word carries "▁" (U+2581), as in
SentencePiece. The alphabet is English, a-z and the apostrophe, plus the letters listed for another
language.

Units are stored in a folder as `units.json`, with `units.model` if they are SentencePiece units.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import string
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from kdasr.errors import UnitsError
from kdasr.interfaces import BLANK_ID
from kdasr.storage import Location, Place, commit_bytes, commit_changed, locate
from kdasr.symbols import (
    BLANK_SYMBOL,
    FORMAT,
    MODEL_SHA256,
    NORMALISATION,
    SENTENCEPIECE_FILE,
    TURKISH_CAPITALS,
    UNITS_FILE,
    VERSION,
    WORD_START,
    SymbolUnits,
    TableUnits,
    piece_processor,
    sha256,
    shorten,
    unknown_character,
)

__all__ = [
    "ALPHABET",
    "BLANK_SYMBOL",
    "NORMALISATION",
    "SENTENCEPIECE_FILE",
    "UNITS_FILE",
    "WORD_START",
    "CharUnits",
    "SentencePieceUnits",
    "TableUnits",
    "Units",
    "check_letters",
    "letters_in",
    "load_units",
    "normalise",
    "normalise_by_word",
    "not_normal_text",
    "tokens_text",
    "train_sentencepiece",
    "write_tokens_txt",
]

ALPHABET = "'" + string.ascii_lowercase

_APOSTROPHES = "’‘ʼ`´＇"
# Treated as spaces, like punctuation, since they are used as if they were.
_AS_SPACE = "~|<>"
_TRANSLATION = str.maketrans({**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys(_AS_SPACE, " ")})
# Punctuation in Unicode, but spoken.
_SPOKEN = {*"%&#@§¶‰\\"}
# Stretches Arabic words; not a letter.
_TATWEEL = "ـ"
# Invisible, but in some languages part of the spelling.
_JOINERS = "\u200c\u200d"
# Punctuation in Unicode, but within words a part of the spelling: l·l in Catalan, geresh and gershayim in
# Hebrew.
_WITHIN_WORDS = "·׳״"


def normalise(text: str, letters: str = "") -> str:
    """Normalise a transcript to the form that models are trained and scored on.

    Lower-case a-z, apostrophes and `letters`, with words separated by single spaces. Punctuation of any
    script and hyphens separate words; accents, except in `letters`, and invisible characters are dropped;
    typographic apostrophes become plain ones; a word of nothing but apostrophes is dropped. With "ı" among
    the letters, I is its capital and İ that of i, as in Turkish.

    Args:
        letters: the language's letters beyond a-z, as `check_letters` takes them.

    Raises:
        UnitsError: a character has no certain spoken form (a digit, `%`, `&`, `™`, a letter that is
            neither a-z nor one of `letters`): "1984" may be read in several ways, and a wrong guess would
            be learned.
    """
    # Symbols and Roman numerals would decompose to letters: ™ to "tm", Ⅳ to "iv".
    if unspoken := [char for char in text if unicodedata.category(char) in ("So", "Nl")]:
        raise _cannot_be_normalised(unspoken[0], text, letters)
    own = {*letters}
    composed = unicodedata.normalize("NFC", text.translate(_TRANSLATION))
    if "ı" in own:
        composed = composed.translate(TURKISH_CAPITALS)
    plain = []
    for char in composed:
        parts = char.lower() if char.lower() in own else _without_accent(char)
        if not all(part in ALPHABET or part in own or part.isspace() for part in parts):
            raise _cannot_be_normalised(char, text, letters)
        plain.append(parts)
    words = (word.strip(_WITHIN_WORDS) for word in "".join(plain).split())
    return " ".join(word for word in words if word.strip("'"))


def normalise_by_word(text: str, letters: str = "") -> tuple[str, bool]:
    """`normalise` for a text that is only compared with others: a word that cannot be normalised stays as it
    is and counts as an error, without affecting other words.

    Returns:
        the text, and whether all of it could be normalised.
    """
    with contextlib.suppress(UnitsError):
        return normalise(text, letters), True
    words = []
    for word in text.split():
        try:
            words.append(normalise(word, letters))
        except UnitsError:
            words.append(word)
    return " ".join(word for word in words if word), False


def not_normal_text(count: int) -> str:
    """A message on the number of texts in which `normalise_by_word` left words as they were."""
    return f"{count} texts contain words that could not be normalised; they count as errors"


@functools.lru_cache(maxsize=4096)
def _without_accent(char: str) -> str:
    """The base letters of a character that is not one of the language's own; a space for punctuation."""
    kind = unicodedata.category(char)
    if kind == "Cf" or char == _TATWEEL:
        return ""
    if kind[0] == "P" and char not in ALPHABET and unicodedata.normalize("NFKC", char) not in _SPOKEN:
        return " "
    decomposed = unicodedata.normalize("NFKD", char).casefold()
    return "".join(part for part in decomposed if not unicodedata.combining(part)).translate(_TRANSLATION)


def check_letters(letters: str) -> str:
    """A language's letters beyond a-z, such as "äöüß", each once and sorted.

    Raises:
        UnitsError: anything but lower-case letters (or marks that belong to letters or words) beyond a-z.
    """
    composed = unicodedata.normalize("NFC", letters)
    for char in composed:
        is_letter = _may_be_letter(char) and char not in _APOSTROPHES
        if not is_letter or char in ALPHABET or char != char.lower():
            raise UnitsError(
                f"{char!r} cannot be an additional letter",
                where="letters",
                expected="lower-case letters beyond a-z, without separators, such as äöüß",
                got=letters,
                fix="Leave it out: it only stretches words." if char == _TATWEEL else None,
            )
    return "".join(sorted({*composed}))


def letters_in(texts: Iterable[str | None]) -> str:
    """The letters beyond a-z in normalised texts or in the symbols of units, as `check_letters` returns
    them."""
    found = {char for text in texts if text for char in text.lower()} - {*ALPHABET}
    return "".join(sorted(filter(_may_be_letter, found)))


def _may_be_letter(char: str) -> bool:
    return (unicodedata.category(char)[0] in "LM" and char != _TATWEEL) or char in _JOINERS + _WITHIN_WORDS


def _cannot_be_normalised(char: str, text: str, letters: str) -> UnitsError:
    fix = "Spell it out as it is spoken, e.g. 'four' for '4'."
    if unicodedata.category(char)[0] == "L":
        fix = f"If the language has this letter, add it: letters {letters}{char.lower()}"
    return UnitsError(
        f"the character {char!r} cannot be normalised",
        where=f"text {shorten(text)!r}",
        expected="English letters"
        + (f" or {shorten(letters)}" if letters else "")
        + ", apostrophes, spaces and punctuation",
        fix=fix,
    )


class Units(Protocol):
    """The classes of a CTC model.

    Attributes:
        symbols: the symbol of each id; `symbols[0]` is blank.
        hash: sha256 in hex of the symbols and the normalisation. Models with the same hash have the
            same classes.
    """

    symbols: list[str]
    hash: str

    @property
    def vocab_size(self) -> int:
        """Number of classes, blank included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Normalised text to ids, none of them blank. UnitsError names what cannot be encoded."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids, already collapsed and without blanks, to text."""
        ...

    def save(self, folder: Place | Location) -> None:
        """Write the files that `load_units` reads into a folder."""
        ...


class CharUnits(SymbolUnits):
    """One class for each letter and the apostrophe; "▁" stands between words.

    Args:
        letters: the letters beyond a-z.

    Raises:
        UnitsError: see `check_letters`.
    """

    kind = "char"

    def __init__(self, letters: str = "") -> None:
        super().__init__([BLANK_SYMBOL, WORD_START, *ALPHABET, *check_letters(letters)])
        self._id_by_char = {symbol: unit for unit, symbol in enumerate(self.symbols) if unit != BLANK_ID}

    def encode(self, text: str) -> list[int]:
        marked = WORD_START.join(text.split())
        try:
            return [self._id_by_char[char] for char in marked]
        except KeyError as unknown:
            raise unknown_character(text, unknown.args[0]) from None


class SentencePieceUnits(SymbolUnits):
    """Word pieces of a SentencePiece model (Kudo 2018, "Subword Regularization").

    SentencePiece requires an unknown piece. It gets id 0 and doubles as blank, so that no class of the
    acoustic model is wasted: an id 0 from the encoder means unknown text and is refused.

    Args:
        model_bytes: a serialised model with unk id 0 and no bos, eos or pad pieces.
        where: the file it came from, for messages.
    """

    kind = "sentencepiece"

    def __init__(self, model_bytes: bytes, where: Path | str = "SentencePiece model") -> None:
        self.model_bytes = model_bytes
        self._processor = processor = piece_processor(model_bytes, where)
        special = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
        if special != (BLANK_ID, -1, -1, -1):
            raise UnitsError(
                "the SentencePiece model has the wrong special pieces",
                where=where,
                expected="unk at id 0 (it doubles as blank), no bos, eos or pad",
                fix="Train it with kdasr.text.train_sentencepiece.",
            )
        count = self._processor.get_piece_size()
        super().__init__([BLANK_SYMBOL, *(self._processor.id_to_piece(unit) for unit in range(1, count))])

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        if BLANK_ID in ids:
            pieces: list[str] = self._processor.encode(text, out_type=str)
            unknown = pieces[ids.index(BLANK_ID)].replace(WORD_START, "") or WORD_START
            raise unknown_character(text, unknown[0])
        return ids

    def save(self, folder: Place | Location) -> None:
        commit_changed(locate(folder).child(SENTENCEPIECE_FILE), self.model_bytes)
        super().save(folder)

    def _card(self) -> dict[str, Any]:
        return {**super()._card(), MODEL_SHA256: sha256(self.model_bytes)}


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, seed: int = 0, *, max_texts: int = 1_000_000
) -> SentencePieceUnits:
    """Learn unigram pieces from normalised texts; the same texts and settings give the same bytes.

    If the texts have most letters from a to z, the others and the apostrophe get a piece too, so that other
    texts can be spelled; not in a vocabulary of which single letters would then be more than half.

    Args:
        texts: in any order; empty ones are skipped.
        vocab_size: classes including blank.
        seed: chooses the texts if there are more than `max_texts`.

    Raises:
        UnitsError: no text, or a vocabulary that these texts cannot fill.
    """
    # Sorted, because SentencePiece breaks ties by order, and shards may be read in any order.
    chosen = sorted(text for text in texts if text.strip())
    if not chosen:
        raise UnitsError("no text to learn units from", fix="Give labelled shards with transcripts.")
    if len(chosen) > max_texts:
        chosen = sorted(random.Random(seed).sample(chosen, max_texts))
    found = {char for text in chosen for char in text}
    missing = {*ALPHABET} - found
    is_latin, is_large = len(missing) < len(ALPHABET) / 2, vocab_size >= 2 * len({*ALPHABET} | found)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chosen),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=1.0,
            required_chars="".join(sorted(missing)) if is_latin and is_large else "",
            normalization_rule_name="identity",  # texts are already normalised
            unk_id=BLANK_ID,
            unk_piece=BLANK_SYMBOL,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        # The library's message gives the bound: "... set it to a value <= 57".
        reason = str(error).splitlines()[-1].rpartition("] ")[2].rstrip(".") or str(error)
        raise UnitsError(
            f"SentencePiece cannot make {vocab_size} units from {len(chosen)} texts",
            got=reason,
            fix="Choose another vocab_size or add text.",
        ) from error
    return SentencePieceUnits(model.getvalue())


def load_units(folder: Place | Location) -> Units:
    """Read the units that `save` wrote, and check that they are unchanged.

    Raises:
        UnitsError: a file is missing, damaged, of another version, or does not match its hash.
    """
    path = locate(folder).child(UNITS_FILE)
    card = _read_card(locate(folder), path)
    units: CharUnits | SentencePieceUnits | TableUnits
    if card.get("kind") == CharUnits.kind:
        symbols = card.get("symbols")
        units = CharUnits(letters_in(map(str, symbols)) if isinstance(symbols, list) else "")
    elif card.get("kind") == SentencePieceUnits.kind:
        units = SentencePieceUnits(_read_model(folder), str(locate(folder).child(SENTENCEPIECE_FILE)))
    elif card.get("kind") == TableUnits.kind and isinstance(symbols := card.get("symbols"), list):
        model_bytes = _read_model(folder) if card.get("has_model") else None
        try:
            units = TableUnits([str(symbol) for symbol in symbols], model_bytes, bool(card.get("upper")))
        except UnitsError as error:
            raise error.told_of(str(path), fix="Restore the folder from its source.") from error
    else:
        raise UnitsError(
            "unknown kind of units",
            where=str(path),
            expected="'char', 'sentencepiece' or 'table'",
            got=repr(card.get("kind")),
        )
    if card.get("symbols") != units.symbols or card.get("hash") != units.hash:
        raise UnitsError(
            "the units do not match their hash",
            where=str(path),
            expected=card.get("hash"),
            got=units.hash,
            fix="The folder mixes files of two models, or was written by another version; "
            "restore it or train again.",
        )
    if not isinstance(units, CharUnits) and units.model_bytes is not None:
        found = sha256(units.model_bytes)
        expected = card.get(MODEL_SHA256, found)  # older releases wrote none
        if found != expected:
            raise UnitsError(
                "the SentencePiece model is not the one that was saved with the units",
                where=str(locate(folder).child(SENTENCEPIECE_FILE)),
                expected=f"sha256 {expected}",
                got=found,
                fix="Restore the folder from its source.",
            )
    return units


def write_tokens_txt(units: Units, path: Path) -> None:
    """Write the symbol table that sherpa-onnx reads."""
    commit_bytes(path, tokens_text(units).encode())


def tokens_text(units: Units) -> str:
    """The content of tokens.txt: one `symbol id` a line, blank first."""
    return "".join(f"{symbol} {unit}\n" for unit, symbol in enumerate(units.symbols))


def _read_model(folder: Place | Location) -> bytes:
    file = locate(folder).child(SENTENCEPIECE_FILE)
    try:
        return file.read_all()
    except OSError as error:
        raise UnitsError(
            "the SentencePiece model cannot be read", where=str(file), got=error.strerror
        ) from error


def _read_card(folder: Location, file: Location) -> dict[str, object]:
    refuse = functools.partial(UnitsError, where=str(file), fix="Restore the model folder from its source.")
    try:
        card = json.loads(file.read_all())
    except FileNotFoundError as error:
        found = "this folder has none" if folder.is_folder() else "there is no such folder"
        what = f"the units cannot be read: {found}"
        raise UnitsError(what, where=str(folder), expected=f"{UNITS_FILE} in it") from error
    except OSError as error:
        raise refuse("the units cannot be read", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise refuse("not valid JSON", got=str(error)) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("version") != VERSION:
        got = (card.get("format"), card.get("version")) if isinstance(card, dict) else type(card).__name__
        raise refuse("not a units file that this version can read", expected=(FORMAT, VERSION), got=got)
    return card
