"""The embedded Valkey: the owner, the permissions, the memory limit, and the files."""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest
import redis

from downloader.config import RedisSettings
from downloader.errors import ConfigError
from downloader.paths import private_folder
from downloader.store import Submission, asyncio_loop, embedded_valkey, open_store, socket_path
from downloader.store.embedded import MEMORY_SHARE, bound_to_parent, memory_bytes
from servers.jobs import spec_for
from servers.valkey import Valkey, command

NOBODY = 65534

pytestmark = pytest.mark.slow


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not there yet; its path leaves room for a socket's name."""
    parent = Path(tempfile.mkdtemp(prefix="dle-"))
    parent.chmod(0o755)
    yield parent / "data"
    rmtree(parent)


def configured(url: str, name: str) -> str:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return str(client.config_get(name)[name])


def entries(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


def as_another_user(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a command as a user of the machine with no groups; only the superuser can."""
    return subprocess.run(words, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False)


@pytest.mark.row("H22")
async def test_other_users_cannot_read_it(data_dir: Path) -> None:
    async with asyncio_loop(), embedded_valkey(data_dir) as url:
        async with open_store(RedisSettings(url=url, durability="aof")) as store:
            await store.submit(
                [Submission(spec=spec_for(store, request_headers={"Authorization": "canary"}))]
            )
        written = [path for path in entries(data_dir) if path.is_file()]
        assert any(b"canary" in path.read_bytes() for path in written)
        open_to_others = [path for path in entries(data_dir) if stat.S_IMODE(path.lstat().st_mode) & 0o077]
        assert open_to_others == []
        if os.geteuid() == 0:
            for path in entries(data_dir):
                assert as_another_user("ls" if path.is_dir() else "cat", path).returncode, path
            assert as_another_user("ls", data_dir.parent).returncode == 0


@pytest.mark.row("H22")
async def test_folders_that_were_open_to_others_are_closed(data_dir: Path) -> None:
    for folder in (data_dir, data_dir / "valkey"):
        folder.mkdir()
        folder.chmod(0o777)
    async with embedded_valkey(data_dir):
        modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (data_dir, data_dir / "valkey")]
    assert modes == [0o700, 0o700]


@pytest.mark.row("H22")
@pytest.mark.parametrize("name", ["", "valkey"])
async def test_a_folder_that_is_a_link_is_refused(data_dir: Path, name: str) -> None:
    elsewhere = data_dir.with_name("elsewhere")
    elsewhere.mkdir(mode=0o755)
    (data_dir / name).parent.mkdir(exist_ok=True)
    (data_dir / name).symlink_to(elsewhere)
    with pytest.raises(ConfigError) as refused:
        async with embedded_valkey(data_dir):
            pass
    assert (
        str(refused.value)
        == f"data_dir: {data_dir / name} is a symbolic link; name the folder that it points to"
    )
    assert list(elsewhere.iterdir()) == []
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


@pytest.mark.row("H22")
async def test_the_folder_of_a_socket_whose_path_is_too_long(data_dir: Path) -> None:
    """It is in `/tmp`, where another user may have put something under its name, which is no secret."""
    deep = data_dir / ("d" * 100)
    short = socket_path(deep / "valkey").parent
    assert short.parent == Path(tempfile.gettempdir())
    assert stat.S_IMODE(short.stat().st_mode) == 0o700
    short.rmdir()
    short.symlink_to(data_dir.parent)
    try:
        with pytest.raises(ConfigError) as refused:
            async with embedded_valkey(deep):
                pass
    finally:
        short.unlink()
    assert f"{short} is a symbolic link" in str(refused.value)


@pytest.mark.row("H22")
@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can make another user's folder")
@pytest.mark.parametrize("name", ["", "valkey"])
async def test_a_folder_of_another_user_is_refused(data_dir: Path, name: str) -> None:
    (data_dir / "valkey").mkdir(parents=True)
    os.chown(data_dir / name, NOBODY, NOBODY)
    with pytest.raises(ConfigError) as refused:
        async with embedded_valkey(data_dir):
            pass
    assert str(refused.value).startswith(f"data_dir: {data_dir / name} is another user's ({NOBODY}, we are ")


@pytest.mark.row("H22")
def test_shared_folders_keep_their_mode(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o1777)
    root = stat.S_IMODE(Path("/").stat().st_mode)
    private_folder(data_dir, setting="data_dir")
    private_folder(Path("/"), setting="data_dir")
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o1777
    assert stat.S_IMODE(Path("/").stat().st_mode) == root


async def test_confirmed_writes_are_synced_each_second(data_dir: Path) -> None:
    """`aof` waits for that, and a store that never syncs never says so."""
    async with asyncio_loop(), embedded_valkey(data_dir) as url:
        async with open_store(RedisSettings(url=url, durability="aof")) as store:
            [(why, job_id)] = await store.submit([Submission(spec=spec_for(store))])
        assert (why, configured(url, "appendfsync")) == ("new", "everysec")
    async with asyncio_loop(), embedded_valkey(data_dir) as url, open_store(RedisSettings(url=url)) as store:
        assert await store.get(job_id)


@pytest.mark.row("H26")
async def test_it_has_a_limit_that_leaves_room_and_throws_nothing_away(data_dir: Path) -> None:
    async with embedded_valkey(data_dir) as url:
        limit, policy = int(configured(url, "maxmemory")), configured(url, "maxmemory-policy")
    assert (limit, policy) == (int(memory_bytes() * MEMORY_SHARE), "noeviction")
    async with embedded_valkey(data_dir, 64 * 2**20) as url:
        assert configured(url, "maxmemory") == str(64 * 2**20)


def test_memory_is_that_of_the_smallest_group_of_processes(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (tmp_path / "system.slice/downloader.service").mkdir(parents=True)
    (tmp_path / "system.slice/memory.max").write_text("max\n")
    machine = memory_bytes(tmp_path, own)
    own.write_text("0::/system.slice/downloader.service\n")
    assert memory_bytes(tmp_path, own) == machine
    (tmp_path / "system.slice/downloader.service/memory.max").write_text("200000\n")
    assert memory_bytes(tmp_path, own) == 200_000
    (tmp_path / "system.slice/memory.max").write_text("100000\n")
    assert memory_bytes(tmp_path, own) == 100_000


def test_memory_of_control_groups_of_version_1(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n")
    (tmp_path / "memory/docker/1").mkdir(parents=True)
    (tmp_path / "memory/docker/1/memory.limit_in_bytes").write_text("300000\n")
    assert memory_bytes(tmp_path, own) == 300_000


async def test_a_machine_that_it_is_not_built_for_is_one_line(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match=r"^redis.url: there is no embedded store for this machine: "):
        async with embedded_valkey(data_dir):
            pytest.fail("it runs")


async def test_a_server_that_was_left_behind_is_ended_first(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where nothing ends it with its parent."""
    # Left by this service, so of the kind that it starts: one server does not read the other's files.
    monkeypatch.delenv("DOWNLOADER_TEST_SERVER", raising=False)
    folder = data_dir / "valkey"
    folder.mkdir(parents=True)
    left = Valkey("--dir", str(folder), "--appendonly", "yes", "--unixsocket", str(socket_path(folder)))
    left.socket = socket_path(folder)
    left.start()
    try:
        left.command("SET", "kept", "1")
        async with embedded_valkey(data_dir) as url:
            assert left.process is not None
            assert left.process.wait(5) == 0
            assert b"1" in command(url.removeprefix("unix://"), "GET", "kept")
    finally:
        left.kill()
        rmtree(left.folder)


@pytest.mark.skipif(platform.system() != "Linux", reason="only there a child can ask for its parent's end")
def test_a_server_whose_parent_has_ended_does_not_start() -> None:
    """The parent may end after it has started the child, and before the child asks to be told of that."""
    started = [
        subprocess.run(
            bound_to_parent(parent, ["/bin/echo", "started"]), capture_output=True, check=True
        ).stdout
        for parent in (os.getpid(), os.getppid())
    ]
    assert started == [b"started\n", b""]


async def test_a_signal_to_the_terminal_s_processes_does_not_reach_the_server(data_dir: Path) -> None:
    """A Ctrl-C goes to the whole process group; the server is needed while jobs are handed back."""
    async with embedded_valkey(data_dir) as url:
        server = redis.Redis.from_url(url)
        pid = server.info("server")["process_id"]
        server.close()
        assert os.getpgid(pid) != os.getpgid(0)
        assert os.getsid(pid) != os.getsid(0)
