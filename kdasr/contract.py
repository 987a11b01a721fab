"""A teacher's stored labels and a student's units and frame rate in; labels that fit the student out.

The alignment contract. A teacher may have another frame shift than its student (20 ms against 40), and its
units may be the student's in another order or among others. What can be mapped is mapped by the rules
below, when labels are read; what cannot is refused before the first step.

Frame rates: any rational ratio. If the teacher is slower, each of its frames is repeated. If it is faster,
a student frame takes the posterior of one of the teacher frames whose centres lie in it: a spike if there
is one, else the frame with the least blank. Averaging would lose spikes, since most last one frame. If
another spike already occupies its student frame, a spike moves to the next (see `pool_frames`).

A teacher that gives transcripts only (frame shift 0) has no times: its labels spell the transcript as a
CTC path whose length is meaningless, and only losses that need no times can use them.

Lengths: converted to the frames of the slower of the two, the teacher's and student's lengths may differ by
one, or by what the labels of a pretrained teacher declare (`slack_frames`: a convolution without padding
loses some). Missing frames at the end repeat the last one; surplus frames are pooled into the last student
frame or, if the teacher is slower, dropped.

Classes: symbols are matched as they are, then by alias (`|` for "▁"), then case-folded. A symbol that the
student lacks maps to blank, which gives exactly the posterior of the transcript without it; this is
automatic only for symbols like `<s>`. Several symbols may map to one; if two of those are adjacent, a blank
is inserted to keep them apart (see `map_classes`). A student class that the teacher lacks never occurs in
its labels: its target is 0 in every frame or, if labels have a tail, a share of that, with everything else
that was not kept. Only transcripts teach such classes, against these targets; they are listed before the
first step.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from kdasr.errors import LabelMismatchError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import BLANK_ID, SoftLabels
from kdasr.reasons import listed
from kdasr.soft_labels import Header
from kdasr.soft_labels.fit import centres, map_classes, pool_frames, take_frames
from kdasr.storage import Location
from kdasr.symbols import FORMAT, NORMALISATION, VERSION, SymbolUnits, stands_for_no_text
from kdasr.text import UNITS_FILE, WORD_START, Units

#: A map from a teacher's symbols to the student's; None removes a symbol.
UnitMap = Mapping[str, str | None]

_ALIASES = {"|": WORD_START, " ": WORD_START, "<space>": WORD_START}
_TOLERANCE_FRAMES = 1
# If the student lacks more symbols than this, no unit_map that removes them is suggested.
_MOST_STRUCK_OUT = 40


@dataclass(frozen=True, slots=True)
class Contract:
    """How the labels of one shard become targets for one student.

    Attributes:
        teacher_per_student: teacher frames per student frame; None if the labels are transcripts without
            times.
        class_map: (V of the teacher,) the student's id for each class; None if units are the same.
        tolerance_frames: how far lengths may differ, in frames of the slower of the two.
    """

    teacher_per_student: Fraction | None = Fraction(1)
    class_map: tuple[int, ...] | None = None
    tolerance_frames: int = _TOLERANCE_FRAMES

    def check_length(self, teacher_frames: int, student_frames: int, where: str) -> None:
        """Raise LabelMismatchError if lengths differ by more than the tolerance."""
        ratio = self.teacher_per_student
        if ratio is None:
            return
        if ratio >= 1:
            expected, got = student_frames, -(-teacher_frames * ratio.denominator // ratio.numerator)
        else:
            expected, got = -(-student_frames * ratio.numerator // ratio.denominator), teacher_frames
        if abs(expected - got) > self.tolerance_frames or (teacher_frames == 0) != (student_frames == 0):
            raise LabelMismatchError(
                "the soft labels and the audio differ in length",
                where=where,
                expected=f"{expected} ± {self.tolerance_frames} frames",
                got=f"{got} frames",
                fix="The labels belong to other audio, or their header's frame rate is wrong: label again.",
            )

    def apply(self, labels: SoftLabels, student_frames: int) -> SoftLabels:
        """Map the labels to the student's classes and frames."""
        ratio = self.teacher_per_student
        # Classes are mapped at the faster frame rate: blanks inserted between merged classes need room.
        if ratio is not None and ratio < 1:
            labels = take_frames(labels, centres(student_frames, ratio).clip(max=labels.num_frames - 1))
        if self.class_map is not None:
            labels = map_classes(labels, self.class_map, timed=ratio is not None)
        if ratio is None or ratio < 1 or (ratio == 1 and labels.num_frames == student_frames):
            return labels
        return take_frames(labels, pool_frames(labels, student_frames, ratio))


