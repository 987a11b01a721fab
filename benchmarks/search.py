"""What a beam search finds, and what it costs: word error rate and processor time for each width of the beam.

    python -m benchmarks.search --model runs/fsdd/student_distilled --test runs/fsdd/shards/test \\
        --lexicon runs/fsdd/shards/labelled

Log-probabilities are computed once; each beam then searches all of them, with and without the lexicon. Time
is processor time of the search alone, for each second of audio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.transcribe import open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import BeamStream, GreedyStream, StreamDecoder, decode_whole
from kdasr.error_rates import error_rates
from kdasr.lexicon import Lexicon
from kdasr.shards import list_shards, read_shard

Row = tuple[str, float, float, float]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print; returns (search, WER %, CER %, ms for each second of audio) for each search."""
    parser = argparse.ArgumentParser(description="error rates and cost of beam search")
    parser.add_argument("--model", type=Path, required=True, help="a student or an exported one")
    parser.add_argument("--test", type=Path, required=True, help="labelled shards")
    parser.add_argument("--lexicon", nargs="+", help="text files or folders of labelled shards")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    options = parser.parse_args(arguments)
    recogniser = open_recogniser(options.model)
    units, frames, texts, seconds = recogniser.units, list[NDArray[np.float32]](), list[str](), 0.0
    for utterance in (one for path in list_shards(options.test) for one in read_shard(path) if one.text):
        session = recogniser.session(keep_log_probs=True, where=utterance.key)
        session.hear(utterance.samples)
        frames.append(session.log_probs_tv)
        texts.append(utterance.text or "")
        seconds += len(utterance.samples) / SAMPLE_RATE_HZ
    lexicon = Lexicon(units=units, sources=options.lexicon) if options.lexicon else None
    searches: dict[str, Callable[[], StreamDecoder]] = {"greedy": GreedyStream}
    for beam in options.beams:
        searches[f"beam {beam}"] = partial(BeamStream, beam)
        if lexicon is not None:
            searches[f"beam {beam}, lexicon"] = partial(BeamStream, beam, lexicon)
    rows = []
    for name, search in searches.items():
        heard, cpu_s = _search(search, frames)
        wer, cer = error_rates(texts, [units.decode(ids) for ids in heard])
        rows.append((name, wer, cer, 1000 * cpu_s / seconds))
        print(f"{name:20}  WER {wer:5.1f} %  CER {cer:5.1f} %  {rows[-1][3]:6.2f} ms for a second of audio")
    return rows


def _search(
    search: Callable[[], StreamDecoder], frames: Sequence[NDArray[np.float32]]
) -> tuple[list[list[int]], float]:
    began = time.process_time()
    heard = [[token.id for token in decode_whole(search(), log_probs_tv)] for log_probs_tv in frames]
    return heard, time.process_time() - began


if __name__ == "__main__":
    main()
