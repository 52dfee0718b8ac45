"""The service and `downloader fetch` beside other programs, all on one nginx, in turn.

`python -m bench.rivals [--rounds N] [--scale X] [--dir FOLDER]` prints a table for each size, over HTTP and
HTTPS. Programs that are not installed are left out: `apt install nginx-light curl aria2 wget2 time`, and the
dependency group `rivals` for Scrapy and Celery.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import trustme

from bench.processes import Sink, Usage, free_port, helper, sink, usage
from bench.result import SILENCE_S
from bench.service import Build, service
from downloader.client import Client

AT_ONCE = 16
"""Downloads at once, for every program that can be told."""

SIZES = {"10 KB": (10_000, 3000), "100 KB": (100_000, 1500), "1 MB": (1_000_000, 300)}
"""Bytes of a file, and how many files."""

_NGINX = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root {folder}/www;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The same work for every program."""

    urls: Sequence[str]
    folder: Path
    """For the files; is there and empty."""
    ca_file: Path
    sink: Sink
    store: str
    """URL of a Valkey, for programs that need one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program took for a task; of the store too, where it has one."""

    seconds: float
    cpu_s: float
    peak_mib: float
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A program to compare with."""

    name: str
    does: str
    """What it does beside downloading."""
    installed: bool
    run: Callable[[Task], Ran]


def command(make: Callable[[Task, Path], Sequence[str | Path]]) -> Callable[[Task], Ran]:
    """Measure a program that ends by itself; `make` gets the task and a file with a URL on each line."""

    def run(task: Task) -> Ran:
        listed = task.folder.parent / "urls"
        listed.write_text("".join(f"{url}\n" for url in task.urls))
        env = os.environ | {"SSL_CERT_FILE": str(task.ca_file), "PYTHONPATH": str(Path.cwd())}
        # The kernel counts the memory of whoever starts a program as the program's own: `time` is small.
        output = listed.with_suffix(".time")
        words = ["time", "-o", output, "-f", "%e %U %S %M", *make(task, listed)]
        subprocess.run(words, stdout=subprocess.DEVNULL, env=env, check=False)
        seconds, user_s, system_s, peak_kib = map(float, output.read_text().split()[-4:])
        return Ran(
            seconds=seconds,
            cpu_s=user_s + system_s,
            peak_mib=peak_kib / 1024,
            files=sum(1 for path in task.folder.rglob("*") if path.is_file()),
        )

    return run


def curl(task: Task, listed: Path) -> Sequence[str | Path]:
    """The command line, from a file with each URL and its output."""
    config = listed.with_suffix(".curl")
    config.write_text(
        "".join(f'url = "{url}"\noutput = "{task.folder}/{n}"\n' for n, url in enumerate(task.urls))
    )
    return [
        "curl",
        "-s",
        "--parallel",
        "--parallel-max",
        str(AT_ONCE),
        "--cacert",
        task.ca_file,
        "-K",
        config,
    ]


def wget2(task: Task, listed: Path) -> Sequence[str | Path]:
    """The command line."""
    threads = f"--max-threads={AT_ONCE}"
    return ["wget2", "-q", threads, f"--ca-certificate={task.ca_file}", "-P", task.folder, "-i", listed]


def aria2(task: Task, listed: Path) -> Sequence[str | Path]:
    """The command line."""
    limits = [f"-j{AT_ONCE}", "-x1", "-q", "--file-allocation=none"]
    return ["aria2c", *limits, f"--ca-certificate={task.ca_file}", "-d", task.folder, "-i", listed]


def fetch(task: Task, listed: Path) -> Sequence[str | Path]:
    """The command line."""
    limit = ["--limit", str(AT_ONCE)]
    return [sys.executable, "-m", "downloader", "fetch", "--from-file", listed, "-o", task.folder, *limit]


def scrapy(task: Task, listed: Path) -> Sequence[str | Path]:
    """The command line."""
    return [sys.executable, "-m", "bench.rival_scrapy", listed, task.folder, str(AT_ONCE)]


def served(task: Task) -> Ran:
    """The service with a callback for each file; its store's CPU is included."""
    folder = task.folder / "service"
    build = Build(label="", python=sys.executable)
    with service(folder, build, ca_file=str(task.ca_file)) as running:
        before, begun = usage(running.pid), time.monotonic()
        jobs = (
            {
                "aggr_id": "rivals",
                "aggr_limit": AT_ONCE,
                "url": url,
                "callback_type": "http",
                "callback_dst": f"http://127.0.0.1:{task.sink.port}/",
            }
            for url in task.urls
        )
        with Client(f"http://127.0.0.1:{running.port}") as client:
            for _ in client.submit_many(jobs):  # type: ignore[arg-type]  # each has the fields of a job
                pass
        return _by_callbacks(task, begun, before, running.pid)


