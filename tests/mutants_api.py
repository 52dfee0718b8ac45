"""Mutants of the HTTP server: name, file below `src`, old line, new line, tests."""

from __future__ import annotations

API = "downloader/api"
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
)
