"""A list of words as a decoding graph for sherpa-onnx, for apps that know the words they will hear.

The graph is the CTC topology composed with the lexicon, which sherpa-onnx and icefall call HL.fst (Mohri,
Pereira & Riley 2008, "Speech recognition with weighted finite-state transducers", section 3), with all
words equally likely. The file is an OpenFst `vector` FST of standard arcs. Its input labels are units plus
one, since 0 is epsilon there. It has no output labels: the text is made from the units.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kdasr.errors import ConfigError
from kdasr.interfaces import BLANK_ID
from kdasr.lexicon import Lexicon
from kdasr.storage import commit_bytes, remove_leftovers
from kdasr.text import load_units

_FST_MAGIC = 2_125_659_606
_FST_VERSION = 2
# OpenFst's property bits: expanded (its states are counted) and mutable.
_PROPERTIES = 0b11
_WITHOUT = "Without a graph, any word can be recognised."

# The `unit` of an arc that consumes no frame.
EPSILON = -1


class Arc(NamedTuple):
    """A possible class of a frame, and the state that follows.

    Attributes:
        unit: class of the frame, or `EPSILON`.
        state: the arc's destination.
        nats: the arc's cost.
    """

    unit: int
    state: int
    nats: float = 0.0


class DecodingGraph(NamedTuple):
    """States and arcs; the search begins in state 0.

    Attributes:
        arcs: the arcs of each state.
        final: for each state, whether a text may end there.
    """

    arcs: list[list[Arc]]
    final: list[bool]


def build_graph(lexicon: Lexicon) -> DecodingGraph:
    """A graph of every alignment of every text of a lexicon's words, and of other words if it allows them.

    A state is a place in the lexicon, which determines what may follow, and the class of the last frame: the
    same class again is the same unit, unless a blank separates them. Other words have a separate path, on
    which each unit has a cost.
    """
    return _Builder(lexicon).build()


# Places that are not prefixes in the lexicon: within a word that is not in it, and at the start of a word
# after another one.
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
        for place, last in self._todo:  # grows in the loop
            arcs.append([*self._leaving(place, last)])
            final.append(place == _OTHER if isinstance(place, str) else self._lexicon.is_complete(place))
        return DecodingGraph(arcs, final)

    def _state(self, place: _Place, last: int) -> int:
        """The number of a state; for a prefix, only its last word matters."""
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
            # With letters, text after a pause may begin with the word mark.
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
        """The units of a word start mark and letters."""
        return [unit for unit in self._lexicon.outer_units if self._lexicon.state((unit,))[0]]

    def _to_next_word(self) -> Iterator[Arc]:
        """The arcs to the next word. For pieces it is an epsilon arc, or each word would need arcs to all
        others. A piece that ends one word and begins the next without a blank between counts once, for the
        second word; that is a text of the lexicon, too."""
        if self._lexicon.of_pieces:
            yield Arc(EPSILON, self._state(_NEXT, BLANK_ID))
        else:
            yield from self._of_words(self._lexicon.outer_units)


def openfst_bytes(graph: DecodingGraph) -> bytes:
    """The graph in OpenFst's file format: a header, then each state's final weight and its arcs."""
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
    """Write the graph of a list of words in the units of a model.

    Args:
        model: folder of a student or of an export, or a file in it.
        sources: text files and folders of labelled shards: every word in them may be said.
        out: the file, written atomically.
        other_word_nats: see `kdasr.lexicon.Lexicon`.

    Returns:
        How many `words`, `states`, `arcs` and `bytes` there are.

    Raises:
        ConfigError: no word, a source that cannot be read, or a word that the units cannot spell.
        UnitsError: the folder has no units.
        OSError: the file cannot be written.
    """
    if out.is_dir():
        raise ConfigError(
            "a decoding graph is a file, not a folder", where="--out", expected="a file name", got=str(out)
        )
    units = load_units(model.parent if model.is_file() else model)
    lexicon = Lexicon(units=units, sources=sources, other_word_nats=other_word_nats, without=_WITHOUT)
    graph = build_graph(lexicon)
    data = openfst_bytes(graph)
    commit_bytes(out, data)
    remove_leftovers(out.parent, out.name)
    counts = len(lexicon.words), len(graph.arcs), sum(map(len, graph.arcs)), len(data)
    return dict(zip(("words", "states", "arcs", "bytes"), counts, strict=True))


def _string(text: str) -> bytes:
    return struct.pack("<i", len(text)) + text.encode()
