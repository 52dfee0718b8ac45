import pickle
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from downloader.config import (
    Settings,
    TokenSettings,
    allow_also,
    load_settings,
    redacted,
    with_default_backend,
)
from downloader.config.read import known_keys
from downloader.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config.toml.example"


def load(path: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    flags = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_settings(path, environ=environ or {}, overrides=flags)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def refused(config: Path, text: str = "", environ: Mapping[str, str] | None = None) -> str:
    """The first line that a configuration is refused with."""
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config, environ)
    message = str(caught.value)
    assert "\n" not in "".join([message, *caught.value.others])
    assert "hunter2" not in "".join(caught.value.others)
    return message.replace(str(config), "config.toml")


def test_encryption_keys(config: Path) -> None:
    key = "A" * 43 + "="
    config.write_text('[redis]\nencryption_keys = [{ env = "K" }]\n')
    settings = load(config, {"K": key})
    assert [each.get_secret_value() for each in settings.redis.encryption_keys] == [key]
    assert redacted(settings)["redis"]["encryption_keys"] == ["***"]
    for bad in ("short", "A" * 40, "Zo\u00eb"):
        message = refused(config, f'[redis]\nencryption_keys = ["{bad}"]\n')
        assert "redis.encryption_keys.0" in message or "redis.encryption_keys[0]" in message
        assert "32 random bytes in base64" in message
        assert bad not in message


# -- sources ------------------------------------------------------------------------------------------


def test_hosts_are_limited_only_where_the_operator_says_so() -> None:
    assert Settings().processor.host_limits is None
    assert Settings.model_validate({"processor": {"robots": True}}).processor.host_limits == {}
    limited = Settings.model_validate({"processor": {"hosts": {"*": {"limit": 2}}}})
    assert limited.processor.host_limits == limited.processor.hosts != {}


def test_environment_wins_over_the_file_and_flags_over_both(config: Path) -> None:
    config.write_text('data_dir = "of-file"\n[api]\nport = 1\nhost = "file"\n[redis]\nkey_prefix = "file"\n')
    environ = {"DOWNLOADER_API__PORT": "2", "DOWNLOADER_API__HOST": "env"}
    settings = load(config, environ, api__port=3, data_dir=None)
    assert (settings.api.port, settings.api.host) == (3, "env")
    assert (settings.redis.key_prefix, settings.data_dir) == ("file", Path("of-file"))


def test_environment_reaches_every_kind_of_key(config: Path) -> None:
    config.write_text('[backends.kafka]\nbootstrap_servers = "h:1"\n')
    settings = load(
        config,
        {
            "DOWNLOADER_DATA_DIR": "/data",
            "DOWNLOADER_REDIS__CLUSTER": "false",
            "DOWNLOADER_REDIS__SENTINEL__MASTER": "m",
            "DOWNLOADER_REDIS__SENTINEL__NODES": '["h:1"]',
            "DOWNLOADER_PROCESSOR__MAX_SIZE": "2GiB",
            "DOWNLOADER_PROCESSOR__REQUEST_HEADERS": '{"X": "y"}',
            "DOWNLOADER_PROCESSOR__FILESTORAGE__TYPE": "s3",
            "DOWNLOADER_PROCESSOR__FILESTORAGE__BUCKET": "b",
            "DOWNLOADER_EGRESS__DOWNLOADS__ALLOW": '["10.0.0.0/8"]',
            "DOWNLOADER_BACKENDS__HTTP__TIMEOUT": "5",
            "DOWNLOADER_BACKENDS__KAFKA__LINGER_MS": "7",
            "DOWNLOADER_BACKENDS__KAFKA__ACKS": "all",
            "DOWNLOADER_API__TOKENS": '[{"name": "t", "token": "0123456789abcdef", "scopes": ["read"]}]',
            "OTHER": "left alone",
        },
    )
    assert settings.data_dir == Path("/data")
    assert settings.redis.sentinel is not None
    assert settings.redis.sentinel.nodes == ["h:1"]
    assert settings.redis.url == "redis://", "a Sentinel excludes the embedded default"
    assert settings.processor.max_size == 2 * 1024**3
    assert settings.processor.request_headers == {"X": "y"}
    assert (settings.storage_name, settings.storage_section) == ("s3", {"bucket": "b"})
    assert settings.egress.downloads.allow == ["10.0.0.0/8"]
    assert settings.backends == {
        "kafka": {"bootstrap_servers": "h:1", "linger_ms": 7, "acks": "all"},
        "http": {"timeout": 5},
    }
    assert settings.api.tokens == [
        TokenSettings(name="t", token=SecretStr("0123456789abcdef"), scopes=["read"])
    ]


