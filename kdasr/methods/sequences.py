"""CTC against the teacher's n best transcripts, or sampled ones."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from kdasr.decoding import Hypothesis, check_nbest, prefix_beam
from kdasr.errors import ConfigError
from kdasr.interfaces import BLANK_ID, Batch, ModelOutput, SoftLabelBatch, frames_inside
from kdasr.losses import collapsed, ctc, of_transcripts, transcript_nats
from kdasr.targets import at_least_float32, spikes_of, targets_of

_CACHED_UTTERANCES = 100_000


@of_transcripts
def nbest_ctc(
    output: ModelOutput,
    batch: Batch,
    *,
    nbest: int = 4,
    beam: int = 8,
    scale: float = 1.0,
    teacher: str | None = None,
) -> Tensor:
    """CTC against the teacher's n best transcripts, weighted by their probability under the teacher.

        L = - sum over h of w_h log p(h | student),  w_h = p(h | teacher)^scale / sum over the n best

    Sequence-level distillation over an n-best list (Kim & Rush 2016, section 3.2; for CTC acoustic
    models Takashima, Li & Kawai 2018). With one hypothesis it differs from
    `kdasr.losses.best_path_ctc` in that the search sums over alignments. Each utterance's n-best list is
    cached; classes that were not kept never occur in hypotheses.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`, whose outputs seldom repeat.
        nbest: transcripts for each utterance.
        beam: prefixes kept by the search.
        scale: below 1 the weights are more equal; at 0 they are equal.

    Returns:
        L over the batch, in nats per output frame.

    Raises:
        ConfigError: numbers out of range.
    """
    check_nbest(nbest, beam, scale, where="nbest_ctc")
    lists = nbest_lists(targets_of(batch, teacher), nbest, beam)
    device = output.log_probs_btv.device
    rows = torch.tensor([row for row, found in enumerate(lists) for _ in found], device=device)
    tokens = [torch.tensor(one.ids, dtype=torch.int64, device=device) for found in lists for one in found]
    weights = [torch.tensor([one.log_prob for one in found]).mul(scale).softmax(0) for found in lists]
    counts = torch.tensor([len(ids) for ids in tokens], device=device)
    # At least one column, since all transcripts may be empty.
    tokens_hu = functional.pad(pad_sequence(tokens, batch_first=True), (0, int(not counts.any())))
    loss_h = transcript_nats(output, tokens_hu, counts, rows)
    return (loss_h * torch.cat(weights).to(loss_h)).sum() / output.lengths_b.sum()


@of_transcripts
def sampled_ctc(
    output: ModelOutput,
    batch: Batch,
    *,
    sharpness: float = 1.0,
    teacher: str | None = None,
) -> Tensor:
    """CTC against a transcript sampled from the teacher's posteriors, anew each time.

        L = - log p(h | student),  h ~ the teacher

    Its expectation is the cross-entropy of whole transcripts: sequence-level distillation without an
    n-best list or a search (Kim & Rush 2016, eq. 5). Where the teacher is unsure the samples vary, and the
    time of emission is left to the student.

    Frames are not sampled one by one: if a sound's probability lies half in one frame and half in the
    next, a quarter of such samples would lack it. Spikes are sampled systematically (Kitagawa 1996,
    section A.2): there is one wherever the sum over the frames of 1 - p(blank) passes an integer,
    counted from a random start. A run of frames with the same best class is one sound, as for CTC: it
    occurs at most once, with probability 1 - product of (1 - p) over its frames, in the surest of them.
    So each sound occurs as often as the teacher believes, and one divided among frames in which blank is
    likeliest occurs once. The unit is sampled from those of the frame of the spike.

    Args:
        output: of the student.
        batch: with `soft_labels`, or with an online `teacher`.
        sharpness: power applied to a frame's probabilities before sampling; above 1, likely units occur
            more often than the teacher believes.

    Returns:
        L over the batch, in nats per output frame.

    Raises:
        ConfigError: a sharpness that is not positive.
    """
    if sharpness <= 0:
        raise ConfigError(
            "the sharpness is out of range", where="sampled_ctc", expected="sharpness > 0", got=sharpness
        )
    labels = targets_of(batch, teacher)
    tokens_bu, counts_b = drawn_transcripts(labels, sharpness)
    return ctc(output, replace(batch, tokens_bu=tokens_bu, token_lengths_b=counts_b))


def drawn_transcripts(labels: SoftLabelBatch, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """(B, T) units and (B,) their number: a transcript of each utterance, sampled as in `sampled_ctc`.

    Uses torch's global generator. The mass of the classes that were not kept is shared among those that
    were.
    """
    probs_btk = at_least_float32(labels.log_probs_btk).mul(sharpness).softmax(2)
    frames = probs_btk.shape[1]
    outside_bt = ~frames_inside(labels.lengths_b, frames)
    no_unit_btk = (labels.ids_btk == BLANK_ID) | outside_bt[:, :, None]
    units_btk = probs_btk.masked_fill(no_unit_btk, 0.0)
    mass_bt, run_bt, surest_bs = _each_run_once(units_btk.sum(2), labels)
    start_b1 = torch.rand(len(mass_bt), 1, dtype=torch.float64, device=mass_bt.device)
    passed_bt = (mass_bt.double().cumsum(1) + start_b1).floor()
    drawn_bt = passed_bt.diff(dim=1, prepend=torch.zeros_like(start_b1)) > 0
    place_bt = torch.multinomial((units_btk + 1e-20).flatten(0, 1), 1).view(-1, frames, 1)
    unit_bt = labels.ids_btk.gather(2, place_bt).squeeze(2).masked_fill(~drawn_bt, BLANK_ID)
    # Give all frames of a run its unit, so that the same unit just before or after it is not repeated.
    of_run_bs = functional.pad(unit_bt.gather(1, surest_bs), (0, 1))
    return collapsed(torch.where(run_bt < surest_bs.shape[1], of_run_bs.gather(1, run_bt), unit_bt))


def _each_run_once(mass_bt: Tensor, labels: SoftLabelBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T) the probability of a unit in each frame, for a run in the surest of its frames; the runs (B, T)
    and these frames (B, S), as in `spikes_of`."""
    spikes = spikes_of(labels)
    width = spikes.surest_bs.shape[1]
    none_bs = mass_bt.new_zeros(len(mass_bt), width + 1).scatter_add(
        1, spikes.run_bt, torch.log1p(-mass_bt.clamp_max(1 - 1e-7))
    )
    of_run_bs = -torch.expm1(none_bs[:, :width]) * frames_inside(spikes.counts_b, width)
    alone_bt = mass_bt.masked_fill(spikes.run_bt < width, 0.0)
    return alone_bt.scatter_add(1, spikes.surest_bs, of_run_bs), spikes.run_bt, spikes.surest_bs


def nbest_lists(labels: SoftLabelBatch, nbest: int, beam: int) -> list[list[Hypothesis]]:
    """The n best transcripts of each utterance of a batch, the best first."""
    ids_btk, log_probs_btk = labels.ids_btk.cpu().numpy(), labels.log_probs_btk.float().cpu().numpy()
    lengths = labels.lengths_b.tolist()
    return [
        _remembered(ids_btk[row, :length], log_probs_btk[row, :length], nbest, beam)
        for row, length in enumerate(lengths)
    ]


_found: OrderedDict[bytes, list[Hypothesis]] = OrderedDict()


def _remembered(ids_tk: np.ndarray, log_probs_tk: np.ndarray, nbest: int, beam: int) -> list[Hypothesis]:
    # Drop leading frames of certain blank: the audio added before the speech differs from epoch to epoch.
    sure_t = (log_probs_tk == 0).any(1) & (ids_tk[:, 0] == BLANK_ID) & (np.isfinite(log_probs_tk).sum(1) == 1)
    begin = len(sure_t) if sure_t.all() else int(sure_t.argmin())
    ids_tk, log_probs_tk = ids_tk[begin:], log_probs_tk[begin:]
    # The number of padding columns differs from batch to batch.
    kept_tk = np.isfinite(log_probs_tk)
    content = ids_tk[kept_tk].tobytes() + log_probs_tk[kept_tk].tobytes() + kept_tk.sum(1).tobytes()
    name = hashlib.blake2b(content + f"{nbest} {beam}".encode(), digest_size=16).digest()
    if name not in _found:
        _found[name] = _search(ids_tk, log_probs_tk, nbest, beam)
        if len(_found) > _CACHED_UTTERANCES:
            _found.popitem(last=False)
    return _found[name]


def _search(ids_tk: np.ndarray, log_probs_tk: np.ndarray, nbest: int, beam: int) -> list[Hypothesis]:
    """Prefix beam search over the classes that the teacher kept anywhere in the utterance."""
    units_u = np.union1d([BLANK_ID], ids_tk)
    log_probs_tu = np.full((len(ids_tk), len(units_u)), -np.inf)
    frames_tk = np.broadcast_to(np.arange(len(ids_tk))[:, None], ids_tk.shape)
    columns_tk = np.searchsorted(units_u, ids_tk)
    np.maximum.at(log_probs_tu, (frames_tk, columns_tk), log_probs_tk)
    found = prefix_beam(log_probs_tu, beam, nbest)
    return [Hypothesis(tuple(int(units_u[unit]) for unit in one.ids), one.log_prob) for one in found]
