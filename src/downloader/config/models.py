"""Settings: every key with its type, default and bounds, and every rule that spans keys.

`checks` has the types of values.

Values only, as pydantic models; `downloader.config` reads them from TOML, the environment and flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)

from downloader.config.checks import (
    EMBEDDED,
    MAX_DELAY_S,
    BaseUrl,
    Bearer,
    CorsOrigin,
    Count,
    CountOrZero,
    DestinationPattern,
    EncryptionKey,
    FileName,
    Folder,
    HostPattern,
    HostPort,
    Number,
    Percent,
    RedisUrl,
    RequestHeaders,
    Seconds,
    SecondsOrZero,
    ShortSeconds,
    Size,
)
from downloader.net import EgressPolicy

RENEWALS_PER_LEASE = 3
"""A lease is renewed each time this fraction of it has passed, so that two renewals may fail."""


class Section(BaseModel):
    """A table of the configuration; unknown keys are refused, and no message repeats a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


class SentinelSettings(Section):
    """`[redis.sentinel]`: the primary is asked for by name."""

    master: str = Field(min_length=1)
    nodes: list[HostPort] = Field(min_length=1)
    """`host:port` of each Sentinel."""
    password: SecretStr | None = None
    """Password of the Sentinels; the primary's is in `redis.url`."""


