"""Soft labels of a block of frames to bytes and back: byte planes, ready for zstd.

Each quantity of a block has its own plane, and 16-bit and 32-bit numbers are split into one
plane per byte. Neighbouring bytes are then similar, which saves about a third of the compressed
size. docs/soft-labels.md specifies every plane; this file and that document must agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdasr.errors import DamagedLabelsError, SoftLabelError
from kdasr.interfaces import BLANK_ID, SoftLabels
from kdasr.soft_labels.runs import Floats, Ints, Parts, join_blank, split_blank

MAX_VOCAB = 65_536


@dataclass(frozen=True, slots=True)
class Layout:
    """How the frames of one shard are laid out in planes.

    Attributes:
        kind: `levels` (log-probs in steps below the frame's best class), `floats` (exact
            float32) or `draws` (counts out of `num_draws` random draws).
        vocab_size: classes including blank.
        max_kept: most classes that a frame keeps, blank included.
        step_nats: size of one level; `levels` only.
        floor_nats: values further below the frame's best class are stored as this; `levels` only.
        num_draws: draws for each frame; `draws` only.
        implicit_ids: every frame keeps every class in id order, so neither counts nor ids are stored.
    """

    kind: Literal["levels", "floats", "draws"]
    vocab_size: int
    max_kept: int
    step_nats: float = 0.0
    floor_nats: float = 0.0
    num_draws: int = 0
    implicit_ids: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= MAX_VOCAB:
            raise SoftLabelError(
                "vocabulary size out of range", expected=f"2 to {MAX_VOCAB}", got=self.vocab_size
            )

    @property
    def tail_bias(self) -> int:
        """Levels added to a stored tail, whose mass may be up to V times that of the best class."""
        return math.ceil(math.log(self.vocab_size) / self.step_nats)

    @property
    def floor_level(self) -> int:
        return math.ceil(self.floor_nats / self.step_nats)

    @property
    def value_bytes(self) -> int:
        """Bytes of one stored value: 4 for floats, otherwise as many as the largest value needs."""
        if self.kind == "floats":
            return 4
        largest = self.floor_level + self.tail_bias if self.kind == "levels" else self.num_draws
        return 1 if largest < 256 else 2

    @property
    def count_bytes(self) -> int:
        if self.implicit_ids:
            return 0
        return 1 if self.max_kept <= 256 else 2

    @property
    def id_bytes(self) -> int:
        if self.implicit_ids:
            return 0
        return 1 if self.vocab_size <= 256 else 2

    def raw_bytes(self, num_frames: int, num_entries: int) -> int:
        """Bytes of a block of `num_frames` frames that keep `num_entries` classes besides blank."""
        per_frame = self.count_bytes + self.value_bytes * (1 if self.kind == "draws" else 2)
        return num_frames * per_frame + num_entries * (self.id_bytes + self.value_bytes)

    def quantise(self, labels: SoftLabels) -> SoftLabels:
        """The labels that readers will get back after `labels` were stored."""
        if self.kind != "levels":
            return labels
        parts = split_blank(labels)
        return self._from_levels(*self._to_levels(parts), parts.extra_counts, parts.ids)

    def pack(self, labels: SoftLabels) -> bytes:
        """The planes of a block; `labels` may join several utterances (see `concatenate`)."""
        parts = split_blank(labels)
        head = b"" if self.implicit_ids else _to_planes(parts.extra_counts, self.count_bytes)
        ids = b"" if self.implicit_ids else _to_planes(parts.ids, self.id_bytes)
        blank, tail, entries = self._to_stored(parts)
        planes = [head, blank, tail, ids, entries]
        return b"".join(planes)

    def unpack(self, raw: bytes, num_frames: int, num_entries: int) -> SoftLabels:
        """The inverse of `pack`.

        Raises:
            DamagedLabelsError: the bytes cannot be a block of this layout.
        """
        if len(raw) != self.raw_bytes(num_frames, num_entries):
            raise DamagedLabelsError(
                "a block has the wrong size", expected=self.raw_bytes(num_frames, num_entries), got=len(raw)
            )
        cursor = _Cursor(raw)
        extra_counts = self._read_counts(cursor, num_frames, num_entries)
        width = self.value_bytes
        blank = cursor.take(num_frames, width)
        tail = cursor.take(num_frames, width) if self.kind != "draws" else None
        ids = self._read_ids(cursor, num_frames, num_entries)
        entries = cursor.take(num_entries, width)
        if self.kind == "floats":
            assert tail is not None
            return self._from_floats(blank, tail, entries, extra_counts, ids)
        if self.kind == "draws":
            return self._from_draws(blank, entries, extra_counts, ids)
        assert tail is not None
        self._check_levels(blank, tail, entries)
        return self._from_levels(
            blank.astype(np.int64), tail.astype(np.int64), entries.astype(np.int64), extra_counts, ids
        )

    # -- counts and ids ---------------------------------------------------------------------

    def _read_counts(self, cursor: _Cursor, num_frames: int, num_entries: int) -> Ints:
        if self.implicit_ids:
            counts = np.full(num_frames, self.vocab_size - 1, np.int64)
        else:
            counts = cursor.take(num_frames, self.count_bytes).astype(np.int64)
        most = min(self.max_kept, self.vocab_size) - 1
        if counts.size and int(counts.max()) > most:
            raise DamagedLabelsError(
                "a frame keeps too many classes", expected=f"<= {most}", got=int(counts.max())
            )
        if int(counts.sum()) != num_entries:
            raise DamagedLabelsError(
                "a block's counts do not add up", expected=num_entries, got=int(counts.sum())
            )
        return counts

    def _read_ids(self, cursor: _Cursor, num_frames: int, num_entries: int) -> Ints:
        if self.implicit_ids:
            return np.tile(np.arange(1, self.vocab_size, dtype=np.int64), num_frames)
        ids = cursor.take(num_entries, self.id_bytes).astype(np.int64)
        if ids.size and (int(ids.min()) <= BLANK_ID or int(ids.max()) >= self.vocab_size):
            raise DamagedLabelsError(
                "a class id is out of range",
                expected=f"1 to {self.vocab_size - 1}",
                got=f"{int(ids.min())} to {int(ids.max())}",
            )
        return ids

    # -- values -----------------------------------------------------------------------------

    def _to_stored(self, parts: Parts) -> tuple[bytes, bytes, bytes]:
        if self.kind == "floats":
            planes = [_float_planes(values) for values in (parts.blank, parts.tail, parts.entries)]
            return planes[0], planes[1], planes[2]
        if self.kind == "draws":
            blank_draws, entry_draws = (
                np.rint(np.exp(values.astype(np.float64)) * self.num_draws).astype(np.int64)
                for values in (parts.blank, parts.entries)
            )
            return _to_planes(blank_draws, self.value_bytes), b"", _to_planes(entry_draws, self.value_bytes)
        blank, tail, entries = (_to_planes(levels, self.value_bytes) for levels in self._to_levels(parts))
        return blank, tail, entries

    def _to_levels(self, parts: Parts) -> tuple[Ints, Ints, Ints]:
        best = parts.blank.astype(np.float64)
        has_extra = parts.extra_counts > 0
        # Only the starts of non-empty frames: for an empty one, reduceat would return its neighbour's value.
        if parts.entries.size:
            best_entry = np.maximum.reduceat(parts.entries, parts.starts[has_extra]).astype(np.float64)
            best[has_extra] = np.maximum(best[has_extra], best_entry)
        blank = _not_best(self._level(best - parts.blank, 0), best > parts.blank)
        tail = self._level(best - parts.tail, -self.tail_bias) + self.tail_bias
        tail[parts.extra_counts == self.vocab_size - 1] = 0  # no class is left out, so there is no tail
        best_of_entry = np.repeat(best, parts.extra_counts)
        entries = _not_best(self._level(best_of_entry - parts.entries, 0), best_of_entry > parts.entries)
        return blank, tail, entries

    def _level(self, below_best: NDArray[np.float64], lowest: int) -> Ints:
        scaled = np.clip(below_best * (1.0 / self.step_nats), lowest, self.floor_level)
        return np.rint(scaled).astype(np.int64)

    def _check_levels(self, blank: NDArray[Any], tail: NDArray[Any], entries: NDArray[Any]) -> None:
        limits = (
            (blank, self.floor_level),
            (tail, self.floor_level + self.tail_bias),
            (entries, self.floor_level),
        )
        for levels, highest in limits:
            if levels.size and int(levels.max()) > highest:
                raise DamagedLabelsError(
                    "a level is out of range", expected=f"<= {highest}", got=int(levels.max())
                )

    def _from_levels(
        self, blank: Ints, tail: Ints, entries: Ints, extra_counts: Ints, ids: Ints
    ) -> SoftLabels:
        nats = -self.step_nats * (np.arange(self.floor_level + self.tail_bias + 1) - self.tail_bias)
        mass, bias = np.exp(nats), self.tail_bias
        complete = extra_counts == self.vocab_size - 1
        frames = np.repeat(np.arange(len(blank)), extra_counts)
        total = mass[blank + bias] + np.where(complete, 0.0, mass[tail])
        if len(entries):
            total += np.bincount(frames, weights=mass[entries + bias], minlength=len(blank))
        norm = np.log(total)
        blank_lp = (nats[blank + bias] - norm).astype(np.float32)
        tail_lp = np.where(complete, -np.inf, nats[tail] - norm).astype(np.float32)
        entry_lp = (nats[entries + bias] - norm[frames]).astype(np.float32)
        return join_blank(blank_lp, tail_lp, entry_lp, extra_counts, ids)

    def _from_draws(
        self, blank: NDArray[Any], entries: NDArray[Any], extra_counts: Ints, ids: Ints
    ) -> SoftLabels:
        frames = np.repeat(np.arange(len(blank)), extra_counts)
        drawn = blank + np.bincount(frames, weights=entries, minlength=len(blank))
        if not np.all(drawn == self.num_draws):
            raise DamagedLabelsError("the draws of a frame do not add up", expected=self.num_draws)
        with np.errstate(divide="ignore"):
            table = np.log(np.arange(self.num_draws + 1) / self.num_draws).astype(np.float32)
        tail = np.full(len(blank), -np.inf, np.float32)
        return join_blank(table[blank], tail, table[entries], extra_counts, ids)

    def _from_floats(
        self, blank: Floats, tail: Floats, entries: Floats, extra_counts: Ints, ids: Ints
    ) -> SoftLabels:
        for values in (blank, tail, entries):
            if values.size and not bool(np.all(values <= 1e-3)):  # NaN fails the comparison too
                raise DamagedLabelsError("a stored value is not a log-probability", expected="<= 0")
        return join_blank(blank, tail, entries, extra_counts, ids)


def _not_best(levels: Ints, is_below: NDArray[np.bool_]) -> Ints:
    """The levels, at least 1 for classes that are not the best of their frame: rounded to 0 they would tie
    with the best, and readers, which take the first of equals, might get another unit than the teacher."""
    return np.maximum(levels, is_below)


def _to_planes(values: Ints, width: int) -> bytes:
    if width == 1:
        return values.astype(np.uint8).tobytes()
    return (values & 255).astype(np.uint8).tobytes() + (values >> 8).astype(np.uint8).tobytes()


def _float_planes(values: Floats) -> bytes:
    return values.astype("<f4").view(np.uint8).reshape(-1, 4).T.tobytes()


class _Cursor:
    """Reads planes one after another."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._offset = raw, 0

    def take(self, count: int, width: int) -> NDArray[Any]:
        """`count` numbers of `width` byte planes: uint8, uint16 or float32."""
        planes = np.frombuffer(self._raw, np.uint8, count * width, self._offset)
        self._offset += count * width
        if width == 1:
            return planes
        dtype = "<u2" if width == 2 else "<f4"
        return np.ascontiguousarray(planes.reshape(width, count).T).view(dtype).reshape(count)
