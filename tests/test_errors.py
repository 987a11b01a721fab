"""Errors say what to do about them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from kdasr import errors
from kdasr.errors import ConfigError, MissingDependencyError, install_line, printable

ROOT = Path(__file__).parents[1]


def test_an_extra_of_a_checkout_is_installed_with_the_versions_that_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = "pip install -c constraints.txt -e '.[hf]'"
    assert install_line("hf") == line and line in (ROOT / "README.md").read_text()
    assert str(MissingDependencyError("transformers", "hf")) == (
        f"the package 'transformers' is not installed. Install it with: {line}"
    )
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install_line("hf"))[2:] == ["-c", f"{ROOT}/constraints.txt", "-e", f"{ROOT}[hf]"]


def test_an_extra_with_constraints_of_its_own_is_installed_with_those(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    line = "pip install -c constraints-executorch.txt -e '.[export,executorch]'"
    assert install_line("executorch") == line
    assert line in (ROOT / "docs/streaming-export.md").read_text()
    assert str(MissingDependencyError("executorch", "executorch")).endswith(
        f"Install it in an environment of its own (docs/streaming-export.md) with: {line}"
    )


def test_an_extra_of_an_installed_package_is_installed_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_CHECKOUT", tmp_path)
    assert install_line("hf") == "pip install 'kdasr[hf]'"


def test_a_name_from_elsewhere_does_not_direct_the_terminal() -> None:
    name = "caf\udce9\x1b]0;title\x07\r\x9b2J é\t日本\n"
    shown = r"caf\udce9\u001b]0;title\u0007\u000d\u009b2J é" + "\t日本\n"
    assert printable(name) == shown
    assert json.loads(f'"{shown[:-4]}"') == name[:-4]
    error = ConfigError("wrong", where=name, got=name)
    assert str(error) == f"{shown}: wrong; got {shown}" and error.where == name


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:s3:c@r3t@host:80/a b", "https://me:***@host:80/a b"),
        ("sftp://:s3cr3t@host", "sftp://:***@host"),
        ("https://host:80/a@b:c@d", "https://host:80/a@b:c@d"),
        ("s3://bucket/me:name@x", "s3://bucket/me:name@x"),
        (
            "https://b.s3.amazonaws.com/x.tar?X-Amz-Credential=AKIA%2Fus&X-Amz-Date=2026&X-Amz-Signature=d34d",
            "https://b.s3.amazonaws.com/x.tar?X-Amz-Credential=***&X-Amz-Date=2026&X-Amz-Signature=***",
        ),
        ("https://a.blob.core/x.tar?sp=rl&sig=a/b+c%3D&se=1", "https://a.blob.core/x.tar?sp=rl&sig=***&se=1"),
        ("https://host/o?Expires=1&Signature=ab=", "https://host/o?Expires=1&Signature=***"),
        ("https://me:pw@h?access_token=a.b-c&n=1", "https://me:***@h?access_token=***&n=1"),
        ("https://host/o?password=a!b:c@d$e&pwd=x&n=1", "https://host/o?password=***&pwd=***&n=1"),
        ("https://host/token=1/a?part=2&tokens=3", "https://host/token=1/a?part=2&tokens=3"),
    ],
)
def test_a_password_in_a_url_is_not_told(url: str, shown: str) -> None:
    assert str(ConfigError("wrong", where=url, got=url)) == f"{shown}: wrong; got {shown}"
    assert str(ConfigError("wrong", got=url, fix="Mend it.")) == f"wrong; got {shown}. Mend it."
