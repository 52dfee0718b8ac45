"""The phases of an attempt, its address and redirects, on real sockets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from downloader.model import Outcome, Verdict
from downloader.net import redact_url
from downloader.phases import Phases
from servers.certs import server_context, write_authority
from servers.lab import Lab, lease, open_lab
from servers.origin import Origin, open_origin, respond
from servers.ports import spare_port
from servers.proxies import open_proxy


def course(outcome: Outcome) -> tuple[list[str], str]:
    """Names of the phases, and the address."""
    assert outcome.phases is not None
    assert all(seconds >= 0 for seconds in outcome.phases.seconds.values())
    return list(outcome.phases.seconds), outcome.phases.address


async def test_a_kept_connection_has_no_phases_before_the_request(lab: Lab, origin: Origin) -> None:
    url = origin.on("/x", respond(404, b"no"))
    assert course(await lab.fetch(url)) == (["dns", "connect", "first_byte"], "127.0.0.1")
    assert course(await lab.fetch(url)) == (["first_byte"], "127.0.0.1")


async def test_the_phase_that_failed_is_the_last(lab: Lab) -> None:
    assert course(await lab.fetch(f"http://127.0.0.1:{spare_port()}/")) == (["dns", "connect"], "")


async def test_a_refused_file_has_a_body(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(200, b"text")), sha256="ab" * 32)
    assert course(outcome)[0] == ["dns", "connect", "first_byte", "body", "store"]


async def test_the_wait_in_the_queue_is_the_first_phase(lab: Lab, origin: Origin) -> None:
    job = replace(lease(origin.on("/x", respond(404, b""))), waited_s=7.0)
    outcome = await lab.fetcher.attempt(job, still_ours=lambda: True)
    assert outcome.phases is not None
    assert next(iter(outcome.phases.seconds.items())) == ("queue", 7.0)


async def test_redirects_have_no_secrets(lab: Lab, origin: Origin) -> None:
    target = origin.url("/end?key=secret", userinfo="user:secret@")
    url = origin.on("/x", respond(302, b"", [("Location", target)]))
    outcome = await lab.fetch(url)
    assert outcome.phases is not None
    assert outcome.phases.redirects == [(302, redact_url(origin.url("/end?key=secret")))]
    assert "secret" not in outcome.phases.to_text(None)


async def test_tls(tmp_path: Path) -> None:
    async with (
        open_origin(server_context()) as origin,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        outcome = await lab.fetch(origin.on("/x", respond(404, b"")))
        assert course(outcome)[0] == ["dns", "connect", "tls", "first_byte"]


async def test_the_address_of_a_proxy_is_not_told(lab: Lab, origin: Origin) -> None:
    async with open_proxy("http") as proxy:
        outcome = await lab.fetch(origin.on("/x", respond(404, b"")), proxy=proxy.url())
    assert course(outcome) == (["dns", "connect", "first_byte"], "")


async def test_a_success_keeps_them_if_it_takes_long(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(200, b"quick")))
    assert (outcome.verdict, outcome.phases) == (Verdict.SUCCEEDED, None)
    assert Phases({"queue": 5.0, "dns": 0.5, "body": 0.6}).are_long
    assert not Phases({"queue": 5.0, "body": 0.9}).are_long


async def test_the_stored_form() -> None:
    phases = Phases(
        {"queue": 0.0031, "dns": 0.0, "body": 12.0}, "::1", [(302, "http://h/a"), (301, "http://h/b")]
    )
    text = phases.to_text(None)
    assert text == "q3 d0 b12000 a::1 r302:http://h/a r301:http://h/b"
    assert Phases.from_text(text, str).to_text(None) == text
    assert (
        Phases.from_text(phases.to_text(lambda url: url[::-1]), lambda url: url[::-1]).to_text(None) == text
    )


async def test_long_urls_are_cut() -> None:
    text = Phases(redirects=[(302, "http://h/" + "x" * 8000)]).to_text(None)
    assert len(text) < 300


async def test_damaged_and_newer_words_are_ignored() -> None:
    phases = Phases.from_text(
        f"q d-1 bx z9 s² rxx:http://h/ r f5 \0 t{'9' * 400} c{'9' * 5000} r{'9' * 5000}:u", str
    )
    assert (phases.seconds, phases.redirects) == ({"first_byte": 0.005}, [])
