"""Distillation of the relations between the utterances of a batch, whatever the width of the models.

An utterance is the mean of a layer's frames. Layers are not stored, so an online teacher is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdasr.interfaces import Batch, ModelOutput
from kdasr.methods.pairing import layer_of, pooled
from kdasr.targets import online


def relational_distances(
    output: ModelOutput, batch: Batch, *, teacher: str, student_layer: int = -1, teacher_layer: int = -1
) -> Tensor:
    """Huber loss between the models' distances |x_i - x_j| / μ, with μ their mean over the pairs of the batch
    (RKD-D, Park et al. 2019, arXiv 1904.05068, section 3.2.1).

    Args:
        output: of the student.
        batch: with `teachers`.
        teacher: an online teacher.
        student_layer, teacher_layer: layers to pool; negative numbers count from the last.

    Returns:
        The mean over all ordered pairs; those of an utterance with itself add 0.
    """
    ours_bd, theirs_bd = _embeddings(output, batch, teacher, student_layer, teacher_layer)
    return functional.huber_loss(relative_distances(ours_bd), relative_distances(theirs_bd))


def relational_angles(
    output: ModelOutput, batch: Batch, *, teacher: str, student_layer: int = -1, teacher_layer: int = -1
) -> Tensor:
    """Huber loss between the cosines of the angles i-j-k (RKD-A, Park et al. 2019, section 3.2.2).

    Arguments as for `relational_distances`.

    Returns:
        The mean over all ordered triples; those that contain an utterance twice add 0.
    """
    ours_bd, theirs_bd = _embeddings(output, batch, teacher, student_layer, teacher_layer)
    return functional.huber_loss(angles(ours_bd), angles(theirs_bd))


def relation_graph(
    output: ModelOutput,
    batch: Batch,
    *,
    teacher: str,
    student_layers: tuple[int, int] = (0, -1),
    teacher_layers: tuple[int, int] = (0, -1),
    transformation_weight: float = 0.5,
) -> Tensor:
    """Instance relationship graphs (IRG, Liu et al. 2019): edges A_ij = |x_i - x_j|² at two layers, and the
    changes of the graph between them, Λ_i = |x_i - x'_i|² for vertices and (A_ij - A'_ij)² for edges.

    The paper compares models of equal width; here edges and vertex changes are divided by their mean,
    which removes width and scale. Its vertex term, the features themselves, is `features.Hint`.

    Args:
        output: of the student.
        batch: with `teachers`.
        teacher: an online teacher.
        student_layers, teacher_layers: two layers each, of the same width within a model.
        transformation_weight: weight of the changes relative to the edges.

    Returns:
        Weighted mean squared differences between student and teacher.
    """
    ours, theirs = (
        [pooled(layer_of(model, layer, whose), model.lengths_b) for layer in layers]
        for model, layers, whose in (
            (output, student_layers, "the student"),
            (online(batch, teacher), teacher_layers, f"teacher {teacher}"),
        )
    )
    edges = [[_by_mean(_squared_distances(x_bd)) for x_bd in model] for model in (ours, theirs)]
    vertex_changes = [_by_mean((model[0] - model[1]).square().sum(-1)) for model in (ours, theirs)]
    edge_changes = [(first - last).square() for first, last in edges]
    edge_terms = [functional.mse_loss(our, their) for our, their in zip(*edges, strict=True)]
    change_terms = [
        functional.mse_loss(our, their) for our, their in (tuple(vertex_changes), tuple(edge_changes))
    ]
    return torch.stack(edge_terms).sum() + transformation_weight * torch.stack(change_terms).sum()


def relative_distances(x_bd: Tensor) -> Tensor:
    """(B, B) distances divided by their mean over pairs of different points."""
    # The square root has no gradient at 0: a point paired with itself or an equal one.
    return _by_mean(_squared_distances(x_bd).clamp_min(1e-12).sqrt())


def angles(x_bd: Tensor) -> Tensor:
    """(B, B, B) cosines; [i, j, k] is the angle at j between i and k."""
    direction_ijd = functional.normalize(x_bd[:, None] - x_bd[None], dim=-1, eps=1e-6)
    return torch.einsum("ijd,kjd->ijk", direction_ijd, direction_ijd)


def _embeddings(
    output: ModelOutput, batch: Batch, teacher: str, student_layer: int, teacher_layer: int
) -> tuple[Tensor, Tensor]:
    heard = online(batch, teacher)
    return (
        pooled(layer_of(output, student_layer, "the student"), output.lengths_b),
        pooled(layer_of(heard, teacher_layer, f"teacher {teacher}"), heard.lengths_b),
    )


def _squared_distances(x_bd: Tensor) -> Tensor:
    return (x_bd[:, None] - x_bd[None]).square().sum(-1)


def _by_mean(x: Tensor) -> Tensor:
    """`x` divided by its mean, for a matrix without the diagonal, which is 0."""
    count = len(x) * (len(x) - 1) if x.dim() == 2 else len(x)
    return x / (x.sum() / max(1, count)).clamp_min(1e-6)
