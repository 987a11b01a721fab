"""`kdasr demo-page`: serves the page in `export/web` with a model, on this machine only.

ONNX Runtime for browsers is installed by npm when the page is first served, and kept in the user's
cache folder; it is not part of this project.
"""

from __future__ import annotations

import http.server
import io
import ipaddress
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import urlsplit

from export.card import CARD_FILE, refusal
from export.npm import npm_package
from export.publish import TOKENS_FILE, export_student
from export.runtime import FLOAT_FILE, INT8_FILE, WAVE_FLOAT_FILE, WAVE_INT8_FILE
from kdasr.errors import ConfigError, ModelError, printable
from kdasr.models import load_model

RUNTIME_PACKAGE = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
PAGE_FOLDER = Path(__file__).with_name("web")
_LAST_PORT = 65_535
# What the page fetches of a model, besides the model files, which the card names.
_OF_MODELS = (CARD_FILE, TOKENS_FILE)
_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".onnx": "application/octet-stream",
}


def model_folder(model: Path, scratch: Path) -> Path:
    """A folder with a waveform-in export: `model` itself if it contains such a file, else `scratch`, with an
    export of the student in `model`.

    Args:
        scratch: folder to export to.

    Raises:
        ModelError: there is no model, or an export of another kind.
        ExportError: the student cannot be exported.
    """
    if _first_of(model, WAVE_FLOAT_FILE, WAVE_INT8_FILE) is not None:
        return model
    if (other := _first_of(model, FLOAT_FILE, INT8_FILE)) is not None:
        raise ModelError(
            "this export takes features, but the page needs one that takes samples",
            where=model,
            expected=WAVE_FLOAT_FILE,
            got=other,
            fix="Give the folder of the student, or export it with --format wave-onnx.",
        )
    loaded = load_model(model)
    export_student(
        loaded.model,
        loaded.units,
        scratch,
        format="wave-onnx",
        weights_sha256=loaded.card["weights_sha256"],
        name=model.name,
    )
    return scratch


def _first_of(folder: Path, *names: str) -> str | None:
    return next((name for name in names if (folder / name).is_file()), None)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of three folders: the page at /, the runtime at /ort/, the model at /model/."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, **_TYPES}  # noqa: RUF012
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, folders: dict[str, Path], **settings: object) -> None:
        self._folders = folders
        super().__init__(*arguments, **settings)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """The file for a URL path; a name that does not exist for any path outside the folders."""
        parts = path.split("?")[0].split("#")[0].strip("/").split("/")
        root, names = (
            (self._folders[parts[0]], parts[1:]) if parts[0] in self._folders else (PAGE_FOLDER, parts)
        )
        name = names[0] or "index.html" if len(names) == 1 else ""
        # A page in a model from elsewhere could use the microphone that this address may use.
        if root == self._folders["model"] and not (name in _OF_MODELS or name.endswith(".onnx")):
            name = ""
        # Only files with plain names: no folder, whose index.html would be shown, and nothing elsewhere.
        plain = name == Path(name).name and not name.startswith(".") and (root / name).is_file()
        return str(root / name if plain else PAGE_FOLDER / "missing")

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Sends the whole file, even if the browser has a newer one cached, which may be another model's
        from the same port. A request under another name is refused: any website can let its own name mean
        this machine's address, and its pages could then read the model."""
        if not _is_address(self.headers.get("Host", "")):
            port = self.connection.getsockname()[1]
            self.send_error(
                403,
                explain=f"This page is served as http://localhost:{port}/ only. From another machine, "
                f"forward the port (ssh -L {port}:localhost:{port} HOST); let a proxy send Host: localhost.",
            )
            return None
        del self.headers["If-Modified-Since"]
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing, since a page requests a dozen files."""


def _is_address(host: str) -> bool:
    """Whether a Host header holds localhost or the digits of an address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _server(port: int, folders: dict[str, Path]) -> http.server.ThreadingHTTPServer:
    """Raises:
    ConfigError: the port is taken or not permitted."""
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, folders=folders))
    except OSError as error:
        raise ConfigError(
            "the page cannot be served",
            where=f"port {port}",
            got=error.strerror,
            fix="Choose another --port.",
        ) from error


class DemoPage:
    """The page's server; as a context manager, it runs in the background.

    Args:
        model: a student's folder, or a folder with its waveform-in export.
        port: of this machine's loopback address; 0 takes a free one.
        runtime: folder of ONNX Runtime's browser files; None installs it by npm if needed.

    Raises:
        ConfigError: the port is taken or invalid, or the runtime cannot be installed.
        ModelError: there is no model that can be served, or its card cannot be used.

    Attributes:
        url: the page's address.
    """

    def __init__(self, model: Path, *, port: int = 8000, runtime: Path | None = None) -> None:
        if not 0 <= port <= _LAST_PORT:
            raise ConfigError(
                "the port is out of range", where="--port", expected=f"0 to {_LAST_PORT}", got=port
            )
        self._scratch = tempfile.TemporaryDirectory(prefix="kdasr-page-")
        try:
            folders = {
                "ort": runtime or npm_package(RUNTIME_PACKAGE, RUNTIME_VERSION) / "dist",
                "model": model_folder(Path(model), Path(self._scratch.name)),
            }
            if (reason := refusal(folders["model"] / WAVE_INT8_FILE)) is not None:
                print(printable(f"the page has only 32-bit weights: {reason}"), file=sys.stderr)
            self._server = _server(port, folders)
        except BaseException:
            self._scratch.cleanup()
            raise
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def serve(self) -> None:
        """Serves until interrupted."""
        self._server.serve_forever()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._scratch.cleanup()
