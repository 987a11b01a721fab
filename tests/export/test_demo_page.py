"""The demo page's server gives the page, the runtime and the model, and nothing else."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import export.npm
from export.demo_page import PAGE_FOLDER, DemoPage
from export.npm import npm_package
from export.publish import Measured, export_student
from kdasr.errors import ConfigError, ModelError
from kdasr.models import save_model
from kdasr.streaming import TAIL_MS
from tests.export.small_models import UNITS, conformer, recurrent


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "ort.wasm.min.mjs").write_text("export default 1;")
    (folder / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_student(recurrent(), UNITS, folder, name="little", format="wave-onnx")
    return folder


@pytest.fixture(scope="module")
def page(runtime: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoPage]:
    root = tmp_path_factory.mktemp("model")
    (root / "secret.txt").write_text("no")
    shutil.copytree(exported, root / "wave")
    (root / "wave" / "index.html").write_text("<script>listen()</script>")
    (root / "wave" / "notes").mkdir()
    for folder in ("notes.onnx", "missing"):
        (root / "wave" / folder).mkdir()
        (root / "wave" / folder / "index.html").write_text("<script>listen()</script>")
    with DemoPage(root / "wave", port=0, runtime=runtime) as served:
        yield served


def test_the_page_hears_the_tail_that_the_command_line_hears() -> None:
    assert f"export const TAIL_MS = {TAIL_MS};\n" in (PAGE_FOLDER / "session.js").read_text()


def get(url: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read()


def test_page_runtime_and_model_are_served(page: DemoPage) -> None:
    assert b"kdasr" in get(page.url)[1]
    kind, script = get(page.url + "app.js")
    assert "javascript" in kind and script == (PAGE_FOLDER / "app.js").read_bytes()
    assert get(page.url + "ort/ort.wasm.min.mjs") == ("text/javascript", b"export default 1;")
    assert get(page.url + "ort/ort-wasm-simd-threaded.wasm")[0] == "application/wasm"
    card = json.loads(get(page.url + "model/model.json")[1])
    assert card["name"] == "little"
    for entry in card["files"].values():
        assert len(get(page.url + "model/" + entry["file"])[1]) == entry["bytes"]


def test_every_file_of_the_page_is_served(page: DemoPage) -> None:
    for path in PAGE_FOLDER.iterdir():
        assert get(page.url + path.name)[1] == path.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "model/../secret.txt",
        "model/%2e%2e/secret.txt",
        "model/",
        "ort",
        "x/y/z",
        ".git",
        "model/index.html",
        "model/units.json",
        "model/notes",
        "model/notes/",
        "model/notes.onnx",
        "model/notes.onnx/",
        "model/missing/",
        "model/other/",
        "x.js/",
    ],
)
def test_nothing_else_is_served(page: DemoPage, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(page.url + path)


def test_only_this_machine_can_connect(page: DemoPage) -> None:
    assert page._server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "192.168.0.7:80", "[::1]", "[::1]:8000"])
def test_addresses_and_localhost_are_served(page: DemoPage, host: str) -> None:
    for path in ("", "model/model.json"):
        with urllib.request.urlopen(
            urllib.request.Request(page.url + path, headers={"Host": host}), timeout=10
        ) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "host",
    ["attacker.example", "attacker.example:8000", "localhost.example", "127.0.0.1.example", "[::1", ""],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_website_whose_name_means_this_machine_reads_nothing(
    page: DemoPage, host: str, method: str
) -> None:
    for path in ("", "model/model.json", "model/missing"):
        request = urllib.request.Request(page.url + path, headers={"Host": host}, method=method)
        with pytest.raises(urllib.error.HTTPError, match="403") as caught:
            urllib.request.urlopen(request, timeout=10)
        said = caught.value.read().decode()
        assert method == "HEAD" or f"served as {page.url.replace('127.0.0.1', 'localhost')} only" in said


def test_a_student_is_exported_first(runtime: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "student", conformer(num_layers=1), UNITS)
    with DemoPage(tmp_path / "student", port=0, runtime=runtime) as served:
        assert json.loads(get(served.url + "model/model.json")[1])["name"] == "student"


def test_an_export_without_its_int8_file_is_served_and_says_why(
    runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def gate(model: object) -> Measured:
        return Measured(10.0, 250, ("shards/dev",))

    export_student(recurrent(), UNITS, tmp_path, format="wave-onnx", gate=gate, max_wer_rise=-1)
    with DemoPage(tmp_path, port=0, runtime=runtime) as served:
        card = json.loads(get(served.url + "model/model.json")[1])
        assert set(card["files"]) == {"float32"} and set(card["refused"]) == {"int8"}
    assert capsys.readouterr().err.startswith("the page has only 32-bit weights: int8 costs too much")


def test_an_export_without_its_float32_file_is_served(
    runtime: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.wave.onnx").unlink()
    card = json.loads((exported / "model.json").read_text())
    with DemoPage(tmp_path, port=0, runtime=runtime) as served:
        assert len(get(served.url + "model/model.wave.int8.onnx")[1]) == card["files"]["int8"]["bytes"]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(served.url + "model/model.wave.onnx")
    assert capsys.readouterr().err == ""


def test_an_export_with_features_is_refused(runtime: Path, tmp_path: Path) -> None:
    export_student(recurrent(), UNITS, tmp_path / "whole")
    for left, gone in (("model.onnx", "model.int8.onnx"), ("model.int8.onnx", "model.onnx")):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / left)
        (folder / gone).unlink()
        with pytest.raises(ModelError, match=f"needs one that takes samples.*got {left}.*--format wave-onnx"):
            DemoPage(folder, port=0, runtime=runtime)


def test_a_taken_port_is_said_so(page: DemoPage, runtime: Path, exported: Path) -> None:
    port = page._server.server_address[1]
    with pytest.raises(ConfigError, match=rf"port {port}: the page cannot be served.*Choose another --port"):
        DemoPage(exported, port=int(port), runtime=runtime)


@pytest.mark.parametrize("port", [-1, 65_536, 70_000])
def test_a_number_that_is_no_port_is_said_so(tmp_path: Path, port: int) -> None:
    with pytest.raises(
        ConfigError, match=f"--port: the port is out of range; expected 0 to 65535; got {port}"
    ):
        DemoPage(tmp_path, port=port)


def test_a_cache_that_cannot_be_written_is_no_matter_of_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(export.npm.shutil, "which", lambda name: "npm")
    with pytest.raises(
        ConfigError, match="file/kdasr/onnx.*cannot be installed.*Set XDG_CACHE_HOME"
    ) as raised:
        DemoPage(tmp_path, port=0)
    assert "port" not in str(raised.value)


def test_a_file_is_sent_whatever_the_browser_kept(page: DemoPage) -> None:
    """Another model on the same port may have older files of the same names."""
    since = {"If-Modified-Since": "Fri, 31 Dec 2100 23:59:59 GMT"}
    with urllib.request.urlopen(
        urllib.request.Request(page.url + "model/model.json", headers=since)
    ) as answer:
        assert answer.status == 200 and json.loads(answer.read())["name"] == "little"
        assert answer.headers["Cache-Control"] == "no-store"


def test_without_npm_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.npm.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"npm is not installed.*onnxruntime-web@1\.0\.0"):
        npm_package("onnxruntime-web", "1.0.0", cache=tmp_path)


def test_a_failing_npm_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho 'npm error 404 no such version' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(export.npm.shutil, "which", lambda name: str(program))
    with pytest.raises(ConfigError, match="npm error 404 no such version"):
        npm_package("some", "1", cache=tmp_path / "cache")


def test_what_is_installed_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some-1" / "node_modules" / "some"
    folder.mkdir(parents=True)
    (tmp_path / "some-1" / "package-lock.json").write_text("{}")
    monkeypatch.setattr(export.npm.shutil, "which", lambda name: None)
    assert npm_package("some", "1", cache=tmp_path) == folder


def test_two_that_install_a_package_at_once_leave_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        "#!/bin/sh\n"
        'test -e "$3/node_modules" && { echo "ENOTEMPTY" >&2; exit 1; }\n'
        'mkdir -p "$3/node_modules/some"; sleep 0.3\n'
        'echo whole > "$3/node_modules/some/file"; echo {} > "$3/package-lock.json"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    with ThreadPoolExecutor() as threads:
        folders = set(threads.map(lambda _: npm_package("some", "1", cache=tmp_path / "cache"), range(3)))
    (folder,) = folders
    assert (folder / "file").read_text() == "whole\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["some-1"]
