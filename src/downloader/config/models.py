"""Settings: every key with type, default and bounds, and every rule that spans keys.

Values only, as pydantic models. `checks` has the types of values, `api` the table `[api]`; `read` reads TOML,
the environment and flags.
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

from downloader.config.api import ApiSettings
from downloader.config.checks import (
    EMBEDDED,
    BaseUrl,
    Count,
    CountOrZero,
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
    Section,
    ShortSeconds,
    Size,
)
from downloader.net import EgressPolicy
from downloader.wire import MAX_DELAY_S

RENEWALS_PER_LEASE = 3
"""A lease is renewed every `lease / 3` seconds, so that two renewals in a row may fail."""


class SentinelSettings(Section):
    """`[redis.sentinel]`: the primary is asked for by name."""

    master: str = Field(min_length=1)
    """The name that the Sentinels know the primary by."""
    nodes: list[HostPort] = Field(min_length=1)
    """`host:port` of each Sentinel."""
    password: SecretStr | None = None
    """Password of the Sentinels; the primary's password is in `redis.url`."""


class RedisSettings(Section):
    """`[redis]`: where the fleet's state lives."""

    url: RedisUrl = EMBEDDED
    """`embedded` starts a Valkey under `data_dir`. Otherwise a redis://, rediss:// or unix:// URL, with user,
    password and database; it is a secret. With Sentinel only scheme, user, password and database are used,
    and the default is `redis://`. With `cluster` it is the URL of any node."""
    sentinel: SentinelSettings | None = None
    """The Sentinels to ask for the primary."""
    cluster: bool = False
    """Whether `url` is the URL of a node of a Cluster."""
    nodes: list[HostPort] = Field(default_factory=list)
    """`host:port` of further nodes of the Cluster, one of which is asked while that of `url` is away."""
    key_prefix: str = Field(default="downloader", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """The beginning of each key, so that several services can share one Redis."""
    durability: Literal["memory", "aof", "replicated"] = "memory"
    """Durability of a job before the 201: `memory`, the store has the job; `aof`, the job is on the disk of
    the server; `replicated`, the job is on replicas too."""
    replicas: Count = 1
    """How many replicas must have a job under `replicated`."""
    timeout: ShortSeconds = 5.0
    """Seconds that one call of the store may take."""
    encryption_keys: list[EncryptionKey] = Field(default_factory=list)
    """Keys that encrypt the secret fields of jobs in the store; `downloader-service[encryption]` is needed.
    The first key encrypts, all keys decrypt. All instances need the same keys. Each is 32 random bytes in
    base64 (`openssl rand -base64 32`)."""
    max_memory: Annotated[ByteSize, Number, Field(ge=0)] = ByteSize(0)
    """Memory that the data of the embedded store may use. When it is full, jobs are answered 503. `0`: half
    of the memory of the machine, or of its container."""

    @model_validator(mode="before")
    @classmethod
    def _url_of_sentinel(cls, values: Any) -> Any:
        """Change the default with a Sentinel: not the embedded store."""
        if isinstance(values, dict) and values.get("sentinel") is not None and "url" not in values:
            return {**values, "url": "redis://"}
        return values

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.sentinel is not None and self.cluster:
            raise ValueError("sentinel and cluster exclude each other")
        if self.nodes and not self.cluster:
            raise ValueError("nodes are for a cluster")
        if self.cluster and self.durability != "memory":
            # WAIT and WAITAOF have no key, so a cluster client cannot send them to the right node.
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


class FileStorageSettings(BaseModel):
    """`[processor.filestorage]`: `type` names the plugin, the rest is the plugin's own section."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    type: str = Field(default="filesystem", min_length=1)
    """The storage plugin: `filesystem`, `s3` or another installed plugin. The other keys of the table are the
    plugin's."""

    @property
    def section(self) -> dict[str, Any]:
        """The section for the factory of the plugin."""
        return dict(self.model_extra or {})


class S3Settings(Section):
    """`[processor.s3]`: for jobs that bring a bucket; credentials come from boto3's usual chain."""

    endpoint_url: BaseUrl = ""
    """URL of an S3 server other than AWS. Empty: AWS."""
    timeout: Annotated[float, Number, Field(gt=0, le=50, allow_inf_nan=False)] = 10.0
    """Seconds to wait for each part of an answer."""
    buckets: list[str] = Field(default_factory=lambda: ["*"])
    """Glob patterns of the buckets that jobs may name; `[]` refuses all."""

    @property
    def section(self) -> dict[str, Any]:
        """The section for the factory of the plugin."""
        return self.model_dump()

    @property
    def is_set(self) -> bool:
        """Whether the configuration has settings for buckets of jobs; else the defaults apply."""
        return bool(self.buckets) and self != S3Settings()


class CloudSettings(Section):
    """`[processor.cloud]`: for jobs that bring a bucket of Google Cloud Storage or Azure."""

    buckets: list[str] = Field(default_factory=list)
    """Glob patterns of the buckets that jobs may name, such as `gs://shop-*`. Empty: none."""
    timeout: Annotated[float, Number, Field(gt=0, le=50, allow_inf_nan=False)] = 30.0
    """Seconds for a request, which sends at most 8 MiB of a file, or 64 MiB with `key_exists`."""
    gs: dict[str, str | bool] = Field(default_factory=dict)
    """Options of the storage `cloud` for Google."""
    az: dict[str, str | bool] = Field(default_factory=dict)
    """Options of the storage `cloud` for Azure; `account_name` is required for `az://`."""

    @property
    def section(self) -> dict[str, Any]:
        """The section for the factory of the plugin."""
        return self.model_dump()


class HostSettings(Section):
    """`[processor.hosts."NAME"]`: limits of a host for all aggregations together, over the fleet."""

    limit: Count | None = None
    """Downloads in flight; `None`: no limit."""
    rate: Annotated[float, Number, Field(gt=0, allow_inf_nan=False)] | None = None
    """Downloads that start in a second, at most."""
    delay: Annotated[float, Number, Field(ge=0, le=MAX_DELAY_S, allow_inf_nan=False)] = 0.0
    """Seconds between two starts, at least."""


class ProcessorSettings(Section):
    """`[processor]`: downloads."""

    storage_dir: FileName = ""
    """Folder (spool) of downloads in progress, best on the disk of the stored files. Empty: a folder under
    `data_dir`."""
    download_url: BaseUrl = ""
    """Base of `download_url` in callbacks, such as `https://files.example.org/`. Empty: the API serves the
    files itself."""
    concurrency: Count = 256
    """Downloads in flight, at most, in each process."""
    request_headers: RequestHeaders = Field(
        default_factory=lambda: {"Accept": "*/*", "User-Agent": "downloader"}
    )
    """Headers sent with each request. A job's own headers win."""
    max_retries: CountOrZero = 2
    """Further attempts at a download that failed for a reason that may pass, where a job names no number."""
    retry_backoff: Seconds = 120.0
    """Seconds of the first delay between attempts. Later delays grow exponentially; all have full jitter."""
    max_size: Size = ByteSize(10 * 1024**3)
    """Largest file."""
    download_timeout: Seconds = 3600.0
    """Seconds for a whole attempt, storing included, where a job names none."""
    max_download_timeout: Seconds = 86400.0
    """The longest `download_timeout` that a job may name, in seconds."""
    response_timeout: Seconds = 30.0
    """Seconds to wait for the head of a response. A job that names a longer `download_timeout` may wait for
    as long as that."""
    lease: ShortSeconds = 30.0
    """Seconds until another instance takes over the job of an instance that has gone silent. More than 1.5
    times `redis.timeout`."""
    grace: ShortSeconds = 20.0
    """Seconds that downloads in flight get at a stop."""
    stats_interval: ShortSeconds = 5.0
    """Seconds between two reports of an instance's counters."""
    disk_high: Percent = 95.0
    """Percent of the spool's disk in use at which no more downloads begin."""
    disk_low: Percent = 90.0
    """Percent of the spool's disk in use below which downloads begin again."""
    ca_file: FileName = ""
    """PEM file of the certificate authorities to trust. Empty: those of the system."""
    hosts: dict[HostPattern, HostSettings] = Field(default_factory=dict)
    """Limits of a host for all aggregations together, over the fleet. The name is a host or address,
    `*.example.org` (each name below it) or `*` (each host); the nearest one applies, as a whole. All
    instances need the same table, those of the API too. Not with `redis.cluster`."""
    pace: Literal["adaptive", "fixed"] = "adaptive"
    """After a cooldown, `adaptive` starts an aggregation's downloads, and a host's, slowly, and then faster
    and faster. `fixed`: at once as fast as before."""
    robots: bool = False
    """Whether to obey the robots.txt of each origin, including `Crawl-delay`. All instances need the same
    value, those of the API too. Not with `redis.cluster`."""
    filestorage: FileStorageSettings | None = None
    """Where complete files are kept: the table of a storage plugin. Empty: a folder under `data_dir`."""
    s3: S3Settings = Field(default_factory=S3Settings)
    """For jobs with a bucket of the client. Credentials come from boto3's usual chain."""
    cloud: CloudSettings = Field(default_factory=CloudSettings)
    """For jobs with a bucket of the client in Google Cloud Storage or Azure."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.disk_low > self.disk_high:
            raise ValueError("disk_low must not be above disk_high")
        if self.download_timeout > self.max_download_timeout:
            raise ValueError("download_timeout must not be above max_download_timeout")
        return self

    @property
    def host_limits(self) -> Mapping[str, HostSettings] | None:
        """Limits of downloads by host; `None` without any, not even a Crawl-delay."""
        return self.hosts if self.hosts or self.robots else None


class NotifierSettings(Section):
    """`[notifier]`: callbacks and the deletion of what has been delivered."""

    concurrency: Count = 64
    """Callbacks in flight, at most, in each process."""
    per_destination: Count = 16
    """Callbacks in flight to one destination over the fleet; only one to a failing destination. A topic or
    queue that works has no such bound. Each of the 16 shards of a Cluster has an equal part, at least one."""
    deletion_interval: SecondsOrZero = 10800.0
    """Seconds after which the file of a job is deleted, counted from the delivery of the callback."""
    failed_retention: SecondsOrZero = 604800.0
    """Seconds for which jobs with a failed callback, and jobs without a callback, are kept, files
    included."""
    retry_schedule: list[Seconds] = Field(default_factory=lambda: [5.0, 60.0, 600.0, 3600.0, 21600.0])
    """Seconds before each further attempt at a callback, with jitter. After the last one the callback is
    failed, and can be sent again by hand. Empty: there is one attempt."""
    max_age: Seconds = 172800.0
    """Seconds after which a callback that is still not delivered is failed, however long its destination has
    delayed it. One that was never tried is tried first, unless its destination is failing."""
    lease: ShortSeconds = 60.0
    """Seconds until another instance takes over the callback of an instance that has gone silent."""
    grace: ShortSeconds = 20.0
    """Seconds that callbacks in flight get at a stop, in a process without a processor."""
    stats_interval: ShortSeconds = 5.0
    """Seconds between two reports of an instance's counters."""


class EgressList(Section):
    """Addresses to allow (CIDR or host name) beyond public addresses, and to deny."""

    allow: list[str] = Field(default_factory=list)
    """Private addresses that may be connected to, beside all public addresses: CIDR ranges, addresses, host
    names, or `*.example.org`."""
    deny: list[str] = Field(default_factory=list)
    """Addresses that are refused, in the same forms. An address in both lists is refused."""


class EgressSettings(Section):
    """`[egress]`: what this service may connect to on behalf of clients."""

    downloads: EgressList = Field(default_factory=EgressList)
    """For downloads: jobs, redirects and robots.txt."""
    callbacks: EgressList = Field(default_factory=EgressList)
    """For HTTP callbacks, and requests of plugins through the service."""

    def policy(self, name: Literal["downloads", "callbacks"]) -> EgressPolicy:
        """Parse a list of addresses to a policy.

        Raises:
            ValueError: an entry is not an address, a range or a name.
        """
        lists: EgressList = getattr(self, name)
        return EgressPolicy.parse(lists.allow, lists.deny, setting=f"egress.{name}")


class LogSettings(Section):
    """`[log]`."""

    format: Literal["auto", "console", "json"] = "auto"
    """`auto` is `console` on a terminal and `json` elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe events that are logged."""


class Settings(Section):
    """The whole configuration."""

    data_dir: Folder = Path("downloader-data")
    """Folder of the embedded store, the spool and the files where nothing else is set; relative to the
    working directory."""
    redis: RedisSettings = Field(default_factory=RedisSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    processor: ProcessorSettings = Field(default_factory=ProcessorSettings)
    notifier: NotifierSettings = Field(default_factory=NotifierSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    backends: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """`[backends.NAME]`: one notifier plugin each, with the plugin's own section."""
    log: LogSettings = Field(default_factory=LogSettings)

    _secret_paths: frozenset[tuple[str | int, ...]] = PrivateAttr(default=frozenset())
    """Paths of secret values, which came from `{ env = ... }` or `{ file = ... }` and are never printed."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        for name, lease in (("processor", self.processor.lease), ("notifier", self.notifier.lease)):
            if lease / RENEWALS_PER_LEASE + self.redis.timeout >= lease:
                raise ValueError(
                    f"{name}.lease must be more than 1.5 times redis.timeout,"
                    " or a slow renewal would come after the lease has ended"
                )
        if self.redis.cluster and (self.processor.hosts or self.processor.robots):
            # The jobs of one host are in all shards, but a script sees one shard only; a robots.txt limits a
            # host too.
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
        """The section of the storage plugin; `filesystem` always has a `rootdir`."""
        configured = self.processor.filestorage
        if configured is None and self.processor.storage_dir:
            return {"rootdir": self.processor.storage_dir}
        section = configured.section if configured is not None else {}
        if self.storage_name == "filesystem" and not section.get("rootdir"):
            section["rootdir"] = str(self.data_dir / "files")
        return section

    @property
    def spool_dir(self) -> Path:
        """Folder of downloads in progress; a subfolder if `storage_dir` has the stored files too."""
        if not self.processor.storage_dir:
            return self.data_dir / "spool"
        folder = Path(self.processor.storage_dir)
        shared = Path(str(self.storage_section.get("rootdir", ""))) == folder
        return folder / ".spool" if shared else folder

    @property
    def deprecations(self) -> list[str]:
        """A line for each deprecated setting in use."""
        folder = self.processor.storage_dir
        if self.processor.filestorage is not None or not folder:
            return []
        instead = f'set processor.filestorage.rootdir = "{folder}"'
        return [f"processor.storage_dir without [processor.filestorage] is deprecated: {instead}"]


def with_default_backend(settings: Settings) -> Settings:
    """The settings with the backend `http` if no backend is configured, for `downloader run`."""
    if settings.backends:
        return settings
    return settings.model_copy(update={"backends": {"http": {}}})
