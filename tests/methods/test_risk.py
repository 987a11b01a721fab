"""Expected word errors against all paths, one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdasr.decoding import collapse
from kdasr.errors import ConfigError, MissingLabelsError
from kdasr.interfaces import Batch
from kdasr.losses import ctc
from kdasr.methods import risk
from kdasr.methods.risk import expected_word_errors
from kdasr.stages.checks import _needs_times, check_losses
from kdasr.symbols import BLANK_SYMBOL, TableUnits
from tests.methods.outputs import batch_with
from tests.methods.outputs import output_of as from_logits
from tests.methods.posteriors import batch_of, labels_from, logs, output_of

# "a", what goes on in the same word, and another word.
A, B, C = 1, 2, 3
SYMBOLS = [BLANK_SYMBOL, "▁a", "b", "▁c"]
FRAMES = [[0.3, 0.5, 0.1, 0.1], [0.4, 0.1, 0.3, 0.2], [0.5, 0.05, 0.05, 0.4]]


def spelled(batch: Batch) -> Batch:
    """As a training hands a batch to its losses: it says what units spell."""
    batch.decode = TableUnits(SYMBOLS).decode
    return batch


def told(*transcripts: list[int]) -> Batch:
    return spelled(batch_with(len(transcripts), transcripts=transcripts))


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


def expectation(logits: Tensor) -> tuple[float, Tensor]:
    """The words that are expected to be wrong in each frame, over all transcripts, and the gradient."""
    again = logits.detach().clone().requires_grad_()
    everything = by_enumeration(again.log_softmax(2)[0])
    expected = torch.stack([p * errors_against_ab_c(ids) / 3 for ids, p in everything.items()]).sum()
    (gradient,) = torch.autograd.grad(expected, again)
    assert float(gradient.abs().max()) > 0.05
    return float(expected.detach()), gradient


def test_of_many_paths_it_is_the_expectation_over_all_transcripts() -> None:
    logits = torch.tensor([FRAMES], dtype=torch.float64).log().requires_grad_()
    batch = told([A, B, C])
    # All frames are in one window, unless it begins at one of three places of a million.
    found = expected_word_errors(from_logits(logits), batch, samples=100_000, window_frames=1_000_000)
    (gradient,) = torch.autograd.grad(found, logits)
    value, expected = expectation(logits)
    assert float(found.detach()) == pytest.approx(value, abs=0.003)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0.003)


def test_windows_that_are_drawn_alone_expect_the_same() -> None:
    """The mean over many utterances alike, of few draws each."""
    size = 600
    logits = torch.tensor([FRAMES], dtype=torch.float64).log().requires_grad_()
    batch = told(*[[A, B, C]] * size)
    output = from_logits(logits.expand(size, -1, -1))
    found = expected_word_errors(output, batch, samples=16, window_frames=1)
    (gradient,) = torch.autograd.grad(found, logits)
    value, expected = expectation(logits)
    assert float(found.detach()) == pytest.approx(value, abs=0.02)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0.012)


@pytest.mark.parametrize("window_frames", [1, 2])
def test_a_draw_is_blamed_for_what_it_has_beyond_the_mean_of_the_others(
    window_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two draws by hand of three frames, of which the first is around the window."""
    paths = torch.tensor([[[A, B, 0]], [[A, 0, C]]])
    monkeypatch.setattr(risk, "_drawn_paths", lambda *_: paths)
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(1 if window_frames == 2 else 0))
    logits = torch.tensor([FRAMES], dtype=torch.float64).log().requires_grad_()
    batch = told([A, B, C])
    found = expected_word_errors(from_logits(logits), batch, samples=2, window_frames=window_frames)
    (gradient,) = torch.autograd.grad(found, logits)
    log_p = logits.log_softmax(2)[0]
    if window_frames == 1:
        # "ab" or "a" (1 error, 2), "ab" or "ab c" (1, 0); both say "a" first.
        errors, blame = [1, 1, 1, 2, 1, 0], 0.5 * (log_p[1, 0] - log_p[1, B] + log_p[2, 0] - log_p[2, C])
    else:
        # Windows of the first frame and of the two behind it: "ab" or "a c" (1, 1).
        errors, blame = [1, 1, 1, 1], log_p.sum() * 0.0
    (expected,) = torch.autograd.grad(blame / 3, logits)
    assert float(found.detach()) == pytest.approx(sum(errors) / len(errors) / 3)
    torch.testing.assert_close(gradient, expected)


