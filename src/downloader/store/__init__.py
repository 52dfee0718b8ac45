"""The fleet's state in Redis or Valkey: the transitions of jobs and of the work on them."""

from __future__ import annotations

from downloader.errors import StoreError, StoreUnavailable
from downloader.store.embedded import KILLED_S, START_S, STOP_S, FolderInUse, embedded_valkey, socket_path
from downloader.store.job_store import JobStore, open_store
from downloader.store.keys import Keys
from downloader.store.loop import asyncio_loop
from downloader.store.redis import StoreClient, compare_layout, open_client, where
from downloader.store.sealing import open_sealer
from downloader.store.values import (
    Accepted,
    CallbackPlan,
    Changed,
    CloseResult,
    FinishResult,
    LeaseBatch,
    Reapable,
    ReapBatch,
    Settled,
    Shares,
    Submission,
)
from downloader.store.views import (
    Aggregation,
    AggregationLoad,
    AggregationPage,
    Backlog,
    JobPage,
    JobView,
    Listed,
    ListedJob,
    Load,
    TaskView,
)
