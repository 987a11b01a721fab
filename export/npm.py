"""npm packages that are used at run time but are not part of this project."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from kdasr.errors import ConfigError


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/kdasr`, or `~/.cache/kdasr`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "kdasr"


def npm_package(name: str, version: str, cache: Path | None = None) -> Path:
    """The folder of an npm package, which is installed if necessary, without running its scripts.

    Args:
        cache: folder to keep it in; None for `cache_folder()`.

    Raises:
        ConfigError: npm is missing or fails, or the folder cannot be made; the message says what to do.
    """
    prefix = (cache or cache_folder()) / f"{name}-{version}"
    folder = prefix / "node_modules" / name
    if _is_whole(prefix, name):
        return folder
    wanted = f"{name}@{version}"
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            "npm is not installed",
            expected=f"npm, to install {wanted}",
            fix="Install Node.js with npm, or run this elsewhere and copy the folder: "
            f"npm install --prefix {prefix} {wanted}",
        )
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{prefix.name}.", dir=prefix.parent))
    except OSError as error:
        raise ConfigError(
            f"{wanted} cannot be installed",
            where=prefix,
            expected="a writable folder",
            got=error.strerror,
            fix="Set XDG_CACHE_HOME to one.",
        ) from error
    command = [npm, "install", "--prefix", str(making), "--ignore-scripts", "--no-audit", "--no-fund", wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not (making / "node_modules" / name).is_dir():
            said = done.stderr.strip().splitlines() or ["no message"]
            raise ConfigError(f"npm could not install {wanted}", where=prefix, got=said[-1])
        # Renamed when complete: two installations into one folder would damage it.
        if not _is_whole(prefix, name):
            shutil.rmtree(prefix, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was first
                making.rename(prefix)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _is_whole(prefix: Path, name: str) -> bool:
    """Whether npm has finished installing; it writes its lock file last."""
    return (prefix / "package-lock.json").is_file() and (prefix / "node_modules" / name).is_dir()
