"""The S3 plugin's sections of the configuration, and the URLs and metadata of objects."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, Field, model_validator

from downloader.paths import is_safe_path
from downloader_plugins.aws import AwsSettings, Credentials, EndpointUrl

_SUFFIXES = (
    ("cn-", "amazonaws.com.cn"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("us-iso-", "c2s.ic.gov"),
    ("eusc-", "amazonaws.eu"),
    ("", "amazonaws.com"),
)
"""Domains of the AWS partitions, by the prefix of a region's name; the first match counts."""


def _prefix(text: str) -> str:
    folder = text.strip("/")
    if folder and not is_safe_path(folder):
        raise ValueError("not a folder: its parts must be printable and neither empty nor dots")
    return folder


class ConnectionSettings(AwsSettings):
    """The keys common to both sections."""

    endpoint_url: EndpointUrl = ""
    """URL of an S3 server other than AWS, such as `http://minio.internal:9000`. Empty: AWS."""
    timeout: float = Field(default=10.0, gt=0, le=50, allow_inf_nan=False)
    """Seconds to wait for an answer. Connecting gets half of it, completing a large file twelve times as
    much. It should be less than `processor.grace`."""


class S3StorageSettings(ConnectionSettings, Credentials):
    """`[processor.filestorage]` with `type = "s3"`."""

    bucket: str
    """Name of the bucket. It must exist; the start checks that it can be written."""
    region: str = ""
    """Region of the bucket. Empty: that of the environment or of the profile, else `us-east-1`."""
    prefix: Annotated[str, AfterValidator(_prefix)] = ""
    """Prefix of all keys, as a folder."""
    server_side_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = ""
    """Encryption of new objects. Empty: the bucket's default."""
    kms_key_id: str = ""
    """Key for `aws:kms`. Empty: the account's default key."""
    storage_class: str = ""
    """Storage class, such as `STANDARD_IA`. Empty: `STANDARD`."""
    acl: str = ""
    """A canned ACL such as `bucket-owner-full-control`, for buckets that use ACLs."""

    @model_validator(mode="after")
    def _check_encryption(self) -> Self:
        if self.kms_key_id and not self.server_side_encryption.startswith("aws:kms"):
            raise ValueError('kms_key_id: needs server_side_encryption = "aws:kms"')
        return self

    @property
    def options(self) -> dict[str, str]:
        """Parameters of each new object."""
        parameters = {
            "ServerSideEncryption": self.server_side_encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "StorageClass": self.storage_class,
            "ACL": self.acl,
        }
        return {name: value for name, value in parameters.items() if value}


class BucketsSettings(ConnectionSettings):
    """`[processor.s3]`: for jobs that name a bucket of the client."""

    buckets: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of the buckets that jobs may name; `[]` refuses all."""


def object_url(name: str, region: str, key: str, *, endpoint_url: str) -> str:
    """The URL of an object, without credentials; with an `endpoint_url` the region is ignored.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
    """
    suffix = next(suffix for beginning, suffix in _SUFFIXES if region.startswith(beginning))
    base = endpoint_url or f"https://s3.{region}.{suffix}"
    # AWS has the bucket's name in the host, except a name with dots, for which there is no certificate.
    if endpoint_url or "." in name:
        return f"{base}/{name}/{quote(key)}"
    scheme, _, host = base.partition("://")
    return f"{scheme}://{name}.{host}/{quote(key)}"
