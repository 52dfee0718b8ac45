"""Plugins of a stranger, in a distribution of their own that was never built: files on the import path."""

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import pytest
import trio
import trio.testing
from pydantic import BaseModel, model_validator
from structlog.testing import capture_logs

from downloader.errors import PluginError
from downloader.model import KeyExists
from downloader.notify import Delivered, Host, Payload, open_notifiers
from downloader.notify.supervisor import PluginHasEnded
from downloader.plugins import (
    NOTIFIERS,
    STORAGES,
    PluginInfo,
    check_interface,
    installed,
    load_factory,
    opening_failed,
    parse_section,
)
from downloader.storage import Body, StorageError, StorageRefused, open_buckets, open_storage
from downloader.storage.opening import CheckedStorage
from servers.plugins import bare_host

MODULE = """
    from contextlib import asynccontextmanager

    import trio

    from downloader.errors import PluginError
    from downloader.notify import Delivered

    log = []

    class Pigeon:
        def __init__(self, section):
            self.section = section

        async def deliver(self, destination, payload):
            log.append((destination, payload.job_id))
            return Delivered()

    @asynccontextmanager
    async def open_pigeon(section, host):
        async with trio.open_nursery() as nursery:
            if section.get("coop") == "full":
                raise PluginError("coop: no room")
            if section.get("coop") == "burnt":
                raise OSError("nothing\\nleft")
            log.append("open")
            yield Pigeon(section)
            log.append("closed")
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def open_stone(section, host):
        yield object()

    class Sync:
        def deliver(self, destination, payload):
            return Delivered()

    @asynccontextmanager
    async def open_sync(section, host):
        yield Sync()

    def open_nothing(section, host):
        return None

    def open_quitter(section, host):
        raise SystemExit("no loft")

    @asynccontextmanager
    async def open_deserter(section, host):
        async def desert():
            await trio.sleep(1)
            raise SystemExit

        async with trio.open_nursery() as nursery:
            nursery.start_soon(desert)
            yield Pigeon(section)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def open_asleep(section, host):
        try:
            if section.get("opens"):
                yield Pigeon(section)
            await trio.sleep_forever()
        finally:
            log.append("woken")

    @asynccontextmanager
    async def open_frail(section, host):
        async def fall_ill():
            await trio.sleep(1)
            if section["ill"].pop():
                raise OSError("flu")
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fall_ill)
            log.append("open")
            yield Pigeon(section)
            nursery.cancel_scope.cancel()

    no_factory = 3
"""

ENTRY_POINTS = """
    [downloader.notifiers.v1]
    pigeon = strangers_pigeon:open_pigeon
    stone = strangers_pigeon:open_stone
    sync = strangers_pigeon:open_sync
    nothing = strangers_pigeon:open_nothing
    quitter = strangers_pigeon:open_quitter
    deserter = strangers_pigeon:open_deserter
    script = strangers_script:open_it
    number = strangers_pigeon:no_factory
    asleep = strangers_pigeon:open_asleep
    frail = strangers_pigeon:open_frail
    absent = strangers_pigeon:is_not_there
    broken = strangers_broken:open_it

    [downloader.storages.v1]
    attic = strangers_pigeon:open_stone
    quitter = strangers_pigeon:open_quitter
    nap = strangers_pigeon:open_asleep
"""


@pytest.fixture
def pigeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs the stranger's distribution; its module."""
    (tmp_path / "strangers_pigeon.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "strangers_broken.py").write_text("import no_such_library\n")
    (tmp_path / "strangers_script.py").write_text("raise SystemExit(3)\n")
    info = tmp_path / "pigeon_post-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon-post\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "strangers_pigeon", raising=False)
    return __import__("importlib").import_module("strangers_pigeon")


@pytest.fixture
def host() -> Host:
    return bare_host()


def payload() -> Payload:
    return Payload(job_id="J", aggr_id="a", body=b"{}")


def test_installed_lists_strangers_beside_our_own_without_importing(pigeon: Any) -> None:
    plugins = installed(NOTIFIERS)
    assert PluginInfo(kind="notifier", name="pigeon", version="2.5", distribution="pigeon-post") in plugins
    assert PluginInfo(kind="notifier", name="broken", version="2.5", distribution="pigeon-post") in plugins
    assert [
        plugin for plugin in plugins if plugin.distribution == "downloader-service" and plugin.name == "http"
    ]
    assert plugins == sorted(plugins)
    assert {plugin.name for plugin in installed(STORAGES)} >= {"attic", "filesystem"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "broken",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("script", "cannot be imported: SystemExit: 3"),
        (
            "absent",
            "cannot be imported: AttributeError: module 'strangers_pigeon' has no attribute 'is_not_there'",
        ),
        (
            "number",
            "strangers_pigeon:no_factory is not a factory: not callable",
        ),
    ],
)
def test_each_plugin_error_is_one_line(pigeon: Any, name: str, expected: str) -> None:
    with pytest.raises(PluginError) as caught:
        load_factory(NOTIFIERS, name)
    message = str(caught.value)
    assert message.startswith(f"notifier plugin {name!r} (pigeon-post 2.5)")
    assert message.endswith(expected)


