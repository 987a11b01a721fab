"""A lexicon, which restricts a search to known words: which units may come next.

A teacher that is unsure between `five` and `nine` may write `fine`; a search among known words finds one of
the two. Self-training has long used knowledge of the language to decode its teacher (Kahn, Lee & Hannun
2020, arXiv 1909.09116).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdasr.errors import ConfigError, DamagedShardError, ShardError, UnitsError
from kdasr.interfaces import BLANK_ID
from kdasr.reasons import counted
from kdasr.shards import list_shards, open_shard, read_texts
from kdasr.symbols import control_ids
from kdasr.text import WORD_START, Units, letters_in, load_units, normalise

# For users of a label recipe, which may name a lexicon that they did not choose.
_LABELS_WITHOUT = "To label without a lexicon, use `--settings.words null`."
# The cache of costs is cleared at this size: other words are endless, and live audio may run for days.
_MAX_COSTS = 4_096
_log = logging.getLogger(__name__)


class Lexicon:
    """The words of some transcripts, spelled in the units of a model.

    Files are read on first use, so that a recipe can name a model that is yet to be trained.

    Args:
        sources: folders of labelled audio shards, and text files: all their words are in the lexicon.
        words: further words.
        units: the units, or the folder of a model that has them.
        other_word_nats: the cost of each unit of any other word, in nats of a search; None if no other
            word may be found. At 0, the lexicon has no effect; for a model of letters, about 1 works.
        without: for error messages: how to do without a lexicon.

    Raises:
        ConfigError: no words, a source that cannot be read, or a cost below 0.
        UnitsError: the folder of a model has no units.
    """

    def __init__(
        self,
        *,
        units: Units | str,
        sources: Sequence[str] = (),
        words: Sequence[str] = (),
        other_word_nats: float | None = None,
        without: str = _LABELS_WITHOUT,
    ) -> None:
        if other_word_nats is not None and not 0 <= other_word_nats < np.inf:
            raise ConfigError(
                "the cost of other words is out of range",
                where="other words",
                expected="a finite number of nats, 0 or more, for each of their units",
                got=other_word_nats,
            )
        for given, name in ((sources, "sources"), (words, "words")):
            if isinstance(given, str):  # whose letters would be taken for sources or words
                raise ConfigError(
                    "a lexicon takes lists", where=name, expected=f"[{given!r}]", got=repr(given)
                )
        self._units, self.sources, self._more_words, self._without = units, sources, words, without
        self.other_word_nats = other_word_nats
        self._costs: dict[tuple[str, bool, bool, int], NDArray[np.float64]] = {}

    @cached_property
    def words(self) -> frozenset[str]:
        """Every word of the lexicon."""
        return frozenset(self._source_of)

    @cached_property
    def _source_of(self) -> dict[str, str]:
        """Every word of the lexicon, and its source."""
        letters, without = letters_in(self._symbols), self._without
        texts = [(text, one) for one in self.sources for text in _texts_in(Path(one), letters, without)]
        texts += [(text, "words") for text in self._more_words]
        words = {word: source for text, source in texts if text for word in text.split()}
        if not words:
            raise ConfigError(
                "the lexicon has no words",
                where=", ".join(self.sources) or "sources and words",
                expected="a text file of words, or a folder of shards with transcripts",
                fix=without,
            )
        return words

    @cached_property
    def config(self) -> dict[str, str]:
        """Everything that determines what a search finds."""
        text = "\n".join([*sorted(self.words), *self._symbols])
        config = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
        return (
            config
            if self.other_word_nats is None
            else {**config, "other_word_nats": str(self.other_word_nats)}
        )

    def next_costs(self, prefix: tuple[int, ...], after_pause: bool = False) -> NDArray[np.float64]:
        """(V,) cost in nats of each unit as the next one after `prefix`, infinite if it may not follow; with
        `after_pause`, a word mark may come first, since there were words before. A word costs nothing as long
        as it may become one of the lexicon."""
        word, is_first = self.state(prefix)
        key = word, is_first, after_pause, self._units_of_word(prefix)
        if key not in self._costs:
            if len(self._costs) >= _MAX_COSTS:
                self._costs.clear()
            self._costs[key] = self._costs_after(prefix, after_pause)
        return self._costs[key]

    def _costs_after(self, prefix: tuple[int, ...], after_pause: bool) -> NDArray[np.float64]:
        costs = np.full(len(self._symbols), np.inf)
        if self.other_word_nats is not None:
            word, is_first = self.state(prefix)
            owed = self._owed(prefix)
            costs[self.inner_units] = self.other_word_nats + owed
            if word or (is_first and self.of_pieces):
                ended = 0.0 if word in self.words else owed
                costs[self.outer_units] = ended + self.other_word_nats
                costs[self.starting_units] = ended
        costs[self.units_after(prefix, after_pause)] = 0.0
        return costs

    def _owed(self, prefix: tuple[int, ...]) -> float:
        """Nats to add when the last word leaves the lexicon: `other_word_nats` for each of its units so far;
        0 if it left earlier, since that cost is already included."""
        is_open = self._last_word(prefix) in self._beginnings
        return (self.other_word_nats or 0.0) * self._units_of_word(prefix) if is_open else 0.0

    def _units_of_word(self, prefix: tuple[int, ...]) -> int:
        """Number of units of the last word, not counting a bare word mark."""
        start = self.last_word_start(prefix)
        has_mark = start < len(prefix) and self._symbols[prefix[start]] == WORD_START
        return len(prefix) - start - has_mark

    def end_cost(self, prefix: tuple[int, ...]) -> float:
        """Cost in nats of ending a transcript after `prefix`; infinite if it may not end there."""
        if self.is_complete(prefix):
            return 0.0
        is_word = self.other_word_nats is not None and self._last_word(prefix) != ""
        return self._owed(prefix) if is_word else np.inf

    def units_after(self, prefix: tuple[int, ...], after_pause: bool = False) -> list[int]:
        """The units that may continue or begin a word of the lexicon."""
        word, is_first = self.state(prefix)
        units = self.units_within(prefix)
        if is_first and not self.of_pieces and not after_pause:
            return units  # letters have a mark between words, pieces before each word
        return units + self.starting_units if is_first or word in self.words else units

    def units_within(self, prefix: tuple[int, ...]) -> list[int]:
        """The units that may continue the last word of `prefix`."""
        word, units, waiting = self._last_word(prefix), [], [""]
        while waiting:
            part = waiting.pop()
            for letter in self._letters_after.get(word + part, ()):
                longer = part + letter
                if longer in self._parts_of_units:
                    waiting.append(longer)
                if longer in self._unit_of:
                    units.append(self._unit_of[longer])
        return units

    def state(self, prefix: tuple[int, ...]) -> tuple[str, bool]:
        """What determines which units may follow `prefix`: its last word so far, and whether `prefix` is
        empty."""
        return self._last_word(prefix), not prefix

    def is_complete(self, prefix: tuple[int, ...]) -> bool:
        """Whether `prefix` ends with a word of the lexicon, or is empty."""
        return not prefix or self._last_word(prefix) in self.words

    def last_word_start(self, prefix: tuple[int, ...]) -> int:
        """Index of the last word start in `prefix`, 0 if there is none."""
        starts = (place for place in reversed(range(len(prefix))) if self._starts_word(prefix[place]))
        return next(starts, 0)

    def _starts_word(self, unit: int) -> bool:
        return self._symbols[unit].startswith(WORD_START)

    @cached_property
    def _symbols(self) -> list[str]:
        return (load_units(Path(self._units)) if isinstance(self._units, str) else self._units).symbols

    @cached_property
    def of_pieces(self) -> bool:
        """Whether units are word pieces, with the word mark and letters in one unit."""
        return any(len(symbol) > 1 and symbol.startswith(WORD_START) for symbol in self._symbols)

    @cached_property
    def inner_units(self) -> list[int]:
        """The units without a word mark."""
        return [unit for unit in self._spoken if not self._starts_word(unit)]

    @cached_property
    def outer_units(self) -> list[int]:
        """The units with a word mark; in letter units, the mark alone."""
        return [unit for unit in self._spoken if self._starts_word(unit)]

    @cached_property
    def _spoken(self) -> list[int]:
        return sorted({*range(len(self._symbols))} - {BLANK_ID, *control_ids(self._symbols)})

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        letters = set("".join(self._symbols[1:]))
        if strange := sorted(word for word in self.words if not set(word) <= letters):
            raise ConfigError(
                f"{counted(len(strange), 'word')} of the lexicon cannot be spelled in the model's units",
                where=", ".join(sorted({self._source_of[word] for word in strange})),
                expected="words of the letters " + "".join(sorted(letters - {WORD_START}))[:100],
                got=", ".join(strange[:5]),
                fix="Spell them as the model's training transcripts do.",
            )
        return frozenset(word[:end] for word in self.words for end in range(len(word) + 1))

    def _last_word(self, prefix: tuple[int, ...]) -> str:
        units = prefix[self.last_word_start(prefix) :]
        return "".join(self._symbols[unit] for unit in units).removeprefix(WORD_START)

    @cached_property
    def starting_units(self) -> list[int]:
        """The units that may begin a word of the lexicon after another word."""
        return [
            unit
            for unit, symbol in enumerate(self._symbols)
            if symbol.startswith(WORD_START) and symbol[1:] in self._beginnings
        ]

    @cached_property
    def _letters_after(self) -> dict[str, str]:
        """For each beginning of a word, the letters that may come next."""
        letters: dict[str, str] = {}
        for beginning in sorted(self._beginnings - {""}):
            letters[beginning[:-1]] = letters.get(beginning[:-1], "") + beginning[-1]
        return letters

    @cached_property
    def _unit_of(self) -> dict[str, int]:
        return {symbol: unit for unit, symbol in enumerate(self._symbols) if unit != BLANK_ID}

    @cached_property
    def _parts_of_units(self) -> frozenset[str]:
        return frozenset(symbol[:end] for symbol in self._unit_of for end in range(1, len(symbol)))


def _texts_in(source: Path, letters: str, without: str) -> list[str | None]:
    if not source.exists():
        raise ConfigError(
            "the file or folder with the words of a lexicon does not exist",
            where=source,
            fix=f"Check the name. {without}",
        )
    try:
        if source.is_file():
            lines = source.read_text(encoding="utf-8-sig").splitlines()
            texts = [_normal(line, letters, source) for line in lines]
            _tell_of_phrases(texts, source)
            return [*texts]
        shards = map(open_shard, list_shards(source))
        # Verified: nothing else that uses the lexicon reads these shards.
        return [text for shard in shards for text in read_texts(shard, verify=True)]
    except (ShardError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the words of a lexicon cannot be read",
            where=source,
            expected="a text file (UTF-8) of words as in transcripts, or a folder of labelled audio shards",
            got=error if isinstance(error, DamagedShardError) else getattr(error, "what", error),
            fix=without,
        ) from error


def _tell_of_phrases(lines: Sequence[str], source: Path) -> None:
    """Warn of lines of several words: users may expect `turn on` to be found only as a phrase."""
    if several := sum(" " in line for line in lines):
        have = "1 line has" if several == 1 else f"{several:,} lines have"
        _log.warning("%s: %s several words: each counts as a separate word", source, have)


def _normal(text: str, letters: str, source: Path) -> str:
    """The text normalised word by word, so that an error names the word."""
    words = []
    for word in text.split():
        try:
            words.append(normalise(word, letters))
        except UnitsError as error:
            what = f"the lexicon's word {word!r} cannot be spelled: {error.what}"
            raise ConfigError(what, where=source, expected=error.expected, fix=error.fix) from error
    return " ".join(words)
