"""The command line: every verb explains itself, and a mistake is one line, never a traceback."""

from __future__ import annotations

import copy
import errno
import importlib.metadata
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from data_prep import corpora, folder, settings_of
from data_prep.support.settings import parse_settings
from export.parity import probe_sound
from export.publish import export_student
from kdasr import cli, version
from kdasr.cli import _said, _transcribe_live, _with_dashes, build_parser, main
from kdasr.doctor import _version
from kdasr.errors import MissingDependencyError, install_line
from kdasr.models import save_model
from kdasr.storage import locate
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits
from tests.export.small_models import UNITS, conformer
from tests.export.transcripts import texts_of
from tests.speech import shards

ROOT = Path(__file__).parents[1]


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command says on stderr when it refuses."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for verb in ("run", "prepare", "train", "label", "evaluate", "export", "transcribe", "report", "doctor"):
        assert f"\n    {verb}" in text


def test_help_names_every_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(corpora())}, or a recipe .yaml" in text and "manifest" in text


@pytest.mark.parametrize("corpus", corpora())
def test_help_after_a_corpus_explains_all_its_settings(
    corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prepare", corpus, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    named = re.findall(r"(?:^|  )--(\w+) ", text.partition("settings and their defaults:")[2], re.MULTILINE)
    assert sorted(named) == sorted(settings_of(corpus)), "each is explained once"


def test_defaults_are_shown_as_the_command_line_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "-h"])
    text = capsys.readouterr().out
    assert "\n  --transcripts false\n" in text and "\n  --language none\n" in text
    shown = dict(re.findall(r"--(\w+) (\S+)", text.partition("settings and their defaults:")[2]))
    assert parse_settings(folder.Settings, shown, "folder") == folder.Settings()


def test_help_after_a_recipe_shows_its_keys_those_of_its_base_and_what_else_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = ROOT / "recipes" / "methods" / "temperature.yaml"
    with pytest.raises(SystemExit) as stop:
        main(["train", str(recipe), "--help"])
    assert stop.value.code == 0
    _, _, text = capsys.readouterr().out.partition("one in a list with --KEY.0:\n\n")
    assert text.splitlines()[0] == recipe.read_text().splitlines()[0], "its own header"
    for line in ("  steps: 600", "  width: 128", "name: temperature"):
        assert f"\n{line}\n" in text, "of its base's base, and its own"
    further = text.partition("\nFurther keys, with their defaults:\n\n")[2].splitlines()
    assert {"num_workers: 0", "start: null", "cache_gigabytes: 1.0", "labelled_soft_labels: []"} <= {*further}
    assert not [line for line in further if line.startswith("seed")]


def test_help_after_a_folder_shows_its_stages_and_their_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", str(ROOT / "recipes" / "mini"), "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    student = lines.index("student_labelled_only (student.yaml, own: name, schedule)")
    assert any(line.startswith("student_mwer (mwer.yaml, own: name, start, model, units, ") for line in lines)
    assert "optimisation" in lines[student + 1] and "label (label.yaml)" in lines
    assert main(["run", str(ROOT / "tests"), "--help"]) == 2
    assert "run.yaml" in capsys.readouterr().err


def test_options_may_be_spelled_with_underscores_as_recipes_are() -> None:
    parser, words = build_parser(), ["export", "--model", "a_b", "--max_wer_rise=0.1", "--chunk_ms", "640"]
    found = parser.parse_args([_with_dashes(word) for word in words])
    assert (found.model, found.max_wer_rise, found.chunk_ms) == ("a_b", 0.1, 640)


