"""AWS on loopback: moto's server as a process, which can be frozen, killed and started again.

What it holds is lost when it is killed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from servers.forked import environment
from servers.ports import spare_port
from servers.processes import ServerProcess, listens

if TYPE_CHECKING:  # packages of stubs alone, which only type checking has
    from types_boto3_s3 import S3Client
    from types_boto3_sqs import SQSClient

REGION = "eu-west-2"

ACCOUNT = "123456789012"
"""Moto's."""

CREDENTIALS: Mapping[str, str] = MappingProxyType(
    {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
)
"""The environment of a client: credentials, and nothing of the machine's environment."""

_PLAIN = Config(
    connect_timeout=5,
    read_timeout=20,
    retries={"total_max_attempts": 1},
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


class Moto(ServerProcess):
    """The server; a context manager. `kill` and `start` again keep its port."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or spare_port()
        with tempfile.NamedTemporaryFile(prefix="dlm-", delete=False) as log:
            self._log = Path(log.name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [sys.executable, str(Path(__file__).with_name("moto_server.py")), str(self.port)]
        self.launch(words, is_up=partial(listens, self.port), log=self._log, environ=environment(CREDENTIALS))

    def revive(self) -> None:
        """Bring the server back, frozen or dead."""
        self.thaw()
        assert self.process is not None
        if self.process.poll() is not None:
            self.start()

    def reset(self) -> None:
        """Forget all buckets, queues and messages."""
        request = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    @cached_property
    def s3(self) -> S3Client:
        """To look at what is there; blocks, but for loopback."""
        return self._session.client("s3", endpoint_url=self.url, config=_PLAIN)

    @cached_property
    def sqs(self) -> SQSClient:
        """To look at what is there; blocks, but for loopback."""
        return self._session.client("sqs", endpoint_url=self.url, config=_PLAIN)

    @cached_property
    def _session(self) -> boto3.Session:
        return boto3.Session(
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region_name=REGION,
        )

    def close(self) -> None:
        for name in ("s3", "sqs"):
            if name in self.__dict__:
                getattr(self, name).close()
        super().close()
        self._log.unlink()
