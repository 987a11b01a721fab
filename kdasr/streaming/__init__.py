"""Streaming recognition, chunk by chunk, as on a device.

models      ChunkModel, and torch students as chunk models
session     StreamingSession: takes pieces of audio, gives the text so far
words       tokens to words with times
tail        the silence that is appended to the audio
endpoint    EndpointingSession: an endless stream, cut into segments at pauses
resampler   StreamingResampler: other sample rates, piece by piece
"""

from kdasr.streaming.endpoint import EndpointingSession, EndpointRules, Segment
from kdasr.streaming.models import (
    FEATURE_LOOKAHEAD_MS,
    ChunkModel,
    TorchChunkModel,
    algorithmic_latency_ms,
    set_chunk_ms,
    silence_controls,
    trained_chunks_ms,
)
from kdasr.streaming.resampler import StreamingResampler
from kdasr.streaming.session import StreamingSession, check_samples
from kdasr.streaming.tail import TAIL_MS, hears_tail, with_tail, within_audio
from kdasr.streaming.windows import FeatureWindows, FrontEnd, SampleWindow, SampleWindows
from kdasr.streaming.words import WORD_PAUSE_S, Word, text_of, words_of

__all__ = [
    "FEATURE_LOOKAHEAD_MS",
    "TAIL_MS",
    "WORD_PAUSE_S",
    "ChunkModel",
    "EndpointRules",
    "EndpointingSession",
    "FeatureWindows",
    "FrontEnd",
    "SampleWindow",
    "SampleWindows",
    "Segment",
    "StreamingResampler",
    "StreamingSession",
    "TorchChunkModel",
    "Word",
    "algorithmic_latency_ms",
    "check_samples",
    "hears_tail",
    "set_chunk_ms",
    "silence_controls",
    "text_of",
    "trained_chunks_ms",
    "with_tail",
    "within_audio",
    "words_of",
]
