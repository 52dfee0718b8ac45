"""Common to the plugins for AWS: credentials, clients, and reasons of botocore's failures.

Importing this module does not import boto3, which takes half a second of CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from downloader.errors import PluginError
from downloader.net import parse_endpoint

if TYPE_CHECKING:
    import boto3

_REASONS: Mapping[str, str] = {
    "NoCredentialsError": "no credentials were found",
    "PartialCredentialsError": "the credentials are incomplete",
    "CredentialRetrievalError": "the credentials cannot be obtained",
    "ConnectTimeoutError": "no connection in time",
    "ReadTimeoutError": "no answer in time",
    "SSLError": "TLS handshake failed",
    "ProxyConnectionError": "the proxy cannot be reached",
    "ConnectionClosedError": "connection lost",
    "EndpointConnectionError": "not connected",
    "ResponseStreamingError": "connection lost in its answer",
    "ResponseParserError": "invalid answer",
    "HTTPClientError": "connection failed",
    "ParamValidationError": "the request cannot be made",
}
"""Reasons by the name of botocore's exception; botocore's own texts contain URLs."""

_KEYS = {"ProfileNotFound": "profile", "InvalidRegionError": "region"}
"""The key of the section at fault, by the name of botocore's exception."""

EndpointUrl = Annotated[str, AfterValidator(lambda url: parse_endpoint(url).text.rstrip("/") if url else url)]
"""The URL of a server other than AWS's own; empty: AWS."""


class AwsSettings(BaseModel):
    """A section of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Credentials(AwsSettings):
    """The keys for the service's own credentials."""

    profile: str = ""
    """Profile of the shared AWS configuration files. Empty: boto3's usual chain of credentials."""
    access_key_id: str = Field(default="", repr=False)
    """Access key. Empty: boto3's usual chain of credentials (environment, shared files, roles)."""
    secret_access_key: str = Field(default="", repr=False)
    """Secret key of `access_key_id`."""
    session_token: str = Field(default="", repr=False)
    """Session token of temporary credentials."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ValueError("access_key_id and secret_access_key: both are required, or neither")
        if self.session_token and not self.access_key_id:
            raise ValueError("session_token: needs access_key_id")
        if self.profile and self.access_key_id:
            raise ValueError("profile: cannot be used together with access_key_id")
        return self


def open_session(credentials: Credentials | None, *, region: str = "") -> boto3.Session:
    """Make a session, by default with boto3's usual chain of credentials. Blocks; no network.

    Raises:
        PluginError: the profile does not exist, or is malformed.
    """
    import boto3  # noqa: PLC0415 - see the module's docstring
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    settings = credentials or Credentials()
    try:
        return boto3.Session(
            profile_name=settings.profile or None,
            region_name=region or None,
            aws_access_key_id=settings.access_key_id or None,
            aws_secret_access_key=settings.secret_access_key or None,
            aws_session_token=settings.session_token or None,
        )
    except BotoCoreError as exc:
        raise _refused(exc) from exc


def open_client(
    session: boto3.Session,
    service: str,
    *,
    region: str | None,
    endpoint_url: str,
    connect_s: float,
    read_s: float,
    connections: int,
    **options: Any,
) -> Any:
    """Make a client without retries. Blocks; no network.

    A session is not safe to share between threads: make one client of it at a time. `options` are more
    options of botocore's `Config`.

    Raises:
        PluginError: there is no region, or boto3 refuses the settings or the machine's AWS configuration.
    """
    from botocore.config import Config  # noqa: PLC0415 - see the module's docstring
    from botocore.exceptions import BotoCoreError, NoRegionError  # noqa: PLC0415

    config = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
        tcp_keepalive=True,
        **{"user_agent_appid": "downloader", **options},  # the stubs lack some options
    )
    make: Any = session.client  # the overloads have literal names of services only
    try:
        return make(service, region_name=region or None, endpoint_url=endpoint_url or None, config=config)
    except NoRegionError as exc:
        raise PluginError("region: is required, as boto3 finds none") from exc
    except (BotoCoreError, ValueError) as exc:
        raise _refused(exc) from exc


def reason_of(exc: Exception) -> str:
    """Why a request got no response, without URLs."""
    names = [kind.__name__ for kind in type(exc).__mro__]
    return next((_REASONS[name] for name in names if name in _REASONS), f"failed with {type(exc).__name__}")


def error_code(exc: Exception) -> str:
    """The service's code, such as `NoSuchUpload`; `""` for an exception without a response."""
    response: Mapping[str, Any] = getattr(exc, "response", None) or {}  # some exceptions have `None`
    return str(response.get("Error", {}).get("Code", ""))


def _refused(exc: Exception) -> PluginError:
    key = _KEYS.get(type(exc).__name__, "boto3 refuses the section")
    return PluginError(f"{key}: {' '.join(str(exc).split())}")
