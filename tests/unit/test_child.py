"""A child of `run --processes`, and the parent that waits for its message."""

from __future__ import annotations

import multiprocessing

from downloader.service.start import tell


def test_a_parent_that_was_killed_during_the_start_makes_no_traceback() -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    ours.close()
    tell(theirs, True)
    theirs.close()
