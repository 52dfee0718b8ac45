"""What people write with Celery and requests: download, digest, fsync, rename, callback."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import requests
from celery import Celery

app = Celery("rival", broker=os.environ["RIVAL_BROKER"])
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=4, task_ignore_result=True)

session = requests.Session()
session.trust_env = False  # a `REQUESTS_CA_BUNDLE` would win over `verify`
session.verify = os.environ["SSL_CERT_FILE"]


@app.task(autoretry_for=(requests.RequestException,), retry_backoff=True)
def download(url: str, path: str, callback: str) -> None:
    """Store one file, and POST about it."""
    part, digest, size = Path(f"{path}.part"), hashlib.sha256(), 0
    with session.get(url, stream=True, timeout=30) as response, part.open("wb") as file:
        response.raise_for_status()
        for piece in response.iter_content(64 * 1024):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    result = {"url": url, "sha256": digest.hexdigest(), "size": size}
    session.post(callback, json=result, timeout=30).raise_for_status()
