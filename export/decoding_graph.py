"""A list of words as a decoding graph: what sherpa-onnx searches where an app knows the words it will hear.

The graph is the CTC topology composed with the lexicon, which sherpa-onnx and icefall call HL.fst (Mohri,
Pereira & Riley 2008, "Speech recognition with weighted finite-state transducers", section 3), all words
equally likely. The file is an OpenFst `vector` FST of standard arcs; its input labels are units plus one,
since 0 is epsilon there, and it has no output labels: the text is made of units.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
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


class DecodingGraph(NamedTuple):
    """States and arcs; the search begins in state 0.

    Attributes:
        arcs: of each state, the class of a frame, or `EPSILON`, and the state that it leads to.
        final: of each state, whether a text may end there.
    """

    arcs: list[list[tuple[int, int]]]
    final: list[bool]


def build_graph(lexicon: Lexicon) -> DecodingGraph:
    """Every alignment of every text of a lexicon's words.

    A state is what may follow in the lexicon, and the class of the last frame: the same class again is the
    same unit, and only a blank between the two makes it another one.
    """
    numbers: dict[tuple[Hashable, int], int] = {}
    todo: list[tuple[tuple[int, ...], int]] = []

    def state(prefix: tuple[int, ...], last: int) -> int:
        key = lexicon.state(prefix), last
        if key not in numbers:
            numbers[key] = len(numbers)
            todo.append((prefix, last))
        return numbers[key]

    start = state((), BLANK_ID)
    arcs, final = [], []
    for prefix, last in todo:  # which grows
        leaving = [(BLANK_ID, state(prefix, BLANK_ID))]
        if last != BLANK_ID:
            leaving.append((last, state(prefix, last)))
        by_epsilon = lexicon.of_pieces and prefix != ()
        # After a pause letters may begin with the mark between words.
        after = lexicon.units_within(prefix) if by_epsilon else lexicon.units_after(prefix, after_pause=True)
        for unit in after:
            if unit != last:
                grown = (*prefix, unit)
                leaving.append((unit, state(grown[lexicon.last_word_start(grown) :], unit)))
        complete = lexicon.is_complete(prefix)
        if by_epsilon and complete:
            # Or each word would have arcs to all the others. A piece that ends one word and begins the next
            # without a blank between is heard as one, of the second: a text of the lexicon as well.
            leaving.append((EPSILON, start))
        arcs.append(leaving)
        final.append(complete)
    return DecodingGraph(arcs, final)


def openfst_bytes(graph: DecodingGraph) -> bytes:
    """The graph as OpenFst writes it: a header, then of each state its weight, its arcs and where they go."""
    header = struct.pack("<i", _FST_MAGIC) + _string("vector") + _string("standard")
    counts = len(graph.arcs), sum(map(len, graph.arcs))
    parts = [header, struct.pack("<iiQqqq", _FST_VERSION, 0, _PROPERTIES, 0, *counts)]
    for arcs, final in zip(graph.arcs, graph.final, strict=True):
        parts.append(struct.pack("<fq", 0.0 if final else float("inf"), len(arcs)))
        parts += [struct.pack("<iifi", unit + 1, 0, 0.0, state) for unit, state in arcs]
    return b"".join(parts)


def write_decoding_graph(model: Path, sources: Sequence[str], out: Path) -> dict[str, int]:
    """Write the graph of some words in the units of a model.

    Args:
        model: folder of a student or of an export.
        sources: text files, and folders of labelled shards: every word in them may be said.
        out: the file, which appears whole or not at all.

    Returns:
        How many `words`, `states`, `arcs` and `bytes` there are.

    Raises:
        ConfigError: no word, a source that cannot be read, or a word that the units cannot spell.
        UnitsError: the folder has no units.
        OSError: the file cannot be written.
    """
    if out.is_dir():
        raise ConfigError("a decoding graph is a file", where="--out", expected="a file name", got=str(out))
    lexicon = Lexicon(units=load_units(model), sources=sources, without=_WITHOUT)
    graph = build_graph(lexicon)
    data = openfst_bytes(graph)
    commit_bytes(out, data)
    counts = len(lexicon.words), len(graph.arcs), sum(map(len, graph.arcs)), len(data)
    return dict(zip(("words", "states", "arcs", "bytes"), counts, strict=True))


def _string(text: str) -> bytes:
    return struct.pack("<i", len(text)) + text.encode()
