"""Tokens for tests of the API, each with different scopes or lists."""

from __future__ import annotations

from typing import Any

import httpx2
from pydantic import SecretStr

from downloader.config import ApiSettings, TokenSettings
from servers.api import JOB, Served

CANARY = "c4n4ry"

TOKENS = {
    "submitter": {"scopes": ["submit"]},
    "reader": {"scopes": ["read"]},
    "worker": {"scopes": ["submit", "read"]},
    "retrier": {"scopes": ["retry"]},
    "admin": {"scopes": ["admin"]},
    "shop": {
        "scopes": ["submit", "read"],
        "aggregations": ["shop-*", "shared"],
        "destinations": ["https://*.shop.example/*", "sqs:shop-?", "sqs:aws.com/sqs/shop*"],
        "buckets": ["shop-*", "gs://shop-*"],
        "proxies": ["http://proxy.shop.example:3128"],
        "keys": ["shop/*"],
    },
    "shop-admin": {"scopes": ["admin"], "aggregations": ["shop-*", "shared"]},
    "nothing": {"scopes": ["admin"], "aggregations": [], "destinations": [], "buckets": [], "proxies": []},
}


def secret(name: str) -> str:
    return f"{CANARY}-of-{name}-0123456789"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret(name)}"}


def settings(*names: str) -> ApiSettings:
    return ApiSettings(
        tokens=[
            TokenSettings.model_validate({"name": name, "token": SecretStr(secret(name)), **TOKENS[name]})
            for name in names or TOKENS
        ]
    )


async def submit(api: Served, token: str, **changes: Any) -> httpx2.Response:
    job = {name: value for name, value in (JOB | changes).items() if value is not None}
    return await api.client.post("/download", json=job, headers=bearer(token))
