"""Features that a teacher takes for speech, generated from the teacher alone: training without audio.

Zero-shot distillation (ZSKD, Nayak et al. 2019, arXiv 1905.08114): sample a plausible output of the
teacher, and optimise its input to give it. Here outputs are sequences of frames, and inputs log-mel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.features import NUM_MEL_BINS
from kdasr.interfaces import Batch
from kdasr.models import load_model, read_card
from kdasr.storage import commit_bytes


class Impressions:
    """A stream of impressions of a teacher, without labels: use the teacher online.

    A sampled output has a random unit in about every `unit_frames`-th frame, and blank in the others. Its
    posterior is `certainty` for that class and a Dirichlet draw for the rest, whose concentration is
    `scale` times the class's similarity to the others, the cosine of their weights in the teacher's
    last layer (section 3.2). The teacher's input begins as noise with the mean and standard deviation
    of its normalisation. Adam then lowers the cross-entropy to the sampled output, with penalties on the
    energy of the normalised input and on its changes from frame to frame.

    Args:
        teacher: folder of a model with `head` and `normalise`, such as kdasr's own.
        cache: a file for the impressions, so that they are made only once.
        utterances, frames: number of utterances, and output frames of each.
        batch_size: utterances in a batch, whatever the `batch_seconds` of audio.
        steps, learning_rate: of Adam, for each batch.
        unit_frames, certainty, scale, smoothness: see above.
        seed: of everything random.

    Raises:
        ConfigError: numbers out of range.
    """

    def __init__(
        self,
        *,
        teacher: str,
        cache: str,
        utterances: int = 48,
        frames: int = 75,
        batch_size: int = 16,
        steps: int = 80,
        learning_rate: float = 0.1,
        unit_frames: int = 4,
        certainty: float = 0.9,
        scale: float = 1.0,
        smoothness: float = 0.1,
        seed: int = 1,
    ) -> None:
        self.config: dict[str, Any] = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "__class__", "cache", "teacher")
        }
        if min(utterances, frames, batch_size, steps, unit_frames) < 1 or not 0.0 < certainty <= 1.0:
            raise ConfigError(
                "invalid settings for impressions",
                expected="counts of at least 1, and 0 < certainty <= 1",
                got=self.config,
            )
        self.teacher, self.cache, self.seed = Path(teacher), Path(cache), seed
        self.utterances, self.frames, self.batch_size = utterances, frames, batch_size
        self.steps, self.learning_rate, self.smoothness = steps, learning_rate, smoothness
        self.unit_frames, self.certainty, self.scale = unit_frames, certainty, scale
        self.items, self.left_out = range(utterances), dict[str, str]()
        self._made: Tensor | None = None

    def batch(self, position: int) -> Batch:
        """The `position`-th batch since the beginning of training."""
        features_ntf = self.features()
        epoch, index = self.locate(position)
        chosen = self.epoch_batches(epoch)[index]
        lengths_b = torch.full((len(chosen),), features_ntf.shape[1])
        return Batch([f"impression-{n:05d}" for n in chosen], features_ntf[chosen].clone(), lengths_b)

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch and index within it of the `position`-th batch."""
        return divmod(position, -(-self.utterances // self.batch_size))

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """The impressions in each batch of an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.utterances).tolist()
        return [order[n : n + self.batch_size] for n in range(0, self.utterances, self.batch_size)]

    def next_utterance(self, position: int) -> dict[str, Any]:
        """The stream's position before batch `position`."""
        epoch, index = self.locate(position)
        first = self.epoch_batches(epoch)[index][0]
        return {"epoch": epoch, "batch_in_epoch": index, "next_key": f"impression-{first:05d}"}

    def fingerprint(self) -> list[Any]:
        """Everything that determines the batches."""
        return [{**self.config, "teacher": read_card(self.teacher)["weights_sha256"]}]

    def features(self) -> Tensor:
        """(utterances, T, 80) raw log-mel, from the cache if it has these settings, else made now."""
        if self._made is None:
            self._made = self._cached()
        if self._made is None:
            self._made = self._make()
            self._write(self._made)
        return self._made

    def _cached(self) -> Tensor | None:
        try:
            with safetensors.safe_open(self.cache, "pt") as file:
                if (file.metadata() or {}).get("settings") != self._settings():
                    return None
                features_ntf: Tensor = file.get_tensor("features")
                return features_ntf
        except (OSError, safetensors.SafetensorError):
            return None

    def _write(self, features_ntf: Tensor) -> None:
        settings = {"settings": self._settings()}
        commit_bytes(self.cache, safetensors.torch.save({"features": features_ntf}, metadata=settings))

    def _settings(self) -> str:
        return json.dumps(self.fingerprint(), sort_keys=True)

    def _make(self) -> Tensor:
        model = load_model(self.teacher).model.requires_grad_(False)
        generator = torch.Generator().manual_seed(self.seed)
        similarity_vv = class_similarity(model.head.weight)
        made = []
        for start in range(0, self.utterances, self.batch_size):
            size = min(self.batch_size, self.utterances - start)
            answer_btv = self._answers(size, similarity_vv, generator)
            made.append(self._imagine(model, answer_btv, generator))
        return torch.cat(made)

    def _answers(self, size: int, similarity_vv: Tensor, generator: torch.Generator) -> Tensor:
        """(B, T, V) sampled posteriors, such as the teacher might give."""
        vocab_size = len(similarity_vv)
        spikes_bt = torch.rand(size, self.frames, generator=generator) < 1 / self.unit_frames
        # Adjacent spikes could have the same class, which CTC would merge.
        spikes_bt[:, 1:] &= ~spikes_bt[:, :-1]
        units_bt = torch.randint(1, vocab_size, (size, self.frames), generator=generator) * spikes_bt
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        concentration_btv = self.scale * similarity_vv[units_bt].clamp_min(1e-2)
        gamma_btv = torch.from_numpy(
            rng.standard_gamma(concentration_btv.double().numpy()).astype(np.float32)
        )
        rest_btv = gamma_btv / gamma_btv.sum(-1, keepdim=True).clamp_min(1e-20)
        return self.certainty * functional.one_hot(units_bt, vocab_size) + (1 - self.certainty) * rest_btv

    def _imagine(self, model: Any, answer_btv: Tensor, generator: torch.Generator) -> Tensor:
        """(B, T, 80) log-mel, for which the model outputs about `answer_btv`."""
        size, num_frames = len(answer_btv), self.frames * model.subsampling
        noise_btf = torch.randn(size, num_frames, NUM_MEL_BINS, generator=generator).requires_grad_()
        lengths_b = torch.full((size,), num_frames)
        mean_f, std_f = model.normalise.mean_f, 1.0 / model.normalise.inverse_std_f
        optimiser = torch.optim.Adam([noise_btf], lr=self.learning_rate)
        for _ in range(self.steps):
            optimiser.zero_grad()
            log_probs_btv, _ = model.offline(mean_f + std_f * noise_btf, lengths_b)
            surprise = -(answer_btv * log_probs_btv).sum(-1).mean()
            energy = noise_btf.square().mean()
            change = (noise_btf[:, 1:] - noise_btf[:, :-1]).square().mean()
            (surprise + self.smoothness * (energy + change)).backward()
            optimiser.step()
        return (mean_f + std_f * noise_btf).detach()


def class_similarity(weight_vd: Tensor) -> Tensor:
    """(V, V) cosines between the classes' weights, each row rescaled to 0 … 1 (ZSKD, section 3.2)."""
    unit_vd = functional.normalize(weight_vd.detach().float(), dim=-1)
    cosine_vv = unit_vd @ unit_vd.T
    low_v1 = cosine_vv.min(-1, keepdim=True).values
    return (cosine_vv - low_v1) / (cosine_vv.max(-1, keepdim=True).values - low_v1).clamp_min(1e-6)
