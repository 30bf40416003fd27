"""The user's own files: CSV, TSV, JSONL or one text per line, with errors that name the line."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from .datasets import LabelledTexts
from .downloads import data_folder

TABLES = (".csv", ".tsv", ".jsonl")
"""Files with columns; any other file has one text per line."""


def samples() -> LabelledTexts:
    """A few dozen sentences of our own, for a first try without a download."""
    return read_table(data_folder() / "samples" / "reviews.csv")


def read_table(path: str | Path, label_names: Sequence[str] | None = None) -> LabelledTexts:
    """The user's own file: CSV, TSV or JSONL in UTF-8 with the columns `text` and `label`.

    Args:
        label_names: the labels that a model knows; any other is an error. By default the labels of
            the file, in alphabetical order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown file type, bytes that are not UTF-8, no rows, a missing column, an
            empty text or label, an unknown label; the message names the file and the line.
    """
    rows = read_rows(path, ("text", "label"))
    names = tuple(label_names or sorted({row["label"] for _, row in rows}))
    if len(names) < 2:
        only = f"every row has the label {names[0]!r}"
        raise ValueError(f"{path}: {only}; a classifier needs at least two labels")
    index = {name: i for i, name in enumerate(names)}
    for line, row in rows:
        if row["label"] not in index:
            raise ValueError(
                f"{path}, line {line}: the label {row['label']!r} was not in the training data; "
                f"known labels: {', '.join(map(repr, names))}"
            )
    texts, labels = zip(*((row["text"], index[row["label"]]) for _, row in rows), strict=True)
    return LabelledTexts(texts, labels, names, str(path))


def read_texts(path: str | Path) -> list[str]:
    """Texts to predict: the column `text` of a CSV, TSV or JSONL, or the lines of any other file.

    Raises: as `read_table`.
    """
    if Path(path).suffix.lower() in TABLES:
        return [row["text"] for _, row in read_rows(path, ("text",))]
    lines = lines_of(read_utf8(path))
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"{path}, line {number}: the text is empty; remove the line")
    return lines


def read_rows(path: str | Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table, each with its line number; every column is there and not empty."""
    text, kind = read_utf8(path), Path(path).suffix.lower()
    if kind not in TABLES:
        raise ValueError(f"{path}: give a .csv, .tsv or .jsonl file with columns text and label")
    if kind == ".jsonl":
        missing, parsed = "the object has no key {!r} (keys: {})", parse_jsonl(path, text)
    else:
        missing = "there is no column {0!r} (columns: {1}); name it {0!r} in the first line"
        parsed = parse_csv(path, text, "\t" if kind == ".tsv" else ",")
    rows = []
    for line, raw in parsed:
        row = {}
        for column in columns:
            if column not in raw:
                problem = missing.format(column, ", ".join(map(repr, raw)) or "none")
                raise ValueError(f"{path}, line {line}: {problem}")
            row[column] = "" if raw[column] is None else str(raw[column]).strip()
            if not row[column]:
                empty = f"the {column} is empty; fill it in or remove the row"
                raise ValueError(f"{path}, line {line}: {empty}")
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{path} has no rows; it needs the columns {' and '.join(columns)}")
    return rows


def parse_csv(path: str | Path, text: str, delimiter: str) -> Iterator[tuple[int, dict]]:
    """(line number, row) for each row of a CSV or TSV."""
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    csv.field_size_limit(2**31 - 1)  # a text may be a book
    try:
        if reader.fieldnames is not None and "text" not in reader.fieldnames:
            yield 1, dict.fromkeys(reader.fieldnames)
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row) - 1 + len(row[None])} fields where the "
                    f"first line names {len(row) - 1}; put texts with a {delimiter!r} in quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; check the quotes") from error


def parse_jsonl(path: str | Path, text: str) -> Iterator[tuple[int, dict]]:
    """(line number, object) for each line of a JSONL."""
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            like = '{"text": ..., "label": ...}'
            raise ValueError(f"{path}, line {number}: not an object like {like}")
        yield number, row


def lines_of(text: str) -> list[str]:
    """The lines of a text. `splitlines` would also cut at U+2028 and the like, inside a line."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def existing(path: str | Path) -> Path:
    """The path, if there is a file; otherwise FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; check the name and the folder")
    return Path(path)


def read_utf8(path: str | Path) -> str:
    """The text of a file that is not empty."""
    path = existing(path)
    text = decode(path.read_bytes(), path)
    if not text.strip():
        raise ValueError(f"{path} is empty; put texts into it")
    return text


def decode(raw: bytes, path: Path, first: int = 1) -> str:
    """The text of a file from its line `first` on; an error names the line of the first bad byte."""
    try:
        return raw.decode("utf-8-sig" if first == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = error.object  # without the mark at the start of the file
        line, byte = first + bad[: error.start].count(b"\n"), bad[error.start]
        raise ValueError(
            f"{path}, line {line}: the byte 0x{byte:02x} is not UTF-8; save the file as UTF-8 (for a "
            f"Latin-1 file: iconv -f latin1 -t utf-8 {path.name} > new{path.suffix})"
        ) from None
