"""What tests of SQS share: a front before moto, which always answers, and always the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from servers import aws_front
from servers.aws import Moto
from servers.aws_front import Asked, Front, headers_of, serving


def response(status: int, body: bytes) -> bytes:
    """A response in JSON, as bytes on the wire."""
    return aws_front.response(status, body, Content_Type="application/x-amz-json-1.0")


def error(status: int, code: str, message: str = "said the proxy") -> bytes:
    """An error in SQS's form: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-making-api-requests-json.html"""
    body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message}).encode()
    kind = "application/x-amz-json-1.0"
    return aws_front.response(status, body, Content_Type=kind, x_amzn_query_error=f"{code};Sender")


def batches(proxy: Front) -> list[list[dict[str, Any]]]:
    """The entries of each `SendMessageBatch`."""
    return [json.loads(one.body)["Entries"] for one in proxy.asked if one.operation == "SendMessageBatch"]


def _parse(head: bytes) -> Asked:
    _, headers = headers_of(head)
    return Asked(headers.get("x-amz-target", "").rpartition(".")[2], "", {}, headers)


@asynccontextmanager
async def open_sqs_proxy(moto: Moto) -> AsyncIterator[Front]:
    """A running proxy without keys."""
    async with serving(Front(moto, _parse)) as proxy:
        yield proxy
