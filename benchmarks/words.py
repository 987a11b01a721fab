"""Quality of labels restricted to a lexicon for long audio, where teachers may be unsure of unit times.

    python -m benchmarks.words --teacher runs/mini/teacher --audio runs/mini/shards/test \\
        --words runs/mini/shards/labelled

WER of transcribed audio as cut, and joined in groups of ten utterances, for the teacher's best path; the
best sentence of words in the lexicon; the likeliest class of each frame given that sentence (from the
forward-backward algorithm alone); and the best path of the labels from `kdasr.labelling.Words`, which
`best_path_ctc` students learn. Utterances without such a sentence are counted and left out of all four.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.live import joined
from kdasr.alignment import ctc_occupancy
from kdasr.decoding import collapse, prefix_beam
from kdasr.devices import one_torch_thread
from kdasr.error_rates import count_errors
from kdasr.features import log_mel
from kdasr.interfaces import Utterance
from kdasr.labelling import Words
from kdasr.lexicon import Lexicon
from kdasr.models import LoadedModel, load_model
from kdasr.shards import list_shards, read_shard

_PAUSE_S = 0.2


def read_ways(log_probs_tv: Tensor, words: Words) -> dict[str, list[int]] | None:
    """The units found in a teacher's (T, V) log-probs in each way; None if no sentence is found."""
    found = prefix_beam(log_probs_tv, words.beam, 1, words.lexicon)
    labels_tv = words(log_probs_tv)
    if not found or labels_tv is None:
        return None
    ids = torch.tensor([found[0].ids], dtype=torch.long)
    lengths = torch.tensor([len(log_probs_tv)]), torch.tensor([ids.shape[1]])
    _, given_btv = ctc_occupancy(log_probs_tv[None], ids, *lengths)
    return {
        "teacher": collapse(log_probs_tv.argmax(1).tolist()),
        "sentence": list(found[0].ids),
        "frames given the sentence": collapse(given_btv[0].argmax(1).tolist()),
        "labels": collapse(labels_tv.argmax(1).tolist()),
    }


def measure(
    loaded: LoadedModel, words: Words, utterances: Sequence[Utterance]
) -> tuple[dict[str, float], int]:
    """WER in % of each way, and the number of utterances without a sentence."""
    read: dict[str, list[str]] = {}
    said: list[str] = []
    for one in utterances:
        features_btf = log_mel(one.samples)[None]
        with torch.inference_mode():
            log_probs_btv, frames_b = loaded.model.offline(
                features_btf, torch.tensor([features_btf.shape[1]])
            )
        ways = read_ways(log_probs_btv[0, : int(frames_b[0])].clone(), words)
        if ways is None:
            continue
        said.append(one.text or "")
        for name, ids in ways.items():
            read.setdefault(name, []).append(loaded.units.decode(ids))
    wers = {name: count_errors(said, texts).wer for name, texts in read.items()}
    return wers, len(utterances) - len(said)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table; returns its rows."""
    parser = argparse.ArgumentParser(description="measure word errors of labels restricted to known words")
    parser.add_argument("--teacher", type=Path, required=True, help="model folder of the teacher")
    parser.add_argument("--audio", type=Path, required=True, help="transcribed shards")
    parser.add_argument("--words", required=True, help="shards whose transcripts contain the known words")
    parser.add_argument("--utterances", type=int, help="use only this many of the first utterances")
    options = parser.parse_args(arguments)
    loaded = load_model(options.teacher)
    words = Words(Lexicon(units=loaded.units, sources=[options.words]))
    spoken = [one for path in list_shards(options.audio) for one in read_shard(path) if one.text]
    spoken = spoken[: options.utterances]
    rows: list[dict[str, Any]] = []
    with one_torch_thread():
        for name, audio in (("as cut", spoken), ("ten in a row", joined(spoken, _PAUSE_S))):
            wers, without = measure(loaded, words, audio)
            if not rows:
                print(
                    "| WER % |",
                    " | ".join(wers),
                    "| without a sentence |\n|---" + "|---" * (len(wers) + 1) + "|",
                )
            cells = [*(f"{wer:.1f}" for wer in wers.values()), f"{without} of {len(audio)}"]
            print(f"| {name} |", " | ".join(cells), "|", flush=True)
            rows.append({"audio": name, "wer": wers, "without": without})
    return rows


if __name__ == "__main__":
    main()
