"""The settings of the HTTP API: the table `[api]`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, model_validator

from downloader.config.checks import (
    Bearer,
    CorsOrigin,
    Count,
    DestinationPattern,
    FileName,
    HostPattern,
    Number,
    Section,
    Size,
)
from downloader.net import local_host

Scope = Literal["submit", "read", "retry", "admin"]
"""Permissions of a token; `downloader.api` says which requests need which scope."""


class TokenSettings(Section):
    """`[[api.tokens]]`: who may call the API, and for what. A list of `["*"]` allows all of its kind."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")
    """Shown in logs and metrics instead of the token."""
    token: Bearer
    """The text that clients send as `Authorization: Bearer`; at least 16 characters."""
    scopes: list[Scope] = Field(min_length=1)
    """Permissions of the token. `admin` includes the others."""
    aggregations: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of `aggr_id`: which aggregations the token may submit to, and see."""
    destinations: list[DestinationPattern] = Field(default_factory=lambda: ["*"])
    """Glob patterns of callback destinations, with the type in front, such as `sqs:shop-*`; URLs of `http`
    callbacks need no type."""
    buckets: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of buckets: names in S3, and for other clouds `gs://NAME` and `az://NAME`."""
    proxies: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of `aggr_proxy`."""
    keys: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of `key`, such as `shop/*`: where jobs of the token may store, and what the token may
    read by `GET /files/<key>` beside the files of its aggregations."""
    max_pending: Count | None = None
    """Most jobs of the token whose download is not over; further ones are answered 429."""
    max_pending_bytes: Size | None = None
    """Most bytes that these jobs take in the store: the fields of each, as JSON."""
    max_aggregations: Count | None = None
    """Most aggregations with unfinished jobs that belong to the token. An aggregation belongs to the token
    that submitted the first of its unfinished jobs."""
    max_groups: Count | None = None
    """Most groups of jobs that the token has begun and that are not yet deleted: a group is deleted a week
    after it is complete, or, if nobody seals it, 30 days after its last job."""


class ApiSettings(Section):
    """`[api]`: the HTTP API."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on."""
    port: Annotated[int, Number, Field(ge=0, le=65535)] = 8000
    """Port to listen on; `0` takes any free one."""
    heartbeat_path: FileName = ""
    """While the file exists, `/hb` responds 503, so that a load balancer takes the instance out. Empty:
    never."""
    max_body: Size = ByteSize(256 * 1024)
    """Largest body of a request."""
    certfile: FileName = ""
    """PEM file of the certificate with the chain, for TLS. Empty: no TLS."""
    keyfile: FileName = ""
    """PEM file of the certificate's key, without a password."""
    allowed_hosts: list[HostPattern] = Field(default_factory=list)
    """Accepted names in a request's `Host`, beside the address that the request came to; others get 421.
    `*.example.org` is each name below example.org, `*` any name. Empty: any name, but on loopback only
    localhost and loopback addresses. Behind a proxy on the same machine that forwards `Host`, list the hosts
    served by the proxy."""
    cors_origins: list[CorsOrigin] = Field(default_factory=list)
    """Origins of pages that a browser may let read the GET routes, such as `https://dashboard.example.org`;
    `*` is any."""
    tokens: list[TokenSettings] = Field(default_factory=list)
    """Tables `[[api.tokens]]`, a table for each token. Empty: everyone who reaches the port may do
    everything. With tokens, each route but `/hb`, `/health/*` and the static files of the web page needs one.
    """

    @property
    def local_url(self) -> str:
        """The URL of the API on the local machine, without a path."""
        host = local_host(self.host)
        return f"http{'s' if self.certfile else ''}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for name, values in (
            ("name", [token.name for token in self.tokens]),
            ("token", [token.token.get_secret_value() for token in self.tokens]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"tokens must not share a {name}")
        if bool(self.certfile) != bool(self.keyfile):
            raise ValueError("certfile and keyfile go together")
        return self
