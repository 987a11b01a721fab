"""Fewer words misheard instead of likelier transcripts: the sequence training that follows distillation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import jiwer
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdasr.errors import ConfigError
from kdasr.interfaces import BLANK_ID, Batch, ModelOutput, frames_inside
from kdasr.losses import collapsed, transcript_nats, without_times
from kdasr.targets import at_least_float32, best_units, targets_of
from kdasr.text import Units, load_units


@without_times
def expected_word_errors(
    output: ModelOutput,
    batch: Batch,
    *,
    units: str,
    samples: int = 8,
    sharpness: float = 1.0,
    teacher: str | None = None,
) -> Tensor:
    """The word errors that a model expects of itself (minimum word error rate training).

        L = sum over h in H of p(h) W(h),  p(h) = p(h | model) / sum over H of p(. | model)

    Prabhavalkar et al. 2018 (arXiv 1712.01818, section 3.2.2), with CTC's probability of a whole transcript.
    Subtracting the mean of W, as they do, changes no gradient. H holds the model's best path and what
    `samples` paths say that are drawn from it, each transcript once: the frames of CTC are independent, so
    that drawing needs no search (Graves & Jaitly 2014, section 4, who weigh all paths alike).

    It is for a trained model (`start`), beside CTC: where no path says a word, nothing here teaches it.
    arXiv 1904.01624 ends with sequence training, on transcribed audio alone.

    Args:
        output: of the student.
        batch: with transcripts; where there are none, W counts errors against the teacher's best path.
        units: folder of a model, or of labels, with the units that words are made of: that of `start`.
        samples: paths for each utterance; memory and time of the loss grow with them.
        sharpness: power of the probabilities of a frame before it is drawn from; below 1 the transcripts
            of H differ more.

    Returns:
        L over the batch, in words for each output frame. A GPU is waited for: words are counted on the CPU.

    Raises:
        ConfigError: numbers out of range, or units that are not the model's.
        UnitsError: there are no units in the folder.
        MissingLabelsError: there are neither transcripts nor soft labels.
    """
    if samples < 1 or sharpness <= 0:
        raise ConfigError(
            "no transcripts to weigh",
            where="expected_word_errors",
            expected="samples >= 1, sharpness > 0",
            got=f"samples {samples}, sharpness {sharpness}",
        )
    words = _units_in(units)
    if words.vocab_size != output.log_probs_btv.shape[2]:
        raise ConfigError(
            "the units are those of another model",
            where="expected_word_errors",
            expected=f"{output.log_probs_btv.shape[2]} units",
            got=f"{words.vocab_size} in {units}",
        )
    said = [words.decode(ids) for ids in _references(batch, teacher)]
    tokens_hu, counts_h, row_h = drawn_hypotheses(output, samples, sharpness)
    heard = [words.decode(ids) for ids in _without_padding(tokens_hu, counts_h)]
    errors = _word_errors([said[row] for row in row_h.tolist()], heard)
    errors_h = torch.tensor(errors, device=row_h.device)
    nats_h = transcript_nats(output, tokens_hu, counts_h, row_h)
    return (_shares(-nats_h, row_h, len(said)) * errors_h).sum() / output.lengths_b.sum()


def drawn_hypotheses(
    output: ModelOutput, samples: int, sharpness: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(H, U) transcripts of a model, its best path's and those of paths drawn from it, from torch's global
    generator; (H,) how many units each has, and (H,) its utterance. None comes twice."""
    log_probs_btv = at_least_float32(output.log_probs_btv.detach())
    frames = log_probs_btv.shape[1]
    probs_nv = log_probs_btv.mul(sharpness).softmax(2).flatten(0, 1)
    drawn_bts = torch.multinomial(probs_nv, samples, replacement=True).unflatten(0, (-1, frames))
    paths_bts = torch.cat((log_probs_btv.argmax(2, keepdim=True), drawn_bts), 2)
    paths_bts = paths_bts.masked_fill(~frames_inside(output.lengths_b, frames)[:, :, None], BLANK_ID)
    tokens_pu, counts_p = collapsed(paths_bts.transpose(1, 2).flatten(0, 1))
    said = _without_padding(tokens_pu, counts_p)
    found = dict.fromkeys((path // (samples + 1), *ids) for path, ids in enumerate(said))
    device = log_probs_btv.device
    tokens = [torch.tensor(ids, dtype=torch.int64) for _, *ids in found]
    row_h = torch.tensor([row for row, *_ in found], device=device)
    counts_h = torch.tensor([len(ids) for ids in tokens], device=device)
    # One column at least: all may be silence.
    tokens_hu = pad_sequence([*tokens, torch.zeros(1, dtype=torch.int64)], batch_first=True)[:-1]
    return tokens_hu.to(device), counts_h, row_h


@lru_cache(maxsize=4)
def _units_in(folder: str) -> Units:
    return load_units(Path(folder))


def _references(batch: Batch, teacher: str | None) -> list[list[int]]:
    if batch.tokens_bu is not None and batch.token_lengths_b is not None:
        return _without_padding(batch.tokens_bu, batch.token_lengths_b)
    return _without_padding(*collapsed(best_units(targets_of(batch, teacher))))


def _without_padding(tokens_nu: Tensor, counts_n: Tensor) -> list[list[int]]:
    rows = zip(tokens_nu.tolist(), counts_n.tolist(), strict=True)
    return [tokens[:count] for tokens, count in rows]


def _word_errors(references: Sequence[str], heard: Sequence[str]) -> list[int]:
    """Substitutions, deletions and insertions of each pair."""
    pairs = jiwer.process_words(list(references), list(heard)).alignments
    return [
        sum(
            max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in parts
            if part.type != "equal"
        )
        for parts in pairs
    ]


def _shares(log_weight_h: Tensor, row_h: Tensor, rows: int) -> Tensor:
    """(H,) the share that each has of the weight of its row."""
    top_r = log_weight_h.new_full((rows,), -torch.inf).scatter_reduce(0, row_h, log_weight_h.detach(), "amax")
    weight_h = (log_weight_h - top_r[row_h]).exp()
    return weight_h / weight_h.new_zeros(rows).scatter_add(0, row_h, weight_h)[row_h]
