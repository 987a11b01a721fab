"""Generated 'speech' for tests: each word is a chord of its own, so tiny models learn it in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdasr.interfaces import Utterance
from kdasr.shards import write_shards

WORDS = {"a": (400, 900), "b": (700, 2_000), "c": (1_300, 3_100)}


def chord(word: str, seconds: float = 0.2) -> NDArray[np.float32]:
    time_s = np.arange(int(16_000 * seconds)) / 16_000
    tone = sum(np.sin(2 * np.pi * hz * time_s) for hz in WORDS[word])
    return (0.1 * tone * np.hanning(len(time_s))).astype(np.float32)


def utterance(key: str, seed: int, *, words: int | None = None, with_text: bool = True) -> Utterance:
    """A few words in random order with pauses and faint noise."""
    rng = np.random.default_rng(seed)
    spoken = [str(word) for word in rng.choice(list(WORDS), words or rng.integers(2, 6))]
    pieces = [np.zeros(1_600, np.float32)]
    for word in spoken:
        pieces += [chord(word), np.zeros(int(rng.integers(800, 3_200)), np.float32)]
    samples = np.concatenate(pieces)
    samples = samples + rng.normal(0, 1e-3, len(samples)).astype(np.float32)
    text = " ".join(spoken) if with_text else None
    return Utterance(key, samples.astype(np.float32), text, speaker=f"s{seed % 3}")


def shards(
    folder: Path, count: int, *, first_seed: int = 0, per_shard: int = 20, with_text: bool = True
) -> Path:
    """A folder of shards with `count` utterances."""
    utterances = (
        utterance(f"{folder.name}-{i:04d}", first_seed + i, with_text=with_text) for i in range(count)
    )
    write_shards(utterances, folder, max_utterances=per_shard)
    return folder
