"""Checkpoints that appear whole or not at all, whenever the process that writes them is killed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdasr.compat import import_torchaudio
from kdasr.storage import sync_path

import_torchaudio()  # SpeechBrain needs it to import
from speechbrain.utils.checkpoints import Checkpoint, Checkpointer, ckpt_recency  # noqa: E402
from speechbrain.utils.distributed import MainProcessContext  # noqa: E402

_UNFINISHED = "unfinished+"


class WholeCheckpoints(Checkpointer):
    """SpeechBrain's checkpoints, written under another name and then renamed, likewise before they are
    deleted: SpeechBrain itself makes the file that says "here is a checkpoint" first.

    Only the first process of a job may call `save_and_keep_only`; the others need not wait for it.
    """

    def save_and_keep_only(self, *arguments: Any, **settings: Any) -> None:
        """As SpeechBrain's, without a word to other processes."""
        with MainProcessContext():
            super().save_and_keep_only(*arguments, **settings)

    def save_checkpoint(self, meta: Mapping[str, Any] | None = None, **settings: Any) -> Checkpoint:
        """As SpeechBrain's; the checkpoint is on the disk before it has its name, and later than all
        others, whatever the clock says."""
        latest = max((ckpt_recency(one) for one in self.list_checkpoints()), default=0.0)
        meta = {**(meta or {}), "unixtime": max(time.time(), latest + 0.001)}
        unfinished = super().save_checkpoint(meta, **settings)
        for file in unfinished.path.iterdir():
            sync_path(file)
        whole = unfinished.path.with_name(unfinished.path.name.removeprefix(_UNFINISHED))
        unfinished.path.replace(whole)
        sync_path(whole.parent)
        files = {name: whole / file.name for name, file in unfinished.paramfiles.items()}
        return Checkpoint(whole, unfinished.meta, files)

    def remove_unfinished(self) -> None:
        """Remove what killed processes left."""
        for folder in self.checkpoints_dir.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(folder)

    def _new_checkpoint_dirpath(self) -> Path:
        path: Path = super()._new_checkpoint_dirpath()
        return path.with_name(_UNFINISHED + path.name)

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Sequence[str] = (),
        ckpt_predicate: Callable[[Checkpoint], bool] | None = None,
        **_: Any,
    ) -> None:
        """Delete all but the `num_to_keep` best by each of `min_keys` and the latest as many."""
        orders = [{"importance_key": ckpt_recency}, *({"min_key": key} for key in min_keys)]
        listed: set[Path] = set()
        kept: set[Path] = set()
        for order in orders:
            found = self.find_checkpoints(ckpt_predicate=ckpt_predicate, **order)
            best = self.find_checkpoints(
                ckpt_predicate=ckpt_predicate, max_num_checkpoints=num_to_keep, **order
            )
            listed |= {checkpoint.path for checkpoint in found}
            kept |= {checkpoint.path for checkpoint in best}
        for path in listed - kept:
            going = path.with_name(_UNFINISHED + path.name)
            path.replace(going)
            shutil.rmtree(going)
