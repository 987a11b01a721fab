"""One step by itself: what learns in it, what it is begun with, and what it measures of a dev set."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdasr.errors import ConfigError, MissingLabelsError
from kdasr.interfaces import Batch, Loss, ModelOutput, OnlineTeacher
from kdasr.losses import ctc, silent_start, soft_cross_entropy
from kdasr.methods.consistency import both_views, with_views
from kdasr.methods.intermediate import IntermediateHead
from kdasr.training.step import DEV, Fading, Step, WeightedLosses, step_seed


class Uniform(nn.Module):
    """A student that has heard nothing yet."""

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(features_btf), 4, 3).log_softmax(-1), lengths_b // 4


class Learns(nn.Module):
    """A loss that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.project = nn.LazyLinear(2)

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        found: Tensor = self.project(output.log_probs_btv).square().mean()
        return found


class Peer(nn.Module):
    """An online teacher that comes with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        nn.init.constant_(self.line.weight, 5.0)

    def forward(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
        raise AssertionError("no loss asks for it")


def batch(key: str = "a") -> Batch:
    return Batch([key], torch.zeros(1, 16, 80), torch.tensor([16]), torch.tensor([[1]]), torch.tensor([1]))


def step_of(teachers: dict[str, OnlineTeacher] | None = None, **losses: WeightedLosses) -> Step:
    return Step(Uniform(), losses, teachers or {}, None)


def test_what_learns_is_drawn_by_the_seed_alone_and_teachers_keep_their_weights() -> None:
    weights = []
    for before, seed in ((1, 7), (2, 7), (1, 8)):
        peer: Any = Peer()
        step = step_of({"peer": peer}, labelled={"learns": (1.0, Learns())})
        torch.manual_seed(before)
        step.train().initialise(seed, [("labelled", batch())], batch())
        weights.append(step.learned["labelled/learns"].project.weight.detach())
        assert step.training, "it goes on as it was"
        assert peer.line.weight.eq(5.0).all()
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_loss_that_learns_of_a_stream_that_is_not_used_is_refused_by_name() -> None:
    losses: dict[str, WeightedLosses] = {
        "labelled": {"ctc": (1.0, ctc)},
        "unlabelled": {"learns": (1.0, Learns())},
    }
    with pytest.raises(ConfigError, match=r"unlabelled/learns: no stream in the schedule uses this loss"):
        step_of(**losses).initialise(7, [("labelled", batch())], batch())


def test_a_dev_set_that_a_loss_cannot_measure_is_found_at_once() -> None:
    def refuses(output: ModelOutput, given: Batch) -> Tensor:
        if given.keys == ["dev"]:
            raise ConfigError("not of this")
        return ctc(output, given)

    step = step_of(labelled={"one": (1.0, refuses)})
    step.initialise(7, [("labelled", batch())], batch("other"))
    with pytest.raises(ConfigError, match="not of this"):
        step.initialise(7, [("labelled", batch())], batch("dev"))


def test_what_asks_for_stored_labels_measures_no_dev_set_and_is_named_where_there_are_none() -> None:
    step = step_of(labelled={"ctc": (2.0, ctc), "soft": (1.0, soft_cross_entropy)})
    output, terms = step(batch(), DEV)
    assert set(terms) == {"ctc"} and float(terms["ctc"]) == pytest.approx(2 * float(ctc(output, batch())))
    with pytest.raises(MissingLabelsError, match=r"labelled_losses\.soft: "):
        step(batch(), "labelled")


def test_a_stream_has_losses_of_its_own_and_the_dev_set_those_of_labelled_audio() -> None:
    def of(value: float) -> Loss:
        return lambda output, batch: torch.tensor(value)

    step = step_of(labelled={"one": (1.0, of(2.0))}, unlabelled={"two": (0.5, of(3.0))})
    found = {stream: step(batch(), stream)[1] for stream in ("labelled", "unlabelled", DEV)}
    assert found == {"labelled": {"one": 2.0}, "unlabelled": {"two": 1.5}, DEV: {"one": 2.0}}


@pytest.mark.parametrize(
    ("value", "found"),
    [(torch.zeros(2), r"shape \(2,\)"), (1.0, "float"), (None, "NoneType"), ((0, 1), "tuple")],
)
def test_a_loss_that_is_no_scalar_is_named(value: Any, found: str) -> None:
    step = step_of(labelled={"mine": (1.0, lambda output, batch: value)})
    for stream in ("labelled", DEV):
        with pytest.raises(ConfigError, match=rf"^labelled_losses\.mine: .* without axes; got {found}"):
            step(batch(), stream)


def test_a_loss_that_only_helps_a_training_is_found_within_another() -> None:
    views = functools.partial(both_views, loss=functools.partial(silent_start, frames=2))
    step = step_of(labelled={"ctc": (1.0, ctc), "start": (1.0, views)})
    assert set(step(batch(), "labelled")[1]) == {"ctc", "start"}
    assert set(step(batch(), DEV)[1]) == {"ctc"}


class Echo(nn.Module):
    """A student whose first class is as likely as its audio is loud; it has a layer to show."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity()])
        self.heard: list[Tensor] = []

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        self.heard.append(features_btf)
        hidden_btd = self.layers[0](features_btf[:, ::4, :3])
        return hidden_btd.log_softmax(-1), lengths_b // 4


