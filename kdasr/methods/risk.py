"""Sequence training after distillation: minimise expected word errors instead of maximising likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from kdasr.errors import ConfigError
from kdasr.interfaces import BLANK_ID, Batch, ModelOutput, frames_inside
from kdasr.losses import collapsed, without_times
from kdasr.targets import at_least_float32, best_units, targets_of


@without_times
def expected_word_errors(
    output: ModelOutput,
    batch: Batch,
    *,
    samples: int = 8,
    window_frames: int = 12,
    teacher: str | None = None,
) -> Tensor:
    """The expected word errors under the model's own posteriors (minimum word error rate training).

        L = E[W(a)],  dL = E[sum over windows w of (W(a) - b_w) d log p(a_w)],  a ~ p(. | model)

    Graves & Jaitly 2014, section 4, and Shannon 2017 (arXiv 1706.02776), who sample paths where others
    search for the n best. CTC's frames are independent, so sampling needs no search, and each window of
    frames can be resampled while all others stay fixed: it alone causes the change in errors. With whole
    paths, errors elsewhere in a long path would drown its effect. The baseline b_w is the mean W of the
    window's other samples.

    Use it on a trained model (`start`), together with CTC: it teaches nothing about a word that no path
    contains. arXiv 1904.01624 ends with sequence training, on transcribed audio alone.

    Args:
        output: of the student.
        batch: with transcripts; without them, W counts errors against the teacher's best path.
        samples: how often each window is sampled.
        window_frames: output frames, about as many as a word has.

    Returns:
        L over the batch, in words per output frame; NaN if the model's output is. It waits for a GPU, since
        words are counted on the CPU.

    Raises:
        ConfigError: numbers out of range, or a batch without `decode`.
        MissingLabelsError: there are neither transcripts nor soft labels.
    """
    if samples < 2 or window_frames < 1:
        raise ConfigError(
            "too few samples, or an empty window",
            where="expected_word_errors",
            expected="samples >= 2, window_frames >= 1",
            got=f"samples {samples}, window_frames {window_frames}",
        )
    if batch.decode is None:
        raise ConfigError(
            "word errors can be counted only in training, where a batch can decode its units",
            where="expected_word_errors",
            expected="a batch with `decode`",
            got=None,
        )
    decode = batch.decode
    said = [decode(ids).split() for ids in _references(batch, teacher)]
    log_probs_btv = at_least_float32(output.log_probs_btv)
    paths_sbt = _drawn_paths(log_probs_btv.detach(), output.lengths_b, samples)
    frame_t = torch.arange(paths_sbt.shape[2], device=paths_sbt.device)
    window_t = (frame_t + torch.randint(window_frames, ())) // window_frames
    window_w111 = torch.arange(int(window_t[-1]) + 1, device=window_t.device)[:, None, None, None]
    mixed_wsbt = torch.where(window_t == window_w111, paths_sbt, paths_sbt[:1])
    errors_wsb = _errors_of_paths(mixed_wsbt.flatten(0, 2), said, decode).view(mixed_wsbt.shape[:3])
    blame_wsb = (errors_wsb - errors_wsb.mean(1, keepdim=True)) / (samples - 1)
    blame_sbt = blame_wsb.to(log_probs_btv)[window_t].permute(1, 2, 0)
    log_probs_sbt = log_probs_btv.gather(2, paths_sbt.permute(1, 2, 0)).permute(2, 0, 1)
    inside_bt = frames_inside(output.lengths_b, len(frame_t))
    blamed = torch.where(inside_bt, log_probs_sbt * blame_sbt, 0.0).sum()
    # The value is the mean of the errors, the gradient that of `blamed`.
    return (blamed - blamed.detach() + float(errors_wsb.mean((0, 1)).sum())) / output.lengths_b.sum()


def _drawn_paths(log_probs_btv: Tensor, lengths_b: Tensor, samples: int) -> Tensor:
    """(samples, B, T) classes sampled in each frame with torch's global generator; blank in padding."""
    inside_bt1 = frames_inside(lengths_b, log_probs_btv.shape[1])[:, :, None]
    probs_btv = log_probs_btv.exp()
    # torch cannot sample from non-finite values; detecting divergence is left to the training loop.
    may_draw_bt1 = inside_bt1 & probs_btv.isfinite().all(2, keepdim=True)
    probs_nv = torch.where(may_draw_bt1, probs_btv, 1.0).flatten(0, 1)
    paths_bts = torch.multinomial(probs_nv, samples, replacement=True).unflatten(0, probs_btv.shape[:2])
    return paths_bts.masked_fill(~inside_bt1, BLANK_ID).permute(2, 0, 1)


def _errors_of_paths(
    paths_nt: Tensor, said: Sequence[Sequence[str]], decode: Callable[[Sequence[int]], str]
) -> Tensor:
    """(N,) word errors of the paths, of which the n-th is of utterance n % len(said)."""
    ids = _without_padding(*collapsed(paths_nt))
    found = [(n % len(said), tuple(one)) for n, one in enumerate(ids)]
    # Cached, since most samples give the same text.
    errors = {
        (row, one): Levenshtein.distance(said[row], decode(one).split()) for row, one in dict.fromkeys(found)
    }
    return torch.tensor([errors[one] for one in found], dtype=torch.float64)


def _references(batch: Batch, teacher: str | None) -> list[list[int]]:
    if batch.tokens_bu is not None and batch.token_lengths_b is not None:
        return _without_padding(batch.tokens_bu, batch.token_lengths_b)
    return _without_padding(*collapsed(best_units(targets_of(batch, teacher))))


def _without_padding(tokens_nu: Tensor, counts_n: Tensor) -> list[list[int]]:
    rows = zip(tokens_nu.tolist(), counts_n.tolist(), strict=True)
    return [tokens[:count] for tokens, count in rows]