def test_a_missing_plugin_is_told_with_those_installed(pigeon: Any) -> None:
    with pytest.raises(PluginError, match=r"^no notifier plugin 'pigoen' is installed") as caught:
        load_factory(NOTIFIERS, "pigoen")
    assert "pigeon" in str(caught.value)
    assert str(caught.value).endswith("; did you mean 'pigeon'?")
    with pytest.raises(PluginError, match=r"^no storage plugin 'pigeon' is installed \(installed: attic, "):
        load_factory(STORAGES, "pigeon")


def test_two_distributions_with_one_name_are_refused(pigeon: Any, tmp_path: Path) -> None:
    info = tmp_path / "other-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[downloader.notifiers.v1]\npigeon = strangers_pigeon:open_stone\n"
    )
    with pytest.raises(PluginError, match=r"installed more than once \(other 1, pigeon-post 2\.5\)"):
        load_factory(NOTIFIERS, "pigeon")


class Loft(BaseModel):
    """A stranger's section with a rule that spans keys."""

    birds: int = 0
    perches: int = 0

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.birds > self.perches:
            raise ValueError("birds need a perch each")
        return self


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"birds": 3}, "birds need a perch each"),
        ({"birds": "many"}, "birds: Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_a_wrong_section_is_one_line(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(PluginError) as caught:
        parse_section(Loft, section)
    assert str(caught.value) == expected


async def test_notifiers_are_opened_with_their_section_and_closed(pigeon: Any, host: Host) -> None:
    section: Mapping[str, Any] = {"coop": "roof"}
    async with open_notifiers({"pigeon": section}, host) as notifiers:
        assert await notifiers["pigeon"].deliver("home", payload()) == Delivered()
        assert notifiers["pigeon"].section == section  # type: ignore[attr-defined]
    assert pigeon.log == ["open", ("home", "J"), "closed"]


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ({"pigeon": {"coop": "full"}}, "backends.pigeon: coop: no room"),
        ({"pigeon": {"coop": "burnt"}}, "backends.pigeon: cannot be opened: OSError: nothing left"),
        ({"nothing": {}}, "backends.nothing: cannot be opened: TypeError: "),
        ({"quitter": {}}, "backends.quitter: cannot be opened: SystemExit: no loft"),
        ({"stone": {}}, "backends.stone: the plugin gives a object, which has no method deliver()"),
        ({"sync": {}}, "backends.sync: the plugin gives a Sync, whose deliver() is no coroutine function"),
        ({"broken": {}}, "backends.broken: notifier plugin 'broken' (pigeon-post 2.5) cannot be imported: "),
        ({"nope": {}}, "backends.nope: no notifier plugin 'nope' is installed"),
    ],
)
async def test_a_backend_that_cannot_be_opened_is_one_line(
    pigeon: Any, host: Host, backends: dict[str, dict[str, Any]], expected: str
) -> None:
    with pytest.raises(PluginError) as caught:
        async with open_notifiers(backends, host):
            pytest.fail("it was opened")
    assert str(caught.value).startswith(expected)


async def test_those_already_open_are_closed_when_a_later_one_fails(pigeon: Any, host: Host) -> None:
    with pytest.raises(PluginError, match=r"^backends\.stone: "):
        async with open_notifiers({"pigeon": {}, "stone": {}}, host):
            pytest.fail("it was opened")
    assert pigeon.log == ["open", "closed"]
    with pytest.raises(PluginError, match=r"^backends\.nope: "):
        async with open_notifiers({"pigeon": {}, "nope": {}}, host):
            pytest.fail("it was opened")
    assert pigeon.log == ["open", "closed"], "a missing plugin is found out before any is opened"


