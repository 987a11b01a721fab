"""The teacher's n best as weighted CTC targets."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.decoding import collapse
from kdasr.errors import ConfigError
from kdasr.interfaces import ModelOutput
from kdasr.losses import best_path_ctc, ctc
from kdasr.methods import sequences
from kdasr.methods.sequences import nbest_ctc, nbest_lists
from tests.methods.posteriors import batch_of, labels_from, output_of

FRAMES = [{0: 0.6, 1: 0.4}, {0: 0.3, 2: 0.5, 1: 0.2}, {0: 0.7, 3: 0.3}]


def by_enumeration(frames: list[dict[int, float]]) -> dict[tuple[int, ...], float]:
    """Probability of every transcript, summed over all paths."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(*frames):
        text = tuple(collapse(path))
        found[text] = found.get(text, 0.0) + math.prod(f[unit] for f, unit in zip(frames, path, strict=True))
    return found


def test_the_lists_are_those_of_all_paths() -> None:
    (found,) = nbest_lists(labels_from([FRAMES]), nbest=5, beam=64)
    everything = sorted(by_enumeration(FRAMES).items(), key=lambda item: -item[1])[:5]
    assert [one.ids for one in found] == [ids for ids, _ in everything]
    assert [math.exp(one.log_prob) for one in found] == pytest.approx([p for _, p in everything])


def test_the_loss_is_the_weighted_sum_of_ctc() -> None:
    torch.manual_seed(0)
    labels = labels_from([FRAMES, [{0: 0.2, 3: 0.8}, {0: 0.9, 1: 0.1}]])
    output = output_of(torch.randn(2, 3, 5).log_softmax(-1), 3, 2)
    expected = torch.zeros(())
    for row, frames in enumerate((FRAMES, [{0: 0.2, 3: 0.8}, {0: 0.9, 1: 0.1}])):
        best = sorted(by_enumeration(frames).items(), key=lambda item: -item[1])[:2]
        for ids, probability in best:
            one = replace(
                batch_of(), tokens_bu=torch.tensor([ids or (0,)]), token_lengths_b=torch.tensor([len(ids)])
            )
            alone = ModelOutput(output.log_probs_btv[row : row + 1], output.lengths_b[row : row + 1])
            nats = ctc(alone, one) * output.lengths_b[row]
            expected = expected + nats * probability / sum(p for _, p in best)
    found = nbest_ctc(output, batch_of(labels), nbest=2, beam=64)
    torch.testing.assert_close(found, expected / 5)


def test_one_best_of_a_sure_teacher_is_its_best_path() -> None:
    frames = [{0: 0.99, 1: 0.01}, {2: 0.98, 0: 0.02}, {0: 0.99, 1: 0.01}, {2: 0.97, 0: 0.03}]
    batch = batch_of(labels_from([frames]))
    output = output_of(torch.randn(1, 4, 4).log_softmax(-1))
    torch.testing.assert_close(nbest_ctc(output, batch, nbest=1), best_path_ctc(output, batch))


@pytest.mark.parametrize("classes", [5, 450])
def test_a_batch_in_which_the_teacher_heard_nothing_teaches_blank(classes: int) -> None:
    torch.manual_seed(0)
    output = output_of(torch.randn(2, 3, classes).log_softmax(-1), 3, 2)
    silent = labels_from([[{0: 1.0}] * 3, [{0: 1.0}] * 2])
    blank = output.log_probs_btv[0, :3, 0].sum() + output.log_probs_btv[1, :2, 0].sum()
    torch.testing.assert_close(nbest_ctc(output, batch_of(silent), nbest=1, beam=4), -blank / 5)


def test_scale_zero_makes_all_equal() -> None:
    output = output_of(torch.randn(1, 3, 5).log_softmax(-1))
    batch = batch_of(labels_from([FRAMES]))
    found = nbest_ctc(output, batch, nbest=3, scale=0.0)
    lists = nbest_lists(labels_from([FRAMES]), 3, 8)[0]
    each = [
        ctc(
            output,
            replace(
                batch, tokens_bu=torch.tensor([one.ids or (0,)]), token_lengths_b=torch.tensor([len(one.ids)])
            ),
        )
        for one in lists
    ]
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_each_utterance_is_searched_once_however_it_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    search = sequences._search
    monkeypatch.setattr(sequences, "_found", type(sequences._found)())
    monkeypatch.setattr(sequences, "_search", lambda *a: calls.append(1) or search(*a))
    alone = nbest_lists(labels_from([FRAMES]), 3, 8)
    together = nbest_lists(labels_from([FRAMES, [dict.fromkeys(range(8), 0.125)] * 9]), 3, 8)
    assert together[0] == alone[0] and len(calls) == 2
    nbest_lists(labels_from([FRAMES]), 2, 8)
    assert len(calls) == 3
    assert nbest_lists(labels_from([FRAMES]), 3, 300)[0][0] == alone[0][0] and len(calls) == 4


def test_what_is_heard_before_the_speech_is_no_other_utterance(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    search = sequences._search
    monkeypatch.setattr(sequences, "_found", type(sequences._found)())
    monkeypatch.setattr(sequences, "_search", lambda *a: calls.append(len(a[0])) or search(*a))
    found = [nbest_lists(labels_from([[{0: 1.0}] * lead + FRAMES]), 3, 8) for lead in (0, 2, 5)]
    assert found[0] == found[1] == found[2] and calls == [len(FRAMES)]
    silence = nbest_lists(labels_from([[{0: 1.0}] * 4]), 3, 8)
    assert [one.ids for one in silence[0]] == [()]


def test_what_was_found_first_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    search = sequences._search
    monkeypatch.setattr(sequences, "_found", type(sequences._found)())
    monkeypatch.setattr(sequences, "_CACHED_UTTERANCES", 2)
    monkeypatch.setattr(sequences, "_search", lambda *a: searched.append(len(a[0])) or search(*a))
    one, two, three = ([FRAMES[0]] * frames for frames in (1, 2, 3))
    for frames in (one, two, three, three, two, one):
        ((found,),) = nbest_lists(labels_from([frames]), 1, 8)
        assert math.exp(found.log_prob) == pytest.approx(max(by_enumeration(frames).values()))
    assert searched == [1, 2, 3, 1]


def test_gradient_by_finite_differences() -> None:
    batch = batch_of(labels_from([FRAMES, FRAMES[:2]]))
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor) -> Tensor:
        return nbest_ctc(output_of(x.log_softmax(-1), 3, 2), batch, nbest=3)

    assert torch.autograd.gradcheck(value, (logits,))


@pytest.mark.parametrize("settings", [{"nbest": 0}, {"nbest": 9, "beam": 8}, {"scale": -1.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nbest <= beam"):
        nbest_ctc(output_of(torch.zeros(1, 3, 4)), batch_of(labels_from([FRAMES])), **settings)
