"""Mutants of the HTTP server: name, file below `src`, old line, new line, tests."""

from __future__ import annotations

API = "downloader/api"
SESSION = "tests/api/test_session.py"
HOSTILE, SERVER = "tests/api/test_hostile_http.py", "tests/api/test_server.py"

ROWS = (
    (
        "http: any request line will do",
        f"{API}/parser.py",
        'rb"[!-~]+ [!-~]+ HTTP',
        'rb".+ HTTP',
        f"{HOSTILE} -k refusal",
    ),
    ("http: two hosts", f"{API}/parser.py", "if hosts > 1 or (", "if (", f"{HOSTILE} -k refusal"),
    (
        "http: any transfer coding that ends in chunked",
        f"{API}/parser.py",
        "if self.chunked and self._values(",
        "if False and self._values(",
        f"{HOSTILE} -k refusal",
    ),
    (
        "http: chunks in HTTP/1.0",
        f"{API}/parser.py",
        'if self.chunked and self.version == "1.0":',
        "if False:",
        f"{HOSTILE} -k refusal",
    ),
    (
        "http: the connection is kept after a chunked request",
        f"{API}/http1.py",
        "self.stream.ended and not request.chunked",
        "self.stream.ended",
        f"{HOSTILE} -k chunked",
    ),
    (
        "http: chunks of a byte",
        f"{API}/http1.py",
        "if self._framing_bytes > FREE",
        "if False and self._framing_bytes > FREE",
        f"{HOSTILE} -k tiny",
    ),
    (
        "http: a response header with a line break",
        f"{API}/http1.py",
        'if head.count(b"\\r") != lines or head.count(b"\\n") != lines:',
        "if False:",
        f"{SERVER} -k break",
    ),
    (
        "http: a short response is complete",
        f"{API}/http1.py",
        "            if self._left:\n",
        "            if False:\n",
        f"{SERVER} -k declared",
    ),
    (
        "http: a response longer than declared",
        f"{API}/http1.py",
        "if self._left < 0:",
        "if False:",
        f"{SERVER} -k declared",
    ),
    (
        "session: a cookie needs no header of the page",
        f"{API}/origin.py",
        'if headers.get(_PAGE) != b"1":',
        "if False:",
        f"{SESSION} -k changes",
    ),
    (
        "session: a cookie from another port",
        f"{API}/origin.py",
        '.lower() != b"same-origin" or _is_foreign',
        '.lower() == b"cross-site" or _is_foreign',
        f"{SESSION} -k changes",
    ),
    (
        "session: a cookie with another origin",
        f"{API}/origin.py",
        'b"same-origin" or _is_foreign(headers):',
        'b"same-origin":',
        f"{SESSION} -k changes",
    ),
    (
        "session: changes are not checked",
        f"{API}/app.py",
        "if SESSION in scope and method not in SAFE_METHODS:",
        "if False:",
        f"{SESSION} -k changes",
    ),
    (
        "session: it never ends",
        f"{API}/session.py",
        "if found is not None and found.left_s() > 0 else None",
        "",
        f"{SESSION} -k over",
    ),
    (
        "session: any signature",
        f"{API}/session.py",
        "if hmac.compare_digest(sign(digest, int(ends)).encode(), value.encode()):",
        "if True:",
        f"{SESSION} -k 'over or removed'",
    ),
    (
        "session: scripts read the cookie",
        f"{API}/session.py",
        "HttpOnly; ",
        "",
        f"{SESSION} -k signing",
    ),
    (
        "session: other sites send the cookie",
        f"{API}/session.py",
        "SameSite=Strict",
        "SameSite=None",
        f"{SESSION} -k signing",
    ),
    (
        "session: a planted cookie over TLS",
        f"{API}/session.py",
        'if scope["scheme"] == "https" else (',
        "if False else (",
        f"{SESSION} -k tls",
    ),
    (
        "session: the cookie goes out without TLS",
        f"{API}/session.py",
        '"; Secure" if',
        '"" if',
        f"{SESSION} -k tls",
    ),
    (
        "session: beside a wrong token",
        f"{API}/session.py",
        'if any(name == b"authorization" for name, _ in headers):',
        "if False:",
        f"{SESSION} -k over",
    ),
    (
        "session: events outlive it",
        f"{API}/events.py",
        " or trio.current_time() >= self._until:",
        ":",
        f"{SESSION} -k events",
    ),
    (
        "session: signing out by another site",
        f"{API}/session.py",
        "check_page(dict(headers))",
        "pass",
        f"{SESSION} -k changes",
    ),
)