def test_request_headers_of_a_file_replace_the_default(config: Path) -> None:
    config.write_text('[processor]\nrequest_headers = { Accept = "image/*" }\n')
    assert load(config).processor.request_headers == {"Accept": "image/*"}
    environ = {"DOWNLOADER_PROCESSOR__REQUEST_HEADERS": '{"X": "y"}'}
    assert load(config, environ).processor.request_headers == {"X": "y"}


# -- tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["orders", "", ":", "sqs:", ":orders", "client.example/*"])
def test_a_destination_of_no_type_is_refused(config: Path, pattern: str) -> None:
    token = "name = 'a'\ntoken = '0123456789abcdef'\nscopes = ['submit']"
    message = refused(config, f"[[api.tokens]]\n{token}\ndestinations = ['{pattern}']")
    assert message.endswith(" must be URLs, or begin with a type of callbacks, such as sqs:NAME")


# -- unknown keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[processor]\nconcurency = 1",
            "unknown key processor.concurency; did you mean processor.concurrency?",
        ),
        ("[proccessor]\nlease = 1", "unknown key proccessor; did you mean processor?"),
        ("port = 80", "unknown key port; did you mean api.port?"),
        ("[api]\nmax_retries = 80", "unknown key api.max_retries; did you mean processor.max_retries?"),
        ("[redis.sentinel]\nmaster='m'\nnode=[]", "redis.sentinel.node; did you mean redis.sentinel.nodes?"),
        ("[[api.tokens]]\nnames = 'x'", "unknown key api.tokens.names; did you mean api.tokens.name?"),
        ("[processor.hosts.'*']\nlimits = 1", "unknown key processor.hosts.*.limits; did you mean limit?"),
        ("zzzzzz = 1", "unknown key zzzzzz"),
        ('"a\\nb" = 1', "unknown key a\\nb"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(config: Path, text: str, expected: str) -> None:
    message = refused(config, text)
    assert message.startswith("config.toml: unknown key ")
    assert message.endswith(expected)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DOWNLOADER_REDIS__ULR", "DOWNLOADER_REDIS__URL"),
        ("DOWNLOADER_REDIS_URL", "DOWNLOADER_REDIS__URL"),
        ("DOWNLOADER_DATADIR", "DOWNLOADER_DATA_DIR"),
        ("DOWNLOADER_DATA_DIRS", "DOWNLOADER_DATA_DIR"),
        ("DOWNLOADER_API_PORT", "DOWNLOADER_API__PORT"),
        ("DOWNLOADER_DATA__DIR", "DOWNLOADER_DATA_DIR"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(config: Path, name: str, meant: str) -> None:
    assert (
        refused(config, "", {name: "8000"}) == f"unknown environment variable {name}; did you mean {meant}?"
    )


def test_unrelated_variables_do_not_prevent_a_start() -> None:
    environ = {
        "DOWNLOADER_PORT": "tcp://10.0.0.1:80",
        "DOWNLOADER_PORT_80_TCP": "tcp://10.0.0.1:80",
        "DOWNLOADER_PORT_80_TCP_PROTO": "tcp",
        "DOWNLOADER_PORT_80_TCP_PORT": "80",
        "DOWNLOADER_PORT_80_TCP_ADDR": "10.0.0.1",
        "DOWNLOADER_SERVICE_HOST": "10.0.0.1",
        "DOWNLOADER_SERVICE_PORT": "80",
        "DOWNLOADER_SERVICE_PORT_HTTP": "80",
        "DOWNLOADER_API_PORT": "tcp://10.0.0.1:80",
        "DOWNLOADER_API_SERVICE_HOST": "10.0.0.1",
        "DOWNLOADER_REDIS_PORT_6379_TCP": "tcp://10.0.0.1:6379",
        "DOWNLOADER_FAILPOINT": "after-lease",
        "DOWNLOADER_": "",
        "DOWNLOADER_IMAGE_TAG": "3",
        "DOWNLOADERS__URL": "x",
    }
    assert load(environ=environ) == Settings()


# -- wrong values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[processor]\nconcurrency = 0", "processor.concurrency must be greater than or equal to 1"),
        ("[processor]\nconcurrency = 'many'", "processor.concurrency must be a valid integer"),
        ("[processor]\nmax_retries = true", "processor.max_retries must be a number, not true or false"),
        ("[processor]\nlease = inf", "processor.lease must be"),
        ("[notifier]\ndeletion_interval = nan", "notifier.deletion_interval must be greater than or equal"),
        ("[notifier]\nfailed_retention = 2.52e11", "notifier.failed_retention must be less than or equal"),
        ("[processor]\nmax_size = '10 parsecs'", "processor.max_size must be a size"),
        ("[processor]\nmax_size = 0", "processor.max_size must be greater than 0"),
        ("[processor]\ngrace = 4000", "processor.grace must be less than or equal to 3600"),
        ("[processor]\ndisk_low = 96", "processor: disk_low must not be above disk_high"),
        (
            "[processor]\ndownload_url = 'files/'",
            "processor.download_url must be an absolute http or https URL",
        ),
        ("[processor]\ndownload_url = 'http://u:p@h/'", "this one has a user, a query or a fragment"),
        ("[processor]\nrequest_headers = {Host = 'x'}", "processor.request_headers: Host is set by"),
        (
            "[processor]\nrequest_headers = {'a b' = 'x'}",
            "processor.request_headers: 'a b' is not a header name",
        ),
        ('[processor]\nrequest_headers = {A = "x\\r\\ny"}', "processor.request_headers: the value of A has"),
        ("[processor.hosts]\n'http://x' = {limit = 1}", "must be host names, without scheme, port and path"),
        ("[processor.hosts.'*']\nlimit = 0", "limit must be greater than or equal to 1"),
        (
            "[processor.hosts.'*']\nlimit = 1\n[redis]\nurl = 'redis://h'\ncluster = true",
            "processor.hosts and processor.robots are not available with redis.cluster",
        ),
        ("[processor]\nfilestorage = 's3'", "processor.filestorage must be a table"),
        ("processor = 3", "processor must be a table"),
        ("data_dir = 3", "data_dir must be the path of a folder"),
        ("data_dir = ''", "data_dir must not be empty"),
        ("data_dir = '~nobody-of-this-name/x'", "data_dir: begins with ~ and a user that does not exist"),
        ("[api]\nport = 70000", "api.port must be less than or equal to 65535"),
        (
            "[redis]\nurl = 'http://h'",
            "redis.url must be 'embedded', or a redis://, rediss:// or unix:// URL",
        ),
        ("[redis]\ndurability = 'disk'", "redis.durability must be 'memory', 'aof' or 'replicated'"),
        ("[redis]\ndurability = 'replicated'", "redis: durability 'replicated' needs a url other than"),
        ("[redis]\ncluster = true", "redis: url must not be 'embedded' together with cluster"),
        (
            "[redis]\nurl='embedded'\nsentinel = {master='m', nodes=['h:1']}",
            "redis: url must not be 'embedded' together with sentinel",
        ),
        (
            "[redis]\ncluster = true\nsentinel = {master='m', nodes=['h:1']}",
            "redis: sentinel and cluster exclude each other",
        ),
        ("[redis]\nsentinel = {master='m', nodes=['h']}", "redis.sentinel.nodes[0] must be host:port"),
        (
            "[redis]\nsentinel = {master='m', nodes=['redis://:secret@h:1']}",
            "redis.sentinel.nodes[0] must be host:port",
        ),
        ("[redis]\nsentinel = {nodes=['h:1']}", "redis.sentinel.master is missing"),
        ("[processor]\nlease = 7", "processor.lease must be more than 1.5 times redis.timeout"),
        ("[notifier]\nlease = 7", "notifier.lease must be more than 1.5 times redis.timeout"),
        ("[egress.callbacks]\nallow = ['10.0.0.0/99']", "egress.callbacks.allow: '10.0.0.0/99'"),
        ("backends = ['http']", "backends must be a table"),
        ("[backends]\nhttp = true", "backends.http must be a table"),
    ],
)
def test_a_wrong_value_names_file_key_and_what_was_expected(config: Path, text: str, expected: str) -> None:
    message = refused(config, text)
    assert message.startswith("config.toml: ")
    assert expected in message


