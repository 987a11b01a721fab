"""Every error that kdasr raises on purpose.

    KdasrError
    ├── ConfigError             a recipe, a command line or an argument is wrong
    │   ├── MissingDependencyError   an optional package is not installed
    │   └── MissingLabelsError       a loss needs stored labels of audio that has none
    ├── CorpusError             a corpus folder is missing or not what it claims to be
    ├── AudioError              audio cannot be decoded or is empty
    ├── ShardError              an audio shard cannot be used
    │   ├── DamagedShardError   its bytes do not match its manifest
    │   └── ManifestError       its manifest is missing, unreadable or of another shard
    ├── SoftLabelError          a soft-label shard cannot be used
    │   ├── DamagedLabelsError  its bytes are not what was written
    │   └── LabelMismatchError  it belongs to other audio, another teacher, other units
    ├── UnitsError              text and units do not fit each other
    ├── StorageError            bytes could not be stored or read (kdasr/storage)
    ├── ModelError              a model folder cannot be loaded
    ├── TrainingError           training cannot go on
    │   └── NonFiniteLossError  the loss became NaN or infinite
    ├── RankLostError           another process of the job has ended
    └── ExportError             an exported model does not agree with the original

A message says what is wrong and where, what was expected, what was found, and what to do.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Self

# Extras that need an environment of their own, and all extras to install there.
_APART = {"executorch": "export,executorch"}
_CHECKOUT = Path(__file__).resolve().parents[1]


# All control characters but those of tables and of messages with several lines.
_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}

# In a URL's query: the name of a parameter that permits access, and its value.
_SECRETS = re.compile(
    r"([?&;#][\w-]*(?:signature|credential|token|sig|key|password|passwd|pwd|secret)=)"
    r"(?:[\w%~+/=@!$*^-]|[.:](?=\S))+",  # a full stop or colon at the end is the message's
    re.I,
)


def printable(text: str) -> str:
    r"""`text` without what a terminal would obey, which names and texts from elsewhere may contain, or what
    cannot be encoded: control characters are written as `\u001b` and surrogates, which stand for undecodable
    bytes of file names, as `\udce9`. A JSON reader turns both back."""
    return text.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode()


def without_passwords(text: str) -> str:
    """`text` for a message or a log, with *** in place of passwords in URLs (https://USER:PASSWORD@HOST/) and
    of what permits access in their queries (?X-Amz-Signature=..., &sig=..., &access_token=...)."""
    return _SECRETS.sub(r"\1***", re.sub(r"(://[^\s/:@]*:)[^\s/]+@", r"\1***@", text))


class KdasrError(Exception):
    """An error with everything a user needs: what is wrong, where, what was expected and found, and the fix.

    Args:
        what: what is wrong, in one sentence without a full stop.
        where: the file, key or setting it is about.
        expected: what was expected there.
        got: what was found instead.
        fix: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        expected: object = None,
        got: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.fix = what, where, expected, got, fix
        parts = [f"{where}: {what}" if where is not None else what]
        if expected is not None:
            parts.append(f"expected {expected}")
        if got is not None:
            parts.append(f"got {got}")
        message = "; ".join(parts)
        # `got` may be another error's message, with its own full stop.
        whole = f"{message.removesuffix('.')}. {fix}" if fix else message
        super().__init__(printable(without_passwords(whole)))

    def told_of(self, where: str, *, fix: str | None = None) -> Self:
        """The same error for another place and, if given, with another fix; only for errors constructed from
        the arguments above."""
        return type(self)(
            self.what, where=where, expected=self.expected, got=self.got, fix=self.fix if fix is None else fix
        )


class ConfigError(KdasrError):
    """A recipe, a command line or an argument is wrong."""


class MissingDependencyError(ConfigError):
    """An optional package is not installed; the message gives the pip command."""

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        how = "in an environment of its own (docs/streaming-export.md) " if extra in _APART else ""
        fix = f"Install it {how}with: {install_line(extra)}"
        super().__init__(f"the package {package!r} is not installed", fix=fix)

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, exceptions are unpickled from their message, which does not fit this constructor.
        return type(self), (self.package, self.extra)


def install_line(extra: str) -> str:
    """The command that installs an extra of pyproject.toml; for a checkout, it works from any folder and pins
    the tested versions, since pip might otherwise upgrade other packages."""
    extras = _APART.get(extra, extra)
    own = _CHECKOUT / f"constraints-{extra}.txt"
    constraints = own if own.is_file() else _CHECKOUT / "constraints.txt"
    if not constraints.is_file():
        return f"pip install {shlex.quote(f'kdasr[{extras}]')}"
    here = Path(constraints.name).is_file() and constraints.samefile(constraints.name)
    file, checkout = (constraints.name, ".") if here else (str(constraints), str(_CHECKOUT))
    return f"pip install -c {shlex.quote(file)} -e {shlex.quote(f'{checkout}[{extras}]')}"


class MissingLabelsError(ConfigError):
    """A loss needs stored labels of audio that has none."""


class CorpusError(KdasrError):
    """A corpus folder is missing or not what it claims to be."""


class AudioError(KdasrError):
    """Audio cannot be decoded or is empty."""


class ShardError(KdasrError):
    """An audio shard cannot be used."""


class DamagedShardError(ShardError):
    """The bytes of a shard do not match its manifest."""


class ManifestError(ShardError):
    """A manifest is missing, unreadable, or belongs to another shard."""


class SoftLabelError(KdasrError):
    """A soft-label shard cannot be used."""


class DamagedLabelsError(SoftLabelError):
    """The bytes of a soft-label shard are not what was written."""


class LabelMismatchError(SoftLabelError):
    """Soft labels belong to other audio, another teacher or other units."""


class UnitsError(KdasrError):
    """Text and units do not fit each other."""


class ModelError(KdasrError):
    """A model folder cannot be loaded."""


class TrainingError(KdasrError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class RankLostError(KdasrError):
    """Another process of the job has ended or cannot be reached."""


class ExportError(KdasrError):
    """An exported model does not agree with the original."""
