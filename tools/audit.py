"""Looks at what the service is installed with: licences, withdrawn releases, known vulnerabilities.

Not for pytest: `nox -s audit` runs it in an environment with the service, its extras, pip and pip-audit. It
asks only the index that pip is configured with and, through pip-audit, a database of vulnerabilities. It
exits 1 if something was found, or if the index did not answer; without an answer of a database it says so.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import Distribution, distributions
from typing import Any

OWN = frozenset({"downloader-service"})

LICENCES = frozenset(
    [
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MPL-2.0"),
        *("PSF-2.0", "Unlicense", "Zlib", "GPL-3.0-or-later", "LGPL-2.1-or-later", "LGPL-3.0-or-later"),
    ]
)
"""Those (SPDX) under which a part of a program under GPL-3.0-or-later may be distributed."""

CLASSIFIERS: Mapping[str, str] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Classifiers and texts of releases without a licence expression, and what they stand for."""

PIPS = 12
"""Processes of pip at once."""

WITHDRAWN_S, VULNERABILITIES_S = 300.0, 60.0


def licence_of(found: Distribution) -> str:
    """The licence as an SPDX expression; if there is none in the metadata, whatever stands there instead."""
    metadata = found.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    names = [
        text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or () if "License ::" in text
    ]
    if names:
        return " OR ".join(CLASSIFIERS.get(name, name.replace(" ", "-")) for name in names)
    text = str(metadata.json.get("license", "none"))
    return CLASSIFIERS.get(text, text)


def is_allowed(expression: str) -> bool:
    """Whether `LICENCES` allow an SPDX expression: of `OR` one side, of `AND` both; `OR` binds less."""
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def either() -> bool:
        allowed = both()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            allowed = both() or allowed
        return allowed

    def both() -> bool:
        allowed = one()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            allowed = one() and allowed
        return allowed

    def one() -> bool:
        token = tokens.pop(0) if tokens else ""
        if token != "(":
            return token in LICENCES
        allowed = either()
        return tokens[:1] == [")"] and bool(tokens.pop(0)) and allowed

    return either() and not tokens


def licences(installed: Sequence[Distribution]) -> Iterator[str]:
    """A line for each licence that is not allowed."""
    for found in installed:
        if not is_allowed(licence := licence_of(found)):
            yield f"{found.name} {found.version}: its licence is not allowed: {licence[:80]}"


def withdrawn(installed: Sequence[Distribution]) -> Iterator[str]:
    """A line for each release that was yanked, or that the index does not serve, as in quarantine."""
    pins = [f"{found.name}=={found.version}" for found in installed]
    with ThreadPoolExecutor(PIPS) as threads:  # pip asks for one after the other
        for lines in threads.map(_withdrawn, [pins[start::PIPS] for start in range(PIPS)]):
            yield from lines


def _withdrawn(pins: Sequence[str]) -> Sequence[str]:
    options = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-")
    command = [sys.executable, "-m", "pip", "install", *options, *pins]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHDRAWN_S)
    if done.returncode and len(pins) > 1:  # to name those that are at fault
        return [line for pin in pins for line in _withdrawn([pin])]
    if done.returncode:
        return [f"{pins[0]}: pip does not get it: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"]
    found = [item for item in json.loads(done.stdout)["install"] if item["is_yanked"]]
    return [f"{item['metadata']['name']} {item['metadata']['version']}: it was yanked" for item in found]


def vulnerabilities(count: int) -> Iterator[str]:
    """A line for each known vulnerability; prints how many of `count` distributions were not checked."""
    known = _ask("pypi") or _ask("osv")
    checked = [found for found in known if "vulns" in found]
    if len(checked) < count:
        sys.stdout.write(f"  NOT CHECKED: {count - len(checked)}, as no database answered pip-audit\n")
    for found in checked:
        for each in found["vulns"]:
            fixed = ", ".join(each["fix_versions"]) or "no release yet"
            yield f"{found['name']} {found['version']}: {each['id']}, corrected in {fixed}"


def _ask(database: str) -> Sequence[dict[str, Any]]:
    """What a database that pip-audit knows has of each distribution; empty if it knows none of them.

    pip-audit takes 404 for a package that is not public, so behind a mirror it calls everything free of
    vulnerabilities. Only what it has not skipped counts.
    """
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", database, "--timeout", "5"]
    options = ("--skip-editable", "--progress-spinner", "off", "--format", "json")
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, timeout=VULNERABILITIES_S
        )
        with suppress(ValueError):
            found: Sequence[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
            return found if any("vulns" in each for each in found) else ()
    return ()


def main() -> int:
    """Print what was found."""
    installed = sorted((each for each in distributions() if each.name not in OWN), key=lambda each: each.name)
    found = 0
    for what, lines in (
        ("licences", licences(installed)),
        ("withdrawn releases", withdrawn(installed)),
        ("known vulnerabilities", vulnerabilities(len(installed))),
    ):
        sys.stdout.write(f"{what} of {len(installed)} distributions\n")
        for line in lines:
            found += 1
            sys.stdout.write(f"  {line}\n")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
