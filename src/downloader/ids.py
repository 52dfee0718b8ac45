"""Job ids: random, except for the last character, which gives the shard of the store."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

ID_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 14
"""Characters of a job id, which make 83 bits. See `JobIds` for how many bits are random within a process."""

ID_PREFIX_LENGTH = 3
"""Leading characters of an id that name the folder of the job's file."""

ID_PREFIX_S = 4.0
"""A process changes the prefix this often. Jobs of a batch share a folder, which is created and synced
once."""

_ID_PAIRS = tuple(first + second for first in ID_ALPHABET for second in ID_ALPHABET)
_ID_PAIR_COUNT = len(_ID_PAIRS)
_ID_BYTES = 16
"""Random bytes drawn for an id: more than 83 bits, so that all characters are about equally likely."""


def new_id(shard: int, shards: int, *, prefix: str = "") -> str:
    """A random job id that begins with `prefix`; the last character gives the shard (see `shard_of`)."""
    # The last character is one of those that `shard_of` maps to this shard. The others are drawn in pairs,
    # which halves the divisions; an odd length cuts the last pair.
    last_chars = ID_ALPHABET[shard::shards]
    number, last_index = divmod(int.from_bytes(os.urandom(_ID_BYTES), "big"), len(last_chars))
    length = ID_LENGTH - 1 - len(prefix)
    pairs = []
    for _ in range(0, length, 2):
        number, index = divmod(number, _ID_PAIR_COUNT)
        pairs.append(_ID_PAIRS[index])
    return prefix + "".join(pairs)[:length] + last_chars[last_index]


class JobIds:
    """Makes job ids that share a random prefix for `ID_PREFIX_S`.

    The prefix takes 18 of the 83 bits. The other 65 bits are random; with 16 shards, 61 bits are random among
    the ids of one shard. Among 80,000 ids with one prefix (20,000 a second) the probability that two are
    equal is 6e-11, or 1e-9 if all of them are in one of 16 shards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prefix = ""
        self._ends_at = -math.inf

    def new(self, shard: int, shards: int) -> str:
        """A new job id for a shard."""
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
