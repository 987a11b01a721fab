"""A list of words as a decoding graph: which texts it holds, its file, what sherpa-onnx makes of it."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from export.decoding_graph import EPSILON, DecodingGraph, build_graph, openfst_bytes, write_decoding_graph
from export.publish import export_student
from kdasr.decoding import collapse
from kdasr.errors import ConfigError, UnitsError
from kdasr.lexicon import Lexicon
from kdasr.streaming import StreamingSession, TorchChunkModel
from kdasr.symbols import TableUnits
from kdasr.text import train_sentencepiece
from tests.export.small_models import UNITS, conformer
from tests.export.test_sherpa import flushed, sherpa, utterance

LETTERS = TableUnits(["<blk>", "▁", "a", "b"], None, False)
PIECES = TableUnits(["<blk>", "▁a", "b", "▁ba", "▁"], None, False)


def closure(graph: DecodingGraph, states: set[int]) -> set[int]:
    """And where they lead without a frame."""
    return states | {to for state in states for unit, to in graph.arcs[state] if unit == EPSILON}


def accepts(graph: DecodingGraph, path: tuple[int, ...]) -> bool:
    states = {0}
    for unit in path:
        states = closure(graph, {to for state in states for label, to in graph.arcs[state] if label == unit})
    return any(graph.final[state] for state in states)


def is_text(lexicon: Lexicon, ids: tuple[int, ...]) -> bool:
    """Unit by unit, as a search asks; after a pause."""
    return lexicon.is_complete(ids) and all(
        lexicon.next_units(ids[:end], after_pause=True)[unit] for end, unit in enumerate(ids)
    )


@pytest.mark.parametrize(("units", "words"), [(LETTERS, ["ab", "bb", "a"]), (PIECES, ["a", "ab", "ba"])])
def test_a_path_of_frames_is_in_the_graph_where_its_text_is_of_the_words(
    units: TableUnits, words: list[str]
) -> None:
    lexicon = Lexicon(units=units, words=words)
    graph = build_graph(lexicon)
    counts = [0, 0]
    for frames in range(7):
        for path in itertools.product(range(len(units.symbols)), repeat=frames):
            expected = is_text(lexicon, tuple(collapse(path)))
            assert accepts(graph, path) == expected, path
            counts[expected] += 1
    assert min(counts) > 500
    texts = {(): True, tuple(units.encode("a ab")): True, tuple(units.encode("b")): False}
    assert {ids: accepts(graph, tuple(itertools.chain(*((0, one) for one in ids)))) for ids in texts} == texts


def test_words_of_pieces_share_their_beginnings() -> None:
    """Thousands of words would have arcs to the beginnings of all others: gigabytes."""
    words = ["".join(word) for word in itertools.product("abcde", repeat=4)]
    units = train_sentencepiece([" ".join(words)], 40)
    graph = build_graph(Lexicon(units=units, words=words))
    assert sum(map(len, graph.arcs)) < 5 * len(graph.arcs)
    assert openfst_bytes(graph) == openfst_bytes(build_graph(Lexicon(units=units, words=words[::-1])))


def read_openfst(data: bytes) -> tuple[DecodingGraph, set[tuple[int, float]]]:
    """A graph, and the output labels and weights of its arcs."""
    place = 0

    def take(layout: str) -> Any:
        nonlocal place
        values = struct.unpack_from("<" + layout, data, place)
        place += struct.calcsize("<" + layout)
        return values if len(values) > 1 else values[0]

    assert take("i") == 2125659606
    assert [take(f"{take('i')}s") for _ in range(2)] == [b"vector", b"standard"]
    version, flags, _, start, states, num_arcs = take("iiQqqq")
    assert (version, flags, start) == (2, 0, 0)
    arcs, final, others = [], [], set()
    for _ in range(states):
        weight, count = take("fq")
        assert weight in (0.0, np.inf)
        final.append(weight == 0.0)
        leaving = [take("iifi") for _ in range(count)]
        arcs.append([(label - 1, to) for label, _, _, to in leaving])
        others |= {(output, cost) for _, output, cost, _ in leaving}
    assert place == len(data) and sum(map(len, arcs)) == num_arcs
    return DecodingGraph(arcs, final), others


@pytest.mark.parametrize(("units", "words"), [(LETTERS, ["ab"]), (PIECES, ["a", "ab"])])
def test_the_file_holds_the_graph(units: TableUnits, words: list[str]) -> None:
    graph = build_graph(Lexicon(units=units, words=words))
    assert read_openfst(openfst_bytes(graph)) == (graph, {(0, 0.0)})
    assert any(unit == EPSILON for arcs in graph.arcs for unit, _ in arcs) == (units is PIECES)


def best_path(graph: DecodingGraph, log_probs_tv: NDArray[np.float32]) -> list[int]:
    """The units of the likeliest path that may end where the frames do."""
    found: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for frame_v in log_probs_tv:
        grown: dict[int, tuple[float, tuple[int, ...]]] = {}
        for state, (score, path) in found.items():
            for unit, to in graph.arcs[state]:
                candidate = (score + float(frame_v[unit]), (*path, unit))
                if to not in grown or candidate[0] > grown[to][0]:
                    grown[to] = candidate
        found = grown
    return collapse(max(one for state, one in found.items() if graph.final[state])[1])


def test_sherpa_hears_words_of_the_graph_alone(tmp_path: Path) -> None:
    words = ["tea", "coffee", "milk", "water", "juice", "on", "off"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    # Not so sure of itself that sherpa's beam of 16 nats would cut off what is a word.
    student = conformer(lead_nats=2.0)
    export_student(student, UNITS, tmp_path, int8=False)
    counts = write_decoding_graph(tmp_path, [str(tmp_path / "words.txt")], tmp_path / "words.fst")
    assert counts["words"] == 7 and counts["bytes"] == (tmp_path / "words.fst").stat().st_size
    graph, _ = read_openfst((tmp_path / "words.fst").read_bytes())
    wavs = []
    for seed in range(3):
        wavs.append(tmp_path / f"{seed}.wav")
        samples = flushed(utterance(29_321, seed + 20), student.window)
        soundfile.write(wavs[-1], samples, 16_000, subtype="PCM_16")
    freely = sherpa(tmp_path, wavs)
    for wav, free, kept in zip(
        wavs, freely, sherpa(tmp_path, wavs, "ragged", graph=tmp_path / "words.fst"), strict=True
    ):
        session = StreamingSession(TorchChunkModel(student), UNITS, keep_log_probs=True)
        session.accept(soundfile.read(wav, dtype="float32")[0])
        found = [UNITS.symbols.index(token.replace(" ", "▁")) for token in kept["tokens"]]
        assert found == best_path(graph, session.log_probs_tv)
        assert kept["text"].split() and set(kept["text"].split()) <= set(words)
        assert kept["text"] != free["text"]


def test_mistakes_are_told(tmp_path: Path) -> None:
    export_student(conformer(), UNITS, tmp_path / "onnx", int8=False)
    (tmp_path / "words.txt").write_text("tea 7up")
    out = tmp_path / "words.fst"
    with pytest.raises(ConfigError, match=r"cannot be spelled: '7up'"):
        write_decoding_graph(tmp_path / "onnx", [str(tmp_path / "words.txt")], out)
    with pytest.raises(ConfigError, match=r"no such file or folder.*Without a graph any word is heard"):
        write_decoding_graph(tmp_path / "onnx", [str(tmp_path / "gone.txt")], out)
    with pytest.raises(UnitsError):
        write_decoding_graph(tmp_path, [str(tmp_path / "words.txt")], out)
    with pytest.raises(ConfigError, match="--out: a decoding graph is a file"):
        write_decoding_graph(tmp_path / "onnx", [str(tmp_path / "words.txt")], tmp_path)
    assert not out.exists()
