"""The unit, judged by systemd's own programs."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

from downloader.config import Settings

UNIT = Path(__file__).parents[1] / "systemd" / "downloader@.service"
EXPOSURE_TENTHS = 15
"""What `systemd-analyze security` may find at most; 100 is a unit without any restriction."""


def analyzed(folder: Path, *command: str) -> str:
    """Run systemd-analyze on the unit; its program is not installed here, so another one stands for it."""
    unit = folder / "downloader@run.service"
    unit.write_text(
        UNIT.read_text("utf-8").replace("/opt/downloader/bin/downloader", shutil.which("true") or "")
    )
    done = subprocess.run(
        ["systemd-analyze", *command, unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    assert analyzed(tmp_path, "verify", "--man=no") == ""


def test_it_has_few_rights(tmp_path: Path) -> None:
    analyzed(tmp_path, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_TENTHS}")


def service_section() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    return unit["Service"]


def test_a_stop_drains() -> None:
    service = service_section()
    # What `run --processes` waits for its embedded store is seven seconds.
    assert int(service["TimeoutStopSec"]) > Settings().processor.grace + 7
    # To all processes at once, the embedded store would end before the service has handed back its leases.
    assert service["KillMode"] == "mixed"
    assert service["ExecStart"].split()[1:] == ["%i", "-c", "/etc/downloader/config.toml"]


def test_a_crash_is_followed_by_a_start_and_crowds_fit() -> None:
    service = service_section()
    assert service["Restart"] == "always"
    # Room for 4,096 clients, and as many downloads with a connection and a file each.
    assert int(service["LimitNOFILE"]) >= 16_384


def test_other_users_cannot_read_the_data() -> None:
    service = service_section()
    assert int(service["StateDirectoryMode"], 8) & 0o007 == 0
    assert int(service["UMask"], 8) & 0o007 == 0o007
    assert service["User"] == "downloader"
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
