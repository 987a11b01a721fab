"""Expected word errors against all paths, one by one."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdasr.decoding import collapse
from kdasr.errors import ConfigError, MissingLabelsError, UnitsError
from kdasr.interfaces import Batch
from kdasr.losses import ctc
from kdasr.methods.risk import drawn_hypotheses, expected_word_errors
from kdasr.symbols import BLANK_SYMBOL, TableUnits
from tests.methods.outputs import batch_with
from tests.methods.outputs import output_of as from_logits
from tests.methods.posteriors import batch_of, labels_from, logs, output_of

# "a", what goes on in the same word, and another word.
A, B, C = 1, 2, 3
SYMBOLS = [BLANK_SYMBOL, "▁a", "b", "▁c"]
FRAMES = [[0.3, 0.5, 0.1, 0.1], [0.4, 0.1, 0.3, 0.2], [0.5, 0.05, 0.05, 0.4]]


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("units")
    TableUnits(SYMBOLS).save(folder)
    return str(folder)


def by_enumeration(log_probs_tv: Tensor) -> dict[tuple[int, ...], Tensor]:
    """The probability of every transcript, with gradients."""
    found: dict[tuple[int, ...], Tensor] = {}
    for path in itertools.product(range(log_probs_tv.shape[1]), repeat=len(log_probs_tv)):
        text = tuple(collapse(path))
        p = torch.stack([log_probs_tv[t, unit] for t, unit in enumerate(path)]).sum().exp()
        found[text] = found.get(text, torch.zeros((), dtype=log_probs_tv.dtype)) + p
    return found


def errors_against_ab_c(ids: tuple[int, ...]) -> int:
    """Of what three frames may say against "ab c": the first word may be missing, or one come before it."""
    heard: list[str | None] = [*"".join(SYMBOLS[unit] for unit in ids).replace("▁", " ").split()]
    said: list[str | None] = ["ab", "c"]
    return min(
        sum(one != other for one, other in itertools.zip_longest(*pair))
        for pair in ((said, heard), (said, [None, *heard]), ([None, *said], heard))
    )


def test_of_many_paths_it_is_the_expectation_over_all_transcripts(units: str) -> None:
    torch.manual_seed(1)
    batch = batch_with(1, transcripts=[[A, B, C]])
    found = expected_word_errors(output_of(logs(*FRAMES)), batch, units=units, samples=20_000)
    everything = by_enumeration(logs(*FRAMES)[0])
    expected = sum(p * errors_against_ab_c(ids) for ids, p in everything.items())
    assert len(drawn_hypotheses(output_of(logs(*FRAMES)), 20_000)[0]) == len(everything)
    assert float(found) == pytest.approx(float(expected) / 3)


def test_its_gradient_is_that_of_the_expectation(units: str) -> None:
    torch.manual_seed(1)
    logits = torch.tensor([FRAMES], dtype=torch.float64).log().requires_grad_()
    batch = batch_with(1, transcripts=[[A, B, C]])
    expected_word_errors(from_logits(logits), batch, units=units, samples=20_000).backward()
    again = logits.detach().clone().requires_grad_()
    everything = by_enumeration(again.log_softmax(2)[0])
    torch.stack([p * errors_against_ab_c(ids) / 3 for ids, p in everything.items()]).sum().backward()
    assert again.grad is not None and float(again.grad.abs().max()) > 0.01
    torch.testing.assert_close(logits.grad, again.grad)


def test_it_weighs_what_was_drawn_and_nothing_else(units: str) -> None:
    everything = {ids: float(p) for ids, p in by_enumeration(logs(*FRAMES)[0]).items()}
    sizes = set()
    for seed in range(5):
        torch.manual_seed(seed)
        tokens_hu, counts_h, _ = drawn_hypotheses(output_of(logs(*FRAMES)), 4)
        drawn = [tuple(row[:n].tolist()) for row, n in zip(tokens_hu, counts_h, strict=True)]
        total = sum(everything[ids] for ids in drawn)
        expected = sum(everything[ids] / total * errors_against_ab_c(ids) for ids in drawn) / 3
        torch.manual_seed(seed)
        batch = batch_with(1, transcripts=[[A, B, C]])
        found = expected_word_errors(output_of(logs(*FRAMES)), batch, units=units, samples=4)
        assert float(found) == pytest.approx(expected)
        sizes.add(len(drawn))
    assert max(sizes) <= 5 and len(sizes) > 1


def test_an_error_is_a_word_however_much_of_it_is_wrong(units: str) -> None:
    sure = [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]  # "cb"
    batch = batch_with(1, transcripts=[[A, B, C]])  # "ab c": a substitution and a deletion
    assert float(expected_word_errors(output_of(logs(*sure)), batch, units=units)) == pytest.approx(2 / 3)


def test_each_utterance_has_its_own_transcripts_and_frames(units: str) -> None:
    """Of two together it is what each alone has, over the frames of both; padding says nothing."""
    rows = torch.cat((logs(*FRAMES), logs(*FRAMES[::-1])))
    rows[1, 2] = torch.tensor([0.0, 0.0, 0.0, 1.0]).log()  # behind its end
    torch.manual_seed(3)
    both = expected_word_errors(
        output_of(rows, 3, 2), batch_with(2, transcripts=[[A, B, C], [C]]), units=units, samples=20_000
    )
    first = expected_word_errors(
        output_of(rows[:1]), batch_with(1, transcripts=[[A, B, C]]), units=units, samples=20_000
    )
    second = expected_word_errors(
        output_of(rows[1:, :2]), batch_with(1, transcripts=[[C]]), units=units, samples=20_000
    )
    assert float(both) == pytest.approx((3 * float(first) + 2 * float(second)) / 5)


def test_the_best_path_comes_first_and_none_twice() -> None:
    torch.manual_seed(0)
    output = output_of(torch.cat((logs(*FRAMES), logs(*FRAMES[::-1]))))
    tokens_hu, counts_h, row_h = drawn_hypotheses(output, 50)
    drawn = [
        (row, *ids[:n])
        for row, n, ids in zip(row_h.tolist(), counts_h.tolist(), tokens_hu.tolist(), strict=True)
    ]
    assert drawn[0] == (0, A) and drawn[row_h.tolist().index(1)] == (1, A)
    assert row_h.tolist() == sorted(row_h.tolist()) and len(set(drawn)) == len(drawn) > 20
    assert all(not any(ids[n:]) for n, ids in zip(counts_h.tolist(), tokens_hu.tolist(), strict=True))


@pytest.mark.parametrize(
    ("sharpness", "least", "most"), [(0.3, 0.30, 0.36), (1.0, 0.10, 0.14), (3.0, 0.0, 0.01)]
)
def test_what_is_drawn_is_as_sharp_as_asked(sharpness: float, least: float, most: float) -> None:
    """Frames alike, blank 0.88 and one unit 0.12: how many of them say the unit."""
    torch.manual_seed(0)
    frames = torch.tensor([0.88, 0.12]).log().expand(2000, 1, 2)
    tokens_hu, counts_h, row_h = drawn_hypotheses(output_of(frames), 1, sharpness)
    said = {int(row) for row, count in zip(row_h, counts_h, strict=True) if count}
    assert least <= len(said) / 2000 <= most
    assert tokens_hu.shape == (2000 + len(said), 1)  # the silence of each best path, too


def test_nothing_said_is_as_many_errors_as_words(units: str) -> None:
    silent = output_of(logs(*[[1.0, 0.0, 0.0, 0.0]] * 3).expand(2, -1, -1))
    batch = batch_with(2, transcripts=[[A, B, C], []])
    assert float(expected_word_errors(silent, batch, units=units)) == pytest.approx(2 / 6)


def test_without_transcripts_errors_are_counted_against_the_teacher(units: str) -> None:
    labels = labels_from([[{A: 0.9, 0: 0.1}, {B: 0.6, 0: 0.4}, {C: 0.7, 0: 0.3}]])
    online = output_of(logs([0.1, 0.9, 0.0, 0.0], [0.4, 0.0, 0.6, 0.0], [0.3, 0.0, 0.0, 0.7]))
    output = output_of(logs(*FRAMES))
    told = batch_with(1, transcripts=[[A, B, C]])
    for batch, teacher in ((told, None), (batch_of(labels), None), (batch_with(1, big=online), "big")):
        torch.manual_seed(5)
        found = expected_word_errors(output, batch, units=units, samples=6, teacher=teacher)
        torch.manual_seed(5)
        assert float(found) == float(expected_word_errors(output, told, units=units, samples=6))
    with pytest.raises(MissingLabelsError, match="soft labels"):
        expected_word_errors(output, batch_of(), units=units)


def test_a_model_learns_to_choose_the_right_word(units: str) -> None:
    """Two words as likely: CTC apart, half of the errors go within some steps."""
    torch.manual_seed(0)
    logits = torch.tensor(
        [[[0.0, 2.0, 0.0, 2.0], [3.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]]
    ).requires_grad_()
    batch: Batch = batch_with(1, transcripts=[[C]])
    optimiser = torch.optim.SGD([logits], 3.0)
    before = float(ctc(from_logits(logits.detach()), batch))
    for _ in range(30):
        optimiser.zero_grad()
        expected_word_errors(from_logits(logits), batch, units=units).backward()
        optimiser.step()
    after = from_logits(logits.detach())
    assert after.log_probs_btv[0, 0].argmax() == C and float(ctc(after, batch)) < before / 2
    assert math.exp(float(after.log_probs_btv[0, 0, A])) < 0.05


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"sharpness": 0.0}])
def test_numbers_out_of_range_are_refused(units: str, wrong: dict[str, float]) -> None:
    batch = batch_with(1, transcripts=[[A]])
    with pytest.raises(ConfigError, match="no transcripts to weigh"):
        expected_word_errors(output_of(logs(*FRAMES)), batch, units=units, **wrong)  # type: ignore[arg-type]


def test_units_of_another_model_are_refused(units: str, tmp_path: Path) -> None:
    batch = batch_with(1, transcripts=[[A]])
    with pytest.raises(ConfigError, match=r"another model; expected 5 units; got 4 in"):
        expected_word_errors(from_logits(torch.zeros(1, 3, 5)), batch, units=units)
    with pytest.raises(UnitsError, match=r"units\.json"):
        expected_word_errors(output_of(logs(*FRAMES)), batch, units=str(tmp_path))
