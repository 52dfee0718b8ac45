"""What a contributor and CI run: `nox` for all that must be green, `nox -l` for the rest."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
PYTHONS = ["3.13", "3.11"]
"""The one to run the service with, on which a contributor runs the tests, and the oldest, which CI adds.

Each gets the newest Quart and Quart-Trio that support it: 0.22 and 0.12 on 3.11, 0.23 and 0.13 on 3.13.
"""

nox.options.sessions = ["lint", "typecheck", f"tests-{PYTHONS[0]}", "docs"]

MEMORY = Path("/dev/shm")  # noqa: S108  # only a folder with a random name in it is used
ROOM_BYTES = 4 * 2**30
"""Room for the files of a run of all tests, which take 1 GiB."""

PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, group: str | None = None, *options: str) -> None:
    """Install the project as it stands with all its extras, and one of its dependency groups."""
    group_packages = nox.project.dependency_groups(PROJECT, group) if group else ()
    session.install("-e", ".[all]", *group_packages, *options)


@contextmanager
def temporary_files() -> Iterator[dict[str, str]]:
    """The environment for temporary files in memory, if it has room; they are deleted at the end.

    On a busy disk a single fsync can take seconds, in which a store or a Sentinel of a test does nothing.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        yield {}
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # as /tmp: tests look at it as another user
        yield {"TMPDIR": folder}


def pytest(
    session: nox.Session, *default: str, workers_per_core: float = 1.5, dist: tuple[str, ...] = ("worksteal",)
) -> None:
    """Run tests on more workers than cores, as many tests wait; `--` replaces the default selection."""
    workers = max(2, min(8, int((os.cpu_count() or 1) * workers_per_core)))
    with temporary_files() as environ:
        session.run("pytest", "-n", str(workers), "--dist", *dist, *(session.posargs or default), env=environ)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the formatter's verdict, which module may import which, and the workflows."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("actionlint", "-shellcheck=")
    session.run("zizmor", "--offline", "--quiet", ".github")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Strict types, in tests, tools and bench too."""
    install(session, "typecheck")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests but for `faults` and `azure`, on the embedded Valkey or DOWNLOADER_TEST_SERVER."""
    install(session, "test")
    pytest(session, "-m", "not fault and not azure")


@nox.session(python=PYTHONS[-1])
def faults(session: nox.Session) -> None:
    """The tests that kill, freeze or flood the service, build wheels, or move a large file."""
    install(session, "test")
    # One by one in their order, which begins with the longest: see tests/conftest.py.
    pytest(session, "-m", "fault", workers_per_core=2.5, dist=("load", "--maxschedchunk", "1"))


@nox.session(python=PYTHONS[-1])
def azure(session: nox.Session) -> None:
    """The tests on Azurite, Microsoft's imitation of Azure, which is installed from npm."""
    install(session, "azure")
    session.run("pytest", "-m", "azure", *(session.posargs or ("tests/plugins",)))


@nox.session
def rows(session: nox.Session) -> None:
    """The tests of the rows in docs/design/faults.md, with a line for each row; without one it fails."""
    install(session, "test")
    pytest(session, "--rows", "-q")


@nox.session
def chaos(session: nox.Session) -> None:
    """A fleet broken at random under load, and judged: `nox -s chaos -- --minutes 60 --seed 7`."""
    install(session, "test")
    session.run("python", "-m", "chaos", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(python=PYTHONS[-1])
def minimums(session: nox.Session) -> None:
    """Every test, with the oldest versions that pyproject.toml allows."""
    install(session, "test", "--resolution", "lowest-direct")
    pytest(session)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation; a broken reference is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """How fast it is; `nox -s bench -- --help` tells what can be chosen."""
    install(session, "bench")
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Licences, withdrawn releases and known vulnerabilities of what the service is installed with."""
    session.install("-e", ".[all]", "pip", "pip-audit")
    session.run("python", "tools/audit.py")


@nox.session
def mutants(session: nox.Session) -> None:
    """One-place changes of the core, a random sample; a test has to notice each. See `-- --help`."""
    install(session, "mutants")
    session.run("python", "tools/mutants.py", *session.posargs)


@nox.session
def screenshots(session: nox.Session) -> None:
    """Takes the pictures of the web page in docs/images, of a small fleet at work, with Debian's Chromium."""
    install(session, "test")
    session.run("python", "tools/screenshots.py", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def readme(session: nox.Session) -> None:
    """The README's first five minutes and the quickstart, typed as they stand, in a copy of the checkout."""
    session.run("python", "tools/readme.py", *session.posargs)


@nox.session
def receivers(session: nox.Session) -> None:
    """The receivers of docs/howto/receivers.md, typed as they stand; `node` and `go` of the system."""
    session.install("standardwebhooks")
    session.run("python", "tools/receivers.py", *session.posargs)


@nox.session
def generated(session: nox.Session) -> None:
    """A TypeScript client from the OpenAPI document, generated, checked and run as the guide says."""
    install(session, "generated")
    session.run("python", "tools/generated.py", env={"PYTHONPATH": "tests"})


@nox.session
def image(session: nox.Session) -> None:
    """The Containerfile's image and compose.yaml, built and run; as root, with container tools of Debian."""
    session.run("python", "tools/image.py", *session.posargs)


@nox.session
def deploy(session: nox.Session) -> None:
    """What `deploy/` has: the Helm chart, the CloudFormation templates and the systemd unit."""
    install(session, "deploy")
    session.run("pytest", "-c", "deploy/tests/pytest.ini", *(session.posargs or ("deploy/tests",)))
