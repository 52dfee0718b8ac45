"""Settings: every key with its type, default and bounds, and every rule that spans keys.

Values only, as pydantic models; `downloader.settings` reads them from TOML and the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr, model_validator

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class SentinelSettings(Section):
    """`[redis.sentinel]`: the primary is asked for by name."""

    master: str
    nodes: list[str] = Field(min_length=1)
    """`host:port` of each Sentinel."""
    password: SecretStr | None = None
    """Of the Sentinels themselves."""


class RedisSettings(Section):
    """`[redis]`: where the fleet's state lives."""

    url: str = "embedded"
    """`embedded`, or a redis://, rediss:// or unix:// URL; may hold a password, so it is a secret."""
    sentinel: SentinelSettings | None = None
    cluster: bool = False
    key_prefix: str = Field(default="downloader", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    durability: Literal["memory", "aof", "replicated"] = "memory"
    """What a 201 waits for."""
    replicas: Count = 1
    """How many replicas must have it under `replicated`."""
    timeout: Seconds = 5.0
    """Seconds that one call may take."""


class ApiSettings(Section):
    """`[api]`: the HTTP API."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    heartbeat_path: str = ""
    max_body: ByteSize = ByteSize(256 * 1024)


class FileStorageSettings(BaseModel):
    """`[processor.filestorage]`: `type` names the plugin, the rest is the plugin's own section."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = "filesystem"

    @property
    def section(self) -> dict[str, Any]:
        """What the plugin's factory gets."""
        return dict(self.model_extra or {})


class ProcessorSettings(Section):
    """`[processor]`: downloads."""

    storage_dir: str = ""
    """Spool for downloads in progress; empty: a folder under `data_dir`."""
    download_url: str = ""
    concurrency: Count = 256
    request_headers: dict[str, str] = Field(
        default_factory=lambda: {"Accept": "*/*", "User-Agent": "downloader"}
    )
    max_retries: int = Field(default=2, ge=0)
    retry_backoff: Seconds = 120.0
    max_size: ByteSize = ByteSize(10 * 1024**3)
    lease: Seconds = 30.0
    grace: Seconds = 20.0
    stats_interval: Seconds = 5.0
    disk_high: float = Field(default=95.0, gt=0, le=100)
    disk_low: float = Field(default=90.0, gt=0, le=100)
    connect_timeout: Seconds = 5.0
    tls_timeout: Seconds = 5.0
    first_byte_timeout: Seconds = 30.0
    stall_timeout: Seconds = 30.0
    """Seconds below `stall_rate` after which an attempt is given up."""
    stall_rate: ByteSize = ByteSize(1024)
    """Bytes per second."""
    max_redirects: int = Field(default=10, ge=0, le=50)
    ca_file: str = ""
    """PEM file of the certificate authorities to trust instead of the system's."""
    filestorage: FileStorageSettings | None = None

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.disk_low > self.disk_high:
            raise ValueError("disk_low must not be above disk_high")
        return self


class NotifierSettings(Section):
    """`[notifier]`: callbacks and the deletion of what has been delivered."""

    concurrency: Count = 64
    per_destination: Count = 16
    """Callbacks in flight to one destination over the fleet; one while it is failing."""
    deletion_interval: float = Field(default=10800.0, ge=0)
    failed_retention: float = Field(default=604800.0, ge=0)
    """Seconds to keep the records of failed callbacks and of jobs without a callback."""
    retry_schedule: list[Seconds] = Field(default_factory=lambda: [5.0, 60.0, 600.0, 3600.0, 21600.0])
    lease: Seconds = 60.0
    grace: Seconds = 20.0
    stats_interval: Seconds = 5.0


class EgressList(Section):
    """Addresses to allow (CIDR or host name) beyond public ones, and to deny."""

    allow: list[str] = Field(default_factory=list)
    deny: list[str] = Field(default_factory=list)


class EgressSettings(Section):
    """`[egress]`: what this service may connect to on behalf of clients."""

    downloads: EgressList = Field(default_factory=EgressList)
    callbacks: EgressList = Field(default_factory=EgressList)


class LogSettings(Section):
    """`[log]`."""

    format: Literal["auto", "console", "json"] = "auto"
    """`auto`: console on a terminal, JSON elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """The whole configuration."""

    data_dir: Annotated[Path, BeforeValidator(lambda v: Path(v).expanduser())] = Path("downloader-data")
    redis: RedisSettings = Field(default_factory=RedisSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    processor: ProcessorSettings = Field(default_factory=ProcessorSettings)
    notifier: NotifierSettings = Field(default_factory=NotifierSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    backends: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """`[backends.NAME]`: one notifier plugin each, with the plugin's own section."""
    log: LogSettings = Field(default_factory=LogSettings)
