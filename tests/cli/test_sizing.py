"""`downloader size`."""

from __future__ import annotations

import json

import pytest

from downloader.cli import main


def needs(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, float]:
    assert main(["size", "--json", *flags]) == 0
    result: dict[str, float] = json.loads(capsys.readouterr().out)
    return result


def test_small_files(capsys: pytest.CaptureFixture[str]) -> None:
    mean_and_peak = needs(capsys, "--rate", "1000", "--size", "100KB", "--peak", "2", "--seconds", "0.1")
    assert mean_and_peak == {
        "cpu_ms_per_job": 1.47,  # 1.2 and a tenth of 2.7
        "processes": 5,  # 2.94 cores, used to 60%
        "store_cores": 0.52,
        "store_gb": 18.0,  # of 18 million records, which fill 40%
        "disk_gb": 1080,  # of three hours, 1,080 s for each 100 GB
        "network_mbit_per_s": 1600,
        "downloads_at_once": 200,
    }


def test_large_files_cost_less_a_megabyte_and_https_more(capsys: pytest.CaptureFixture[str]) -> None:
    plain = needs(capsys, "--rate", "1", "--size", "3MB")["cpu_ms_per_job"]
    tls = needs(capsys, "--rate", "1", "--size", "3MB", "--https")["cpu_ms_per_job"]
    bulk = needs(capsys, "--rate", "1", "--size", "3MB", "--bulk")["cpu_ms_per_job"]
    assert (plain, tls, bulk) == (7.3, 8.89, 6.8)


@pytest.mark.parametrize(
    "flags", [["--rate", "0"], ["--rate", "1", "--size", "big"], ["--rate", "1", "--peak", "0.5"]]
)
def test_a_wrong_value_is_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert flags[-2] in error
