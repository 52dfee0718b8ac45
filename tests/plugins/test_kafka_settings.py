"""`[backends.kafka]`: what is refused, and with which line."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import trustme

from downloader.errors import PluginError
from downloader_plugins.kafka import open_kafka
from downloader_plugins.kafka.settings import KafkaSettings, read_section
from servers.plugins import opened_notifier

SERVERS = {"bootstrap_servers": "127.0.0.1:9092"}
SECRET = "hunter2-hunter2"


def read(**section: Any) -> KafkaSettings:
    return read_section({**SERVERS, **section})


async def refused(section: Mapping[str, Any]) -> str:
    with pytest.raises(PluginError) as caught:
        async with opened_notifier(open_kafka, section):
            pass
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


def test_it_comes_through_its_entry_point() -> None:
    (point,) = entry_points(group="downloader.notifiers.v1", name="kafka")
    assert point.load() is open_kafka


def test_the_defaults() -> None:
    options = read().options()
    assert (options["acks"], options["request.timeout.ms"]) == ("all", 10_000)
    assert not [name for name in options if name.startswith(("sasl.", "ssl.c", "ssl.k"))]


@pytest.mark.parametrize(
    "value", ["a:1,b:2", " a:1 , b:2 ", ["a:1", "b:2"]], ids=["list-in-text", "blanks", "array"]
)
def test_several_brokers(value: object) -> None:
    assert read_section({"bootstrap_servers": value}).bootstrap_servers == ["a:1", "b:2"]


@pytest.mark.parametrize("text", ["kafka", "kafka:1234", "[::1]", "[::1]:1234"])
def test_a_brokers_address(text: str) -> None:
    assert read(bootstrap_servers=text).bootstrap_servers == [text]


@pytest.mark.parametrize("text", ["::1", "kafka:", ":9092", "kafka:x", "kafka:0"])
def test_an_address_at_fault(text: str) -> None:
    with pytest.raises(PluginError, match=r"bootstrap_servers\.0: must be host:port"):
        read(bootstrap_servers=text)


SASL = {"security_protocol": "SASL_SSL", "sasl_plain_username": "alice", "sasl_plain_password": SECRET}


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({}, "bootstrap_servers: Field required"),
        (
            {"bootstrap_servers": ""},
            "bootstrap_servers.0: must be host:port, or several, separated by commas",
        ),
        ({"bootstrap_servers": []}, "bootstrap_servers: Value should have at least 1 item"),
        ({"bootstrap_servers": 9092}, "bootstrap_servers: Input should be a valid list"),
        ({"bootstrap_servers": "a:1,b:x"}, "bootstrap_servers.1: must be host:port"),
        ({"bootstrap_servers": "kafka://a:1"}, "bootstrap_servers.0: must be host:port"),
        ({"bootstrap_servers": "a:70000"}, "bootstrap_servers.0: must be host:port"),
        ({**SERVERS, "client.id": "a"}, "client.id: there is no such key; did you mean client_id?"),
        ({**SERVERS, "zzz": SECRET}, "zzz: there is no such key"),
        ({**SERVERS, "acks": 1}, "acks: there is no such key"),
        ({**SERVERS, "timeout": 0}, "timeout: Input should be greater than or equal to 0.1"),
        ({**SERVERS, "compression_type": "rar"}, "compression_type: Input should be 'none', 'gzip'"),
        ({**SERVERS, "topics": "jobs"}, "topics: Input should be a valid list"),
        ({**SERVERS, "security_protocol": "TLS"}, "security_protocol: Input should be 'PLAINTEXT'"),
        ({**SERVERS, "ssl_cafile": "x"}, "ssl_cafile: has no effect unless security_protocol has SSL"),
        (
            {**SERVERS, "sasl_mechanism": "PLAIN"},
            "sasl_mechanism: has no effect unless security_protocol has",
        ),
        ({**SERVERS, "security_protocol": "SASL_SSL"}, "sasl_plain_username: is needed for PLAIN"),
        ({**SERVERS, **SASL, "sasl_plain_password": ""}, "sasl_plain_password: is needed for PLAIN"),
        (
            {**SERVERS, **SASL, "sasl_plain_password": 7},
            "sasl_plain_password: Input should be a valid",
        ),
        ({**SERVERS, **SASL, "sasl_mechanism": "OAUTHBEARER"}, "sasl_mechanism: Input should be 'PLAIN'"),
        (
            {**SERVERS, **SASL, "sasl_mechanism": "GSSAPI"},
            "sasl_mechanism: cannot be used: No provider for SASL mechanism GSSAPI",
        ),
        ({**SERVERS, **SASL, "ssl_keyfile": "k"}, "ssl_keyfile: needs ssl_certfile"),
        ({**SERVERS, **SASL, "ssl_cafile": "/no/ca"}, "ssl_cafile: cannot be used: ssl.ca.location failed"),
        (
            {**SERVERS, **SASL, "ssl_certfile": "/no/c"},
            "ssl_certfile: cannot be used: ssl.certificate.",
        ),
    ],
)
async def test_a_section_at_fault_is_refused_by_one_line(section: Mapping[str, Any], line: str) -> None:
    assert (await refused(section)).startswith(line)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = ca.issue_cert("client.example.org")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    (tmp_path / "empty.pem").write_text("")
    return tmp_path


async def test_a_clients_certificate(certificates: Path) -> None:
    section = {
        "security_protocol": "SSL",
        "ssl_cafile": str(certificates / "ca.pem"),
        "ssl_certfile": str(certificates / "client.pem"),
    }
    async with opened_notifier(open_kafka, {**SERVERS, **section}):
        pass


@pytest.mark.parametrize("key", ["ssl_cafile", "ssl_certfile"])
async def test_a_file_without_certificates_is_refused(certificates: Path, key: str) -> None:
    path = str(certificates / "empty.pem")
    line = await refused({**SERVERS, "security_protocol": "SSL", key: path})
    assert line.startswith(f"{key}: cannot be used: ")


def test_no_secret_is_in_the_settings_text() -> None:
    assert SECRET not in repr(read(**SASL, ssl_password=SECRET))
