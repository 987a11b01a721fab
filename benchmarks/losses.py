"""What distillation losses cost: time relative to a training step, and memory of the kept + tail loss.

    python -m benchmarks.losses --seconds 40 --repeats 10

A step is a forward and backward pass of a batch of random features through the 1.2 M-parameter student of
recipes/mini with only the CTC loss; its time is a median over repeats. The cost of a loss is the median time
for the loss and its gradient with respect to the student's outputs on the same batch, relative to that
step. An online teacher's forward pass has a row of its own, since it is not part of the loss, and stored
labels do not need it. The rows of recipes are the `unlabelled_losses` in their student.yaml; for losses on
two views of the audio, the step is counted as twice as long. Everything runs in one thread.
Memory is the peak reported by PyTorch's allocator for the forward and backward pass of one kept + tail
loss, for growing vocabularies and numbers of kept classes.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.step import synthetic_batch
from kdasr.devices import one_torch_thread
from kdasr.interfaces import Batch, Loss, ModelOutput, SoftLabelBatch
from kdasr.losses import best_path_ctc, ctc, soft_cross_entropy
from kdasr.methods.adversarial import Discriminator
from kdasr.methods.delays import windowed_cross_entropy
from kdasr.methods.features import Flow, HiddenCosine, Hint, attention_transfer
from kdasr.methods.guided import guided_spikes
from kdasr.methods.intermediate import IntermediateHead
from kdasr.methods.relations import relation_graph, relational_angles, relational_distances
from kdasr.methods.responses import logit_regression, soft_targets
from kdasr.methods.risk import expected_word_errors
from kdasr.methods.sequences import nbest_ctc
from kdasr.methods.teacher_free import label_smoothing, virtual_teacher
from kdasr.pipeline import load_arguments
from kdasr.recording import Recorded, WhenAsked
from kdasr.stages.checks import with_delay
from kdasr.students.conformer import ChunkConformer
from kdasr.symbols import BLANK_SYMBOL, WORD_START, TableUnits
from kdasr.teachers.conformer import ConformerTeacher

KEPT, UTTERANCE_SECONDS = 8, 4.0

LOSSES: dict[str, Callable[[], Loss]] = {
    "soft_cross_entropy": lambda: functools.partial(soft_cross_entropy, delay_frames=2),
    "soft_targets, T = 2": lambda: functools.partial(soft_targets, temperature=2.0),
    "windowed_cross_entropy": lambda: functools.partial(windowed_cross_entropy, max_delay_frames=4),
    "guided_spikes": lambda: guided_spikes,
    "best_path_ctc": lambda: best_path_ctc,
    "nbest_ctc, searched before": lambda: nbest_ctc,
    "soft_targets, online": lambda: functools.partial(soft_targets, teacher="big", temperature=2.0),
    "logit_regression, online": lambda: functools.partial(logit_regression, teacher="big"),
    "hint": lambda: Hint(teacher="big"),
    "cosine": lambda: HiddenCosine(teacher="big"),
    "flow": lambda: Flow(teacher="big"),
    "attention_transfer": lambda: functools.partial(attention_transfer, teacher="big"),
    "relational_distances": lambda: functools.partial(relational_distances, teacher="big"),
    "relational_angles": lambda: functools.partial(relational_angles, teacher="big"),
    "relation_graph": lambda: functools.partial(relation_graph, teacher="big"),
    "discriminator": lambda: Discriminator(teacher="big"),
    "intermediate_head of ctc": lambda: IntermediateHead(layer=1, loss=ctc),
    "virtual_teacher": lambda: virtual_teacher,
    "label_smoothing": lambda: label_smoothing,
    "expected_word_errors": lambda: expected_word_errors,
}
RECIPES = ("recipes/mini", "recipes/fsdd")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print; returns seconds, shares and bytes."""
    parser = argparse.ArgumentParser(description="measure what distillation losses cost")
    parser.add_argument("--seconds", type=float, default=40.0, help="seconds of audio in a batch")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--vocab", type=int, default=29, help="number of classes; 500 is usual with word pieces"
    )
    options = parser.parse_args(arguments)
    torch.manual_seed(1)
    with one_torch_thread():
        step_seconds, loss_seconds = time_losses(options.seconds, options.repeats, options.vocab)
    shares = {name: seconds / step_seconds for name, seconds in loss_seconds.items()}
    for recipe in RECIPES:
        shares[f"{recipe}: all together"] = sum(shares[name] for name in shares if name.startswith(recipe))
    memory = {f"V {vocab}, k {kept}": peak_bytes(vocab, kept) for vocab, kept in GRID}
    print("| loss | share of a training step |\n|---|---|")
    for name, share in shares.items():
        print(f"| {name} | {100 * share:.1f} % |")
    print("\n| kept + tail, 100 frames | peak MB | MB if V x k were kept |\n|---|---|---|")
    for (vocab, kept), peak in zip(GRID, memory.values(), strict=True):
        print(f"| V {vocab}, k {kept} | {peak / 1e6:.1f} | {100 * vocab * kept * 4 / 1e6:.0f} |")
    result = {"step_seconds": step_seconds, "shares": shares, "peak_bytes": memory}
    print(json.dumps(result))
    return result


