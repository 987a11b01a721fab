"""Development shards in, a function out that gives a model's streaming WER: the gate for int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.publish import Gate
from kdasr.evaluation import evaluate_transcriber
from kdasr.interfaces import Utterance
from kdasr.streaming import ChunkModel, StreamingSession
from kdasr.text import Units


def wer_gate(units: Units, shards: Sequence[Path]) -> Gate:
    """A function from a `ChunkModel` to its WER in percent over `shards`, decoded chunk by chunk.

    The function raises ShardError where the shards are damaged or hold no transcripts.
    """

    def wer_percent(model: ChunkModel) -> float:
        def transcribe(utterance: Utterance) -> str:
            session = StreamingSession(model, units, where=utterance.key)
            session.accept(utterance.samples)
            return session.finish()

        return evaluate_transcriber(transcribe, shards).wer

    return wer_percent
