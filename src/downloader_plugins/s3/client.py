"""The boto3 clients of a region, and the meaning of failures. Importing this module imports botocore."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore import exceptions as aws
from botocore.exceptions import BotoCoreError, ClientError

from downloader.storage import StorageError, StorageRefused
from downloader_plugins.aws import error_code, open_client, reason_of
from downloader_plugins.objects import THREADS, PassingError
from downloader_plugins.s3.settings import ConnectionSettings

if TYPE_CHECKING:  # stubs, which only type checking has
    import boto3
    from types_boto3_s3 import S3Client

_COMPLETING = 12
"""Time limit of `CompleteMultipartUpload`, as a multiple of `timeout`."""


class Clients(NamedTuple):
    """The clients of one region; safe to share between threads."""

    quick: S3Client
    patient: S3Client
    """Client for `CompleteMultipartUpload`, which takes long. AWS sends spaces meanwhile, other servers do
    not."""

    def close(self) -> None:
        """Close idle connections."""
        self.quick.close()
        self.patient.close()


def known_regions(session: boto3.Session) -> frozenset[str]:
    """The regions with S3 in botocore's data."""
    return frozenset(
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("s3", partition)
    )


def open_clients(session: boto3.Session, settings: ConnectionSettings, region: str) -> Clients:
    """Make clients for a region; `""` means the region of the environment or the profile, else S3's default.

    Raises:
        PluginError: the settings or the machine's AWS configuration are invalid.
    """
    return Clients(
        quick=_client(session, settings, region, settings.timeout),
        patient=_client(session, settings, region, _COMPLETING * settings.timeout),
    )


def _client(session: boto3.Session, settings: ConnectionSettings, region: str, read_s: float) -> S3Client:
    client: S3Client = open_client(
        session,
        "s3",
        region=region,
        endpoint_url=settings.endpoint_url,
        connect_s=settings.timeout / 2,
        read_s=read_s,
        connections=THREADS,
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
        signature_version="s3v4",
        # Not all servers accept checksums in trailers; all accept Content-MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Only the service's configuration sets the address, which is also part of download_url.
        ignore_configured_endpoint_urls=True,
    )
    client.meta.events.register_last("before-parameter-build.s3", _stay)
    return client


def _stay(context: dict[str, Any], **_: object) -> None:
    """Keep botocore from following redirects to another region: the file's URL would be wrong."""
    context.get("s3_redirect", {})["redirected"] = True


_SERVER_ERROR = 500
_PASSING_STATUS = frozenset({408, 425, 429})

_PASSING = frozenset(
    {
        *("InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "RequestTimeoutException"),
        *("Throttling", "ThrottlingException", "KMS.ThrottlingException", "RequestLimitExceeded"),
        *("RequestThrottled", "TooManyRequests", "BandwidthLimitExceeded", "PriorRequestNotComplete"),
    }
)
"""Codes of temporary errors."""

_OUR_FAULT = frozenset(
    {
        *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed"),
        *("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "OperationAborted"),
        *("NoSuchUpload", "InvalidPart", "InvalidPartOrder", "ConditionalRequestConflict"),
    }
)
"""Codes for faults other than the bucket's: a wrong clock, expired credentials, a disturbed upload."""

_FILE_REFUSED = frozenset({"EntityTooLarge", "KeyTooLongError"})
"""Codes for a file or key that no bucket on the server accepts."""

_MEANING = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "access denied",
    "AllAccessDisabled": "access denied",
    "403": "access denied",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "PermanentRedirect": "the bucket is in another region",
    "AuthorizationHeaderMalformed": "the bucket is in another region",
    "IllegalLocationConstraintException": "the bucket is in another region",
    "RequestTimeTooSkewed": "our clock is wrong",
    "BadDigest": "the bytes were changed on their way",
    "EntityTooLarge": "the file is larger than it takes",
}

_CODE = re.compile(r"[0-9A-Za-z._-]{1,64}")

_RETRIED_AT_ONCE = (aws.ConnectionClosedError, aws.EndpointConnectionError, aws.ResponseStreamingError)
"""Exceptions after which the request is repeated at once. Timeouts are not: other files would have to
wait."""


class ObjectExists(StorageError):
    """A request with `If-None-Match: *` for a key that has an object."""


def explain(exc: Exception, *, bucket: str, own: bool) -> StorageError:
    """The `StorageError` for a botocore exception, or for an `OSError` of the file to be sent.

    The text is one line with the bucket, S3's code and the status. S3's message is left out, as it may repeat
    what the client sent. For the service's `own` bucket, no error is final. Another bucket that is missing or
    forbidden gives `StorageRefused`.
    """
    if isinstance(exc, ClientError):
        return _answered(exc, bucket=bucket, own=own)
    text = reason_of(exc)
    if isinstance(exc, OSError) and not isinstance(exc, BotoCoreError):
        text = f"the file to be sent cannot be read: {exc.strerror or type(exc).__name__}"
    kind = PassingError if isinstance(exc, _RETRIED_AT_ONCE) else StorageError
    return kind(f"S3 bucket {bucket}: {text}")


def _answered(exc: ClientError, *, bucket: str, own: bool) -> StorageError:
    code = error_code(exc)
    if not _CODE.fullmatch(code):
        code = "an error"
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    meaning = f": {_MEANING[code]}" if code in _MEANING else ""
    text = f"S3 bucket {bucket}: {code} ({status}){meaning}"
    if code in _PASSING or status in _PASSING_STATUS or status >= _SERVER_ERROR:
        return PassingError(text)
    if code == "PreconditionFailed":
        return ObjectExists(text)
    if code in _FILE_REFUSED:
        return StorageRefused(text)
    return StorageError(text) if own or code in _OUR_FAULT else StorageRefused(text)
