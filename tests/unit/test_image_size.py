"""The size of pictures: agreement with Pillow, broken and hostile files."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from downloader.content import image_size, sniff_mime

SIZES = [(1, 1), (2, 3), (70, 45), (255, 256), (300, 1), (1, 300)]


def saved(form: str, image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def variants(size: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """One file of each kind that is met on the web, named."""
    rgb = Image.new("RGB", size, "teal")
    frames = {"save_all": True, "append_images": [Image.new("RGB", size, "red")]}
    for mode in ("L", "RGB", "CMYK"):
        yield f"jpeg {mode}", saved("JPEG", rgb.convert(mode))
    yield "jpeg progressive", saved("JPEG", rgb, progressive=True)
    yield "jpeg mpo", saved("MPO", rgb, **frames)
    yield "jpeg with a profile", saved("JPEG", rgb, icc_profile=b"p" * 200_000, comment=b"c" * 60_000)
    for orientation in range(1, 9):
        yield f"jpeg orientation {orientation}", saved("JPEG", rgb, exif=turned(orientation))
        yield f"avif orientation {orientation}", saved("AVIF", rgb, exif=turned(orientation), speed=10)
        yield f"webp orientation {orientation}", saved("WEBP", rgb, exif=turned(orientation))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"png {mode}", saved("PNG", Image.new(mode, size))
    yield "png orientation", saved("PNG", rgb, exif=turned(6))
    yield "apng", saved("PNG", rgb, **frames)
    yield "gif", saved("GIF", rgb)
    yield "gif87", saved("GIF", rgb.convert("P")).replace(b"GIF89a", b"GIF87a")
    yield "gif animated", saved("GIF", rgb, **frames)
    for mode in ("RGB", "RGBA"):
        yield f"webp lossy {mode}", saved("WEBP", rgb.convert(mode))
        yield f"webp lossless {mode}", saved("WEBP", rgb.convert(mode), lossless=True)
        yield f"avif {mode}", saved("AVIF", rgb.convert(mode), speed=10)
    yield "webp animated", saved("WEBP", rgb, **frames)
    yield "webp with a profile", saved("WEBP", rgb, icc_profile=b"p" * 5000)
    yield "avif animated", saved("AVIF", rgb, speed=10, **frames)


def by_pillow(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f"{image.width}x{image.height}"


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_size_agrees_with_pillow(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "picture"
    for name, data in variants(size):
        mime = sniff_mime(data, size=len(data))
        path.write_bytes(data)
        expected = f"{size[0]}x{size[1]}"
        assert (name, by_pillow(data)) == (name, expected)
        assert (name, image_size(mime, data)) == (name, expected)
        assert (name, image_size(mime, path)) == (name, expected)


def png_of(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("mime", "data", "expected"),
    [
        ("image/gif", saved("GIF", Image.new("L", (65_535, 2))), "65535x2"),
        ("image/jpeg", saved("JPEG", Image.new("L", (65_000, 1))), "65000x1"),
        ("image/webp", saved("WEBP", Image.new("L", (16_383, 1))), "16383x1"),
        ("image/png", png_of(70_000, 70_000), "70000x70000"),
    ],
    ids=["gif", "jpeg", "webp", "png"],
)
def test_large_sizes_agree_with_pillow(mime: str, data: bytes, expected: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            assert by_pillow(data) == expected
        except Image.DecompressionBombError:
            assert mime == "image/png"  # Pillow refuses what it would have to decode; here nothing is decoded
    assert image_size(mime, data) == expected


def test_upscaling_hints_of_webp_are_no_size() -> None:
    data = bytearray(saved("WEBP", Image.new("RGB", (70, 45))))
    at = data.index(b"\x9d\x01\x2a") + 3
    data[at + 1] |= 0x40
    data[at + 3] |= 0x80
    assert by_pillow(bytes(data)) == image_size("image/webp", bytes(data)) == "70x45"


def test_other_types_have_no_size(tmp_path: Path) -> None:
    rgb = Image.new("RGB", (70, 45))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="70" height="45"></svg>'
    for data in (
        saved("BMP", rgb),
        saved("TIFF", rgb),
        saved("ICO", rgb),
        saved("PPM", rgb),
        svg,
        b"text",
        b"",
    ):
        mime = sniff_mime(data, size=len(data))
        assert image_size(mime, data) == ""
        (tmp_path / "other").write_bytes(data)
        assert image_size(mime, tmp_path / "other") == ""


MEASURED = {
    "image/jpeg": saved("JPEG", Image.new("RGB", (70, 45)), exif=turned(6)),
    "image/png": saved("PNG", Image.new("RGB", (70, 45))),
    "image/gif": saved("GIF", Image.new("RGB", (70, 45))),
    "image/webp": saved("WEBP", Image.new("RGB", (70, 45))),
    "image/avif": saved("AVIF", Image.new("RGB", (70, 45)), speed=10),
}


@pytest.mark.parametrize("mime", MEASURED)
def test_a_cut_file_has_its_size_or_none(mime: str) -> None:
    data = MEASURED[mime]
    found = [image_size(mime, data[:at]) for at in range(len(data) + 1)]
    assert set(found) == {"", "70x45"}
    assert found[0] == ""
    assert found[-1] == "70x45"


@pytest.mark.parametrize("mime", MEASURED)
def test_content_of_another_type_has_no_wrong_size(mime: str) -> None:
    for data in (b"", b"\0" * 100, b"\xff\xd8", b"RIFF\0\0\0\0WEBPVP8 "):
        assert image_size(mime, data) == ""


def test_a_picture_without_width_has_no_size() -> None:
    assert image_size("image/png", png_of(0, 45)) == ""
    assert image_size("image/gif", b"GIF89a" + bytes(10)) == ""


def test_a_missing_file_has_no_size(tmp_path: Path) -> None:
    assert image_size("image/png", tmp_path / "none") == ""
    assert image_size("image/png", tmp_path) == ""


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_pictures_never_raise(data: st.DataObject) -> None:
    mime = data.draw(st.sampled_from(list(MEASURED)))
    content = bytearray(MEASURED[mime])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    size = image_size(mime, bytes(content[: data.draw(st.integers(0, len(content)))]))
    assert size == "" or all(int(side) > 0 for side in size.split("x"))


def box(kind: bytes, *payload: bytes) -> bytes:
    body = b"".join(payload)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def avif_of(meta: bytes) -> bytes:
    return box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", bytes(4), meta)


@pytest.mark.parametrize(
    ("mime", "start"),
    [
        ("image/jpeg", b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(10)),
        ("image/avif", box(b"ftyp", b"avif\0\0\0\0avifmif1") + b"\0\0\0\x08free" * 100_000),
        ("image/avif", avif_of(box(b"iprp", box(b"ipco", b"\0\0\0\x08free" * 100_000)))),
        ("image/avif", avif_of(box(b"iprp", box(b"ipma", bytes(4), b"\xff" * 8_000_000)))),
    ],
    ids=["jpeg without markers", "avif of boxes", "avif of properties", "avif with a huge table"],
)
def test_hostile_files_cost_little(mime: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(4 * 1024**3)  # sparse: takes no disk
    clock = time.process_time()
    assert image_size(mime, path) == ""
    # Measured: 20 ms. Without a bound the first of them takes an hour.
    assert time.process_time() - clock < 2
