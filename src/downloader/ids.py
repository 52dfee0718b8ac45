"""Ids of jobs: random, with the shard of the store that holds the job."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

ID_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 14
"""Characters of a job id: 83 bits. `JobIds` says how many of them are random among ids of one process."""

ID_PREFIX_LENGTH = 3
"""Characters of an id that name the folder of the job's file; the same for ids made close together."""

ID_PREFIX_S = 4.0
"""How long a process keeps one prefix: jobs of a batch then share a folder, which is made and synced once."""

_ID_PAIRS = tuple(first + second for first in ID_ALPHABET for second in ID_ALPHABET)
_ID_BYTES = 16
"""Random bytes drawn for an id: more than the id has, so that each character is about equally likely."""


def new_id(shard: int, shards: int, *, prefix: str = "") -> str:
    """A random job id that begins with `prefix`; its last character gives the shard (see `shard_of`)."""
    # The last character is one of those that `shard_of` maps to this shard.
    last = ID_ALPHABET[shard::shards]
    number, last_index = divmod(int.from_bytes(os.urandom(_ID_BYTES), "big"), len(last))
    length = ID_LENGTH - 1 - len(prefix)
    pairs = []
    for _ in range(0, length, 2):
        number, index = divmod(number, len(_ID_PAIRS))
        pairs.append(_ID_PAIRS[index])
    return prefix + "".join(pairs)[:length] + last[last_index]


class JobIds:
    """Makes job ids that share their first characters, drawn at random, for some seconds.

    Ids of one process and one such period share 18 of their 83 bits. The other bits are random: 65 with one
    shard, 61 within one shard of sixteen. Among 80,000 jobs of one period (20,000 a second) two ids are equal
    with a probability of 6e-11, and of 1e-9 if all of them are in one such shard.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prefix = ""
        self._ends_at = -math.inf

    def new(self, shard: int, shards: int) -> str:
        """A job id for this shard."""
        now = self._clock()
        if now >= self._ends_at:
            self._prefix = new_id(0, 1)[:ID_PREFIX_LENGTH]
            self._ends_at = now + ID_PREFIX_S
        return new_id(shard, shards, prefix=self._prefix)


def shard_of(job_id: str, shards: int) -> int:
    """The shard that holds a job.

    Raises:
        ValueError: the text cannot be a job id.
    """
    if len(job_id) != ID_LENGTH or not job_id.isascii() or not job_id.isalnum():
        raise ValueError(f"not a job id: {job_id!r}")
    return ID_ALPHABET.index(job_id[-1]) % shards
