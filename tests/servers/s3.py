"""What tests of S3 share: buckets on moto, and a front that checks `Content-MD5` as S3 does."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from servers.aws import Moto
from servers.aws_front import Asked, Exchange, Front, headers_of, response, serving

if TYPE_CHECKING:  # packages of stubs alone, which only type checking has
    from types_boto3_s3.literals import BucketLocationConstraintType

LOCATION: BucketLocationConstraintType = "eu-west-2"
"""The same as `REGION`."""

_numbers = itertools.count(1)


def new_bucket(moto: Moto, name: str = "") -> str:
    """Create an empty bucket; returns the name."""
    name = name or f"bucket-{next(_numbers)}"
    moto.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": LOCATION})
    return name


def keys(moto: Moto, bucket: str) -> list[str]:
    """The keys of the bucket's objects."""
    return [one["Key"] for one in moto.s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def uploads(moto: Moto, bucket: str) -> list[str]:
    """Keys of the uploads that have neither been completed nor aborted."""
    return [one["Key"] for one in moto.s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def digest(moto: Moto, bucket: str, key: str) -> str:
    """SHA-256 of an object, as read by boto3."""
    found = hashlib.sha256()
    for block in moto.s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1024 * 1024):
        found.update(block)
    return found.hexdigest()


def error(status: int, code: str) -> bytes:
    """An error in S3's form: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
    text = f"<Error><Code>{code}</Code><Message>said the front</Message><Resource>x</Resource></Error>"
    return response(status, b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode())


async def _judge(exchange: Exchange, body: bytes) -> None:
    wanted = exchange.asked.headers.get("content-md5")
    if wanted is not None and base64.b64encode(hashlib.md5(body).digest()).decode() != wanted:
        await exchange.send(error(400, "BadDigest"))
    else:
        await exchange.send(await exchange.ask_moto(body))


async def forward(exchange: Exchange) -> None:
    """Pass a request with a correct digest to moto, and return moto's response."""
    await _judge(exchange, await exchange.body())


async def flip(exchange: Exchange) -> None:
    """Change one bit of the body."""
    body = bytearray(await exchange.body())
    body[len(body) // 2] ^= 1
    await _judge(exchange, bytes(body))


def _parse(head: bytes) -> Asked:
    line, headers = headers_of(head)
    method, target, _ = line.split(" ")
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    key = unquote(parts.path).partition("/")[2].partition("/")[2]
    return Asked(_operation(method, key, query), key, query, headers)


def _operation(method: str, key: str, query: dict[str, str]) -> str:
    whole = {
        ("GET", "uploads"): "ListMultipartUploads",
        ("POST", "uploads"): "CreateMultipartUpload",
        ("PUT", "uploadId"): "UploadPart",
        ("POST", "uploadId"): "CompleteMultipartUpload",
        ("DELETE", "uploadId"): "AbortMultipartUpload",
    }
    for (verb, name), operation in whole.items():
        if verb == method and name in query:
            return operation
    return {"PUT": "PutObject", "DELETE": "DeleteObject"}.get(method, method) if key else f"{method} bucket"


@asynccontextmanager
async def open_front(moto: Moto) -> AsyncIterator[Front]:
    """A front on 127.0.0.1."""
    async with serving(Front(moto, _parse, otherwise=forward)) as front:
        yield front