async def test_a_plugin_that_hangs_while_it_opens_is_one_line(
    pigeon: Any, host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(PluginError, match=r"^backends\.asleep: did not open within 7 s$"):
        async with open_notifiers({"pigeon": {}, "asleep": {}}, host, opening_s=7):
            pytest.fail("it was opened")
    assert pigeon.log == ["open", "woken", "closed"]
    with pytest.raises(PluginError, match=r"^processor\.filestorage: did not open within 8 s$"):
        async with open_storage("nap", {}, opening_s=8):
            pytest.fail("it was opened")
    assert trio.current_time() == pytest.approx(15)


async def test_a_plugin_that_ends_by_itself_ends_nothing_else_and_is_opened_again(
    pigeon: Any, host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    with capture_logs() as logs:
        async with open_notifiers({"pigeon": {}, "frail": {"ill": [False, True, True]}}, host) as notifiers:
            assert await notifiers["frail"].deliver("home", payload()) == Delivered()
            await trio.sleep(1.5)
            with pytest.raises(PluginHasEnded):
                await notifiers["frail"].deliver("home", payload())
            assert await notifiers["pigeon"].deliver("home", payload()) == Delivered()
            await trio.sleep(10)
            assert await notifiers["frail"].deliver("home", payload()) == Delivered()
    assert [(entry["event"], entry["backend"]) for entry in logs] == [("backend.failed", "frail")] * 2
    assert logs[0]["error"].startswith("backends.frail: has ended by itself: ")


async def test_a_plugin_that_wants_to_end_the_process_ends_itself(
    pigeon: Any, host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    with capture_logs() as logs:
        async with open_notifiers({"deserter": {}}, host) as notifiers:
            await trio.sleep(1.5)
            with pytest.raises(PluginHasEnded):
                await notifiers["deserter"].deliver("home", payload())
    assert [entry["event"] for entry in logs] == ["backend.failed"]


async def test_a_storage_of_another_interface_is_one_line(pigeon: Any) -> None:
    expected = r"^processor\.filestorage: the plugin gives a object, which has no method put\(\)"
    with pytest.raises(PluginError, match=expected):
        async with open_storage("attic", {}):
            pytest.fail("it was opened")
    with pytest.raises(PluginError, match=r"^processor\.filestorage: cannot be opened: SystemExit: no loft$"):
        async with open_storage("quitter", {}):
            pytest.fail("it was opened")
    with pytest.raises(PluginError, match=r"^processor\.filestorage: no storage plugin 'nope' is installed"):
        async with open_storage("nope", {}):
            pytest.fail("it was opened")


@pytest.mark.parametrize("key_exists", ["replace", "keep", "fail"])
async def test_a_storage_that_does_not_know_key_exists_only_replaces(key_exists: KeyExists) -> None:
    class Simple:
        def __init__(self) -> None:
            self.keys: list[str] = []

        async def put(self, key: str, body: Body) -> None:  # noqa: ARG002 - the protocol's
            self.keys.append(key)

    plugin, body = Simple(), Body(size=0, sha256="", mime_type="", data=b"", key_exists=key_exists)
    put = CheckedStorage(cast("Any", plugin)).put
    if key_exists == "replace":
        await put("a", body)
    else:
        with pytest.raises(StorageRefused, match=f"the storage does not know key_exists '{key_exists}'"):
            await put("a", body)
    assert plugin.keys == (["a"] if key_exists == "replace" else [])


def test_check_interface_takes_what_a_subclass_or_wrapper_has() -> None:
    class Base:
        async def deliver(self) -> None: ...

    class Derived(Base):
        pass

    class Callables:
        deliver = print  # neither function nor coroutine: cannot be judged, so it is let through

    check_interface(Derived(), ["deliver"], "x")
    check_interface(Callables(), ["deliver"], "x")


def test_opening_failed_unwraps_what_nurseries_wrapped() -> None:
    group = ExceptionGroup("nursery", [ExceptionGroup("nursery", [PluginError("port: taken")])])
    assert opening_failed(group) == "port: taken"
    assert opening_failed(KeyError()) == "cannot be opened: KeyError"


async def test_buckets_of_jobs_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a configuration that asks for them needs it; another instance may have it for a job that does."""
    for name in ("boto3", "downloader_plugins.s3.client"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=r"^processor\.s3: needs the package boto3: pip install "):
        async with open_buckets("s3", {}):
            pass
    async with open_buckets("s3", {}, required=False) as buckets:
        with pytest.raises(StorageError) as caught:
            await buckets.bucket("theirs", "eu-west-2")
    assert type(caught.value) is StorageError
