"""A stranger's distribution of plugins that misbehave: files on a path for `PYTHONPATH`, never built."""

from __future__ import annotations

import textwrap
from pathlib import Path

MODULE = '''
    """Notifiers that misbehave as their section says."""

    from contextlib import asynccontextmanager
    from pathlib import Path

    import trio

    from downloader.errors import PluginError
    from downloader.notify import Delivered, RetryLater
    from downloader.storage import StoredFile


    class Bad:
        """Does what `mode` says until the file `cure` exists; notes each delivery in the file `diary`."""

        def __init__(self, section):
            self.mode, self.cure, self.diary = section["mode"], Path(section["cure"]), Path(section["diary"])

        async def deliver(self, destination, payload):
            cured = self.cure.exists()
            with self.diary.open("a") as diary:
                diary.write(f"{payload.job_id} {cured}\\n")
            if not cured:
                return await getattr(self, self.mode)() or "nonsense"
            return Delivered()

        async def check(self):
            if self.cure.exists():
                return "the loft is open"
            await getattr(self, self.mode)()

        async def raises(self):
            raise OSError("hunter2 is not to be printed")

        async def hangs(self):
            await trio.sleep_forever()

        async def answers(self):
            pass

        async def defers(self):
            return RetryLater("never", float("inf"))

        async def exits(self):
            raise SystemExit(3)

        async def interrupts(self):
            """Passes as Ctrl-C, which ends the service without a signal."""
            raise KeyboardInterrupt

        async def clings(self):
            """Heeds a cancel late."""
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.1)

        async def blocks(self):
            """Heeds none: it is stuck in a thread."""
            import threading
            await trio.to_thread.run_sync(threading.Event().wait, 600)


    @asynccontextmanager
    async def open_bad(section, host):
        match section.get("open"):
            case "refuses":
                raise PluginError("loft: there is no room for it")
            case "raises":
                raise OSError("the loft\\nis shut")
            case "hangs":
                await trio.sleep_forever()
            case "wrong":
                yield object()
                return
        async with trio.open_nursery() as nursery:
            if "dies" in section:
                nursery.start_soon(die, Path(section["dies"]))
            try:
                yield Bad(section)
            finally:
                nursery.cancel_scope.cancel()
                if "close" in section:
                    with trio.CancelScope(shield=True):
                        await getattr(Bad(section), section["close"])()


    class Files:
        """Keeps nothing."""

        async def put(self, key, body):
            pass

        async def delete(self, key):
            pass

        async def local(self, key):
            return None

        def url(self, key):
            return "https://example.com/" + key


    class Keeping(Files):
        """Deletes nothing."""

        def __init__(self, path):
            self.path = path

        async def put(self, key, body):
            self.path.write_bytes(body.data)

        async def local(self, key):
            return StoredFile(path=self.path, size=self.path.stat().st_size)


    @asynccontextmanager
    async def open_keeping(section, host):
        yield Keeping(Path(section["path"]))


    @asynccontextmanager
    async def open_slow(section, host):
        try:
            yield Files()
        finally:
            await trio.sleep(60)


    async def die(when):
        while not when.exists():
            await trio.sleep(0.05)
        when.unlink()
        raise OSError("its background is gone")
'''

ENTRY_POINTS = """
    [downloader.notifiers.v1]
    bad = strangers_bad:open_bad
    stuck = strangers_bad:open_bad
    broken = strangers_broken:open_it
    absent = strangers_bad:is_not_there

    [downloader.storages.v1]
    slow = strangers_bad:open_slow
    keeping = strangers_bad:open_keeping
"""


def install(folder: Path) -> dict[str, str]:
    """Write the distribution into the folder; returns the environment with the installed distribution.

    Whoever imports `strangers_broken` leaves a file `imported` in the folder.
    """
    folder.mkdir(exist_ok=True)
    (folder / "strangers_bad.py").write_text(textwrap.dedent(MODULE))
    trace = folder / "imported"
    (folder / "strangers_broken.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nimport no_such_library\n"
    )
    info = folder / "stranger-2.5.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    return {"PYTHONPATH": str(folder)}
