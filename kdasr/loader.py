"""Audio shards, joined by key with soft labels, in; training batches out, in an order fixed by a seed.

The utterances of step n are a pure function of the manifests, the settings and the seed. So a position in
the data is one number, resuming needs nothing else, and workers cannot change the order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.batches import EpochBatches, FeatureCache, change_speed, collate, cut_epoch
from kdasr.contract import Contract, StudentSide, label_symbols
from kdasr.errors import ConfigError, ShardError, UnitsError
from kdasr.features import (
    FRAME_SHIFT_MS,
    HOP_SAMPLES,
    NUM_MEL_BINS,
    log_mel,
    num_frames,
)
from kdasr.interfaces import Batch, SoftLabels, Utterance
from kdasr.items import Item, Items, Joined, LeftOut
from kdasr.shards import Shard, ShardEntry, list_shards, open_shard, read_texts, read_utterance
from kdasr.soft_labels import LabelFolder, concatenate
from kdasr.surroundings import (
    LONGEST_LEAD_FRAMES,
    LONGEST_PAUSE_FRAMES,
    TAIL_FRAMES,
    after_quiet,
    labels_after,
    silence,
)
from kdasr.text import Units

# Of batches: a training begun with others of the same settings cannot go on with these.
_GENERATION = 2
# In batches of more utterances than this, one more row of padding costs little.
_MANY = 8


@dataclass(slots=True)
class Stream:
    """An endless source of batches: shards, cut into length-bucketed batches, epoch after epoch.

    Args:
        folders: folders of audio shards.
        batch_seconds: audio in a batch, padding included.
        seed: determines the batches and their order.
        units: turns transcripts into tokens; None for unlabelled audio.
        labels: soft labels for the audio, one folder of them for each of `folders`, or none.
        student: the student that the labels must fit (see `kdasr.contract`), which is checked for every
            utterance on construction; None: labels are passed on as stored.
        speeds: speed perturbation: each reading of an utterance picks one of these factors.
        max_utterances: use only this many utterances (the first of a seeded shuffle); None for all.
        exclude_longer_s: utterances longer than this are left out.
        spoil: from (N,) samples and a random generator, makes the (N,) samples that the student hears.
        clean_too: give batches the unspoilt features as `teacher_features_btf`, for online teachers.
        mix: from a batch and a random generator, makes a batch with other features; only without soft
            labels and `spoil`.
        tail_share: share of the readings of an utterance that are followed by the silence that streaming
            models are fed after the audio (`kdasr.streaming.tail`): students never trained on it take it
            for speech. 0 for audio with frame-by-frame labels, or with neither text nor labels.
        lead_share: share of the batches that begin with up to 1.5 s of what is heard before speech: noise
            like the quietest 100 ms of the utterance, generated noise that moves, or digital silence. Models
            never trained on it misrecognise audio that does not start as utterances are cut. Frame-by-frame
            labels are blank there.
        joined_share: share of the batches in which every second utterance is appended to the one before,
            after up to 1 s of the same, as in a stream; pairs may last twice `exclude_longer_s`.
        cache_bytes: memory for features already computed; small corpora fit completely.

    Attributes:
        left_out: "FOLDER/KEY", with the folder as given, of each utterance that is not used, and why.
    """

    folders: Sequence[Path]
    batch_seconds: float
    seed: int
    units: Units | None = None
    labels: Sequence[LabelFolder] = ()
    student: StudentSide | None = None
    speeds: tuple[float, ...] = (1.0,)
    max_utterances: int | None = None
    exclude_longer_s: float = 40.0
    cache_bytes: int = 0
    spoil: Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]] | None = None
    clean_too: bool = True
    mix: Callable[[Batch, torch.Generator], Batch] | None = None
    tail_share: float = 0.0
    lead_share: float = 0.0
    joined_share: float = 0.0
    items: Items = field(init=False)
    left_out: LeftOut = field(init=False, default_factory=LeftOut)
    _cache: FeatureCache = field(init=False)
    _frames_sn: NDArray[np.int32] = field(init=False)
    _epochs: dict[int, EpochBatches] = field(init=False, default_factory=dict)
    _batches_per_epoch: int = field(init=False, default=0)
    _around: int = field(init=False, default=0)
    _spoken: str = field(init=False, default="")
    _labels_timed: bool = field(init=False, default=False)
    _joined: list[Joined] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._check()
        self.items = self._usable_items()
        if self.max_utterances is not None:
            order = np.random.default_rng(self.seed).permutation(len(self.items))
            self.items = self.items.only(np.sort(order[: self.max_utterances]))
        if not len(self.items):
            raise ShardError(
                "no utterance can be used",
                where=", ".join(str(folder) for folder in self.folders),
                got="; ".join(f"{key}: {why}" for key, why in itertools.islice(self.left_out.items(), 3))
                or None,
            )
        self._cache = FeatureCache(self.cache_bytes)
        if (self.labels and self.labels_have_times) or not (self.labels or self.units):
            self.tail_share = 0.0
        # Looked up once, not for each utterance: there may be many shards.
        self._labels_timed = self.labels_have_times
        if self.labels and self.student is None:
            self.lead_share = self.joined_share = 0.0  # the student's output frames are unknown
        if self.units is not None and not _spell_words_apart(self.units, self._spoken):
            self.joined_share = 0.0
        # Batches are sized for the audio at its speed, plus what is added around it on average.
        before = self.lead_share * LONGEST_LEAD_FRAMES / 2 + self.joined_share * LONGEST_PAUSE_FRAMES / 4
        self._around = round(before) + (TAIL_FRAMES if self.tail_share else 0)
        frames_n = np.fromiter(map(num_frames, self.items.num_samples()), np.int32, len(self.items))
        at_speeds = [np.ceil(frames_n / speed).astype(np.int32) for speed in self.speeds]
        self._frames_sn = np.stack(at_speeds) + np.int32(self._around)

    def _check(self) -> None:
        """Raise ConfigError if settings do not fit each other."""
        if not self.folders:
            raise ConfigError(
                "no audio folder is given",
                where="labelled or dev" if self.units is not None else "unlabelled",
                fix="Name folders of audio shards: [DIR, …].",
            )
        places = Counter(Path(folder).resolve() for folder in self.folders)
        if twice := [folder for folder, count in places.items() if count > 1]:
            raise ConfigError(
                "an audio folder is given twice",
                where="labelled" if self.units is not None else "unlabelled",
                expected="each folder once, as every utterance is used once per epoch",
                got=twice[0],
            )
        if self.batch_seconds <= 0:
            raise ConfigError(
                "the batch size is not positive",
                where="batch_seconds",
                expected="more than 0",
                got=self.batch_seconds,
            )
        if self.labels and len(self.labels) != len(self.folders):
            raise ConfigError(
                "the numbers of audio and label folders differ",
                where="unlabelled, labels" if self.units is None else "labelled, labelled_soft_labels",
                expected="a folder of labels for each folder of audio, or none at all",
                got=f"{len(self.folders)} of audio and {len(self.labels)} of labels",
            )
        if self.labels and self.speeds != (1.0,):
            raise ConfigError(
                "speed perturbation would misalign the audio and its soft labels",
                where="speeds",
                expected=[1.0],
                got=list(self.speeds),
                fix="Perturb the audio when it is prepared, before it is labelled, or use an online teacher.",
            )
        if self.mix is not None and (self.labels or self.units is not None):
            raise ConfigError(
                "mixed audio no longer matches its labels or transcripts",
                where="mix",
                expected="unlabelled audio without soft labels, and an online teacher",
            )
        if self.mix is not None and self.spoil is not None:
            raise ConfigError(
                "mixed audio has no clean version for a teacher",
                where="mix, spoil",
                expected="only one of the two",
            )

    def fingerprint(self) -> list[Any]:
        """Everything that determines the batches: the audio, the labels and the settings."""
        labels = [joined.labels.header.config_hash for joined in self._joined]
        settings = [self.batch_seconds, self.seed, self.speeds, self.max_utterances, self.exclude_longer_s]
        unit_map = self.student.unit_map if self.student is not None and self.labels else None
        changes = [
            [type(by).__qualname__, getattr(by, "config", None)] for by in (self.spoil, self.mix) if by
        ]
        shares = {"tail": self.tail_share, "lead": self.lead_share, "joined": self.joined_share}
        around = [f"{name} {share}" for name, share in shares.items() if share]
        optional = [item for item in (unit_map, changes, *around) if item]
        audio = list(self.items.sha256().values())
        return [_GENERATION, audio, labels, settings, len(self.items), *optional]

    @property
    def fits_cache(self) -> bool:
        """Whether all features of an epoch fit into the cache, so that the next need not recompute them."""
        return 4 * NUM_MEL_BINS * int(self._frames_sn.sum()) <= self.cache_bytes

    def cache_whole_or_nothing(self) -> None:
        """Disable the cache unless all features fit: read in the same order every time, an entry would be
        evicted before its next use."""
        if not self.fits_cache:
            self.cache_bytes, self._cache = 0, FeatureCache(0)

    def batch(self, position: int) -> Batch:
        """The `position`-th batch since the beginning of training."""
        epoch, index = self.locate(position)
        return self._load(epoch, self.epoch_batches(epoch)[index])

    @property
    def labels_have_times(self) -> bool:
        """Whether the labels are frame-by-frame posteriors, not mere transcripts."""
        contracts = [joined.contract for joined in self._joined]
        return all(one is None or one.teacher_per_student is not None for one in contracts)

    @property
    def seconds(self) -> float:
        """Total duration of all utterances."""
        return sum(self.items.num_samples()) / SAMPLE_RATE_HZ

    @property
    def taught_by(self) -> list[dict[str, str]]:
        """The teachers of the labels and the hashes of their settings, each once; see `Header`."""
        headers = {
            (one.teacher, one.teacher_hash, one.config_hash)
            for one in (joined.labels.header for joined in self._joined)
        }
        names = ("teacher", "teacher_hash", "config_hash")
        return [dict(zip(names, found, strict=True)) for found in sorted(headers)]

    def untaught(self) -> list[str]:
        """The student's symbols for which a teacher of the labels has no class; see `kdasr.contract`."""
        if self.student is None:
            return []
        contracts = {joined.contract for joined in self._joined if joined.contract is not None}
        return sorted({symbol for contract in contracts for symbol in self.student.lacking(contract)})

    def median_frames(self) -> int | None:
        """Median number of the student's output frames in an utterance; None without a student."""
        if self.student is None:
            return None
        return self.student.frames(int(np.median(self._frames_sn)) - self._around)

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch and index within it of the `position`-th batch."""
        return divmod(position, self.batches_per_epoch)

    @property
    def batches_per_epoch(self) -> int:
        """The same for all epochs."""
        if self._batches_per_epoch == 0:
            self._batches_per_epoch = len(self.epoch_batches(0))
        return self._batches_per_epoch

    def next_utterance(self, position: int) -> dict[str, Any]:
        """The state of the stream before its `position`-th batch: the first utterance of that batch."""
        epoch, index = self.locate(position)
        first = self.items[self.epoch_batches(epoch)[index][0]]
        place = {"next_shard": first.shard.path.name, "next_key": first.entry.key}
        return {"epoch": epoch, "batch_in_epoch": index, **place}

    def epoch_batches(self, epoch: int) -> EpochBatches:
        """Item numbers of each batch of an epoch; every item is in exactly one batch."""
        if epoch not in self._epochs:
            batch_frames = int(self.batch_seconds * 1000 / FRAME_SHIFT_MS)
            self._epochs = {epoch: cut_epoch(self._frames_sn, batch_frames, self.seed, epoch)}
        return self._epochs[epoch]

    def _usable_items(self) -> Items:
        items = Items()
        for folder, labels in itertools.zip_longest(self.folders, self.labels):
            for shard, joined in self._shards(folder, labels):
                rows = {} if joined is None else joined.labels.rows()
                texts = read_texts(shard) if self.units is not None else itertools.repeat(None)
                usable, reasons = [], dict[str, str]()
                for entry, text in zip(shard.entries, texts, strict=False):
                    reason = self._unusable(entry)
                    if joined is not None and entry.key not in rows:
                        reason = _unlabelled(entry, joined)
                    if reason is None and self.units is not None:
                        if text is None:
                            raise _no_transcript(shard.path, entry.key)
                        reason = self._misfit(shard.path, entry, text, self.units)
                        self._spoken = self._spoken or text
                    if reason is not None:
                        reasons[f"{folder}/{entry.key}"] = reason
                        continue
                    if joined is not None:
                        self._check_length(entry, joined, rows[entry.key])
                    usable.append(entry)
                items.add(shard, joined, usable, [rows.get(entry.key, 0) for entry in usable])
                self.left_out.add(reasons)
                if joined is not None:
                    joined.labels.forget_names()
        return items

    def _shards(self, folder: Path, labels: LabelFolder | None) -> Iterator[tuple[Shard, Joined | None]]:
        """The shards of a folder of audio, each with its soft labels if there are any."""
        contract: Contract | None = None
        for path in list_shards(folder):
            shard = open_shard(path)
            if labels is None:
                yield shard, None
                continue
            found = labels.shard_for(shard.path, shard.sha256)
            if contract is None and self.student is not None:
                # One for all shards: a folder is labelled in one way, and a map of many classes is large.
                where = labels.folder
                contract = self.student.contract(found.header, label_symbols(where), str(where))
            self._joined.append(Joined(found, contract))
            yield shard, self._joined[-1]

    def _unusable(self, entry: ShardEntry) -> str | None:
        if num_frames(int(entry.num_samples / max(self.speeds))) == 0:
            return f"{entry.num_samples} samples are less than one frame"
        if (seconds := entry.num_samples * FRAME_SHIFT_MS / HOP_SAMPLES / 1000) > self.exclude_longer_s:
            return f"{seconds:.1f} s is longer than {self.exclude_longer_s} s"
        return None

    def _misfit(self, path: Path, entry: ShardEntry, text: str, units: Units) -> str | None:
        """Why a transcript is too long for any CTC alignment with its audio at the highest speed; None if it
        is not."""
        try:
            ids = units.encode(text)
        except UnitsError as error:
            raise error.told_of(f"{path}:{entry.key}") from error
        if self.student is None:
            return None
        needed = len(ids) + sum(one == other for one, other in itertools.pairwise(ids))
        frames = self.student.frames(num_frames(int(entry.num_samples / max(self.speeds))))
        return (
            f"its transcript needs {needed} output frames, but there are {frames}"
            if needed > frames
            else None
        )

    def _check_length(self, entry: ShardEntry, joined: Joined, row: int) -> None:
        if self.student is not None and joined.contract is not None:
            frames = self.student.frames(num_frames(entry.num_samples))
            joined.contract.check_length(joined.labels.num_frames_of_row(row), frames, entry.key)

    def _soft_labels(self, item: Item) -> SoftLabels:
        assert item.joined is not None
        labels, contract = item.joined.labels.read_row(item.label_row), item.joined.contract
        if self.student is None or contract is None:
            return labels
        return contract.apply(labels, self.student.frames(num_frames(item.entry.num_samples)))

    def _load(self, epoch: int, indices: Sequence[int]) -> Batch:
        speeds = self.epoch_batches(epoch).speeds
        items = [self.items[i]._replace(speed=self.speeds[speeds[i]]) for i in indices]
        # One length for the whole batch: shorter ones would be padded to the longest.
        lead = self._pause(self.lead_share, epoch, f"{items[0].entry.key}/lead", LONGEST_LEAD_FRAMES)
        pause = self._pause(self.joined_share, epoch, f"{items[0].entry.key}/joined", LONGEST_PAUSE_FRAMES)
        rows = self._pairs(items) if pause else [[item] for item in items]
        readings = [self._reading(row, lead, pause, epoch) for row in rows]
        keys, texts = [one.key for one in readings], [one.text for one in readings]
        soft = [one.labels for one in readings if one.labels is not None] if self.labels else None
        heard = [one.heard for one in readings]
        batch = collate(keys, heard, self.units, texts if self.units is not None else None, soft)
        if clean := [one.clean for one in readings if one.clean is not None]:
            batch.teacher_features_btf = collate(keys, clean).features_btf
        random = torch.Generator().manual_seed(self._draw(epoch, keys[0]))
        return batch if self.mix is None else self.mix(batch, random)

    def _pause(self, share: float, epoch: int, name: str, most: int) -> int:
        """Feature frames of a pause, whole output frames up to `most`, in a `share` of all cases; else 0."""
        if not self._happens(share, epoch, name):
            return 0
        return (1 + self._draw(epoch, f"{name} of") % (most // self._subsampling)) * self._subsampling

    @property
    def _subsampling(self) -> int:
        return 1 if self.student is None else self.student.subsampling

    def _pairs(self, items: Sequence[Item]) -> list[list[Item]]:
        """Pairs of successive utterances. A single one that is left over is padded to the length of a pair,
        which costs little in a large batch; in a small one, all stay single."""
        size = 2 if len(items) % 2 == 0 or len(items) > _MANY else 1
        return [list(items[first : first + size]) for first in range(0, len(items), size)]

    def _reading(self, row: Sequence[Item], lead: int, pause: int, epoch: int) -> _Reading:
        """The utterances of a row, after `lead` feature frames, with `pause` frames between them."""
        heard: list[Tensor] = []
        clean: list[Tensor] = []
        texts: list[str] = []
        labels: list[SoftLabels] = []
        symbols = [] if self.student is None else self.student.units.symbols
        for item in row:
            heard_tf, clean_tf, text = self._heard(item, epoch)
            quiet = pause if heard else lead
            # Labels begin at an output frame.
            frames = quiet + (-len(heard[-1]) % self._subsampling if heard else 0)
            seed = self._draw(epoch, f"{item.entry.key}/quiet")
            if self.labels:
                timed = quiet // self._subsampling if self._labels_timed else None
                labels.append(labels_after(labels, timed, self._soft_labels(item), symbols))
            heard.append(after_quiet(heard_tf, frames, seed))
            if clean_tf is not None:
                clean.append(after_quiet(clean_tf, frames, seed))
            texts.append(text or "")
        if self._has_tail(row[-1].entry.key, epoch):
            heard.append(silence(TAIL_FRAMES))
            if clean:
                clean.append(silence(TAIL_FRAMES))
        return _Reading(
            "+".join(item.entry.key for item in row),
            " ".join(texts),
            torch.cat(heard),
            torch.cat(clean) if clean else None,
            concatenate(labels) if labels else None,
        )

    def _heard(self, item: Item, epoch: int) -> tuple[Tensor, Tensor | None, str | None]:
        """The (T, 80) features that the student hears, spoilt differently in every epoch; the clean ones for
        an online teacher, if any; and the transcript."""
        if self.spoil is None:
            features_tf, text = self._features_and_text(item)
            return features_tf, None, text
        samples, text = self._samples_and_text(item)
        rng = np.random.default_rng(self._draw(epoch, f"{item.entry.key}/spoil"))
        return log_mel(self.spoil(samples, rng)), log_mel(samples) if self.clean_too else None, text

    def _has_tail(self, key: str, epoch: int) -> bool:
        return self._happens(self.tail_share, epoch, f"{key}/tail")

    def _happens(self, share: float, epoch: int, name: str) -> bool:
        """Whether an event that happens in a `share` of all cases happens in this one."""
        return share > 0 and self._draw(epoch, name) < share * 2**56

    def _draw(self, epoch: int, name: str) -> int:
        """A 56-bit number determined by the seed, the epoch and a name."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed}/{epoch}/{name}".encode(), digest_size=7).digest())

    def _features_and_text(self, item: Item) -> tuple[Tensor, str | None]:
        def compute() -> tuple[Tensor, str | None]:
            samples, text = self._samples_and_text(item)
            return log_mel(samples), text

        return self._cache.get((item.shard.path, item.entry.key, item.speed), compute)

    def _samples_and_text(self, item: Item) -> tuple[NDArray[np.float32], str | None]:
        utterance = read_utterance(item.shard, item.entry)
        if self.units is not None and utterance.text is None:
            raise _no_transcript(item.shard.path, utterance.key)
        return change_speed(utterance.samples, item.speed), utterance.text


