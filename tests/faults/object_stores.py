"""Object stores in this process, spoken to over HTTP as the real ones are."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

BUCKET = "labels-test"


@contextmanager
def s3_bucket() -> Iterator[str]:
    """The URL of an empty bucket on moto's S3 server."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _environment(settings):
        fsspec.filesystem("s3", use_listings_cache=False).mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@contextmanager
def gs_bucket() -> Iterator[str]:
    """The URL of an empty bucket on gcp-storage-emulator, taught to refuse what must not be replaced."""
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    original = objects._multipart_upload

    def upload(request: Any, response: Any, storage: Any) -> None:
        # The emulator overlooks preconditions; Google's store answers 412 to this one.
        place = request.params["bucket_name"], request.data["meta"]["name"]
        if "ifGenerationMatch" in request.query and storage.objects.get(place[0], {}).get(place[1]):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        original(request, response, storage)

    objects._multipart_upload = upload
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    settings = {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask Google's own servers for the kind of bucket
    }
    with _environment(settings):
        yield f"gs://{BUCKET}"
    server.stop()
    objects._multipart_upload = original


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
