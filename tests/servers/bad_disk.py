"""A storage plugin whose disk hangs or whose deletions are slow: files on a path for `PYTHONPATH`."""

from __future__ import annotations

import textwrap
from pathlib import Path

MODULE = '''
    """The filesystem storage on a disk that does as its section says."""

    import os
    import threading
    from contextlib import asynccontextmanager
    from pathlib import Path

    import trio

    from downloader_plugins.filesystem import open_filesystem


    @asynccontextmanager
    async def open_bad(section, host):
        signs = Path(section["signs"])
        fsync = os.fsync

        def hanging(descriptor):
            if (signs / "hang").exists():
                (signs / "hanging").touch()
                threading.Event().wait()
            fsync(descriptor)

        os.fsync = hanging  # of this process: it is the disk that hangs, for whoever writes to it
        async with open_filesystem({"rootdir": section["rootdir"]}, host) as storage:
            yield Slow(storage, signs) if section.get("slow") else storage


    class Slow:
        def __init__(self, storage, signs):
            self.storage, self.signs = storage, signs
            self.put, self.local, self.url = storage.put, storage.local, storage.url

        async def delete(self, key):
            (self.signs / "deleting").touch()
            await trio.sleep(15)
            await self.storage.delete(key)
'''


def install(folder: Path) -> dict[str, str]:
    """Write the distribution into the folder; returns the environment with the installed distribution."""
    folder.mkdir()
    (folder / "bad_disk.py").write_text(textwrap.dedent(MODULE))
    info = folder / "bad_disk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-disk\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[downloader.storages.v1]\nbad = bad_disk:open_bad\n")
    return {"PYTHONPATH": str(folder)}
