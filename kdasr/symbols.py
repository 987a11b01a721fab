"""Lists of symbols as the units of a CTC model, and the symbol table of a model from elsewhere.

The basis of the units in kdasr/text.py: constants, their common base class, and `TableUnits`, with the
vocabulary of a teacher that was trained with other tools.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from kdasr.errors import UnitsError
from kdasr.interfaces import BLANK_ID
from kdasr.storage import Location, Place, commit_changed, locate

BLANK_SYMBOL = "<blk>"
WORD_START = "▁"
# Part of the hash of units: rename it whenever the output of `kdasr.text.normalise` changes.
NORMALISATION = "english-1"
# In languages with "ı", I is its capital, not that of i.
TURKISH_CAPITALS = str.maketrans({"I": "ı", "İ": "i"})

UNITS_FILE = "units.json"
SENTENCEPIECE_FILE = "units.model"
FORMAT, VERSION = "kdasr-units", 1
# A key of UNITS_FILE, for the other file: the hash of units does not include how text is split into them.
MODEL_SHA256 = "model_sha256"

# Classes that stand for no text: <s>, <unk>, [PAD], <|en|>.
_CONTROL = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
# What other tools write between or before words.
_WORD_MARKS = ("|", " ", "▁")


class SymbolUnits:
    """What all units share: a list of symbols, and all that derives from it."""

    kind: str

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols
        identity = {"symbols": symbols, "normalisation": NORMALISATION}
        if "ı" in "".join(symbols):
            identity["capitals"] = "turkish"
        canonical = json.dumps(identity, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        self.hash = hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    def decode(self, ids: Sequence[int]) -> str:
        end = self.vocab_size
        for unit in ids:
            if not BLANK_ID < unit < end:
                raise UnitsError(
                    "no symbol has this id",
                    expected=f"ids from 1 to {end - 1} (0 is blank)",
                    got=unit,
                    fix="Collapse the ids first, and use the units that the model was trained with.",
                )
        return " ".join("".join(self.symbols[unit] for unit in ids).replace(WORD_START, " ").split())

    def save(self, folder: Place | Location) -> None:
        text = json.dumps(self._card(), ensure_ascii=False, indent=1) + "\n"
        commit_changed(locate(folder).child(UNITS_FILE), text.encode())

    def _card(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "normalisation": NORMALISATION,
            "hash": self.hash,
            "symbols": self.symbols,
        }


class TableUnits(SymbolUnits):
    """The classes of a model from elsewhere, as in its symbol table but with blank first.

    Text is split into as few symbols as possible, longer ones first, unless the model's own SentencePiece
    model is given: a teacher with word pieces was trained on that segmentation, and transcripts should be
    split in the same way. Symbols in angle or square brackets stand for no text.

    Args:
        symbols: in kdasr's spelling; see `from_foreign`.
        model_bytes: the SentencePiece model that has these pieces, if there is one.
        upper: whether the pieces of that model are upper-case.
    """

    kind = "table"

    def __init__(self, symbols: list[str], model_bytes: bytes | None = None, upper: bool = False) -> None:
        super().__init__(symbols)
        twice = sorted(symbol for symbol, times in Counter(symbols).items() if times > 1)
        if twice or not symbols or symbols[BLANK_ID] != BLANK_SYMBOL:
            raise UnitsError(
                "invalid table of symbols",
                expected=f"{BLANK_SYMBOL} first and every symbol once",
                got=f"{symbols[:3]} …" + (f", more than once: {twice[:5]}" if twice else ""),
            )
        self.model_bytes, self.upper = model_bytes, upper
        silent = {BLANK_ID, *control_ids(symbols)}
        self._id_by_text = {symbol: unit for unit, symbol in enumerate(symbols) if unit not in silent}
        self._longest = max((len(symbol) for symbol in self._id_by_text), default=0)
        # Word pieces begin with the word mark; in a table of characters it stands between words.
        self._pieces = any(len(s) > 1 and s.startswith(WORD_START) for s in self._id_by_text)
        self._processor = piece_processor(model_bytes) if model_bytes is not None else None

    @classmethod
    def from_foreign(
        cls, symbols: Sequence[str], blank_id: int, model_bytes: bytes | None = None
    ) -> TableUnits:
        """The units of a foreign table: blank first, all others in their order.

        The word mark (`|`, a space) becomes "▁", upper-case letters become lower-case if the table has no
        lower-case ones, and accents and marks are composed (NFC) unless a SentencePiece model writes them
        otherwise, so that texts are spelled as by `kdasr.text.normalise`.

        Raises:
            UnitsError: a symbol occurs twice, or there is no blank.
        """
        if not 0 <= blank_id < len(symbols):
            raise UnitsError(
                "the blank id is not in the table", expected=f"0 to {len(symbols) - 1}", got=blank_id
            )
        ordered = [symbols[blank_id], *symbols[:blank_id], *symbols[blank_id + 1 :]]
        texts = [symbol for symbol in ordered[1:] if not stands_for_no_text(symbol)]
        # Letters without a single capital, such as "ß", do not count.
        lower_case = {char for s in texts for char in s if char != char.upper() and len(char.upper()) == 1}
        upper = any(s != s.lower() for s in texts) and not lower_case
        capitals = TURKISH_CAPITALS if "İ" in "".join(texts) else {}
        times = Counter(unicodedata.normalize("NFC", symbol) for symbol in symbols)
        mark = next((mark for mark in _WORD_MARKS if mark in texts), None)
        if any(WORD_START in symbol for symbol in texts):
            mark = None

        def spelled(symbol: str) -> str:
            if symbol == mark:
                return WORD_START
            composed = unicodedata.normalize("NFC", symbol)
            if model_bytes is None and times[composed] == 1:
                symbol = composed
            return symbol.translate(capitals).lower() if upper and not stands_for_no_text(symbol) else symbol

        return cls([BLANK_SYMBOL, *map(spelled, ordered[1:])], model_bytes, upper)

    def encode(self, text: str) -> list[int]:
        words = text.split()
        if not words:
            return []
        if self._processor is not None:
            return self._encode_pieces(" ".join(words))
        return self._cut((WORD_START if self._pieces else "") + WORD_START.join(words), text)

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode([unit for unit in ids if not self._stands_for_nothing(unit)])

    def save(self, folder: Place | Location) -> None:
        if self.model_bytes is not None:
            commit_changed(locate(folder).child(SENTENCEPIECE_FILE), self.model_bytes)
        super().save(folder)

    def _card(self) -> dict[str, Any]:
        card = {**super()._card(), "upper": self.upper, "has_model": self.model_bytes is not None}
        return card if self.model_bytes is None else {**card, MODEL_SHA256: sha256(self.model_bytes)}

    def _stands_for_nothing(self, unit: int) -> bool:
        return BLANK_ID < unit < self.vocab_size and self.symbols[unit] not in self._id_by_text

    def _encode_pieces(self, text: str) -> list[int]:
        assert self._processor is not None
        pieces: list[str] = self._processor.encode(text.upper() if self.upper else text, out_type=str)
        spelled = [piece.lower() if self.upper else piece for piece in pieces]
        unknown = next((piece for piece in spelled if piece not in self._id_by_text), None)
        if unknown is not None:
            raise unknown_character(text, unknown.strip(WORD_START) or WORD_START)
        return [self._id_by_text[piece] for piece in spelled]

    def _cut(self, marked: str, text: str) -> list[int]:
        """`marked` as the fewest symbols; of equally few, those with the longest first symbol."""
        fewest: list[tuple[int, str] | None] = [None] * len(marked) + [(0, "")]
        for start in range(len(marked) - 1, -1, -1):
            for end in range(min(start + self._longest, len(marked)), start, -1):
                rest, symbol = fewest[end], marked[start:end]
                if rest is None or symbol not in self._id_by_text:
                    continue
                best = fewest[start]
                if best is None or rest[0] + 1 < best[0]:
                    fewest[start] = (rest[0] + 1, symbol)
        if fewest[0] is None:
            missing = next((char for char in marked if char not in self._id_by_text), marked[0])
            raise unknown_character(text, missing)
        ids, start = [], 0
        while start < len(marked):
            step = fewest[start]
            assert step is not None
            ids.append(self._id_by_text[step[1]])
            start += len(step[1])
        return ids


def control_ids(symbols: Sequence[str]) -> list[int]:
    """The classes other than blank that stand for no text: their symbol is empty or in brackets."""
    return [unit for unit, symbol in enumerate(symbols) if unit != BLANK_ID and stands_for_no_text(symbol)]


def stands_for_no_text(symbol: str) -> bool:
    """Whether a symbol is empty or in brackets: <s>, <unk>, [PAD], <|en|>."""
    return not symbol or _CONTROL.fullmatch(symbol) is not None


def sha256(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def blank_path(ids: Sequence[int]) -> list[int]:
    """The shortest CTC path that spells `ids`: with blanks only between equal neighbours."""
    path: list[int] = []
    for unit in ids:
        if path and path[-1] == unit:
            path.append(BLANK_ID)
        path.append(unit)
    return path


def unknown_character(text: str, char: str) -> UnitsError:
    """The error for text that units cannot spell."""
    return UnitsError(
        f"the character {char!r} is not among the units",
        where=f"text {shorten(text)!r}",
        fix="Use units that have it: {kind: characters, letters: …}, or word pieces of text that has it.",
    )


def shorten(text: str) -> str:
    """`text`, cut for a message."""
    return text if len(text) <= 80 else text[:79] + "…"


def piece_processor(model_bytes: bytes, where: Path | str | None = None) -> Any:
    """The SentencePiece model of these bytes; `where` names it in errors.

    Raises:
        UnitsError: the bytes are not such a model.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        processor.unk_id()  # empty bytes are accepted above: this raises the error
        processor.id_to_piece(list(range(processor.get_piece_size())))  # and this if a piece is no text
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise UnitsError("not a SentencePiece model", where=where, got=str(error)) from error
    return processor