class Louder(nn.Module):
    """Adds another number to each reading of an utterance."""

    def forward(self, features_btf: Tensor) -> Tensor:
        features_btf = features_btf.clone()
        features_btf[:, :, 0] += 1.0 + torch.arange(len(features_btf))[:, None]
        return features_btf


@pytest.mark.parametrize("within", [False, True])
def test_views_that_losses_ask_for_are_heard_in_one_pass(within: bool) -> None:
    seen: list[ModelOutput] = []

    @with_views
    def compares(output: ModelOutput, given: Batch) -> Tensor:
        seen.extend([output, given.views[0]])
        return output.log_probs_btv.sum()

    loss = IntermediateHead(layer=0, loss=compares) if within else compares
    student = Echo()
    step = Step(student, {"labelled": {"one": (1.0, loss), "ctc": (1.0, ctc)}}, {}, Louder())
    two = Batch(["a", "b"], torch.zeros(2, 16, 80), torch.tensor([16, 12]))
    two.tokens_bu, two.token_lengths_b = torch.tensor([[1], [2]]), torch.tensor([1, 1])
    output, terms = step(two, "labelled")
    assert [len(one) for one in student.heard] == [4]
    assert terms["ctc"].item() == pytest.approx(ctc(output, two).item())
    if not within:
        first, second = seen
        assert first is output and second.lengths_b.tolist() == [4, 3]
        for view, added in ((first, [1.0, 2.0]), (second, [3.0, 4.0])):
            loud_btv = torch.zeros(2, 4, 3)
            loud_btv[:, :, 0] = torch.tensor(added)[:, None]
            torch.testing.assert_close(view.log_probs_btv, loud_btv.log_softmax(-1))
            torch.testing.assert_close(view.layers_btd, (loud_btv,))
    # Where nothing is augmented there is one view, however often it is asked for.
    step.eval()(two, DEV)
    assert [len(one) for one in student.heard] == [4, 2]
    assert torch.equal(seen[-1].log_probs_btv, seen[-2].log_probs_btv)


def test_a_teacher_is_shown_what_the_student_heard_in_the_first_view() -> None:
    shown: list[Tensor] = []

    class Shown(Peer):
        def forward(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
            shown.append(student_features_btf)
            return ModelOutput(torch.zeros(2, 4, 3), batch.feature_lengths_b // 4)

    @with_views
    def compares(output: ModelOutput, given: Batch) -> Tensor:
        return given.views[0].log_probs_btv.sum() + given.teachers["past"].log_probs_btv.sum()

    student, past = Echo(), Shown()
    teachers: Any = {"past": past}
    step = Step(student, {"labelled": {"one": (1.0, compares)}}, teachers, Louder())
    step(Batch(["a", "b"], torch.zeros(2, 16, 80), torch.tensor([16, 12])), "labelled")
    assert len(shown) == 1 and torch.equal(shown[0], student.heard[0][:2])


def test_a_loss_that_has_faded_asks_for_no_views() -> None:
    student = Echo()
    step = Step(
        student, {"labelled": {"two": (Fading(1.0, 0.5), views_of(ctc)), "ctc": (1.0, ctc)}}, {}, None
    )
    for progress, rows in ((0.0, 2), (0.5, 1)):
        step.progress = progress
        step(batch(), "labelled")
        assert len(student.heard[-1]) == rows


def views_of(loss: Loss) -> Loss:
    return functools.partial(both_views, loss=loss)


def test_seeds_differ_by_run_and_by_step() -> None:
    seeds = [step_seed(seed, step) for seed in (1, 2) for step in (1, 2, 11, "dev/1", "losses")]
    assert len(set(seeds)) == len(seeds) and step_seed(1, 2) == step_seed(1, "2")
