"""The files for clusters, run with stand-ins for what a cluster has; and the page that describes them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from data_prep.manifest import Settings as ManifestSettings
from kdasr.cli import _settings, build_parser
from kdasr.pipeline import taken_keys
from kdasr.recipe import load_recipe, run_stages

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "recipes/cluster").iterdir())
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "printf 'node-a\\nnode-b\\n'",
    "nvidia-smi": "printf 'GPU 0\\nGPU 1\\n'",
    "torchrun": 'echo torchrun "$@"',
    "kdasr": '''echo "address ${RAY_ADDRESS:-} ${RAY_AUTH_MODE:-} ${#RAY_AUTH_TOKEN}"; echo kdasr "$@"
/bin/sleep "${KDASR_LASTS:-0}"; exit "${KDASR_STATUS:-0}"''',
    # Its second node has joined when it is asked for the second time.
    "ray": """
if [[ $1 == status ]]; then
    echo asked >> "${0%/*}/asked"
    printf ' 1 node_a\\n'; (($(wc -l < "${0%/*}/asked") < 2)) || printf ' 1 node_b\\n'
else
    echo ray "$@"; exec /bin/sleep "${RAY_LASTS:-5}" > /dev/null 2>&1
fi""",
    "timeout": 'shift; exec "$@"',
    "sleep": "",
}
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "12", "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MAX": "15",
}  # fmt: skip


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(bin_folder: Path, name: str, *arguments: str, **environment: str) -> list[str]:
    command = ["bash", str(ROOT / "recipes/cluster" / name), *arguments]
    path = {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(command, env={**path, **environment}, capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines())


def check_kdasr(words: list[str]) -> None:
    """The command parses, and its recipe has the settings."""
    arguments, rest = build_parser().parse_known_args(words)
    settings = _settings(rest)
    if arguments.verb == "plan":
        return
    if arguments.verb == "run":
        assert run_stages(ROOT / arguments.folder, settings, taken_keys())
    else:
        assert load_recipe(ROOT / arguments.recipe, settings, taken_keys()).stage == arguments.verb


def test_torchrun_on_one_machine_and_on_several(bin_folder: Path) -> None:
    settings = ["--optimisation.accumulate", "8"]
    (line,) = run(bin_folder, "torchrun.sh", "recipes/mini", *settings)
    launcher, _, command = line.partition(" -m kdasr.cli ")
    assert launcher == "torchrun --standalone --nproc-per-node 2"
    assert command == "run recipes/mini --device cuda --optimisation.accumulate 8"
    check_kdasr(command.split())
    environment = {"NODES": "2", "FIRST_NODE": "node-a:29500", "PROCESSES": "8"}
    (line,) = run(bin_folder, "torchrun.sh", "recipes/mini/teacher.yaml", *settings, **environment)
    launcher, _, command = line.partition(" -m kdasr.cli ")
    assert "--nnodes 2" in launcher and "--rdzv-endpoint node-a:29500" in launcher
    assert launcher.endswith("--nproc-per-node 8") and command.startswith("train recipes/mini/teacher.yaml")
    check_kdasr(command.split())


@pytest.mark.parametrize(
    ("visible", "processes"),
    [("1", 1), ("0,1", 2), ("GPU-8932f937,GPU-1", 2), ("0,1,2", 2), ("", 0), ("-1", 0)],
)
def test_torchrun_takes_the_gpus_that_it_may(bin_folder: Path, visible: str, processes: int) -> None:
    (line,) = run(bin_folder, "torchrun.sh", "recipes/mini", CUDA_VISIBLE_DEVICES=visible)
    assert f"--nproc-per-node {max(1, processes)} -m" in line
    assert ("--device cuda" in line) == (processes > 0)


def test_without_a_gpu_no_device_is_asked_for(bin_folder: Path) -> None:
    (bin_folder / "nvidia-smi").write_text("#!/usr/bin/env bash\nexit 9\n")
    (line,) = run(bin_folder, "torchrun.sh", "recipes/mini", "--seed", "2")
    assert line.endswith("--nproc-per-node 1 -m kdasr.cli run recipes/mini --seed 2")


def test_what_a_recipe_says_of_several_gpus_can_be_run() -> None:
    lines = [
        line
        for path in sorted((ROOT / "recipes").rglob("run.yaml"))
        for line in path.read_text().splitlines()
        if "cluster/torchrun.sh recipes/" in line
    ]
    assert lines
    for line in lines:
        check_kdasr(["run", *line.partition("torchrun.sh ")[2].split()])


def test_slurm_trains_with_a_process_for_each_gpu(bin_folder: Path) -> None:
    (line,) = run(bin_folder, "train.sbatch", "recipes/mini", "--optimisation.accumulate", "8", **SLURM)
    launcher, _, command = line.partition(" -m kdasr.cli ")
    assert "--nnodes 2 --nproc-per-node 4 --rdzv-id 7" in launcher and "node-a:20007" in launcher
    assert command.startswith("run recipes/mini --device cuda ")
    check_kdasr(command.split())


def test_slurm_labels_by_an_array_and_by_ray(bin_folder: Path) -> None:
    *_, line = run(bin_folder, "label.sbatch", "recipes/mini/label.yaml", "--work-dir", "runs/x", **SLURM)
    assert line.endswith("--shard-index 3 --num-shards 16 --device cuda --work-dir runs/x")
    check_kdasr(line.split()[1:])
    *_, line = run(bin_folder, "label.sbatch", "recipes/mini/label.yaml", JOBS="64", **SLURM)
    assert "--shard-index 3 --num-shards 64" in line
    without = {name: value for name, value in SLURM.items() if name != "SLURM_GPUS_ON_NODE"}
    *_, line = run(bin_folder, "label.sbatch", "recipes/mini/label.yaml", **without)
    assert line.endswith("--shard-index 3 --num-shards 16")

    lines = run(bin_folder, "label-ray.sbatch", "recipes/mini/label.yaml", **SLURM)
    parts = "--num-cpus=12 --num-gpus=4 --disable-usage-stats --block"
    assert lines == [
        "address node-a:6379 token 64",
        "kdasr label recipes/mini/label.yaml --engine ray --workers 8",
        f"ray start {parts} --address=node-a:6379",
        f"ray start {parts} --head --port=6379",
    ]
    assert (bin_folder / "asked").read_text().split() == ["asked"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "status", "said"),
    [
        ({"KDASR_STATUS": "3"}, 3, ""),
        ({"KDASR_LASTS": "5", "RAY_LASTS": "0"}, 1, "part of the Ray cluster has ended; submit"),
    ],
)
def test_a_slurm_job_ends_as_its_labelling_or_its_ray_does(
    bin_folder: Path, times: dict[str, str], status: int, said: str
) -> None:
    done = sbatch(bin_folder, "label-ray.sbatch", f"{bin_folder}:{os.environ['PATH']}", **times)
    assert done.returncode == status and said in done.stderr


def test_without_ray_a_slurm_job_says_so_at_once(bin_folder: Path) -> None:
    (bin_folder / "ray").unlink()
    # Not the path of these tests, whose environment has Ray.
    done = sbatch(bin_folder, "label-ray.sbatch", f"{bin_folder}:/usr/bin:/bin")
    assert done.returncode == 2 and "pip install" in done.stderr and done.stdout == ""


def sbatch(bin_folder: Path, name: str, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "recipes/cluster" / name), "label.yaml"]
    return subprocess.run(
        command,
        env={**SLURM, **environment, "PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_whole_and_says_how_it_is_used(path: Path) -> None:
    text = path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK) and "set -euo pipefail" in text
    directives = re.findall(r"^#SBATCH.*$", text, re.MULTILINE)
    assert bool(directives) == (path.suffix == ".sbatch")
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in directives)
    assert f"recipes/cluster/{path.name} recipes/" in text
    # Each step gets the cores of the job.
    steps = re.findall(r"^ *srun .*$", text.replace("\\\n", " "), re.MULTILINE)
    assert bool(steps) == bool(directives)
    assert all('--cpus-per-task="$SLURM_CPUS_PER_TASK"' in step for step in steps)
    assert path.name in (ROOT / "docs/clusters.md").read_text()


def blocks_of_the_page() -> list[str]:
    text = (ROOT / "docs/clusters.md").read_text().replace("\\\n", " ")
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_a_corpus_in_parts_is_prepared_labelled_and_learnt_from(bin_folder: Path) -> None:
    (block,) = [block for block in blocks_of_the_page() if "split --number" in block]
    # Which says the number of a job of preparing, and takes jobs of labelling that wait for that one alone.
    sbatch = """