def test_all_errors_are_reported(config: Path) -> None:
    config.write_text(
        "colour = 1\n[api]\nport = -1\nhots = 'x'\n[[api.tokens]]\nname = 'a'\ntoken = { env = 'NONE' }\n"
        "scopes = ['write']\n[processor]\nlease = -1\n"
    )
    environ = {"DOWNLOADER_API__TOKEN": "x", "DOWNLOADER_REDIS_URL": "x", "DOWNLOADER_API__PORT": "70000"}
    with pytest.raises(ConfigError) as caught:
        load(config, environ)
    lines = [str(caught.value), *caught.value.others]
    assert sorted(line.replace(str(config), "config.toml").partition(";")[0] for line in lines) == [
        "DOWNLOADER_API__PORT: api.port must be less than or equal to 65535",
        "config.toml: api.tokens[0].scopes[0] must be 'submit', 'read', 'retry' or 'admin'",
        "config.toml: api.tokens[0].token: the environment variable 'NONE' is not set or empty",
        "config.toml: processor.lease must be greater than 0",
        "config.toml: unknown key api.hots",
        "config.toml: unknown key colour",
        "unknown environment variable DOWNLOADER_API__TOKEN",
        "unknown environment variable DOWNLOADER_REDIS_URL",
    ]


def test_a_wrong_value_names_the_variable_or_the_command_line(config: Path) -> None:
    message = refused(config, "", {"DOWNLOADER_API__PORT": "x"})
    assert message.startswith("DOWNLOADER_API__PORT: api.port must be a valid integer")
    assert refused(config, "", {"DOWNLOADER_API__TOKENS": "x"}) == "DOWNLOADER_API__TOKENS must be JSON"
    with pytest.raises(ConfigError, match=r"^command line: api.port must be less"):
        load(api__port=70000)


