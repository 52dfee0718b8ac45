"""Whatever an operator writes or a proxy answers: it is taken, or refused by the error meant for it."""

from __future__ import annotations

import socket
import string
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from downloader.config import Settings, load_settings
from downloader.config.read import known_keys
from downloader.errors import ConfigError
from downloader.net import ProxyRefused, Url
from downloader.net.proxy import connect_socks
from downloader.net.stream import Stream
from downloader.notify import parse_section
from downloader_plugins.http import HttpSettings
from downloader_plugins.kafka.settings import read_section
from downloader_plugins.s3.settings import BucketsSettings, S3StorageSettings

pytestmark = pytest.mark.slow

KEYS = sorted(known_keys())

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
scalars = (
    texts
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.booleans()
    | st.sampled_from(
        ["", "1MiB", "-1", "1e400", "9" * 400, "redis://[", "rediss://a:b@c:d/e", "10.0.0.0/33", "*."]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def taken_or_refused(read: Callable[[], object]) -> None:
    """It is read, or refused by an error for people; the command line escapes what is not printable in it."""
    with suppress(ConfigError):
        read()


def nested(tree: dict[str, Any], path: str, value: object) -> None:
    *tables, name = path.split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[name] = value


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "config.toml"


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    return load_settings(path, environ=environ, overrides={})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.dictionaries(st.sampled_from(KEYS) | texts.filter(bool), values, max_size=4),
)
def test_any_value_of_any_key(config: Path, chosen: dict[str, Any]) -> None:
    tree: dict[str, Any] = {}
    for path, value in chosen.items():
        nested(tree, path, value)
    config.write_text(tomli_w.dumps(tree), "utf-8")
    taken_or_refused(partial(load, config, {}))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(string.printable, max_size=80).map(str.encode))
@example(content=b"[api]\nport = " + b"9" * 5000)
@example(content=b"a = " + b"[" * 5000)
@example(content=b"a." * 3000 + b"b = 1")
def test_any_file(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    taken_or_refused(partial(load, config, {}))


@settings(max_examples=150, deadline=None)
@given(
    chosen=st.dictionaries(
        st.sampled_from(KEYS).map(lambda key: key.upper().replace(".", "__")) | texts.filter(bool),
        texts | scalars.map(str),
        max_size=3,
    )
)
@example(chosen={"API__TOKENS": "[" * 5000})
@example(chosen={"API__PORT": "9" * 5000})
def test_any_variable(chosen: dict[str, str]) -> None:
    taken_or_refused(partial(load, None, {f"DOWNLOADER_{name}": value for name, value in chosen.items()}))


KAFKA = [
    "bootstrap_servers",
    "timeout",
    "compression_type",
    "security_protocol",
    "client_id",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "ssl_cafile",
    "topics",
    "max_request_size",
]


@settings(max_examples=200, deadline=None)
@given(
    section=st.dictionaries(
        st.sampled_from(KAFKA) | texts,
        values | st.sampled_from(["h:1", "[::1]:9", "SASL_SSL", "PLAIN", "-1"]),
        max_size=5,
    )
)
def test_any_section_of_kafka(section: dict[str, Any]) -> None:
    taken_or_refused(partial(read_section, section))


@pytest.mark.parametrize("model", [S3StorageSettings, BucketsSettings, HttpSettings])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_section_of_a_plugin(model: Any, data: st.DataObject) -> None:
    keys = st.sampled_from(sorted(model.model_fields)) | texts
    section = data.draw(
        st.dictionaries(keys, values | st.sampled_from(["http://[", "https://h:1/x", "a/../b"]), max_size=5)
    )
    taken_or_refused(partial(parse_section, model, section))


# SOCKS5 (RFC 1928): the greeting's answer, that of user and password, and the reply

GREETING, WELCOME = b"\x05\x00", b"\x05\x02\x01\x00"
replies = st.builds(
    lambda code, kind, rest: b"\x05" + bytes([code, 0, kind]) + rest,
    st.integers(0, 255),
    st.sampled_from([1, 3, 4, 0, 255]),
    st.binary(max_size=300),
)


async def through(said: bytes, proxy: str) -> bytes | None:
    """What a proxy that says so leaves on the connection; `None` if it is refused."""
    ours, theirs = trio.socket.socketpair()
    with theirs:
        stream = Stream(trio.SocketStream(ours))
        try:
            await trio.SocketStream(theirs).send_all(said)
            theirs.shutdown(socket.SHUT_WR)
            with trio.fail_after(20):
                await connect_socks(
                    stream, Url.parse("http://example.org/x").origin, Url.parse(proxy, "proxy")
                )
                left = b""
                while more := await stream.receive(65536):
                    left += more
                return left
        except ProxyRefused:
            return None
        finally:
            ours.close()


@settings(max_examples=300, deadline=None)
@given(said=st.binary(max_size=40) | replies.map(GREETING.__add__) | replies.map(WELCOME.__add__))
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "socks5://u:p@127.0.0.1:1080"])
def test_any_answer_of_a_socks_proxy(proxy: str, said: bytes) -> None:
    trio.run(through, said, proxy)


@settings(max_examples=100, deadline=None)
@given(
    address=st.sampled_from([b"\x01" + bytes(4), b"\x04" + bytes(16), b"\x03\x00", b"\x03\x03abc"]),
    behind=st.binary(max_size=50),
)
def test_bytes_behind_a_socks_reply_are_the_origins(address: bytes, behind: bytes) -> None:
    reply = b"\x05\x00\x00" + address + b"\x00\x50"
    assert trio.run(through, GREETING + reply + behind, "socks5://127.0.0.1:1080") == behind
    for end in range(len(reply)):
        assert trio.run(through, GREETING + reply[:end], "socks5://127.0.0.1:1080") is None