for word in "$@"; do [[ $word != --dependency=* ]] || waits_for=${word#*=}; done
while [[ $1 == --* && $1 != --wrap ]]; do shift; done
if [[ $1 == --wrap ]]; then SLURM_ARRAY_TASK_ID=7 bash -c "$2" > prepare.txt && echo 77; fi
if [[ $waits_for == afterok:77 ]]; then echo label "${@:2}"; fi
"""
    for name, body in (("sbatch", sbatch), ("kdasr", 'echo "$@"')):
        (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (bin_folder / name).chmod(0o755)
    lines = [f'{{"audio_filepath": "clips/{number}.flac"}}\n' for number in range(1000)]
    (bin_folder / "audio.jsonl").write_text("".join(lines))
    path = f"{bin_folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", block], env={"PATH": path}, cwd=bin_folder, capture_output=True, text=True, check=True
    )
    names = [f"audio-{number:02d}" for number in range(64)]
    parts = [bin_folder / f"parts/{name}.jsonl" for name in names]
    assert [line for part in parts for line in part.read_text().splitlines(True)] == lines
    commands = [(bin_folder / "prepare.txt").read_text(), *done.stdout.splitlines()]
    prepare, *label, train = [build_parser().parse_known_args(line.split()) for line in commands]
    settings = _settings(prepare[1])
    assert (prepare[0].name, prepare[0].corpus, prepare[0].out) == (
        "manifest", Path("parts"), Path("runs/big/shards"),
    )  # fmt: skip
    assert settings == {"audio_folder": "..", "split": "audio-07"}
    assert settings.keys() <= {field.name for field in fields(ManifestSettings)}
    assert [_settings(rest)["subset"] for _, rest in label] == names
    assert _settings(train[1]) == {
        "work_dir": "runs/big",
        "unlabelled": [f"runs/big/shards/{name}" for name in names],
        "labels": [f"runs/big/labels/{name}" for name in names],
    }
    for line in done.stdout.splitlines():
        check_kdasr(line.split())


def test_the_commands_of_the_page_can_be_run() -> None:
    blocks = [block for block in blocks_of_the_page() if "split --number" not in block]
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line)
        if "kdasr.cli" in words or words[0] == "kdasr":
            check_kdasr(words[words.index("kdasr.cli" if "kdasr.cli" in words else "kdasr") + 1 :])
        else:
            (script,) = [word for word in words if word.startswith("recipes/cluster/")]
            assert ROOT / script in FILES
            target, *settings = words[words.index(script) + 1 :]
            check_kdasr(["run" if (ROOT / target).is_dir() else "label", target, *settings])
