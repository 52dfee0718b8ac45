"""Lists of jobs that `submit --from-file` reads, and lists of results that `--results` writes."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from downloader.cli.options import name_of, read_text
from downloader.errors import ConfigError
from downloader.wire import DownloadRequest, LineProblem

if TYPE_CHECKING:
    from _csv import Reader

GOOGLE = "TsvHttpData-1.0"
"""First line of a URL list for Google's Storage Transfer Service. Further lines have a URL and, if known, the
size in bytes and the MD5 in base64, with tabs between them."""

TEXT = "string"
"""JSON type of a field whose value is written without quotes."""

MD5_DIGITS = 32

SHOWN_CHARS = 80
"""Most characters of a cell in an error text."""

RESULT = (
    *("url", "id", "state", "error_code", "error", "response_code", "size", "sha256", "md5", "mime_type"),
    *("image_size", "etag", "last_modified", "final_url", "path", "download_url"),
)
"""The columns of a list of results, named as in `GET /jobs/<id>`."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Spreadsheets take a cell that begins so for a formula; texts of origins may."""

Fields = dict[str, Any]
Result = Mapping[str, Any]
ReadCells = Callable[[Sequence[str]], Fields]
"""Returns the fields of the job in a row; raises `ValueError` with a text for people."""


def read_jobs(source: str) -> Iterator[tuple[str, Fields | LineProblem]]:
    """Yield the text and the fields of each job in a file, or what is wrong with the text.

    The first line that is no comment tells the form: `GOOGLE`, or names of columns, `url` among them, with
    tabs or commas in between. Otherwise each line is a URL or a JSON object.

    Args:
        source: as for `read_text`.

    Raises:
        ConfigError: the file cannot be read.
    """
    name, lines = name_of(source), read_text(source)
    is_first = True
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if is_first and (table := _table(line, lines)) is not None:
            yield from _read_table(*table, name, number)
            return
        is_first = False
        yield text, read_line(text, f"{name}, line {number}")


def read_line(text: str, place: str) -> Fields | LineProblem:
    """The job in a line with a URL or a JSON object, or the error in the line; `place` is for people."""
    if not text.startswith("{"):
        return {"url": text}
    try:
        job: Fields = json.loads(text)
    except (ValueError, RecursionError):
        return LineProblem(code="bad_json", detail=f"{place}: not a JSON object")
    return job


def _table(first: str, lines: Iterator[str]) -> tuple[Reader, ReadCells] | None:
    """The rows that follow the first line, and how to read a row; `None` if the line begins no table."""
    if first.strip() == GOOGLE:
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), _read_google
    delimiter = "\t" if "\t" in first else ","
    try:
        columns = [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
    except csv.Error:  # a long line, such as a job with a long `extra`
        return None
    if "url" not in columns:
        return None
    known = field_types()
    types = [known.get(column, TEXT) for column in columns]
    return csv.reader(lines, delimiter=delimiter, strict=True), partial(_read_cells, columns, types)


def field_types() -> Mapping[str, str]:
    """The JSON type of each field of a job; `TEXT` for a field with several types."""
    fields = TypeAdapter(DownloadRequest).json_schema()["properties"]
    return {name: schema.get("type", TEXT) for name, schema in fields.items()}


def _read_table(
    table: Reader, read: ReadCells, name: str, header: int
) -> Iterator[tuple[str, Fields | LineProblem]]:
    """Yield the jobs of a table below line `header` of the file `name`; a bad row affects no other."""
    while True:
        line = header + table.line_num + 1  # where the row begins: a quoted cell may have several lines
        cells: list[str] = []
        try:
            cells = next(table)
            if cells:
                job = read(cells)
                yield job["url"], job
        except StopIteration:
            return
        except (csv.Error, ValueError) as error:
            yield (
                cells[0] if cells else "",
                LineProblem(code="bad_row", detail=f"{name}, line {line}: {error}"),
            )


def _read_cells(columns: Sequence[str], types: Sequence[str], cells: Sequence[str]) -> Fields:
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells in a table of {len(columns)} columns")
    job: Fields = {}
    for column, type_, cell in zip(columns, types, cells, strict=True):
        if not column or not cell:
            continue
        try:
            job[column] = _value(type_, cell)
        except (ValueError, RecursionError):
            raise ValueError(f"{column}: not of type {type_}: {cell[:SHOWN_CHARS]}") from None
    if "url" not in job:
        raise ValueError("no url")
    return job


def _value(type_: str, cell: str) -> Any:
    """The value of a cell of this JSON type; a text is written without quotes, a list with commas."""
    if type_ == TEXT:
        return cell
    if type_ == "array":
        return [part.strip() for part in cell.split(",")]
    return json.loads(cell.lower() if type_ == "boolean" else cell)


def _read_google(cells: Sequence[str]) -> Fields:
    url, size, md5, *others = (*cells, "", "", "")
    if any(others) or not url:
        raise ValueError("must be a URL, a size and an MD5, with tabs between them")
    job: Fields = {"url": url}
    if size:
        if not (size.isascii() and size.isdigit()):
            raise ValueError(f"size: not a number of bytes: {size}")
        job["size"] = int(size)
    if md5:
        try:
            job["md5"] = base64.b64decode(md5, validate=True).hex()
        except ValueError:
            job["md5"] = ""
        if len(job["md5"]) != MD5_DIGITS:
            raise ValueError(f"md5: not an MD5 in base64: {md5}")
    return job


@contextlib.contextmanager
def open_results(path: Path | None) -> Iterator[Callable[[Result], None]]:
    """Open a file for results; yields the function that writes a row, for `None` one that does nothing.

    The suffix tells the form: `.csv`, `.tsv`, `.ndjson` or `.jsonl`. A row is written at once,
    so that the file has all of a run that was interrupted.

    Raises:
        ConfigError: the suffix is none of the four, or the file cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    if path.suffix not in (".csv", ".tsv", ".ndjson", ".jsonl"):
        raise ConfigError(f"--results {path}: must end with .csv, .tsv or .ndjson")
    try:
        file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="", buffering=1)
    except OSError as error:
        raise ConfigError(f"--results {path}: cannot be written: {error.strerror}") from None
    with file:
        if path.suffix in (".ndjson", ".jsonl"):
            yield lambda row: print(json.dumps(_columns(row)), file=file)
            return
        is_csv = path.suffix == ".csv"
        table = csv.DictWriter(file, RESULT, delimiter="," if is_csv else "\t", lineterminator="\n")
        table.writeheader()
        yield lambda row: table.writerow(_harmless(_columns(row)) if is_csv else _columns(row))


def _harmless(row: Result) -> Result:
    """The row with a `'` before each text that a spreadsheet would take for a formula."""
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
        for name, value in row.items()
    }


def _columns(row: Result) -> Result:
    return {name: row[name] for name in RESULT if name in row}