def test_an_error_is_a_word_however_much_of_it_is_wrong() -> None:
    sure = [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]  # "cb"
    batch = told([A, B, C])  # "ab c": a substitution and a deletion
    assert float(expected_word_errors(output_of(logs(*sure)), batch)) == pytest.approx(2 / 3)


def test_each_utterance_has_its_own_transcript_and_frames() -> None:
    """Of two together it is what each alone has, over the frames of both; padding says nothing."""
    rows = torch.cat((logs(*FRAMES), logs(*FRAMES[::-1])))
    rows[1, 2] = torch.tensor([0.0, 0.0, 0.0, 1.0]).log()  # behind its end
    rows.requires_grad_()

    def of(rows_btv: Tensor, lengths: tuple[int, ...], *transcripts: list[int]) -> Tensor:
        batch = told(*transcripts)
        output = output_of(rows_btv, *lengths)
        return expected_word_errors(output, batch, samples=20_000, window_frames=1_000_000)

    both = of(rows, (3, 2), [A, B, C], [C])
    (gradient,) = torch.autograd.grad(both, rows)
    assert gradient[:, :2].any(2).all() and not gradient[1, 2].any() and gradient.isfinite().all()
    frozen = rows.detach()
    first, second = float(of(frozen[:1], (3,), [A, B, C])), float(of(frozen[1:, :2], (2,), [C]))
    assert abs(first - second) > 0.05
    assert float(both.detach()) == pytest.approx((3 * first + 2 * second) / 5, abs=0.01)


