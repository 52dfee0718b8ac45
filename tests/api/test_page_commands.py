"""The commands of all pages: curl asks a real API, and the command line accepts its own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from downloader.cli import make_app
from servers.api import JOB, Served

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
BLOCK = re.compile(r"^( *)```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

TYPED = {
    *("README.md", "docs/quickstart.md", "docs/tutorial.md"),  # tools/readme.py
    "docs/howto/receivers.md",  # tools/receivers.py
    "docs/howto/generated-clients.md",  # tools/generated.py
    "docs/write-a-plugin.md",  # tests/plugins/test_plugins_page.py
    *(
        f"docs/howto/{name}.md" for name in ("keys", "s3", "cloud", "kafka", "sqs", "tls", "backups")
    ),  # test_howto_pages.py
}
"""Pages whose commands are run as they stand."""

OTHERS = {
    "docs/cli.md": {"docker", "list-urls", "make-jobs"},
    # tools/image.py builds and runs image and compose.yaml; deploy/tests has chart, templates and unit.
    "docs/deployment.md": {
        *("aws", "docker", "helm", "install", "kubectl", "pip", "python3", "systemctl", "useradd")
    },
    "docs/howto/monitoring.md": {"docker"},  # images of others; what they mount is checked below
    "docs/performance.md": {"git", "nox", "pip", "py-spy", "python", "python3"},  # .ci/run has the bench
    "docs/tracing.md": {"pip"},
}
"""Programs that only these pages may name besides `downloader` and `curl`."""


def commands(page: str) -> list[str]:
    """Each command of the page that is not typed elsewhere, on one line, without what follows a pipe."""
    blocks = [block for _, block in BLOCK.findall(PAGES[page]) if not asks(block)]
    joined = [re.sub(r"\\\n +|\$\(.*?\)", "", block) for block in blocks]
    lines = [line.strip() for block in joined for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r" (?:\||&&) ", line)]
    return [re.sub(r" >>? .*| +#.*", "", part) for part in parts if part]


def asks(block: str) -> bool:
    """Whether the API of the page's examples is asked."""
    return re.search(r"\bcurl\b.*\blocalhost:8000/", block, re.DOTALL) is not None


UNTYPED = [page for page in PAGES if page not in TYPED and BLOCK.search(PAGES[page])]


@pytest.mark.parametrize("page", UNTYPED)
def test_the_command_line_accepts_its_commands_of_a_page(page: str) -> None:
    app = make_app()
    for command in commands(page):
        variables, program, words = re.fullmatch(r"((?:\w+=\S+ )*)(\S+) ?(.*)", command, re.DOTALL).groups()  # type: ignore[union-attr]
        program = program.rpartition("/")[2]
        if program == "downloader":
            app.parse_args(shlex.split(words), exit_on_error=False, print_error=False)
        elif program != "curl" or "://" not in words:
            assert program in OTHERS.get(page, ()), f"nothing tries {variables}{command}"


BLOCKS = [(page, block) for page in UNTYPED for _, block in BLOCK.findall(PAGES[page]) if asks(block)]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
async def test_an_api_answers_the_curl_of_a_page(api: Served, tmp_path: Path, page: str, block: str) -> None:
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    (tmp_path / "jobs.ndjson").write_text(f"{json.dumps(JOB)}\n" * 2)
    strict = 'curl() { command curl -m 20 --fail-with-body --no-progress-meter "$@"; }; set -e; TOKEN=none; '
    block = block.replace("localhost:8000", f"127.0.0.1:{api.port}")
    run = partial(
        subprocess.run, ["bash", "-c", strict + block], cwd=tmp_path, capture_output=True, text=True
    )
    done = await trio.to_thread.run_sync(run)
    assert done.returncode == 0, f"{page}: {block}{done.stdout}{done.stderr}"


async def test_the_python_of_the_first_page(api: Served, capsys: pytest.CaptureFixture[str]) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```$", PAGES["docs/index.md"], re.MULTILINE | re.DOTALL)
    program = program.replace("localhost:8000", f"127.0.0.1:{api.port}")
    await trio.to_thread.run_sync(exec, compile(program, "index.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "pending"


def test_the_guide_of_monitoring_mounts_files_that_exist() -> None:
    page = PAGES["docs/howto/monitoring.md"]
    mounted = {name for name in re.findall(r"- \./([\w./-]+):", page) if f"`{name}`:" not in page}
    assert mounted == {"deploy/prometheus-rules.yml"}
    assert all((ROOT / name).is_file() for name in {*mounted, "deploy/grafana-dashboard.json"})
