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

from export.decoding_graph import (
    EPSILON,
    Arc,
    DecodingGraph,
    build_graph,
    openfst_bytes,
    write_decoding_graph,
)
from export.publish import export_student
from kdasr.decoding import collapse
from kdasr.errors import ConfigError, UnitsError
from kdasr.lexicon import Lexicon
from kdasr.streaming import StreamingSession, TorchChunkModel
from kdasr.symbols import TableUnits
from kdasr.text import train_sentencepiece
from tests.export.small_models import UNITS, conformer, recurrent
from tests.export.test_sherpa import flushed, sherpa, utterance

LETTERS = TableUnits(["<blk>", "▁", "a", "b"], None, False)
PIECES = TableUnits(["<blk>", "▁a", "b", "▁ba", "▁"], None, False)


def cost(graph: DecodingGraph, path: tuple[int, ...]) -> float:
    """Of the cheapest way through a graph on which these frames are; infinite if there is none."""
    costs = {0: 0.0}
    for unit in path:
        grown: dict[int, float] = {}
        for state, before in costs.items():
            for arc in graph.arcs[state]:
                if arc.unit == unit:
                    grown[arc.state] = min(grown.get(arc.state, np.inf), before + arc.nats)
        for state, before in list(grown.items()):
            for arc in graph.arcs[state]:
                if arc.unit == EPSILON:
                    grown[arc.state] = min(grown.get(arc.state, np.inf), before + arc.nats)
        costs = grown
    return min((nats for state, nats in costs.items() if graph.final[state]), default=np.inf)


def searched(lexicon: Lexicon, ids: tuple[int, ...]) -> float:
    """What a text costs unit by unit, as a search asks; after a pause."""
    steps = [lexicon.next_costs(ids[:end], after_pause=True)[unit] for end, unit in enumerate(ids)]
    return float(sum(steps) + lexicon.end_cost(ids))


def by_words(lexicon: Lexicon, units: TableUnits, ids: tuple[int, ...]) -> float:
    """What it costs by its words: those of the lexicon nothing, others their units."""
    nats, words = 0.0, list[list[int]]()
    for unit in ids:
        if not words or units.symbols[unit].startswith("▁"):
            words.append([])
        words[-1].append(unit)
    for word in words:
        text = units.decode(word)
        marked = sum(units.symbols[unit] == "▁" for unit in word)
        nats += (
            (lexicon.other_word_nats or np.inf) * (len(word) - marked) if text not in lexicon.words else 0.0
        )
    return nats


@pytest.mark.parametrize("other_word_nats", [None, 1.0])
@pytest.mark.parametrize(
    ("units", "words"), [(LETTERS, ["ab", "bb", "a"]), (PIECES, ["a", "ab", "ba", "bb"])]
)
def test_a_path_of_frames_costs_what_the_words_of_its_text_do(
    units: TableUnits, words: list[str], other_word_nats: float | None
) -> None:
    lexicon = Lexicon(units=units, words=words, other_word_nats=other_word_nats)
    graph = build_graph(lexicon)
    seen = set()
    for frames in range(7):
        for path in itertools.product(range(len(units.symbols)), repeat=frames):
            ids = tuple(collapse(path))
            found = cost(graph, path)
            assert found == searched(lexicon, ids), path
            if found < np.inf and (not ids or units.symbols[ids[0]] != "▁"):
                assert found == by_words(lexicon, units, ids), path
            seen.add(found)
    assert seen >= ({0.0, np.inf} if other_word_nats is None else {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.inf})
    expected = {"": 0.0, "a ab": 0.0, "b": other_word_nats or np.inf}
    assert {text: searched(lexicon, tuple(units.encode(text))) for text in expected} == expected


def test_words_of_pieces_share_their_beginnings() -> None:
    """Thousands of words would have arcs to the beginnings of all others: gigabytes."""
    words = ["".join(word) for word in itertools.product("abcde", repeat=4)]
    units = train_sentencepiece([" ".join(words)], 40)
    graph = build_graph(Lexicon(units=units, words=words))
    assert sum(map(len, graph.arcs)) < 5 * len(graph.arcs)
    assert openfst_bytes(graph) == openfst_bytes(build_graph(Lexicon(units=units, words=words[::-1])))


def read_openfst(data: bytes) -> DecodingGraph:
    """A graph of arcs without output labels."""
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
    arcs, final, outputs = [], [], set()
    for _ in range(states):
        weight, count = take("fq")
        assert weight in (0.0, np.inf)
        final.append(weight == 0.0)
        leaving = [take("iifi") for _ in range(count)]
        arcs.append([Arc(label - 1, to, nats) for label, _, nats, to in leaving])
        outputs |= {output for _, output, _, _ in leaving}
    assert place == len(data) and sum(map(len, arcs)) == num_arcs
    assert outputs == {0}
    return DecodingGraph(arcs, final)


