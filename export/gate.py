"""The gate for int8: a function that gives a model's streaming WER on development shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.publish import Gate, Measured
from kdasr.evaluation import evaluate_transcriber
from kdasr.interfaces import Utterance
from kdasr.streaming import ChunkModel, StreamingSession
from kdasr.text import Units


def wer_gate(units: Units, shards: Sequence[Path]) -> Gate:
    """A function from a `ChunkModel` to its WER over `shards`, decoded chunk by chunk.

    It records only the last two parts of their folders' paths, since an export may be distributed. The
    function raises ShardError if the shards are damaged or have no transcripts.
    """
    folders = tuple(dict.fromkeys(_last_parts(path.parent) for path in shards))

    def measure(model: ChunkModel) -> Measured:
        def transcribe(utterance: Utterance) -> str:
            return StreamingSession(model, units, where=utterance.key).hear(utterance.samples)

        result = evaluate_transcriber(transcribe, shards)
        return Measured(result.wer, result.errors.words, folders)

    return measure


def _last_parts(folder: Path) -> str:
    return "/".join(part for part in folder.parts[-2:] if part != folder.anchor)
