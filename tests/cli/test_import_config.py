"""`downloader import-config`, and the migration page with the example on the page."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from downloader.cli import main
from downloader.service.predecessor import NOTIFIER_NAMES, PROCESSOR_NAMES
from downloader_plugins.kafka.settings import read_section
from servers.cli import Ran

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text("utf-8")
BLOCK = r"^```{}\n(.*?)^```$"
FLAGS = re.MULTILINE | re.DOTALL


def blocks(language: str) -> list[str]:
    return re.findall(BLOCK.format(language), PAGE, FLAGS)


class Importing:
    """Runs the command in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "config.json"
        self._capsys = capsys

    def run(self, config: Any, *more: Any) -> Ran:
        files = [self.file, *(self.file.with_suffix(f".{number}") for number in range(len(more)))]
        for file, content in zip(files, (config, *more), strict=True):
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        status = main(["import-config", *map(str, files)])
        captured = self._capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    def converted(self, config: Any, *more: Any) -> dict[str, Any]:
        """The converted file, without comments."""
        ran = self.run(config, *more)
        assert (ran.status, ran.err) == (0, "")
        return tomllib.loads(ran.out)

    def refused(self, config: Any) -> str:
        """The one line that says why, without the file's name."""
        ran = self.run(config)
        assert (ran.status, ran.out) == (2, "")
        return ran.complaint.removeprefix(str(self.file)).removeprefix(": ")


@pytest.fixture
def importing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Importing:
    return Importing(tmp_path, capsys)


def test_the_pages_example_becomes_what_the_page_says(
    importing: Importing, capsys: pytest.CaptureFixture[str]
) -> None:
    [old], [new] = blocks("json"), blocks("toml")
    assert importing.run(old).out == new
    [commands] = blocks("sh")
    assert (
        commands == "downloader import-config config.json > config.toml\ndownloader config -c config.toml\n"
    )
    made = importing.file.with_suffix(".toml")
    made.write_text(new)
    assert main(["config", "-c", str(made)]) == 0
    effective = tomllib.loads(capsys.readouterr().out)
    assert effective["notifier"]["deletion_interval"] == 180 * 60
    assert read_section(tomllib.loads(new)["backends"]["kafka"]).timeout == 20


def test_the_page_names_all_statistics_of_the_predecessor() -> None:
    statistics = PAGE.partition("## Statistics")[2]
    assert [name for name in (*PROCESSOR_NAMES, *NOTIFIER_NAMES) if f"`{name}`" not in statistics] == []


@pytest.mark.parametrize(
    "sentinel",
    [
        {"master": "m", "nodes": ["s1:26379", "s2:26379"]},
        {"master_name": "m", "addrs": ["s1:26379", "s2:26379"]},
        {"name": "m", "sentinels": "s1:26379, s2:26379"},
    ],
)
def test_sentinels_in_each_spelling(importing: Importing, sentinel: dict[str, Any]) -> None:
    new = importing.converted({"redis": {"sentinel": sentinel, "password": "a/b", "db": 2}})
    assert new["redis"] == {
        "url": "redis://:a%2Fb@/2",
        "sentinel": {"master": "m", "nodes": ["s1:26379", "s2:26379"]},
    }


def test_files_stay_in_the_storage_dir_that_held_them(importing: Importing) -> None:
    new = importing.converted({"processor": {"storage_dir": "/d"}})
    storage = {"type": "filesystem", "rootdir": "/d", "mode": "0644"}
    assert new["processor"] == {"storage_dir": "/d", "filestorage": storage}


@pytest.mark.parametrize(
    ("old", "mode"),
    [
        ({"filestorage": {"type": "filesystem", "rootdir": "/f"}}, "0644"),
        ({"filestorage": {"type": "filesystem", "rootdir": "/f", "mode": "0600"}}, "0600"),
        ({"filestorage": {"type": "s3", "bucket": "b"}}, None),
    ],
)
def test_a_web_server_may_read_the_files_as_before(
    importing: Importing, old: dict[str, Any], mode: str | None
) -> None:
    assert importing.converted({"processor": old})["processor"]["filestorage"].get("mode") == mode


def test_each_service_has_a_heartbeat_of_its_own(importing: Importing) -> None:
    assert importing.converted({"api": {"heartbeat_path": "/hb"}})["api"] == {"heartbeat_path": "/hb.new"}


API = {"api": {"heartbeat_path": "/hb"}, "redis": {"addr": "r:6379"}}
PROCESSOR = {"redis": {"addr": "r:6379"}, "processor": {"download_url": "http://d/", "storage_dir": "/d"}}
NOTIFIER = {"redis": {"addr": "r:6379"}, "notifier": {"concurrency": 3}, "backends": {"http": {"timeout": 5}}}


def test_a_file_for_each_role_becomes_one_for_all(importing: Importing) -> None:
    new = importing.converted(API, PROCESSOR, NOTIFIER)
    assert new == importing.converted(API | PROCESSOR | NOTIFIER)
    assert new["backends"] == {"http": {"timeout": 5}}
    assert "# There are no backends" not in importing.run(API, PROCESSOR, NOTIFIER).out
    assert "# There are no backends" in importing.run(API).out


def test_files_of_roles_that_contradict_each_other(importing: Importing) -> None:
    ran = importing.run(API, NOTIFIER, {"redis": {"addr": "other:6379"}})
    assert (ran.status, ran.out) == (2, "")
    assert ran.complaint.endswith(": redis.addr differs from an earlier file")


