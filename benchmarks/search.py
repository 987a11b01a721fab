"""Accuracy and cost of beam search: error rates and processor time for each beam width.

    python -m benchmarks.search --model runs/fsdd/student_distilled --test runs/fsdd/shards/test \\
        --lexicon runs/fsdd/shards/labelled

Log-probabilities are computed once and then searched with each beam width, with and without the lexicon.
Time is processor time per second of audio, for the search alone. With --sherpa and the folder of an ONNX
export, stock sherpa-onnx decodes the same audio, greedily and with the decoding graph of the lexicon; its
time includes features and model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.decoding_graph import write_decoding_graph
from export.runtime import FLOAT_FILE
from export.transcribe import open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import BeamStream, GreedyStream, StreamDecoder, decode_whole
from kdasr.error_rates import count_errors
from kdasr.lexicon import Lexicon
from kdasr.shards import list_shards, read_shard

Row = tuple[str, float, float, float]
Samples = NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print; returns (search, WER %, CER %, ms for each second of audio) for each search."""
    parser = argparse.ArgumentParser(description="measure the error rates and cost of beam search")
    parser.add_argument("--model", type=Path, required=True, help="a student or an export")
    parser.add_argument("--test", type=Path, required=True, help="labelled shards")
    parser.add_argument("--lexicon", nargs="+", help="text files or folders of labelled shards")
    parser.add_argument(
        "--other-words", type=float, help="cost in nats of each unit of a word that is not in the lexicon"
    )
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument(
        "--sherpa", action="store_true", help="also measure sherpa-onnx (needs an ONNX export)"
    )
    options = parser.parse_args(arguments)
    recogniser = open_recogniser(options.model)
    units, frames, texts, audio = recogniser.units, list[NDArray[np.float32]](), list[str](), list[Samples]()
    for utterance in (one for path in list_shards(options.test) for one in read_shard(path) if one.text):
        session = recogniser.session(keep_log_probs=True, where=utterance.key)
        session.hear(utterance.samples)
        frames.append(session.log_probs_tv)
        texts.append(utterance.text or "")
        audio.append(utterance.samples)
    seconds = sum(map(len, audio)) / SAMPLE_RATE_HZ
    lexicon = None
    if options.lexicon:
        lexicon = Lexicon(units=units, sources=options.lexicon, other_word_nats=options.other_words)
    searches: dict[str, Callable[[], StreamDecoder]] = {"greedy": GreedyStream}
    for beam in options.beams:
        searches[f"beam {beam}"] = partial(BeamStream, beam)
        if lexicon is not None:
            searches[f"beam {beam}, lexicon"] = partial(BeamStream, beam, lexicon)
    rows = []
    for name, search in searches.items():
        began = time.process_time()
        found = [[token.id for token in decode_whole(search(), log_probs_tv)] for log_probs_tv in frames]
        rows.append(_row(name, texts, [units.decode(ids) for ids in found], began, seconds))
    for name, graph in _graphs(options) if options.sherpa else ():
        began = time.process_time()
        rows.append(_row(name, texts, _by_sherpa(options.model, graph, audio), began, seconds))
    return rows


def _row(name: str, texts: Sequence[str], heard: Sequence[str], began: float, seconds: float) -> Row:
    cpu_s = time.process_time() - began
    errors = count_errors(texts, heard)
    row = (name, errors.wer, errors.cer, 1000 * cpu_s / seconds)
    rates = f"WER {errors.wer:5.1f} %  CER {errors.cer:5.1f} %"
    print(f"{name:20}  {rates}  {row[3]:6.2f} ms per second of audio")
    return row


def _graphs(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    yield "sherpa-onnx", ""
    if options.lexicon:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "words.fst"
            write_decoding_graph(options.model, options.lexicon, graph, options.other_words)
            yield "sherpa-onnx, lexicon", str(graph)


def _by_sherpa(model: Path, graph: str, audio: Sequence[Samples]) -> list[str]:
    """The texts recognised by stock sherpa-onnx."""
    import sherpa_onnx

    recogniser = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(model / "tokens.txt"), model=str(model / FLOAT_FILE), ctc_graph=graph, num_threads=1
    )
    heard = []
    for samples in audio:
        stream = recogniser.create_stream()
        # A second of silence, so that all windows are decoded.
        stream.accept_waveform(SAMPLE_RATE_HZ, np.pad(samples, (0, SAMPLE_RATE_HZ)))
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)
        heard.append(" ".join(recogniser.get_result(stream).split()))
    return heard


if __name__ == "__main__":
    main()