@pytest.mark.parametrize(
    "text",
    [
        "[redis]\nurl = 'http://:hunter2@h'",
        "[redis]\nurl = 'redis://:hunter2@h:port'",
        "[[api.tokens]]\nname = 'a'\ntoken = 'hunter2'\nscopes = ['read']",
        "[[api.tokens]]\nname = 'a'\ntoken = 'hunter2 hunter2 hunter2'\nscopes = ['read']",
        "[[api.tokens]]\nname = 'a'\ntoken = 'hunter2hunter2hunter2\u00fc'\nscopes = ['read']",
        "[[api.tokens]]\nname = 'hunter2 x'\ntoken = 'hunter2hunter2hunter2'\nscopes = ['hunter2']",
        "[redis.sentinel]\nmaster='m'\nnodes=['h:1']\npassword = ['hunter2']",
        '[processor]\nrequest_headers = {Authorization = "hunter2\\n"}',
        "[api]\nport = 'hunter2'",
    ],
)
@pytest.mark.row("H20")
def test_no_message_repeats_a_secret(config: Path, text: str) -> None:
    assert "hunter2" not in refused(config, text)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = ", "not valid TOML: Invalid value (at end of document)"),
        (b"a = 1\nb = [", "not valid TOML: "),
        (b"a = 1\nb = = 2\n", "(at line 2, column 5)"),
        (b"a = '\xff'", "not a text file in UTF-8"),
        (b"a = " + b"[" * 9999, "not valid TOML: "),
    ],
)
def test_a_broken_file_is_one_line(config: Path, content: bytes, expected: str) -> None:
    config.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert str(caught.value).startswith(f"{config}: ")
    assert expected in str(caught.value)