@pytest.mark.parametrize(("units", "words"), [(LETTERS, ["ab"]), (PIECES, ["a", "ab"])])
def test_the_file_holds_the_graph(units: TableUnits, words: list[str]) -> None:
    graph = build_graph(Lexicon(units=units, words=words, other_word_nats=0.5))
    assert read_openfst(openfst_bytes(graph)) == graph
    assert {arc.nats for arcs in graph.arcs for arc in arcs} == {0.0, 0.5}
    assert any(arc.unit == EPSILON for arcs in graph.arcs for arc in arcs) == (units is PIECES)


def best_path(graph: DecodingGraph, log_probs_tv: NDArray[np.float32]) -> list[int]:
    """The units of the likeliest path that may end where the frames do."""
    found: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for frame_v in log_probs_tv:
        grown: dict[int, tuple[float, tuple[int, ...]]] = {}
        for state, (score, path) in found.items():
            for unit, to, nats in graph.arcs[state]:
                candidate = (score - nats + float(frame_v[unit]), (*path, unit))
                if to not in grown or candidate[0] > grown[to][0]:
                    grown[to] = candidate
        found = grown
    return collapse(max(one for state, one in found.items() if graph.final[state])[1])


@pytest.mark.slow
def test_sherpa_hears_words_of_the_graph_alone_or_others_at_their_cost(tmp_path: Path) -> None:
    words = ["tea", "coffee", "milk", "water", "juice", "on", "off"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    # Not so sure of itself that sherpa's beam of 16 nats would cut off what is a word.
    student = conformer(lead_nats=2.0)
    export_student(student, UNITS, tmp_path, int8=False)
    wavs = []
    for seed in range(3):
        wavs.append(tmp_path / f"{seed}.wav")
        samples = flushed(utterance(29_321, seed + 20), student.window)
        soundfile.write(wavs[-1], samples, 16_000, subtype="PCM_16")
    heard = {None: [" ".join(one["text"].split()) for one in sherpa(tmp_path, wavs)]}
    for nats in (np.inf, 4.0, 0.0):
        given = [str(tmp_path / "words.txt")], tmp_path / "words.fst", nats if nats < np.inf else None
        counts = write_decoding_graph(tmp_path / "model.onnx", *given)
        assert counts["words"] == 7 and counts["bytes"] == (tmp_path / "words.fst").stat().st_size
        graph = read_openfst((tmp_path / "words.fst").read_bytes())
        results = sherpa(tmp_path, wavs, "ragged", graph=tmp_path / "words.fst")
        for wav, result in zip(wavs, results, strict=True):
            session = StreamingSession(TorchChunkModel(student), UNITS, keep_log_probs=True)
            session.accept(soundfile.read(wav, dtype="float32")[0])
            found = [UNITS.symbols.index(token.replace(" ", "▁")) for token in result["tokens"]]
            assert found == best_path(graph, session.log_probs_tv)
        heard[nats] = [" ".join(one["text"].split()) for one in results]
    listed = {
        nats: sum(word in words for text in texts for word in text.split()) for nats, texts in heard.items()
    }
    others = {nats: sum(map(len, map(str.split, texts))) - listed[nats] for nats, texts in heard.items()}
    assert others[np.inf] == 0 < others[4.0] and listed[np.inf] > listed[4.0] >= 1
    # Where they cost nothing, only two marks in a row and words that nobody began are left out.
    assert listed[0.0] == listed[None] == 0


def test_the_graph_of_a_model_is_written_and_counted(tmp_path: Path) -> None:
    UNITS.save(tmp_path)
    (tmp_path / "words.txt").write_text("tea eat\n")
    counts = write_decoding_graph(tmp_path, [str(tmp_path / "words.txt")], tmp_path / "words.fst", 2.0)
    data = (tmp_path / "words.fst").read_bytes()
    graph = build_graph(Lexicon(units=UNITS, words=["tea", "eat"], other_word_nats=2.0))
    assert read_openfst(data) == graph
    arcs = sum(len(leaving) for leaving in graph.arcs)
    assert counts == {"words": 2, "states": len(graph.arcs), "arcs": arcs, "bytes": len(data)}


def test_mistakes_are_told(tmp_path: Path) -> None:
    export_student(recurrent(), UNITS, tmp_path / "onnx", int8=False)
    (tmp_path / "words.txt").write_text("tea 7up")
    out = tmp_path / "words.fst"
    with pytest.raises(ConfigError, match=r"the lexicon's word '7up' cannot be spelled"):
        write_decoding_graph(tmp_path / "onnx", [str(tmp_path / "words.txt")], out)
    with pytest.raises(
        ConfigError,
        match=r"file or folder with the words .*does not exist.*Without a graph, any word can be recognised",
    ):
        write_decoding_graph(tmp_path / "onnx", [str(tmp_path / "gone.txt")], out)
    with pytest.raises(UnitsError):
        write_decoding_graph(tmp_path, [str(tmp_path / "words.txt")], out)
    with pytest.raises(
        ConfigError,
        match="cost of other words is out of range.*expected a finite number of nats, 0 or more.*got -1",
    ):
        write_decoding_graph(tmp_path / "onnx", [str(tmp_path / "words.txt")], out, -1)
    with pytest.raises(ConfigError, match="--out: a decoding graph is a file"):
        write_decoding_graph(tmp_path / "onnx", [str(tmp_path / "words.txt")], tmp_path)
    assert not out.exists()