def celery(task: Task) -> Ran:
    """Celery on an embedded Valkey, with a task that does what a job does."""
    os.environ |= {"RIVAL_BROKER": task.store.replace("unix://", "redis+socket://")}
    os.environ |= {"SSL_CERT_FILE": str(task.ca_file)}
    from bench.rival_celery import download  # noqa: PLC0415 - reads the environment

    to = f"http://127.0.0.1:{task.sink.port}/"
    words = [sys.executable, "-m", "celery", "-A", "bench.rival_celery", "worker"]
    words += ["--concurrency", str(AT_ONCE), "--pool", "threads"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            download.delay(task.urls[0], str(task.folder / "first"), to)
            if not task.sink.wait(1, silence_s=SILENCE_S):
                raise SystemExit("Celery's worker does not start")
            task.sink.clear()
            before, begun = usage(worker.pid), time.monotonic()
            for number, url in enumerate(task.urls):
                download.delay(url, str(task.folder / str(number)), to)
            return _by_callbacks(task, begun, before, worker.pid)
        finally:
            worker.terminate()


def _by_callbacks(task: Task, begun: float, before: Usage, pid: int) -> Ran:
    task.sink.wait(len(task.urls), silence_s=SILENCE_S)
    used = usage(pid).since(before)
    return Ran(
        seconds=time.monotonic() - begun,
        cpu_s=used.cpu_s + used.store_cpu_s,
        peak_mib=used.rss_bytes / 2**20,
        files=len(task.sink.records),
    )


RIVALS = (
    Rival(name="curl --parallel", does="nothing", installed=bool(shutil.which("curl")), run=command(curl)),
    Rival(name="wget2", does="nothing", installed=bool(shutil.which("wget2")), run=command(wget2)),
    Rival(name="aria2", does="resume", installed=bool(shutil.which("aria2c")), run=command(aria2)),
    Rival(name="downloader fetch", does="retries, resume, SHA-256", installed=True, run=command(fetch)),
    Rival(
        name="Scrapy FilesPipeline",
        does="retries, MD5",
        installed=find_spec("scrapy") is not None,
        run=command(scrapy),
    ),
    Rival(
        name="Celery, requests",
        does="queue, retries, SHA-256, fsync, callback",
        installed=find_spec("celery") is not None and find_spec("requests") is not None,
        run=celery,
    ),
    Rival(
        name="the service, bulk",
        does="queue, limits, retries, SHA-256, fsync, callback",
        installed=True,
        run=served,
    ),
)


@contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, int]]:
    """Serve `folder/www`; yields the ports for HTTP and HTTPS, whose authority is `folder/ca.pem`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    plain, tls = free_port(), free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, plain=plain, tls=tls))
    with subprocess.Popen(["nginx", "-c", str(config), "-p", str(folder)]) as process:
        try:
            _until_it_answers(plain)
            yield plain, tls
        finally:
            process.terminate()


def _until_it_answers(port: int) -> None:
    for _ in range(200):
        with suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("HEAD", "/")
            connection.getresponse()
            return
        time.sleep(0.02)
    raise SystemExit("nginx does not answer")


def measure(folder: Path, *, rounds: int, scale: float) -> Iterator[tuple[str, Rival, Sequence[Ran]]]:
    """For each size and scheme, what each program took in each round; the programs take turns."""
    www = folder / "www"
    www.mkdir()
    with nginx(folder) as (plain, tls), sink() as callbacks, helper("store", folder / "store") as store:
        for name, (size, number) in SIZES.items():
            content, count = www / f"{size}", max(AT_ONCE, int(number * scale))
            content.write_bytes(os.urandom(size))
            for scheme, port in (("http", plain), ("https", tls)):
                # A query makes each URL another one, of the same file.
                urls = [f"{scheme}://127.0.0.1:{port}/{n}.bin" for n in range(count)]
                for n in range(count):
                    (www / f"{n}.bin").unlink(missing_ok=True)
                    os.link(content, www / f"{n}.bin")
                ran: dict[str, list[Ran]] = {rival.name: [] for rival in RIVALS if rival.installed}
                for _, rival in itertools.product(range(rounds), RIVALS):
                    if rival.installed:
                        ran[rival.name].append(_one(folder, rival, urls, callbacks, store.first))
                for rival in RIVALS:
                    if rival.installed:
                        yield f"{count} files of {name}, {scheme}", rival, ran[rival.name]


def _one(folder: Path, rival: Rival, urls: Sequence[str], callbacks: Sink, store: str) -> Ran:
    callbacks.clear()
    work = Path(tempfile.mkdtemp(dir=folder))
    (work / "out").mkdir()
    try:
        task = Task(urls=urls, folder=work / "out", ca_file=folder / "ca.pem", sink=callbacks, store=store)
        ran = rival.run(task)
    finally:
        shutil.rmtree(work)
    if ran.files < len(urls):
        print(f"{rival.name}: {ran.files} of {len(urls)} files", file=sys.stderr)
    return ran


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of files")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    shown = ""
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        Path(folder).chmod(0o755)
        for title, rival, ran in measure(Path(folder), rounds=options.rounds, scale=options.scale):
            if title != shown:
                shown = title
                print(f"\n{title}\n\n| | files/s | CPU ms a file | MiB | besides |\n|---|---|---|---|---|")
            rate = statistics.median(each.files / each.seconds for each in ran)
            cpu = statistics.median(1000 * each.cpu_s / max(1, each.files) for each in ran)
            peak = statistics.median(each.peak_mib for each in ran)
            print(f"| {rival.name} | {rate:,.0f} | {cpu:.2f} | {peak:.0f} | {rival.does} |", flush=True)


if __name__ == "__main__":
    main()
