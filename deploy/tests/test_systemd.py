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


def test_a_stop_drains() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    # What `run --processes` waits for its embedded store is seven seconds.
    assert int(service["TimeoutStopSec"]) > Settings().processor.grace + 7
    # To all processes at once, the embedded store would end before the service has handed back its leases.
    assert service["KillMode"] == "mixed"
    assert service["ExecStart"].split()[1:] == ["%i", "-c", "/etc/downloader/config.toml"]
