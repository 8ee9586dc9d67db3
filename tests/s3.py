"""An S3 server in another process (moto's), for tests that need a real object store."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import botocore.session
import fsspec
import pytest
import s3fs
from arkbeam.media.s3 import forget_stores

BUCKET = "pictures"
_SERVE = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class S3:
    """A server with one bucket, which is empty when a test starts."""

    url: str
    client: Any

    def put(self, key: str, data: bytes) -> str:
        """Put an object; return its URI."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def uri(self, key: str) -> str:
        """Return the URI of an object or a folder."""
        return f"s3://{BUCKET}/{key}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start the server once for all tests; yield its URL."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.stdin.close()
        process.terminate()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty bucket, and settings that send `s3://` requests to this server."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", s3_server)  # for processes that a test starts
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_server})
    client = botocore.session.get_session().create_client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket=BUCKET)
    forget_stores()
    s3fs.S3FileSystem.clear_instance_cache()
    yield S3(s3_server, client)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    client.delete_bucket(Bucket=BUCKET)
    client.close()
    forget_stores()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def without_obstore(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes obstore appear not to be installed, when called."""
    return lambda: monkeypatch.setattr("arkbeam.media.s3.obstore", None)
