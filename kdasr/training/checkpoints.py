"""Checkpoints that are written atomically, whenever the process that writes them is killed, and checked when
they are read: torch itself loads weights with flipped bits without an error."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdasr.compat import import_torchaudio
from kdasr.errors import TrainingError
from kdasr.manifest import sha256_of
from kdasr.storage import sync_path

import_torchaudio()  # SpeechBrain needs it to import
from speechbrain.utils.checkpoints import METAFNAME, Checkpoint, Checkpointer, ckpt_recency  # noqa: E402
from speechbrain.utils.distributed import MainProcessContext  # noqa: E402

# The hashes of the files of a checkpoint, as `sha256sum` writes and checks them.
SUMS_FILE = "SHA256SUMS"
_UNFINISHED = "unfinished+"
# torch's messages for a failed write; they name no reason.
_NOT_WRITTEN = ("inline_container", "PytorchStreamWriter", "iostream error")


class WholeCheckpoints(Checkpointer):
    """SpeechBrain's checkpoints, but written under a temporary name and then renamed, and renamed before
    they are deleted: SpeechBrain itself writes the file that marks a checkpoint first.

    Only the first process of a job may call `save_and_keep_only`; the others need not wait for it.
    """

    def save_and_keep_only(self, *arguments: Any, **settings: Any) -> None:
        """As SpeechBrain's, without synchronising with other processes."""
        with MainProcessContext():
            super().save_and_keep_only(*arguments, **settings)

    def save_checkpoint(self, meta: Mapping[str, Any] | None = None, **settings: Any) -> Checkpoint:
        """As SpeechBrain's, but the checkpoint is flushed to disk before it is renamed, and dated later than
        all others, whatever the clock says.

        Raises:
            TrainingError: it cannot be written, usually because the disk is full; nothing of it is left.
        """
        try:
            return self._save_whole(meta, **settings)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not any(words in str(error) for words in _NOT_WRITTEN):
                raise
            # Measured when the write failed, before the partial checkpoint is removed.
            free = _free_text(self.checkpoints_dir)
            with contextlib.suppress(OSError):
                self.remove_unfinished()
            raise TrainingError(
                f"a checkpoint could not be written, with {free} free on the disk",
                where=self.checkpoints_dir,
                got=(str(error) or repr(error)).splitlines()[0],
                fix="Free some space and run the same command again: it resumes from the last complete "
                "checkpoint.",
            ) from error

    def _save_whole(self, meta: Mapping[str, Any] | None, **settings: Any) -> Checkpoint:
        latest = max((ckpt_recency(one) for one in self.list_checkpoints()), default=0.0)
        meta = {**(meta or {}), "unixtime": max(time.time(), latest + 0.001)}
        unfinished = super().save_checkpoint(meta, **settings)
        written = sorted(unfinished.path.iterdir())
        sums = "".join(f"{sha256_of(file)}  {file.name}\n" for file in written)
        (unfinished.path / SUMS_FILE).write_text(sums)
        for file in (*unfinished.path.iterdir(), unfinished.path):
            sync_path(file)
        whole = unfinished.path.with_name(unfinished.path.name.removeprefix(_UNFINISHED))
        unfinished.path.replace(whole)
        sync_path(whole.parent)
        files = {name: whole / file.name for name, file in unfinished.paramfiles.items()}
        return Checkpoint(whole, unfinished.meta, files)

    def list_checkpoints(self) -> list[Checkpoint]:
        """As SpeechBrain's.

        Raises:
            TrainingError: what a checkpoint says about itself is not what was written.
        """
        for sums in sorted(self.checkpoints_dir.glob(f"CKPT*/{SUMS_FILE}")):
            _check(sums.parent / METAFNAME, _written_sums(sums))
        listed: list[Checkpoint] = super().list_checkpoints()
        return listed

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """As SpeechBrain's.

        Raises:
            TrainingError: a file of the checkpoint is not what was written.
        """
        sums = checkpoint.path / SUMS_FILE
        if sums.exists():  # not in checkpoints of older releases
            written = _written_sums(sums)
            for name in sorted({*written, *(file.name for file in checkpoint.paramfiles.values())}):
                _check(checkpoint.path / name, written)
        super().load_checkpoint(checkpoint)

    def remove_unfinished(self) -> None:
        """Remove what killed processes left behind."""
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
        """Delete all but the `num_to_keep` best by each of `min_keys` and the `num_to_keep` latest."""
        orders = [{"importance_key": ckpt_recency}, *({"min_key": key} for key in min_keys)]
        listed: set[Path] = set()
        kept: set[Path] = set()
        for order in orders:
            found = self.find_checkpoints(ckpt_predicate=ckpt_predicate, **order)  # the best come first
            listed |= {checkpoint.path for checkpoint in found}
            kept |= {checkpoint.path for checkpoint in found[:num_to_keep]}
        for path in listed - kept:
            going = path.with_name(_UNFINISHED + path.name)
            path.replace(going)
            shutil.rmtree(going)


def _written_sums(sums: Path) -> dict[str, str]:
    """The hash of each file, by its name, as they were when the checkpoint was written."""
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _check(file: Path, written: Mapping[str, str]) -> None:
    """Raise TrainingError if a file of a checkpoint does not have the hash that was `written`."""
    found = sha256_of(file) if file.is_file() else "no file"
    if found != written.get(file.name):
        raise TrainingError(
            "the checkpoint is damaged",
            where=file,
            expected=f"sha256 {written.get(file.name)}, as in {SUMS_FILE}",
            got=found,
            fix=f"Delete {file.parent} and run the same command again: training resumes from another "
            "checkpoint, or starts from the beginning.",
        )


def _free_text(folder: Path) -> str:
    """The free space in `folder`, as text."""
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError:
        return "an unknown number of bytes"
    return f"{free_bytes / 2**30:.1f} GB" if free_bytes >= 2**30 else f"{free_bytes / 2**20:.1f} MB"
