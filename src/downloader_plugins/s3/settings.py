"""The S3 plugin's sections of the configuration, and where they say that objects are."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from downloader.net import Url, UrlError

_SUFFIXES = (
    ("cn-", "amazonaws.com.cn"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("us-iso-", "c2s.ic.gov"),
    ("eusc-", "amazonaws.eu"),
    ("", "amazonaws.com"),
)
"""Domains of the AWS partitions, by the beginning of a region's name; the first that fits."""


def _endpoint(url: str) -> str:
    if not url:
        return url
    try:
        return Url.parse(url, "endpoint").text.rstrip("/")
    except UrlError:
        raise ValueError("not an absolute http or https URL without user, query and fragment") from None


def _prefix(text: str) -> str:
    folder = text.strip("/")
    if folder and any(part in ("", ".", "..") or not part.isprintable() for part in folder.split("/")):
        raise ValueError("not a folder: its parts are printable and neither empty nor dots")
    return folder


class ConnectionSettings(BaseModel):
    """What both kinds of sections say of connections."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    endpoint_url: Annotated[str, AfterValidator(_endpoint)] = ""
    """Of an S3 that is not AWS's, such as `http://minio.internal:9000`. Empty: AWS."""
    timeout: float = Field(default=10.0, gt=0, le=50, allow_inf_nan=False)
    """Seconds without anything of an answer. A connection gets half of it, a large file whose parts S3 puts
    together twelve times as much. Less than a stop's grace period, which is to outlive a peer's silence."""


class S3StorageSettings(ConnectionSettings):
    """`[processor.filestorage]` with `type = "s3"`."""

    bucket: str
    """Its name. It must be there; it is tried at the start."""
    region: str = ""
    """Empty: that of the environment or of the profile, else `us-east-1`."""
    prefix: Annotated[str, AfterValidator(_prefix)] = ""
    """Folder in the bucket that all keys begin with."""
    access_key_id: str = Field(default="", repr=False)
    """With its secret. Without: boto3's usual chain (environment, shared files, roles)."""
    secret_access_key: str = Field(default="", repr=False)
    """Goes with `access_key_id`."""
    session_token: str = Field(default="", repr=False)
    """Goes with temporary ones."""
    profile: str = ""
    """Of the shared AWS configuration files."""
    server_side_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = ""
    """Empty: as the bucket says."""
    kms_key_id: str = ""
    """With `aws:kms`; empty: the account's default key."""
    storage_class: str = ""
    """Such as `STANDARD_IA`. Empty: `STANDARD`."""
    acl: str = ""
    """A canned ACL such as `bucket-owner-full-control`, for buckets that still use them."""

    @property
    def options(self) -> dict[str, str]:
        """Parameters of each new object."""
        named = {
            "ServerSideEncryption": self.server_side_encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "StorageClass": self.storage_class,
            "ACL": self.acl,
        }
        return {name: value for name, value in named.items() if value}


class BucketsSettings(ConnectionSettings):
    """`[processor.s3]`: for jobs that bring a bucket of their own."""

    buckets: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of the buckets that jobs may bring; `[]` refuses all."""


def object_url(name: str, region: str, key: str, *, endpoint_url: str) -> str:
    """Where an object is, without credentials: https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html.

    Args:
        name: of the bucket.
        region: of AWS; not looked at with an `endpoint_url`.
        key: the whole one.
        endpoint_url: empty for AWS.
    """
    base = endpoint_url or f"https://s3.{region}.{_suffix(region)}"
    # AWS has a bucket's name in the host, but for one with dots, which no certificate covers.
    if endpoint_url or "." in name:
        return f"{base}/{name}/{quote(key)}"
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{name}.{rest}/{quote(key)}"


def _suffix(region: str) -> str:
    return next(suffix for beginning, suffix in _SUFFIXES if region.startswith(beginning))