GRID = ((500, 8), (500, 64), (5_000, 8), (5_000, 64), (5_000, 512))


def time_losses(seconds: float, repeats: int, vocab: int = 29) -> tuple[float, dict[str, float]]:
    """Median seconds of a training step with CTC, and of each loss with its gradient (half of that for a loss
    on two views, since a step with it takes twice as long)."""
    student = Recorded(ChunkConformer(vocab_size=vocab, width=128, expansion=2, lookahead_frames=0))
    teacher = Recorded(ConformerTeacher(vocab_size=vocab, width=144, num_layers=4)).eval()
    batch = random_batch(seconds, vocab)

    def step() -> None:
        ctc(student(batch.features_btf, batch.feature_lengths_b), batch).backward()

    def listen() -> None:
        with torch.no_grad():
            batch.teachers = {"big": teacher(batch.features_btf, batch.feature_lengths_b)}

    step_seconds = _median_seconds(step, repeats)
    found = {"(the online teacher's forward pass)": _median_seconds(listen, repeats)}
    with torch.no_grad():
        given: ModelOutput = student(batch.features_btf, batch.feature_lengths_b)
        second: ModelOutput = student(batch.features_btf, batch.feature_lengths_b)
    for name, make in {**LOSSES, **recipe_losses()}.items():
        loss = make()
        batch.views = WhenAsked[int](lambda _: _leaf(second))
        loss(given, batch)  # initialises the weights of adapters
        passes = 1 + len(batch.views)
        run = functools.partial(_loss_and_gradient, loss, given, second, batch)
        found[name] = _median_seconds(run, repeats) / passes
    return step_seconds, found


def recipe_losses() -> dict[str, Callable[[], Loss]]:
    """The losses of unlabelled audio in `RECIPES`, with 2 frames for delays that are to be measured."""
    losses: dict[str, Callable[[], Loss]] = {}
    for recipe in RECIPES:
        path = Path(__file__).parents[1] / recipe / "student.yaml"
        entries = load_arguments(path, {}, expected_stage="train")["unlabelled_losses"]
        for name, entry in entries.items():
            losses[f"{recipe}: {name}"] = functools.partial(with_delay, entry["loss"], 2)
    return losses


def _loss_and_gradient(loss: Loss, given: ModelOutput, second: ModelOutput, batch: Batch) -> None:
    batch.views = WhenAsked[int](lambda _: _leaf(second))
    if isinstance(loss, nn.Module):
        loss.zero_grad()
    loss(_leaf(given), batch).backward()


def _leaf(given: ModelOutput) -> ModelOutput:
    """The same values as leaf tensors that require gradients."""
    layers = tuple(layer.detach().requires_grad_() for layer in given.layers_btd)
    return ModelOutput(given.log_probs_btv.detach().requires_grad_(), given.lengths_b, layers)


def _median_seconds(run: Callable[[], None], repeats: int) -> float:
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return median(taken)


def random_batch(seconds: float, vocab: int = 29) -> Batch:
    """Utterances of `UTTERANCE_SECONDS` with transcripts and stored labels."""
    size = max(2, int(seconds / UTTERANCE_SECONDS))
    batch = synthetic_batch(size, UTTERANCE_SECONDS, vocab, "cpu")
    labels = random_labels(size, int(UTTERANCE_SECONDS * 25), vocab, KEPT)
    # Words of about four units.
    symbols = [BLANK_SYMBOL, *(f"{'' if unit % 4 else WORD_START}{unit}" for unit in range(1, vocab))]
    return replace(batch, soft_labels=labels, decode=TableUnits(symbols).decode)


def random_labels(size: int, frames: int, vocab: int, kept: int) -> SoftLabelBatch:
    """The `kept` most probable classes of random posteriors, including blank, and the tail."""
    logits = torch.randn(size, frames, vocab) * 2
    # Blank is likeliest, except in every fifth frame.
    logits[..., 0] += 8.0
    spikes = torch.randint(1, vocab, (size, -(-frames // 5), 1))
    logits[:, ::5].scatter_add_(2, spikes, torch.full(spikes.shape, 12.0))
    log_probs, ids = logits.log_softmax(-1).topk(kept, dim=-1)
    tail = (1 - log_probs.exp().sum(-1)).clamp_min(1e-9).log()
    return SoftLabelBatch(ids, log_probs, tail, torch.full((size,), frames))


def peak_bytes(vocab: int, kept: int, frames: int = 100) -> int:
    """Peak memory allocated by PyTorch for one kept + tail loss and its gradient, without the inputs."""
    labels = random_labels(1, frames, vocab, kept)
    log_probs_btv = torch.randn(1, frames, vocab).log_softmax(-1).requires_grad_()
    batch = replace(Batch(["utt"], torch.zeros(1, 1, 80), torch.tensor([1])), soft_labels=labels)
    output = ModelOutput(log_probs_btv, labels.lengths_b)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        loss: Tensor = soft_cross_entropy(output, batch)
        loss.backward()
    return highest(profile)


def highest(profile: torch.profiler.profile) -> int:
    """The highest running sum of allocations minus releases, in chronological order."""
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    assert results is not None
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()  # type: ignore[attr-defined]  # missing from the stubs
        peak = max(peak, now)
    return peak


if __name__ == "__main__":
    main()