def test_a_folder_that_may_not_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "ro\x1b[2J"))

    monkeypatch.setattr(cli, "_run_by_all", refuse)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(rf"kdasr: {tmp_path}/ro\u001b[2J: no permission to access it. Choose another path")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "no.yaml", "--help"], "no.yaml: the recipe cannot be read"),
        (["train", "no.yaml"], "no.yaml: the recipe cannot be read"),
        (["train", "{root}/recipes/mini/teacher.yaml", "--stepz", "3"], "unknown setting 'stepz'"),
        (["train", "{root}/recipes/mini/teacher.yaml", "--steps"], "--steps needs a value"),
        (["train", "{root}/recipes/mini/teacher.yaml", "--device", "--seed", "2"], "--device needs a value"),
        (["train", "{root}/recipes/mini"], "this is a folder. `kdasr run {root}/recipes/mini` runs all"),
        (["train", "{root}/recipes/mini/run.yaml"], "use `kdasr run {root}/recipes/mini`"),
        (["run", "{root}/recipes/mini/run.yaml"], "file. Give its folder: kdasr run {root}/recipes/mini"),
        (["prepare", "manifest", "--corpus", "{root}/README.md", "--out", "{tmp}/x"],
         "Give its folder, {root}"),
        (["prepare", "synth", "--out", "{root}/README.md"],
         "shards need a folder, but a file is in its place"),
        (["select", "--audio", "{tmp}", "--labels", "a", "--out", "{root}/README.md", "--hours", "1"],
         "labels go into a folder, but this is a file"),
        (["train", "{root}/recipes/mini/label.yaml"], "recipe is for another stage"),
        (["run", "{root}/recipes/mini", "--stepz", "3"], "no stage has the setting 'stepz'"),
        (["run", "{root}/recipes"], "run.yaml"),
        (["prepare", "synth"], "--out is missing"),
        (["prepare", "nothing", "--out", "{tmp}/x"], "nothing"),
        (["prepare", "fsdd", "--out", "{tmp}/x"], "corpus: `prepare fsdd` needs the folder of its corpus"),
        (["prepare", "fsdd", "--corpus", "{tmp}/gone", "--out", "{tmp}/x"], "gone"),
        (["prepare", "synth", "--out", "{tmp}/x", "--minutes", "3"], "minutes"),
        (["prepare", "synth", "--out", "{tmp}/x", "--seed", "abc"], "seed: the value cannot be used"),
        (["prepare", "synth", "--out", "{tmp}/x", "--seed", "-1"], "seed: the value is out of range"),
        (["prepare", "synth", "--out", "{tmp}/x", "--name", "foo"],
         "--name: the corpus is given as the first argument"),
        (["prepare", "synth", "--out", "{tmp}/x", "--labelled_voices", "inf"], "labelled_voices"),
        (["train", "{root}/recipes/mini/teacher.yaml", "--out", "!ref <work_dir>/x"],
         "YAML tags are not allowed"),
        (["train", "{root}/recipes/mini/teacher.yaml", "--seed", "2024-13-45"], "a whole number"),
        (["train", "{root}/recipes/mini/teacher.yaml", "--augment", "none"], "augment: the value cannot"),
        (["label", "{root}/recipes/mini/label.yaml", "--settings", "none"], "settings: the value cannot"),
        (["run", "{root}/recipes/mini", "--student_distilled.name", "student_labelled_only"],
         "two stages write to the same folder"),
        (["transcribe", "--model", "{tmp}/gone", "x.wav"], "there is no model here"),
        (["export", "--model", "{tmp}/gone"], "--model DIR --out DIR"),
        (["plan", "{root}/recipes/mini/teacher.yaml"], "recipe is for another stage"),
        (["select", "--audio", "{tmp}", "--labels", "a", "--out", "a", "--hours", "1"], "folder of its own"),
        (["doctor", "--fast", "1"], "unknown option --fast"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str
) -> None:
    told = fails(capsys, *(word.format(root=ROOT, tmp=tmp_path) for word in argv))
    assert told.startswith("kdasr: ") and message.format(root=ROOT, tmp=tmp_path) in told


def test_what_a_verb_gives_back_is_written_for_people() -> None:
    assert _said({"labelled": 1, "dev": 0.00013576354}) == "labelled 1, dev 0.0001358"
    assert _said("text") == "text"


def test_an_error_of_a_missing_package_survives_a_process_boundary() -> None:
    error = copy.copy(MissingDependencyError("ray", "ray"))  # as pickle does
    assert str(error) == str(MissingDependencyError("ray", "ray")) and str(error).endswith("[ray]'")


def test_verify_names_what_is_damaged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = shards(tmp_path / "audio", 4)
    assert main(["verify", str(folder)]) == 0
    tar = folder / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 1
    assert "shard-000000.tar" in capsys.readouterr().out


def test_verify_tells_no_password_and_no_name_directs_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = f"memory://me:s3cr3t@host{tmp_path}"
    for name in ("shard-000001.json", "a\x1b[2J.tmp"):
        locate(f"{url}/{name}").commit(b"{}")
    assert main(["verify", url]) == 1
    said = capsys.readouterr().out.splitlines()
    assert rf"memory://me:***@host{tmp_path}/a\u001b[2J.tmp: left over from a killed writer" in said
    assert f"memory://me:***@host{tmp_path}: the numbering has gaps; missing shard-000000" in said


def test_the_version_is_that_of_the_package_or_says_that_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"kdasr": "1.2.3"}.__getitem__)
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, "kdasr 1.2.3\n")

    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", not_installed)
    assert version() == f"not installed, run from {ROOT}"


def test_doctor_tells_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "torchaudio's compiled extension" in told
    assert [cell.strip() for cell in told.splitlines()[1].split("│")[1:3]] == ["kdasr", version()]
    assert _version("no-such-package", "mic") == f"not installed: {install_line('mic')}"


