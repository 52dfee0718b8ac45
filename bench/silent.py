"""An origin that accepts connections and answers nothing. `python -m bench.silent` prints its port."""

from __future__ import annotations

from bench.server import serve


def handle(buffer: bytearray) -> bytes:
    """Take what came, answer nothing."""
    buffer.clear()
    return b""


if __name__ == "__main__":
    serve(handle)
