"""The fleet's state in Redis or Valkey, and the transitions of jobs and tasks."""

from __future__ import annotations

from downloader.errors import PartlyChanged, StoreError, StoreRefused, StoreUnavailable
from downloader.store.client import StoreClient, limit_of_shard, open_client, where
from downloader.store.embedded import KILLED_S, START_S, STOP_S, FolderInUse, embedded_valkey, socket_path
from downloader.store.jobs import JobStore, open_store
from downloader.store.keys import CLUSTER_SHARDS, KEYS, Keys
from downloader.store.reader import StoreReader
from downloader.store.repeats import LOOK_S, LeaseRequests
from downloader.store.scripts import Library, load_library
from downloader.store.sealing import open_sealer
from downloader.store.servers import asyncio_loop
from downloader.store.values import (
    POINT_MS,
    Accepted,
    Backlog,
    CallbackPlan,
    Changed,
    JobView,
    LeaseBatch,
    Listed,
    Load,
    Reapable,
    ReapBatch,
    Settled,
    Settlement,
    Shares,
    Sharing,
    Submission,
    TokenShare,
    Waiting,
)
