"""A list of words as a decoding graph: what sherpa-onnx searches where an app knows the words it will hear.

The graph is the CTC topology composed with the lexicon, which sherpa-onnx and icefall call HL.fst (Mohri,
Pereira & Riley 2008, "Speech recognition with weighted finite-state transducers", section 3), all words
of the lexicon equally likely. The file is an OpenFst `vector` FST of standard arcs; its input labels are
units plus one, since 0 is epsilon there, and it has no output labels: the text is made of units.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kdasr.errors import ConfigError
from kdasr.interfaces import BLANK_ID
from kdasr.lexicon import Lexicon
from kdasr.storage.local import commit_bytes
from kdasr.text import load_units

_FST_MAGIC = 2_125_659_606
_FST_VERSION = 2
# What is known of it: that its states are counted and that it can be changed.
_PROPERTIES = 0b11
_WITHOUT = "Without a graph any word is heard."

# Of an arc that takes no frame.
EPSILON = -1


class Arc(NamedTuple):
    """What a frame may be, and what comes of it.

    Attributes:
        unit: class of the frame, or `EPSILON`.
        state: where the arc leads.
        nats: what it costs.
    """

    unit: int
    state: int
    nats: float = 0.0


class DecodingGraph(NamedTuple):
    """States and arcs; the search begins in state 0.

    Attributes:
        arcs: of each state.
        final: of each state, whether a text may end there.
    """

    arcs: list[list[Arc]]
    final: list[bool]


def build_graph(lexicon: Lexicon) -> DecodingGraph:
    """Every alignment of every text of a lexicon's words, and of others where it lets them be said.

    A state is what may follow in the lexicon, and the class of the last frame: the same class again is the
    same unit, and only a blank between the two makes it another one. Other words are a path of their own
    beside those of the lexicon, on which each unit costs something.
    """
    return _Builder(lexicon).build()


# Of what may follow, what is no prefix of a lexicon: anything within a word that is none of its own, and the
# beginning of a word that has another one before it.
_OTHER, _NEXT = "another word", "next word"
_Place = tuple[int, ...] | str


class _Builder:
    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._numbers: dict[tuple[Hashable, int], int] = {}
        self._todo: list[tuple[_Place, int]] = []

    def build(self) -> DecodingGraph:
        self._state((), BLANK_ID)
        arcs, final = [], []
        for place, last in self._todo:  # which grows
            arcs.append([*self._leaving(place, last)])
            final.append(place == _OTHER if isinstance(place, str) else self._lexicon.is_complete(place))
        return DecodingGraph(arcs, final)

    def _state(self, place: _Place, last: int) -> int:
        """The number of a state; of a prefix only its last word matters."""
        key = place if isinstance(place, str) else self._lexicon.state(place), last
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self._todo.append((place, last))
        return self._numbers[key]

    def _leaving(self, place: _Place, last: int) -> Iterator[Arc]:
        if place == _NEXT:
            yield from self._of_words(self._lexicon.starting_units)
            yield from self._of_other_words(self._marked_units())
            return
        yield Arc(BLANK_ID, self._state(place, BLANK_ID))
        if last != BLANK_ID:
            yield Arc(last, self._state(place, last))
        if isinstance(place, str):
            yield from self._of_other_words(self._lexicon.inner_units, last)
            yield from self._to_next_word()
        else:
            yield from self._of_lexicon(place, last)

    def _of_lexicon(self, prefix: tuple[int, ...], last: int) -> Iterator[Arc]:
        lexicon = self._lexicon
        if prefix and lexicon.of_pieces:
            yield from self._of_words(lexicon.units_within(prefix), prefix, last)
            if lexicon.is_complete(prefix):
                yield from self._to_next_word()
        else:
            # After a pause letters may begin with the mark between words.
            yield from self._of_words(lexicon.units_after(prefix, after_pause=True), prefix, last)
        if lexicon.state(prefix)[0] == "":
            yield from self._of_other_words(lexicon.inner_units, last)
            if not prefix:
                yield from self._of_other_words(self._marked_units(), last)

    def _of_words(
        self, units: Sequence[int], prefix: tuple[int, ...] = (), last: int = BLANK_ID
    ) -> Iterator[Arc]:
        for unit in units:
            if unit != last:
                grown = (*prefix, unit)
                yield Arc(unit, self._state(grown[self._lexicon.last_word_start(grown) :], unit))

    def _of_other_words(self, units: Sequence[int], last: int = BLANK_ID) -> Iterator[Arc]:
        if (nats := self._lexicon.other_word_nats) is not None:
            yield from (Arc(unit, self._state(_OTHER, unit), nats) for unit in units if unit != last)

    def _marked_units(self) -> list[int]:
        """Those with a mark and letters behind it."""
        return [unit for unit in self._lexicon.outer_units if self._lexicon.state((unit,))[0]]

    def _to_next_word(self) -> Iterator[Arc]:
        """By pieces without a frame, or each word would have arcs to all the others. A piece that ends one
        word and begins the next without a blank between is heard as one, of the second: a text of the
        lexicon as well."""
        if self._lexicon.of_pieces:
            yield Arc(EPSILON, self._state(_NEXT, BLANK_ID))
        else:
            yield from self._of_words(self._lexicon.outer_units)


def openfst_bytes(graph: DecodingGraph) -> bytes:
    """The graph as OpenFst writes it: a header, then of each state its weight, its arcs and where they go."""
    header = struct.pack("<i", _FST_MAGIC) + _string("vector") + _string("standard")
    counts = len(graph.arcs), sum(map(len, graph.arcs))
    parts = [header, struct.pack("<iiQqqq", _FST_VERSION, 0, _PROPERTIES, 0, *counts)]
    for arcs, final in zip(graph.arcs, graph.final, strict=True):
        parts.append(struct.pack("<fq", 0.0 if final else float("inf"), len(arcs)))
        parts += [struct.pack("<iifi", arc.unit + 1, 0, arc.nats, arc.state) for arc in arcs]
    return b"".join(parts)


def write_decoding_graph(
    model: Path, sources: Sequence[str], out: Path, other_word_nats: float | None = None
) -> dict[str, int]:
    """Write the graph of some words in the units of a model.

    Args:
        model: folder of a student or of an export, or a file in it.
        sources: text files, and folders of labelled shards: every word in them may be said.
        out: the file, which appears whole or not at all.
        other_word_nats: see `kdasr.lexicon.Lexicon`.

    Returns:
        How many `words`, `states`, `arcs` and `bytes` there are.

    Raises:
        ConfigError: no word, a source that cannot be read, or a word that the units cannot spell.
        UnitsError: the folder has no units.
        OSError: the file cannot be written.
    """
    if out.is_dir():
        raise ConfigError("a decoding graph is a file", where="--out", expected="a file name", got=str(out))
    units = load_units(model.parent if model.is_file() else model)
    lexicon = Lexicon(units=units, sources=sources, other_word_nats=other_word_nats, without=_WITHOUT)
    graph = build_graph(lexicon)
    data = openfst_bytes(graph)
    commit_bytes(out, data)
    counts = len(lexicon.words), len(graph.arcs), sum(map(len, graph.arcs)), len(data)
    return dict(zip(("words", "states", "arcs", "bytes"), counts, strict=True))


def _string(text: str) -> bytes:
    return struct.pack("<i", len(text)) + text.encode()
