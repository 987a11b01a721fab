"""How late a streaming student emits text: delays relative to a forced alignment of labelled utterances.

The alignment is by a full-context model with the same units, usually the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.sources import pieces_of
from export.transcribe import Recogniser, open_recogniser
from kdasr.alignment import align
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import Token
from kdasr.error_rates import count_errors
from kdasr.errors import ModelError, UnitsError
from kdasr.features import FRAME_SHIFT_MS, log_mel
from kdasr.interfaces import Utterance
from kdasr.spikes import spike_offsets
from kdasr.streaming import StreamingSession

_PIECE_MS = 10


@dataclass(frozen=True)
class Delays:
    """How late a student emits text, in milliseconds of audio (excluding computation).

    Attributes:
        utterances: how many were measured.
        wer_offline, wer_streaming: in percent; they should be equal.
        texts_differ: utterances whose streamed text differs from the offline text.
        emission_p50_ms, emission_p90_ms: spike of a unit minus its aligned start; None without an
            aligner. Spikes in the tail count as in the last frame of the audio.
        first_token_p50_ms, first_token_p90_ms: from the aligned start of the first unit to the end of
            the audio that had to arrive before any text was shown, all of it if text appeared only at
            the end; None without an aligner.
        not_aligned: utterances whose transcript does not fit into the aligner's frames.
        shown_at_end: utterances in the first-token delay whose text appeared only at the end; if the audio
            continued, it would appear later still.
        nothing_said: utterances with a transcript for which the student emitted nothing, so without
            delays; 0 without an aligner.
    """

    utterances: int
    wer_offline: float
    wer_streaming: float
    texts_differ: int
    emission_p50_ms: float | None
    emission_p90_ms: float | None
    first_token_p50_ms: float | None
    first_token_p90_ms: float | None
    not_aligned: int
    shown_at_end: int
    nothing_said: int


def measure_delays(
    recogniser: Recogniser, utterances: Sequence[Utterance], aligner: Recogniser | None = None
) -> Delays:
    """Streams every utterance in pieces of 10 ms and compares the times of its units with the alignment
    by `aligner`, a torch model with the same units."""
    frame_ms = float(FRAME_SHIFT_MS * recogniser.streaming_model().subsampling)
    streamed, offline, emission, first = [], [], [], []
    not_aligned = shown_at_end = nothing_said = 0
    for utterance in utterances:
        session, shown_ms = _stream(recogniser, utterance)
        streamed.append(session.text)
        offline.append(recogniser.transcribe(utterance.samples, utterance.key))
        if aligner is None:
            continue
        if not session.tokens:
            nothing_said += bool(utterance.text)
            continue
        try:
            reference = _aligned(aligner, utterance)
        except UnitsError:
            not_aligned += 1
            continue
        emission += spike_offsets(reference, session.tokens, frame_ms)
        if reference:
            whole_ms = 1000 * len(utterance.samples) / SAMPLE_RATE_HZ
            first.append((whole_ms if shown_ms is None else shown_ms) - reference[0].frame * frame_ms)
            shown_at_end += shown_ms is None
    references = [utterance.text or "" for utterance in utterances]
    return Delays(
        len(utterances),
        count_errors(references, offline).wer,
        count_errors(references, streamed).wer,
        sum(one != two for one, two in zip(streamed, offline, strict=True)),
        *_percentiles(emission),
        *_percentiles(first),
        not_aligned,
        shown_at_end,
        nothing_said,
    )


def _stream(recogniser: Recogniser, utterance: Utterance) -> tuple[StreamingSession, float | None]:
    """The finished session, and the ms of audio that had arrived when text first appeared; None if there
    was no text before the end."""
    session = recogniser.session(where=utterance.key)
    arrived, shown_ms = 0, None
    for piece in pieces_of(utterance.samples, _PIECE_MS):
        arrived += len(piece)
        if session.accept(piece) and shown_ms is None:
            shown_ms = 1000 * arrived / SAMPLE_RATE_HZ
    session.finish()
    return session, shown_ms


def open_aligner(path: Path, recogniser: Recogniser) -> Recogniser:
    """The model at `path`, checked to fit `recogniser`.

    Raises:
        ModelError: it has other units or another output frame rate, or is not a torch model.
    """
    aligner = open_recogniser(path)
    frames = recogniser.streaming_model().subsampling
    if aligner.offline_model is None:
        got = "an exported model"
    elif aligner.units.hash != recogniser.units.hash:
        got = "different units"
    elif aligner.offline_model.subsampling != frames:
        ms = FRAME_SHIFT_MS * aligner.offline_model.subsampling
        got = f"output frames of {ms} ms instead of {FRAME_SHIFT_MS * frames} ms"
    else:
        return aligner
    raise ModelError(
        "this model cannot align transcripts for the student",
        where=path,
        expected="a torch model folder with the same units and output frames",
        got=got,
        fix="Give the teacher's folder.",
    )


@torch.inference_mode()
def _aligned(aligner: Recogniser, utterance: Utterance) -> list[Token]:
    """The units of the transcript, in the frames that the aligner gives them."""
    assert aligner.offline_model is not None
    features_btf = log_mel(utterance.samples)[None]
    log_probs_btv, frames_b = aligner.offline_model.offline(
        features_btf, torch.tensor([features_btf.shape[1]])
    )
    ids = aligner.units.encode(utterance.text or "")
    return align(log_probs_btv[0, : int(frames_b[0])], ids, where=utterance.key)


def _percentiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    p50, p90 = np.percentile(values, (50, 90))
    return float(p50), float(p90)