def test_windows_begin_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw of two frames together, "b", is not seen where the windows part them."""
    paths = torch.tensor([[[0, 0, 0, 0]], [[A, B, 0, 0]]])
    monkeypatch.setattr(risk, "_drawn_paths", lambda *_: paths)
    output, batch = output_of(torch.zeros(1, 4, 4)), told([A, B])
    found = {
        round(float(expected_word_errors(output, batch, samples=2, window_frames=2)) * 4, 6)
        for _ in range(20)
    }
    # Windows of two frames: silence, and "ab" in the first. Parted: silence, "a" and "b", all wrong.
    assert found == {0.75, 1.0}


def test_a_unit_is_drawn_as_often_as_it_is_probable() -> None:
    paths_sbt = risk._drawn_paths(
        torch.tensor([[[0.88, 0.12], [0.5, 0.5]]] * 2).log(), torch.tensor([2, 1]), 20_000
    )
    assert paths_sbt.shape == (20_000, 2, 2)
    often_bt = (paths_sbt == A).double().mean(0)
    torch.testing.assert_close(often_bt, torch.tensor([[0.12, 0.5], [0.12, 0.0]]).double(), rtol=0, atol=0.02)
    assert often_bt[1, 1] == 0


def test_a_sure_model_learns_nothing_and_may_be_told_so() -> None:
    logits = torch.tensor([[[0.0, 40.0, 0.0, 0.0], [0.0, 0.0, 40.0, 0.0]]], requires_grad=True)
    found = expected_word_errors(from_logits(logits), told([A, B]))
    found.backward()
    assert float(found.detach()) == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_each_is_measured_against_its_own_transcript() -> None:
    said = [[A, B], [C, 0], [0, A]]
    output = from_logits(40.0 * functional.one_hot(torch.tensor(said), 4))
    right = told([A, B], [C], [A])
    assert float(expected_word_errors(output, right, window_frames=1)) == 0.0
    turned = told([C], [A], [A, B])
    assert float(expected_word_errors(output, turned, window_frames=1)) == pytest.approx(3 / 6)


def test_half_precision_is_made_single() -> None:
    rough = output_of(logs(*FRAMES).bfloat16())
    batch = told([A, B, C])
    torch.manual_seed(2)
    found = expected_word_errors(rough, batch)
    torch.manual_seed(2)
    exact = expected_word_errors(output_of(logs(*FRAMES).bfloat16().float()), batch)
    assert found.dtype == torch.float32 and float(found) == float(exact)


def test_a_model_that_diverges_has_no_loss_and_padding_does_not_matter() -> None:
    rows = torch.cat((logs(*FRAMES), logs(*FRAMES)))
    batch = told([A, B, C], [A])
    rows[1, 2] = math.nan
    assert math.isfinite(float(expected_word_errors(output_of(rows, 3, 2), batch)))
    assert math.isnan(float(expected_word_errors(output_of(rows, 3, 3), batch)))


def test_labels_need_no_times() -> None:
    check_losses({}, {"words": {"weight": 1.0, "loss": expected_word_errors}})
    assert not _needs_times(expected_word_errors)


def test_nothing_said_is_as_many_errors_as_words() -> None:
    silent = output_of(logs(*[[1.0, 0.0, 0.0, 0.0]] * 3).expand(2, -1, -1))
    batch = told([A, B, C], [])
    assert float(expected_word_errors(silent, batch)) == pytest.approx(2 / 6)


def test_without_transcripts_errors_are_counted_against_the_teacher() -> None:
    labels = labels_from([[{A: 0.9, 0: 0.1}, {B: 0.6, 0: 0.4}, {C: 0.7, 0: 0.3}]])
    online = output_of(logs([0.1, 0.9, 0.0, 0.0], [0.4, 0.0, 0.6, 0.0], [0.3, 0.0, 0.0, 0.7]))
    output = output_of(logs(*FRAMES))
    exact = told([A, B, C])
    for batch, teacher in ((exact, None), (batch_of(labels), None), (batch_with(1, big=online), "big")):
        torch.manual_seed(5)
        found = expected_word_errors(output, spelled(batch), samples=6, teacher=teacher)
        torch.manual_seed(5)
        assert float(found) == float(expected_word_errors(output, exact, samples=6))
    with pytest.raises(MissingLabelsError, match="soft labels"):
        expected_word_errors(output, spelled(batch_of()))


def test_a_model_learns_to_choose_the_right_word() -> None:
    """Two words as likely: CTC apart, half of the errors go within some steps."""
    torch.manual_seed(0)
    logits = torch.tensor(
        [[[0.0, 2.0, 0.0, 2.0], [3.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]]
    ).requires_grad_()
    batch: Batch = told([C])
    optimiser = torch.optim.SGD([logits], 3.0)
    before = float(ctc(from_logits(logits.detach()), batch))
    for _ in range(30):
        optimiser.zero_grad()
        expected_word_errors(from_logits(logits), batch).backward()
        optimiser.step()
    after = from_logits(logits.detach())
    assert after.log_probs_btv[0, 0].argmax() == C and float(ctc(after, batch)) < before / 2
    assert math.exp(float(after.log_probs_btv[0, 0, A])) < 0.05


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"window_frames": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    batch = told([A])
    with pytest.raises(ConfigError, match="too few samples, or an empty window"):
        expected_word_errors(output_of(logs(*FRAMES)), batch, **wrong)  # type: ignore[arg-type]


def test_a_batch_outside_training_is_refused() -> None:
    batch = batch_with(1, transcripts=[[A]])
    with pytest.raises(ConfigError, match="only in training, where a batch can decode its units"):
        expected_word_errors(output_of(logs(*FRAMES)), batch)
