"""What every committed file keeps to, and what the documents promise a reader who types along."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from kdasr.cli import build_parser
from kdasr.recipe import load_recipe

ROOT = Path(__file__).parents[1]
# Written so that this file does not match itself.
MACHINE_PATHS = re.compile(r"(?<![\w.~])/(?:wor[k]|roo[t]|User[s]|home/\w+|opt/\w+)/")
INDEX_HOSTS = re.compile(r"py[p]i\.org|python[h]osted|download\.py[t]orch|reg[i]stry\.npmjs|ana[c]onda\.org")
CODE_BLOCK = re.compile(r"```(?:bash|sh|console)?\n(.*?)```", re.DOTALL)
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")),
]


def committed_files() -> list[Path]:
    """Every file that git tracks; in a tree without git, every file that is not made by tools."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        files = [ROOT / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        made = {".venv", "runs", "build", "__pycache__"}
        files = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    return [path for path in files if path.is_file()]


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, INDEX_HOSTS], ids=["machine path", "index host"])
def test_no_file_names_a_machine_path_or_an_index_host(pattern: re.Pattern[str]) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in committed_files()
        for match in pattern.finditer(path.read_bytes().decode(errors="ignore"))
    }
    assert not found


def test_the_patterns_find_what_they_are_for() -> None:
    assert MACHINE_PATHS.search("see /" + "work/main/x") and MACHINE_PATHS.search('"/home/' + 'ann/x"')
    assert not MACHINE_PATHS.search("~/work/corpus runs/work/x")
    assert INDEX_HOSTS.search("https://" + "py" + "pi.org/simple")


def test_nothing_large_or_learned_is_committed() -> None:
    heavy = [path for path in committed_files() if path.stat().st_size > 500_000]
    learned = [
        path for path in committed_files() if path.suffix in {".pt", ".ckpt", ".safetensors", ".onnx", ".tar"}
    ]
    assert not heavy and not learned


def test_ci_runs_the_documented_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text() and "make test" in (ROOT / "README.md").read_text()


def canonical(requirement: str) -> str:
    """The name of a requirement, as package indexes write it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", requirement)[0]).lower()


def declared() -> set[str]:
    """Names of the packages that pyproject.toml asks for, with every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return {canonical(one) for one in [*project["dependencies"], *(one for extra in extras for one in extra)]}


def test_constraints_pin_every_dependency_and_no_build_of_torch() -> None:
    files = [ROOT / "constraints.txt", ROOT / "constraints-executorch.txt"]
    lines = [line for file in files for line in file.read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert declared() <= {canonical(pin) for pin in pins}


def imported(path: Path) -> Iterator[str]:
    """Names of the top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0]


def test_every_import_is_a_declared_dependency() -> None:
    # Torch's CUDA builds bring Triton, and without one nothing needs it.
    own = {"kdasr", "data_prep", "export", "benchmarks", "tests", "triton"}
    distributions, names = packages_distributions(), declared()
    sources = [path for path in committed_files() if path.suffix == ".py"]
    assert len(sources) > 30
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources
        for name in imported(path)
        if name not in own | sys.stdlib_module_names
        and not {canonical(one) for one in distributions.get(name, [name])} & names
    }
    assert not undeclared


def commands(document: str) -> list[str]:
    """The lines in the code blocks of a document, fenced or indented, continued lines joined."""
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = "\n".join(CODE_BLOCK.findall(text)).splitlines()
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    return [line.strip().removeprefix("$ ") for line in lines]


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(
            r"\bmake ([a-z]+(?:-[a-z]+)*)`", (ROOT / document).read_text(encoding="utf-8")
        )
        + [line.split()[1] for line in commands(document) if line.startswith("make ")]
    }
    assert named and named <= targets


def test_documented_kdasr_commands_parse() -> None:
    lines = [
        line.removeprefix(".venv/bin/")
        for document in DOCUMENTS
        for line in commands(document)
        if line.startswith(("kdasr ", ".venv/bin/kdasr "))
    ]
    assert len(lines) >= 5
    for line in lines:
        arguments, rest = build_parser().parse_known_args(shlex.split(line, comments=True)[1:])
        assert arguments.takes_settings or not rest, line


def test_documented_paths_exist() -> None:
    """Every path of the annotated tree, and every link inside the repository."""
    architecture = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"## The tree\n.*?```\n(.*?)```", architecture, re.DOTALL)
    assert tree is not None
    folder, paths = "", list[str]()
    for line in tree.group(1).splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            paths.append(name)
        else:
            paths.append(folder + name)
    for document in DOCUMENTS:
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / document).read_text(encoding="utf-8"))
        paths += [str((ROOT / document).parent.joinpath(link).resolve().relative_to(ROOT)) for link in links]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]
    modules = {f"kdasr/{path.name}" for path in (ROOT / "kdasr").glob("[a-z]*.py")}
    assert not modules - set(paths), "each has a line in the tree"


def snippets() -> Iterator[Any]:
    """The parts of recipes in the documents: blocks whose first line is a key."""
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        blocks = [match[1] for match in re.finditer(r"```yaml\n(.*?)```", text, re.DOTALL)]
        blocks += [
            textwrap.dedent(match[0]).strip() + "\n"
            for match in re.finditer(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE)
        ]
        for number, block in enumerate(
            block for block in blocks if re.match(r"(#.*\n)*[a-z_]+:( |\n)", block)
        ):
            yield pytest.param(block, id=f"{name}-{number}")


@pytest.mark.parametrize("snippet", list(snippets()))
def test_recipes_in_documents_can_be_built(snippet: str, tmp_path: Path) -> None:
    """Whatever they name takes what they give it."""
    keys = {
        "stage": "train",
        "work_dir": "w",
        "teacher": "w/teacher",
        "start": "w/start",
        "shards": "w/shards",
    }
    own = {key: value for key, value in keys.items() if not re.search(rf"^{key}:", snippet, re.MULTILINE)}
    (tmp_path / "recipe.yaml").write_text(
        "".join(f"{key}: {value}\n" for key, value in own.items()) + snippet
    )
    assert load_recipe(tmp_path / "recipe.yaml").arguments
