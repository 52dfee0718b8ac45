"""Makes boto3's clients for S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from downloader_plugins.aws import open_client, open_session
from downloader_plugins.s3.settings import ConnectionSettings, S3StorageSettings
from downloader_plugins.s3.threads import THREADS

if TYPE_CHECKING:  # stubs, which only type checking has
    from types_boto3_s3 import S3Client


_COMPLETING = 12
"""How many times `timeout` S3 may take for `CompleteMultipartUpload`."""


class Clients(NamedTuple):
    """The clients of one region; safe to share between threads."""

    quick: S3Client
    patient: S3Client
    """For `CompleteMultipartUpload`, which takes long; AWS sends spaces meanwhile, other servers do not."""

    def close(self) -> None:
        """Close the idle connections."""
        self.quick.close()
        self.patient.close()


class Maker:
    """Makes clients of one session, one at a time, as a session is not safe to share between threads.

    Raises:
        PluginError: there is no such profile, or it is malformed.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._session = open_session(settings if isinstance(settings, S3StorageSettings) else None)

    def regions(self) -> frozenset[str]:
        """The regions with S3 that this version of botocore knows."""
        session = self._session
        return frozenset(
            region
            for partition in session.get_available_partitions()
            for region in session.get_available_regions("s3", partition)
        )

    def clients(self, region: str) -> Clients:
        """Clients for a region; `""` means that of the environment or the profile, else S3's default.

        Raises:
            PluginError: the settings or the machine's AWS configuration are invalid.
        """
        settings = self._settings
        return Clients(
            quick=self._client(region, read_timeout_s=settings.timeout),
            patient=self._client(region, read_timeout_s=_COMPLETING * settings.timeout),
        )

    def _client(self, region: str, *, read_timeout_s: float) -> S3Client:
        settings = self._settings
        client: S3Client = open_client(
            self._session,
            "s3",
            region=region,
            endpoint_url=settings.endpoint_url,
            connect_s=settings.timeout / 2,
            read_s=read_timeout_s,
            connections=THREADS,
            s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
            signature_version="s3v4",
            # Not all servers accept checksums in trailers; all accept Content-MD5.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # Only our configuration sets the address: download_url is made from it too.
            ignore_configured_endpoint_urls=True,
        )
        client.meta.events.register_last("before-parameter-build.s3", _stay)
        return client


def _stay(context: dict[str, Any], **_: object) -> None:
    """Keep botocore from following redirects to another region: the file's URL would be wrong."""
    context.get("s3_redirect", {})["redirected"] = True
