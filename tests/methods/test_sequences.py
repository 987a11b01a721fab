"""The teacher's n best as weighted CTC targets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kdasr.decoding import collapse
from kdasr.errors import ConfigError
from kdasr.interfaces import ModelOutput
from kdasr.losses import best_path_ctc, ctc
from kdasr.methods import sequences
from kdasr.methods.sequences import drawn_transcripts, nbest_ctc, nbest_lists, sampled_ctc
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


@pytest.mark.parametrize("classes", [5, 200])
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


@pytest.mark.parametrize("loss", [partial(nbest_ctc, nbest=3), sampled_ctc])
def test_gradient_by_finite_differences(loss: Callable[..., Tensor]) -> None:
    batch = batch_of(labels_from([FRAMES, FRAMES[:2]]))
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same transcripts are drawn each time
        return loss(output_of(x.log_softmax(-1), 3, 2), batch)

    assert torch.autograd.gradcheck(value, (logits,))


@pytest.mark.parametrize("settings", [{"nbest": 0}, {"nbest": 9, "beam": 8}, {"scale": -1.0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nbest <= beam"):
        nbest_ctc(output_of(torch.zeros(1, 3, 4)), batch_of(labels_from([FRAMES])), **settings)


def transcripts(frames: list[dict[int, float]], draws: int, **settings: float) -> list[tuple[int, ...]]:
    torch.manual_seed(0)
    tokens_bu, counts_b = drawn_transcripts(labels_from([frames] * draws), **settings)
    return [
        tuple(tokens[:count].tolist()) for tokens, count in zip(tokens_bu, counts_b.tolist(), strict=True)
    ]


def test_a_sound_is_drawn_once_in_whichever_frame_it_lies() -> None:
    spread = [{0: 1.0}, {0: 0.5, 1: 0.5}, {0: 0.7, 1: 0.3}, {0: 0.8, 1: 0.2}, {0: 1.0}, {2: 1.0}]
    assert set(transcripts(spread, 200)) == {(1, 2)}


@pytest.mark.slow
def test_units_are_drawn_as_often_as_the_teacher_says() -> None:
    doubtful = [{0: 0.25, 1: 0.45, 2: 0.3}, {0: 1.0}, {3: 0.9, 0: 0.1}]
    found = transcripts(doubtful, 20_000)
    for unit, probability in ((1, 0.45), (2, 0.3), (3, 0.9)):
        assert sum(unit in ids for ids in found) / len(found) == pytest.approx(probability, abs=0.015)
    # Sharpened, squares are compared: 0.81 and 0.01.
    found = transcripts(doubtful, 20_000, sharpness=2.0)
    assert sum(3 in ids for ids in found) / len(found) == pytest.approx(0.81 / 0.82, abs=0.015)


def test_what_was_not_kept_and_what_is_padding_is_never_drawn() -> None:
    torch.manual_seed(0)
    tokens_bu, counts_b = drawn_transcripts(
        labels_from([[{0: 0.1, 4: 0.2}] * 3, [{0: 0.01, 1: 0.99}] * 9, [{0: 1.0}]])
    )
    assert tokens_bu.shape == (3, 9) and counts_b[2] == 0
    assert set(tokens_bu[0].tolist()) <= {0, 4} and set(tokens_bu[1, : counts_b[1]].tolist()) == {1}


def test_drawn_from_a_sure_teacher_it_is_its_best_path() -> None:
    sure = [{0: 1.0}, {2: 1.0}, {2: 1.0}, {0: 1.0}, {2: 1.0}, {3: 1.0}]
    batch = batch_of(labels_from([sure, sure[:3]]))
    output = output_of(torch.randn(2, 6, 4).log_softmax(-1), 6, 3)
    torch.testing.assert_close(sampled_ctc(output, batch), best_path_ctc(output, batch))


def test_the_same_seed_draws_the_same() -> None:
    assert transcripts(FRAMES, 50) == transcripts(FRAMES, 50)


def test_a_sharpness_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="sharpness > 0"):
        sampled_ctc(output_of(torch.zeros(1, 3, 4)), batch_of(labels_from([FRAMES])), sharpness=0.0)


def test_a_run_of_frames_is_one_sound() -> None:
    """As CTC reads it, also where a frame of the run is not drawn, or a neighbour of another class is."""
    run = [{0: 1.0}, *[{0: 0.1, 1: 0.9}] * 5, {0: 1.0}]
    found = transcripts(run, 500)
    assert set(found) <= {(), (1,)} and found.count((1,)) >= 499  # 1 - 0.1^5
    before = [{0: 0.6, 1: 0.4}, {0: 0.4, 1: 0.6}, {1: 1.0}, {0: 1.0}]
    assert set(transcripts(before, 500)) == {(1,)}
    weak = transcripts([{0: 1.0}, {0: 0.4, 1: 0.6}, {0: 0.4, 1: 0.6}, {0: 1.0}], 20_000)
    assert weak.count((1,)) / len(weak) == pytest.approx(1 - 0.4**2, abs=0.015)