class LabelSymbols(NamedTuple):
    """The symbols of a teacher's classes, blank first, and the hash of its units."""

    symbols: Sequence[str]
    hash: str


@dataclass(frozen=True, slots=True)
class StudentSide:
    """What a student requires of labels.

    Attributes:
        units: its classes.
        subsampling: feature frames per output frame.
        unit_map: for teacher symbols named differently, the student's symbols.
    """

    units: Units
    subsampling: int
    unit_map: UnitMap | None = None

    def frames(self, feature_frames: int) -> int:
        """Output frames for this many feature frames."""
        return -(-feature_frames // self.subsampling)

    def contract(self, header: Header, symbols: LabelSymbols | None, where: str) -> Contract:
        """How labels with this header are mapped to this student.

        Args:
            symbols: the teacher's; needed only if its units are not the student's.

        Raises:
            LabelMismatchError: the teacher's classes cannot be mapped.
        """
        teacher_ms = Fraction(header.frame_shift_ms).limit_denominator(1000) * header.subsampling
        ratio = Fraction(FRAME_SHIFT_MS * self.subsampling) / teacher_ms if teacher_ms > 0 else None
        slack = math.ceil(_declared_slack(header) / max(ratio, Fraction(1))) if ratio is not None else 0
        return Contract(ratio, self._class_map(header, symbols, where), max(_TOLERANCE_FRAMES, slack))

    def lacking(self, contract: Contract) -> list[str]:
        """The student's symbols that the teacher has no class for, except those like `<unk>`."""
        return [] if contract.class_map is None else self._untaught(contract.class_map)

    def _class_map(self, header: Header, symbols: LabelSymbols | None, where: str) -> tuple[int, ...] | None:
        if header.units_hash == self.units.hash and not self.unit_map:
            if header.vocab_size != self.units.vocab_size:
                raise _refusal("vocab_size", where, self.units.vocab_size, header.vocab_size)
            return None
        if symbols is None:
            raise _refusal(
                "units_hash",
                where,
                self.units.hash,
                header.units_hash,
                " To map other units, their symbols are needed: label again to write them.",
            )
        if symbols.hash != header.units_hash or len(symbols.symbols) != header.vocab_size:
            raise LabelMismatchError(
                f"{UNITS_FILE} does not match the soft labels in its folder",
                where=where,
                expected=f"{header.vocab_size} symbols, hash {header.units_hash}",
                got=f"{len(symbols.symbols)} symbols, hash {symbols.hash}",
                fix="Are there labels of two teachers in one folder? Label again into a folder of its own.",
            )
        class_map = map_symbols(symbols.symbols, self.units, self.unit_map, where)
        self._refuse_spelling(class_map, symbols.symbols, where)
        return class_map

    def _untaught(self, class_map: Sequence[int]) -> list[str]:
        known = {BLANK_ID, *class_map}
        symbols = enumerate(self.units.symbols)
        return [symbol for unit, symbol in symbols if unit not in known and not stands_for_no_text(symbol)]

    def _refuse_spelling(self, class_map: Sequence[int], symbols: Sequence[str], where: str) -> None:
        """Raise LabelMismatchError if labels spell in letters what transcripts have whole pieces for: the
        student would learn two spellings of each word, and write neither."""
        letters = {self.units.symbols[unit] for unit in class_map} | {WORD_START}
        # Not those that the teacher has and `unit_map` strikes out.
        untaught = [symbol for symbol in self._untaught(class_map) if symbol not in symbols]
        if spelled := [symbol for symbol in untaught if len(symbol) > 1 and {*symbol} <= letters]:
            most = max(spelled, key=len)
            raise LabelMismatchError(
                "the labels spell out in letters what the student has whole pieces for",
                where=where,
                expected="the same spelling in labels and transcripts",
                got=f"{len(spelled)} such pieces, among them {most}, which the labels spell {' '.join(most)}",
                fix="Write the labels in the student's pieces with `kdasr retokenise` (docs/teachers.md, "
                '"The student"), or train the student with the units of the labels: --units LABELS.',
            )


def label_symbols(folder: Location) -> LabelSymbols | None:
    """The teacher's symbols stored in a folder of labels; None if there are none.

    Raises:
        LabelMismatchError: the file is not a list of units of this version.
    """
    file = folder.child(UNITS_FILE)
    if file.size() is None:
        return None
    try:
        card = json.loads(file.read_all())
        found = LabelSymbols(card["symbols"], card["hash"])
        good = (card["format"], card["version"]) == (FORMAT, VERSION)
        good &= isinstance(found.symbols, list) and all(isinstance(symbol, str) for symbol in found.symbols)
        # Other programs may hash their symbols in another way.
        if good and card.get("normalisation") == NORMALISATION:
            good = SymbolUnits([*found.symbols]).hash == found.hash
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise LabelMismatchError(
            "not a list of units that this version can read, or a damaged one",
            where=str(file),
            expected=f"{FORMAT} version {VERSION}, with the hash of its symbols",
            fix="Label again with this version of kdasr, or copy the file again.",
        )
    return found


def map_symbols(
    symbols: Sequence[str], units: Units, unit_map: UnitMap | None = None, where: str = "labels"
) -> tuple[int, ...]:
    """The student's class for each of the teacher's symbols; 0, blank, for symbols that are removed.

    Raises:
        LabelMismatchError: the student lacks symbols that `unit_map` does not map or remove, or `unit_map`
            has keys unknown to the teacher or values unknown to the student.
    """
    given = dict(unit_map or {})
    known = {symbol: unit for unit, symbol in enumerate(units.symbols)}
    wrong = sorted({*given} - {*symbols}) + sorted({s for s in given.values() if s is not None} - {*known})
    if wrong:
        raise LabelMismatchError(
            "unit_map has symbols that the teacher or the student does not have",
            where=where,
            expected="symbols of the teacher as keys; symbols of the student, or null, as values",
            got=", ".join(wrong),
            fix="Correct unit_map in the student's recipe, or remove it.",
        )
    found: list[int | None] = [_student_class(symbol, known, given) for symbol in symbols]
    found[BLANK_ID] = BLANK_ID
    lacking = [symbol for symbol, unit in zip(symbols, found, strict=True) if unit is None]
    if lacking:
        shown = listed([symbol if _shows(symbol) else ascii(symbol) for symbol in lacking], most=12)
        ready = {**given, **dict.fromkeys(lacking)}
        more = f": unit_map: {_as_yaml(ready)}" if len(lacking) <= _MOST_STRUCK_OUT else "."
        raise _refusal(
            "units_hash",
            where,
            _some_symbols(units),
            f"{len(lacking)} symbols that the student lacks: {shown}",
            f" Or map them to the student's symbols in unit_map; null removes a symbol{more}",
        )
    return tuple(unit for unit in found if unit is not None)


def _student_class(symbol: str, known: Mapping[str, int], given: UnitMap) -> int | None:
    """The student's class for one symbol, or None if it has none."""
    if symbol in given:
        target = given[symbol]
        return BLANK_ID if target is None else known[target]
    for name in (symbol, _ALIASES.get(symbol, symbol), symbol.casefold()):
        if name in known:
            return known[name]
    return BLANK_ID if stands_for_no_text(symbol) else None


def _shows(symbol: str) -> bool:
    """Whether the symbol is visible on its own, not as a mark on the character before it."""
    return symbol.isprintable() and unicodedata.category(symbol[:1] or " ")[0] != "M"


def _as_yaml(unit_map: UnitMap) -> str:
    """As YAML that can be copied; invisible symbols are escaped."""

    def quoted(symbol: str | None) -> str:
        return json.dumps(symbol, ensure_ascii=not _shows(symbol or " "))

    return f"{{{', '.join(f'{quoted(key)}: {quoted(value)}' for key, value in unit_map.items())}}}"


def _some_symbols(units: Units) -> str:
    """A few of a student's symbols, for messages."""
    return f"symbols among {' '.join(units.symbols[:8])}{' …' if units.vocab_size > 8 else ''}"


def _declared_slack(header: Header) -> int:
    """The frames by which a pretrained teacher's length may be off, as its labels declare."""
    teacher = header.settings.get("teacher")
    slack = teacher.get("slack_frames") if isinstance(teacher, Mapping) else None
    return slack if isinstance(slack, int) else 0


def _refusal(field: str, where: str, expected: object, got: object, more: str = "") -> LabelMismatchError:
    return LabelMismatchError(
        f"the soft labels do not match the student's {field}",
        where=where,
        expected=expected,
        got=got,
        fix="Teacher and student must use the same units, or ones that can be mapped: train the student with "
        "the teacher's units (--units LABELS), or write the labels in the student's with `kdasr retokenise` "
        f'(docs/teachers.md, "The student").{more}',
    )