def test_a_missing_or_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file or directory"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r": cannot be read: Is a directory"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r": cannot be read: .*null"):
        load(Path("\0"))


# -- secrets ------------------------------------------------------------------------------------------


def test_secrets_come_from_variables_and_files(config: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of-file-0123456789\n")
    config.write_text(
        f"""
        [redis]
        url = {{ env = "REDIS" }}
        sentinel = {{ master = "m", nodes = ["h:1"], password = {{ file = "{secret}" }} }}
        [processor]
        request_headers = {{ Authorization = {{ env = "AUTH" }} }}
        [processor.filestorage]
        type = "s3"
        password = {{ file = "{secret}" }}
        [backends.http]
        secrets = [{{ env = "ONE" }}, {{ file = "{secret}" }}]
        [[api.tokens]]
        name = "t"
        token = {{ file = "{secret}" }}
        scopes = ["read"]
        """
    )
    settings = load(config, {"REDIS": "rediss://:p@h", "AUTH": "Bearer x", "ONE": "1"})
    assert settings.redis.url == "rediss://:p@h"
    assert settings.redis.sentinel is not None
    assert settings.redis.sentinel.password == SecretStr("of-file-0123456789")
    assert settings.processor.request_headers == {"Authorization": "Bearer x"}
    assert settings.storage_section == {"password": "of-file-0123456789"}
    assert settings.backends["http"] == {"secrets": ["1", "of-file-0123456789"]}
    assert settings.api.tokens[0].token == SecretStr("of-file-0123456789")


def test_a_secret_can_be_named_by_a_variable(config: Path) -> None:
    config.write_text("")
    environ = {"DOWNLOADER_REDIS__URL": '{"env": "URL"}', "URL": "redis://h"}
    assert load(config, environ).redis.url == "redis://h"


def test_keys_of_a_variable_replace_a_secret_of_the_file(config: Path) -> None:
    config.write_text('[backends]\nkafka = { env = "KAFKA" }\n')
    environ = {"DOWNLOADER_BACKENDS__KAFKA__CLIENT_ID": "shop"}
    assert load(config, environ).backends == {"kafka": {"client_id": "shop"}}


def test_a_missing_secret_is_one_line_with_key_and_source(config: Path, tmp_path: Path) -> None:
    expected = "config.toml: redis.url: the environment variable 'NOPE' is not set or empty"
    assert refused(config, '[redis]\nurl = {env = "NOPE"}') == expected
    assert refused(config, '[redis]\nurl = {env = "NOPE"}', {"NOPE": ""}) == expected
    message = refused(config, '[backends.http]\nx = [{file = "/no/such"}]')
    assert (
        message
        == "config.toml: backends.http.x[0]: the file '/no/such' cannot be read: No such file or directory"
    )
    (tmp_path / "empty").write_text("\n")
    message = refused(config, f'[redis]\nurl = {{file = "{tmp_path}/empty"}}')
    assert message == f"config.toml: redis.url: the file '{tmp_path}/empty' is empty"
    assert "cannot be read" in refused(config, '[redis]\nurl = {file = "~nobody-of-this-name/x"}')


# -- what is made of them -----------------------------------------------------------------------------


def test_places_of_files_and_spool(config: Path) -> None:
    plain = load(data_dir="d")
    assert (plain.spool_dir, plain.storage_section) == (Path("d/spool"), {"rootdir": "d/files"})
    config.write_text('[processor.filestorage]\nrootdir = ""\n')
    assert load(config, data_dir="d").storage_section == {"rootdir": "d/files"}
    config.write_text('[processor]\nstorage_dir = "s"\nfilestorage = { rootdir = "r" }\n')
    split = load(config)
    assert (split.spool_dir, split.storage_section, split.deprecations) == (Path("s"), {"rootdir": "r"}, [])
    config.write_text('[processor]\nstorage_dir = "s"\nfilestorage = { rootdir = "s" }\n')
    assert load(config).spool_dir == Path("s/.spool"), "sweeping the spool must not sweep the files"


def test_storage_dir_alone_keeps_the_files_too_and_is_deprecated(config: Path) -> None:
    config.write_text('[processor]\nstorage_dir = "s"\n')
    old = load(config)
    assert (old.storage_name, old.storage_section, old.spool_dir) == (
        "filesystem",
        {"rootdir": "s"},
        Path("s/.spool"),
    )
    [line] = old.deprecations
    assert 'processor.filestorage.rootdir = "s"' in line


def test_settings_reach_other_processes_whole(config: Path) -> None:
    config.write_text('[redis]\nurl = { env = "URL" }\n[backends.http]\n')
    settings = load(config, {"URL": "redis://h"})
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert redacted(again)["redis"]["url"] == redacted(settings)["redis"]["url"] == "***"


def test_the_default_backend_is_added_if_none_is_configured(config: Path) -> None:
    assert Settings().backends == {}
    assert with_default_backend(Settings()).backends == {"http": {}}
    config.write_text("[backends.sqs]\n")
    assert with_default_backend(load(config)).backends == {"sqs": {}}


def test_allow_also_adds_to_both_lists(config: Path) -> None:
    config.write_text('[egress.downloads]\nallow = ["10.0.0.0/8"]\ndeny = ["10.1.0.0/16"]\n')
    settings = allow_also(load(config), ["127.0.0.1", "media.internal"])
    assert settings.egress.downloads.allow == ["10.0.0.0/8", "127.0.0.1", "media.internal"]
    assert settings.egress.downloads.deny == ["10.1.0.0/16"]
    assert settings.egress.callbacks.allow == ["127.0.0.1", "media.internal"]
    with pytest.raises(ConfigError, match=r"^--allow: .*1\.2\.3\.4/99"):
        allow_also(settings, ["1.2.3.4/99"])


# -- the example --------------------------------------------------------------------------------------


def flat(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


def test_example_loads_and_has_the_defaults() -> None:
    example = load(EXAMPLE)
    assert example.backends == {"http": {"timeout": 30}}
    assert (example.storage_name, example.storage_section) == (
        Settings().storage_name,
        Settings().storage_section,
    )
    processor = example.processor.model_copy(update={"filestorage": None})
    assert flat(example.model_copy(update={"backends": {}, "processor": processor})) == flat(Settings())


def test_example_states_every_key() -> None:
    text = EXAMPLE.read_text()
    # what is commented out is valid too, once the sentences are dropped
    lines = [re.sub(r"^# (?=[a-z_]+ = |\[)", "", line) for line in text.splitlines()]
    seen: dict[str, None] = {}
    for line in lines:
        if line.startswith("#") or not line.strip():
            continue
        tomllib.loads(line)  # each line stands for itself
        if line.startswith("["):
            table = line.strip("[]")
            seen[table] = None
        else:
            key = line.partition(" = ")[0]
            seen[f"{table}.{key}" if seen and "table" in locals() else key] = None
            for inner in re.findall(r"([a-z_]+) = ", line.partition(" = ")[2]):
                seen[f"{table}.{key}.{inner}"] = None
    tables = {key.rpartition(".")[0] for key in known_keys()}
    missing = {key for key in known_keys() if key not in seen and key not in tables and key != "backends"}
    assert missing == set()