class RedisSettings(Section):
    """`[redis]`: where the fleet's state lives."""

    url: RedisUrl = EMBEDDED
    """`embedded`, or a redis://, rediss:// or unix:// URL; may hold a password, so it is a secret.

    With Sentinel its host is not used, only scheme, user, password and database; left out, it is
    `redis://` then.
    """
    sentinel: SentinelSettings | None = None
    cluster: bool = False
    key_prefix: str = Field(default="downloader", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    durability: Literal["memory", "aof", "replicated"] = "memory"
    """What a 201 waits for."""
    replicas: Count = 1
    """How many replicas must have it under `replicated`."""
    timeout: ShortSeconds = 5.0
    """Seconds that one call may take."""
    encryption_keys: list[EncryptionKey] = Field(default_factory=list)
    """Encrypt the secret fields of jobs in the store: the first key encrypts, each of them decrypts."""
    max_memory: Annotated[ByteSize, Number, Field(ge=0)] = ByteSize(0)
    """Of the embedded store's data; 0: half of the machine's memory, or of its container's."""

    @model_validator(mode="before")
    @classmethod
    def _url_of_sentinel(cls, values: Any) -> Any:
        """With a Sentinel, the default is not the embedded store."""
        if isinstance(values, dict) and values.get("sentinel") is not None and "url" not in values:
            return {**values, "url": "redis://"}
        return values

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.sentinel is not None and self.cluster:
            raise ValueError("sentinel and cluster exclude each other")
        if self.cluster and self.durability != "memory":
            # WAIT and WAITAOF have no key, so the cluster client cannot send them to the right node.
            raise ValueError(f"durability {self.durability!r} is not available together with cluster")
        if self.url != EMBEDDED:
            if self.max_memory:
                raise ValueError("max_memory is for the embedded store: another server has its own maxmemory")
            return self
        if self.sentinel is not None:
            raise ValueError("url must not be 'embedded' together with sentinel")
        if self.cluster:
            raise ValueError("url must not be 'embedded' together with cluster")
        if self.durability == "replicated":
            raise ValueError("durability 'replicated' needs a url other than 'embedded': it has no replicas")
        return self


Scope = Literal["submit", "read", "retry", "admin"]
"""What a token may do; `downloader.api` says which requests need which."""


class TokenSettings(Section):
    """`[[api.tokens]]`: who may call the API, and for what. A list of `["*"]` allows all of its kind."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")
    """Shown in logs and metrics instead of the token."""
    token: Bearer
    scopes: list[Scope] = Field(min_length=1)
    """`admin` includes the others."""
    aggregations: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of `aggr_id`: of jobs to submit, and to see."""
    destinations: list[DestinationPattern] = Field(default_factory=lambda: ["*"])
    """Glob patterns `TYPE:DESTINATION` of callbacks; those that are URLs need no type for `http`."""
    buckets: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of `s3_bucket`."""
    proxies: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of `aggr_proxy`."""


class ApiSettings(Section):
    """`[api]`: the HTTP API."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: Annotated[int, Number, Field(ge=0, le=65535)] = 8000
    """0: any free one."""
    heartbeat_path: FileName = ""
    """`GET /hb` answers 503 while this file exists; empty: never."""
    max_body: Size = ByteSize(256 * 1024)
    certfile: FileName = ""
    """PEM file of the certificate and its chain, for TLS; empty: no TLS."""
    keyfile: FileName = ""
    """PEM file of its key, without a password."""
    allowed_hosts: list[HostPattern] = Field(default_factory=list)
    """Names in `Host` that are answered besides the own addresses; `*.example.org`: all below it, `*`: any.
    Empty: any, but on loopback only loopback's own names."""
    cors_origins: list[CorsOrigin] = Field(default_factory=list)
    """Origins whose pages may read the GET routes; `*` for any."""
    tokens: list[TokenSettings] = Field(default_factory=list)
    """Empty: every client that reaches the port may do everything."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for what, values in (
            ("name", [token.name for token in self.tokens]),
            ("token", [token.token.get_secret_value() for token in self.tokens]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"tokens must not share a {what}")
        if bool(self.certfile) != bool(self.keyfile):
            raise ValueError("certfile and keyfile go together")
        return self


class FileStorageSettings(BaseModel):
    """`[processor.filestorage]`: `type` names the plugin, the rest is the plugin's own section."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    type: str = Field(default="filesystem", min_length=1)

    @property
    def section(self) -> dict[str, Any]:
        """What the plugin's factory gets."""
        return dict(self.model_extra or {})


class S3Settings(Section):
    """`[processor.s3]`: for jobs that bring their own bucket; credentials come from boto3's usual chain."""

    endpoint_url: BaseUrl = ""
    """Empty: AWS."""
    timeout: Annotated[float, Number, Field(gt=0, le=50, allow_inf_nan=False)] = 10.0
    """Seconds to wait for each part of an answer."""
    buckets: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of the buckets that jobs may bring; `[]` refuses all."""

    @property
    def section(self) -> dict[str, Any]:
        """What the plugin's factory gets."""
        return self.model_dump()


class HostSettings(Section):
    """`[processor.hosts."NAME"]`: what all aggregations together may do at a host, over the fleet."""

    limit: Count | None = None
    """Downloads in flight."""
    rate: Annotated[float, Number, Field(gt=0, allow_inf_nan=False)] | None = None
    """Downloads that start in a second."""
    delay: Annotated[float, Number, Field(ge=0, le=MAX_DELAY_S, allow_inf_nan=False)] = 0.0
    """Seconds between two starts at the least."""


class ProcessorSettings(Section):
    """`[processor]`: downloads."""

    storage_dir: FileName = ""
    """Spool for downloads in progress; empty: a folder under `data_dir`."""
    download_url: BaseUrl = ""
    """Base of `download_url` in callbacks; empty: the API serves the files itself."""
    concurrency: Count = 256
    request_headers: RequestHeaders = Field(
        default_factory=lambda: {"Accept": "*/*", "User-Agent": "downloader"}
    )
    max_retries: CountOrZero = 2
    retry_backoff: Seconds = 120.0
    max_size: Size = ByteSize(10 * 1024**3)
    download_timeout: Seconds = 3600.0
    """Seconds for a whole attempt, storing included, where the job names none."""
    max_download_timeout: Seconds = 86400.0
    """What a job may name at most."""
    lease: ShortSeconds = 30.0
    grace: ShortSeconds = 20.0
    stats_interval: ShortSeconds = 5.0
    disk_high: Percent = 95.0
    disk_low: Percent = 90.0
    ca_file: FileName = ""
    """PEM file of the certificate authorities to trust instead of the system's."""
    hosts: dict[HostPattern, HostSettings] = Field(default_factory=dict)
    """Limits by host; `*.example.org`: of each name below it, `*`: of each host. The nearest one applies."""
    robots: bool = False
    """Whether each URL's origin is asked by its robots.txt whether it may be fetched, and how often."""
    filestorage: FileStorageSettings | None = None
    s3: S3Settings = Field(default_factory=S3Settings)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.disk_low > self.disk_high:
            raise ValueError("disk_low must not be above disk_high")
        if self.download_timeout > self.max_download_timeout:
            raise ValueError("download_timeout must not be above max_download_timeout")
        return self

    @property
    def host_limits(self) -> Mapping[str, HostSettings] | None:
        """What downloads at a host are held to; `None` if hosts have no limits, not even a Crawl-delay."""
        return self.hosts if self.hosts or self.robots else None


class NotifierSettings(Section):
    """`[notifier]`: callbacks and the deletion of what has been delivered."""

    concurrency: Count = 64
    per_destination: Count = 16
    """Callbacks in flight to one destination over the fleet; 1 while it is failing. Topics and queues that
    work have no such bound: brokers are made for many, and their plugins send in batches."""
    deletion_interval: SecondsOrZero = 10800.0
    """Seconds after which the file of a delivered job is deleted."""
    failed_retention: SecondsOrZero = 604800.0
    """Seconds to keep the records of failed callbacks and of jobs without a callback."""
    retry_schedule: list[Seconds] = Field(default_factory=lambda: [5.0, 60.0, 600.0, 3600.0, 21600.0])
    """Seconds before each further attempt; empty: there is one attempt."""
    lease: ShortSeconds = 60.0
    grace: ShortSeconds = 20.0
    stats_interval: ShortSeconds = 5.0


class EgressList(Section):
    """Addresses to allow (CIDR or host name) beyond public ones, and to deny."""

    allow: list[str] = Field(default_factory=list)
    deny: list[str] = Field(default_factory=list)


class EgressSettings(Section):
    """`[egress]`: what this service may connect to on behalf of clients."""

    downloads: EgressList = Field(default_factory=EgressList)
    callbacks: EgressList = Field(default_factory=EgressList)

    def policy(self, name: Literal["downloads", "callbacks"]) -> EgressPolicy:
        """The policy that a list describes.

        Raises:
            ValueError: an entry is not an address, a range or a name.
        """
        lists: EgressList = getattr(self, name)
        return EgressPolicy.parse(lists.allow, lists.deny, setting=f"egress.{name}")


class LogSettings(Section):
    """`[log]`."""

    format: Literal["auto", "console", "json"] = "auto"
    """`auto`: console on a terminal, JSON elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """The whole configuration."""

    data_dir: Folder = Path("downloader-data")
    """Folder of the embedded store, and by default of spool and files; relative to the working directory."""
    redis: RedisSettings = Field(default_factory=RedisSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    processor: ProcessorSettings = Field(default_factory=ProcessorSettings)
    notifier: NotifierSettings = Field(default_factory=NotifierSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    backends: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """`[backends.NAME]`: one notifier plugin each, with the plugin's own section."""
    log: LogSettings = Field(default_factory=LogSettings)

    _secret_paths: frozenset[tuple[str | int, ...]] = PrivateAttr(default=frozenset())
    """Paths of values that came from `{ env = ... }` or `{ file = ... }`; these values are never printed."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for name, lease in (("processor", self.processor.lease), ("notifier", self.notifier.lease)):
            if lease / RENEWALS_PER_LEASE + self.redis.timeout >= lease:
                raise ValueError(
                    f"{name}.lease must be more than 1.5 times redis.timeout,"
                    " or a slow renewal would come after the lease has ended"
                )
        if self.redis.cluster and (self.processor.hosts or self.processor.robots):
            # A host's jobs are in all shards, and a script sees one of them; a robots.txt limits a host too.
            raise ValueError("processor.hosts and processor.robots are not available with redis.cluster")
        self.egress.policy("downloads")
        self.egress.policy("callbacks")
        return self

    @property
    def storage_name(self) -> str:
        """The storage plugin of the service's own files."""
        configured = self.processor.filestorage
        return configured.type if configured is not None else "filesystem"

    @property
    def storage_section(self) -> dict[str, Any]:
        """What that plugin's factory gets; `filesystem` always has a `rootdir`."""
        configured = self.processor.filestorage
        if configured is None and self.processor.storage_dir:
            return {"rootdir": self.processor.storage_dir}
        section = configured.section if configured is not None else {}
        if self.storage_name == "filesystem" and not section.get("rootdir"):
            section["rootdir"] = str(self.data_dir / "files")
        return section

    @property
    def spool_dir(self) -> Path:
        """Folder of downloads in progress; one of its own where `storage_dir` holds the files too."""
        if not self.processor.storage_dir:
            return self.data_dir / "spool"
        folder = Path(self.processor.storage_dir)
        shared = Path(str(self.storage_section.get("rootdir", ""))) == folder
        return folder / ".spool" if shared else folder

    @property
    def deprecations(self) -> list[str]:
        """One line for each deprecated form that this configuration uses."""
        folder = self.processor.storage_dir
        if self.processor.filestorage is not None or not folder:
            return []
        instead = f'set processor.filestorage.rootdir = "{folder}"'
        return [f"processor.storage_dir without [processor.filestorage] is deprecated: {instead}"]


def with_default_backend(settings: Settings) -> Settings:
    """With these `downloader run` sends HTTP callbacks if no backend is configured."""
    if settings.backends:
        return settings
    return settings.model_copy(update={"backends": {"http": {}}})