def test_a_run_shows_what_its_export_hears_as_the_example_is_spoken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _transcribe_live(tmp_path)
    assert capsys.readouterr().out == "", "there is nothing to show"
    example, model = tmp_path / "example.wav", tmp_path / "export" / "onnx" / "model.int8.onnx"
    soundfile.write(example, probe_sound(40_000, 1), 16_000)
    export_student(conformer(num_layers=1), UNITS, model.parent)
    _transcribe_live(tmp_path)
    command, *partials, final, empty = capsys.readouterr().out.splitlines()
    assert command == f"$ kdasr transcribe --stream --model {model} {example}" and empty == ""
    (text,) = texts_of([example], model)
    assert final == f"{example}\t{text}" and len(partials) > 5
    for partial in partials:
        assert partial.startswith("  ") and partial.endswith(" …") and text.startswith(partial[2:-2])


def test_verbs_that_take_recipes_say_that_keys_are_options() -> None:
    help_text = build_parser()._subparsers._group_actions[0].choices["train"].format_help()  # type: ignore
    assert "--KEY VALUE" in help_text


def test_plan_select_and_verify_the_labels_of_a_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    audio, labels, kept = (
        shards(tmp_path / "audio", 8, with_text=False),
        tmp_path / "labels",
        tmp_path / "kept",
    )
    teacher = ConformerTeacher(vocab_size=CharUnits().vocab_size, width=16, num_layers=1, num_heads=2)
    save_model(tmp_path / "teacher", teacher, CharUnits())
    job = [
        str(ROOT / "recipes/mini/label.yaml"),
        "--teacher",
        str(tmp_path / "teacher"),
        "--audio",
        str(audio),
    ]
    job += ["--out", str(labels), "--settings.words", "null"]
    assert main(["plan", *job, "--sample-shards", "1"]) == 0
    assert "bytes" in capsys.readouterr().out
    assert main(["label", *job]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "shards_labelled" not in said.err
    assert said.err.count("8 of 8 utterances have labels") == 1
    assert said.err.endswith(f"\nthe labels are in {labels}\n")
    assert main(["verify", str(audio), "--labels", str(labels)]) == 0
    place = ["--audio", str(audio), "--labels", str(labels), "--out", str(kept)]
    assert main(["select", *place, "--hours", "0.001"]) == 0
    assert "kept" in capsys.readouterr().out and (kept / "shard-000000.kdsl").exists()
    told = fails(capsys, "heard", "--audio", str(labels), "--labels", str(audio))
    assert f"--labels: {audio}: the units cannot be read: this folder has none" in told
    assert "are --audio and --labels swapped?" in told
    assert main(["label", *job, "--out", f"memory://me:s3cr3t@host{labels}"]) == 0
    said = capsys.readouterr()
    assert said.err.endswith(f"\nthe labels are in memory://me:***@host{labels}\n")
    assert "s3cr3t" not in said.out + said.err
    packed = labels / "shard-000000.kdsl"
    packed.write_bytes(packed.read_bytes()[:-9])
    assert main(["verify", str(audio), "--labels", str(labels)]) == 1
    assert "shard-000000" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["numpy.linalg", "numpy.exceptions", "torch.nn"])
def test_ctrl_c_ends_a_command_whatever_is_being_imported(module: str) -> None:
    """Torch imports numpy in C and drops what is raised there."""
    program = f"""
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from kdasr.cli import main
sys.exit(main(["verify", "nowhere"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "kdasr: interrupted\n")


def test_what_goes_on_when_called_again_says_so_when_it_is_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_by_all", interrupted)
    assert main(["prepare", "synth"]) == main(["verify", "nowhere"]) == 130
    goes_on, ends = capsys.readouterr().err.splitlines()
    assert goes_on.endswith("interrupted; run the same command again to resume from the finished parts")
    assert ends == "kdasr: interrupted"


def test_a_locale_without_the_letters_of_a_text_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "_run_by_all", lambda *_: print("altı"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
        assert main(["doctor"]) == 2
    assert "expected UTF-8; got latin-1, and 'ı'. Choose a locale with UTF-8" in capsys.readouterr().err
    (tmp_path / "train.jsonl").write_text('{"audio_filepath": "\\u0131.wav", "text": "a"}')
    program = "import sys; from kdasr.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        program,
        "prepare",
        "manifest",
        "--corpus",
        tmp_path,
        "--out",
        tmp_path / "a",
    ]
    locale = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(command, env=locale, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "expected UTF-8; got ascii, and '\\u0131'" in done.stderr
