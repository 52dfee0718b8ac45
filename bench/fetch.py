"""S14: `downloader fetch` of many small files from one host, start and end of the process included."""

from __future__ import annotations

import os
import subprocess
import time

from bench.result import Result, Setup
from bench.service import Build

_LIMIT = 16
"""Downloads at once."""


def s14(setup: Setup, build: Build, *, files: int) -> Result:
    """That many files of the origin, with a line of output for each."""
    folder = setup.new_folder()
    folder.mkdir()
    urls = folder / "urls.txt"
    urls.write_text("".join(f"http://127.0.0.1:{setup.origin}/{number}.png\n" for number in range(files)))
    words = ["fetch", "--from-file", str(urls), "-o", str(folder / "out"), "--limit", str(_LIMIT)]
    begun = time.monotonic()
    with subprocess.Popen([build.python, "-m", "downloader", *words], stdout=subprocess.DEVNULL) as process:
        # Its children that have ended are included; `fetch` had one once.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begun
    fetched = len(list((folder / "out").glob("*.png")))
    faults = [] if fetched == files and not process.returncode else [f"only {fetched} of {files} files"]
    measures = {
        "files_per_s": files / seconds,
        "cpu_ms_per_file": 1000 * (used.ru_utime + used.ru_stime) / files,
        "rss_mib": used.ru_maxrss / 1024,
    }
    return Result(name="S14", build=build.label, measures=measures, faults=faults)
