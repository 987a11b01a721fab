"""CTC against the teacher's n best transcripts."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from kdasr.decoding import Hypothesis, check_nbest, prefix_beam
from kdasr.interfaces import BLANK_ID, Batch, ModelOutput, SoftLabelBatch
from kdasr.losses import of_transcripts, transcript_nats
from kdasr.targets import targets_of

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