class _Reading(NamedTuple):
    """One row of a batch: an utterance, or two in succession.

    Attributes:
        key: the key, or both joined by +.
        text: the transcript of all; empty if there is none.
        heard: (T, 80) features that the student hears.
        clean: (T, 80) features before spoiling, if requested.
        labels: mapped to the student, if there are any.
    """

    key: str
    text: str
    heard: Tensor
    clean: Tensor | None
    labels: SoftLabels | None


def _spell_words_apart(units: Units, text: str) -> bool:
    """Whether the units can encode where one word ends and the next begins."""
    try:
        return bool(units.encode(f"{text} {text}")) or not text
    except UnitsError:
        return False


def _unlabelled(entry: ShardEntry, joined: Joined) -> str:
    reason = joined.labels.failures.get(entry.key)
    return f"it has no labels: {reason}" if reason else "it has no labels"


def _no_transcript(shard: Path, key: str) -> ShardError:
    return ShardError(
        "an utterance of labelled audio has no transcript",
        where=f"{shard}:{key}",
        expected="a `text` in its JSON",
        fix="Move audio without transcripts to a folder that is listed under `unlabelled`.",
    )


def texts_of(folders: Sequence[Path]) -> list[str]:
    """The transcripts in folders of labelled shards, in order; no audio is read."""
    opened = (open_shard(path) for folder in folders for path in list_shards(folder))
    texts = (text for shard in opened for text in read_texts(shard))
    return [text for text in texts if text is not None]


def feature_statistics(stream: Stream, max_utterances: int = 500) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (80,) of each mel bin over a stream, or a seeded sample of it."""
    count, total, squares = 0, torch.zeros(80, dtype=torch.float64), torch.zeros(80, dtype=torch.float64)
    order = np.random.default_rng(stream.seed).permutation(len(stream.items))[:max_utterances]
    for i in order:
        features = log_mel(_read(stream.items[int(i)]).samples).double()
        count += len(features)
        total += features.sum(0)
        squares += features.square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


def _read(item: Item) -> Utterance:
    return read_utterance(item.shard, item.entry)