def test_the_predecessor_s_reader_is_lenient(importing: Importing) -> None:
    """Go compares names without case, and stops behind the object."""
    old = '{"Redis": {"Addr": "r:1"}, "API": {"Port": 9000}, "processor": {"Request_Headers": {"X-A": "b"}}} '
    new = importing.converted(old + "and more")
    assert new["redis"] == {"url": "redis://r:1"}
    assert new["processor"] == {"request_headers": {"X-A": "b"}}
    assert new["api"] == {"port": 9000}


def test_what_the_predecessor_takes_for_unset_is_left_out(importing: Importing) -> None:
    kafka = {"bootstrap.servers": "k", "message.timeout.ms": 0}
    old = {"backends": {"sqs": {}, "http": {"timeout": 0}, "kafka": kafka}}
    assert importing.converted(old)["backends"] == {"http": {}, "kafka": {"bootstrap_servers": "k"}}
    comments = importing.run(old).out
    assert "# backends.sqs is left out: it is empty\n" in comments
    assert "# timeout: 0 was no limit, the default applies\n" in comments
    assert "# message.timeout.ms: 0 was no limit, the default applies\n" in comments


def test_settings_without_a_counterpart_are_named_and_left_out(importing: Importing) -> None:
    old = {
        "processor": {"max_retries": 4, "turbo": True},
        "backends": {"amqp": {"host": "h"}, "kafka": {"bootstrap.servers": "k", "ssl.ca.location": "/x"}},
        "log": {"level": "info"},
    }
    ran = importing.run(old)
    assert tomllib.loads(ran.out)["processor"] == {"max_retries": 4}
    assert tomllib.loads(ran.out)["backends"] == {"kafka": {"bootstrap_servers": "k"}}
    comments = [line for line in ran.out.splitlines() if line.startswith("# ")]
    for text in (
        "processor.turbo has no counterpart",
        "backends.amqp is left out: it needs a notifier plugin (docs/plugins.md)",
        "ssl.ca.location had no effect: security.protocol is PLAINTEXT",
        "log has no counterpart",
    ):
        assert f"# {text}" in comments


@pytest.mark.parametrize(
    ("old", "new", "comment"),
    [
        (
            {"processor": {"download_url": "http://p/"}, "notifier": {"download_url": "http://n/"}},
            {"processor": {"download_url": "http://p/"}},
            "notifier.download_url is left out: download_url is set already",
        ),
        (
            {"backends": {"kafka": {"bootstrap.servers": "k1", "metadata.broker.list": "k2"}}},
            {"backends": {"kafka": {"bootstrap_servers": "k1"}}},
            "metadata.broker.list is left out: bootstrap_servers is set already",
        ),
    ],
)
def test_two_keys_that_are_one_here(
    importing: Importing, old: dict[str, Any], new: dict[str, Any], comment: str
) -> None:
    assert new.items() <= importing.converted(old).items()
    assert f"# {comment}\n" in importing.run(old).out


def test_kafka_s_settings_of_a_protocol_that_is_not_used(importing: Importing) -> None:
    old = {"bootstrap.servers": "k", "sasl.username": "me", "security.protocol": "ssl"}
    new = importing.converted({"backends": {"kafka": old}})
    assert new["backends"]["kafka"] == {"bootstrap_servers": "k", "security_protocol": "SSL"}


@pytest.mark.parametrize(("value", "checked"), [("none", False), ("NONE", False), ("https", True)])
def test_the_check_of_kafka_s_host_names(importing: Importing, value: str, *, checked: bool) -> None:
    old = {"security.protocol": "ssl", "ssl.endpoint.identification.algorithm": value}
    new = importing.converted({"backends": {"kafka": old}})
    assert new["backends"]["kafka"]["ssl_check_hostname"] is checked


@pytest.mark.parametrize(
    ("old", "complaint"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "must be a JSON object"),
        ({"redis": "localhost"}, "redis must be an object"),
        ({"redis": {"addr": 6379}}, "redis.addr must be a string"),
        (
            {"redis": {"sentinel": {"master": "m"}}},
            "redis.sentinel must have the name of the master and the addresses of the Sentinels",
        ),
        ({"notifier": {"deletion_interval": "3h"}}, "notifier.deletion_interval must be a number"),
        (
            {"notifier": {"deletion_interval": -1}},
            "notifier.deletion_interval must be a number that is not negative",
        ),
        (
            {"backends": {"kafka": {"message.timeout.ms": None}}},
            "backends.kafka.message.timeout.ms must be a number",
        ),
        (
            {"backends": {"kafka": {"message.timeout.ms": "inf"}}},
            "backends.kafka.message.timeout.ms must be a number",
        ),
        (
            {"notifier": {"deletion_interval": 1e308}},
            "notifier.deletion_interval must be a number that is not negative",
        ),
        ("[" * 99_999, "is nested too deeply"),
        ({"redis": {"password": "\ud800"}}, "has half of a surrogate pair"),
        (
            {"notifier": {"concurrency": 0}},
            ", converted: notifier.concurrency must be greater than or equal to 1",
        ),
    ],
)
def test_a_file_that_cannot_be_converted_gives_one_line(
    importing: Importing, old: Any, complaint: str
) -> None:
    assert importing.refused(old) == complaint


def test_a_byte_order_mark_is_no_text(importing: Importing) -> None:
    assert importing.converted("\ufeff{}") == importing.converted("{}")


def test_a_file_that_is_not_there(importing: Importing, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-config", str(importing.file)]) == 2
    said = capsys.readouterr().err
    assert said == f"downloader: {importing.file}: cannot be read: No such file or directory\n"
