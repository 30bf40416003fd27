"""The user's own files: CSV, TSV, JSONL or one text per line, with errors that name the line."""

import codecs
import csv
import io
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import Any

from .datasets import LabelledTexts, listed, same
from .downloads import data_folder

TABLES = (".csv", ".tsv", ".jsonl")
"""Files with columns; any other file has one text per line."""
HERE = Path(__file__)
CSV = "save it as CSV (in a spreadsheet: Save as, CSV UTF-8)"
UNPACK = "unpack it first"
OTHER_KINDS = (
    (b"PK\x03\x04", (".xlsx", ".xlsm", ".ods", ".zip"), f"a spreadsheet or a zip archive; {CSV}, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", (".xls",), f"an old spreadsheet; {CSV}"),
    (b"\x1f\x8b", (".gz", ".tgz"), f"compressed; {UNPACK}: gunzip"),
    (b"BZh", (".bz2",), f"compressed; {UNPACK}: bunzip2"),
    (b"\xfd7zXZ", (".xz",), f"compressed; {UNPACK}: unxz"),
    (b"\x28\xb5\x2f\xfd", (".zst",), f"compressed; {UNPACK}: unzstd"),
    (b"PAR1", (".parquet",), "a Parquet file; with pandas: pd.read_parquet(FILE).to_csv('new.csv', index=False)"),
    (b"%PDF", (".pdf",), "a PDF; give its text"),
    (None, (".json",), "JSON; write one object per line, as .jsonl: [print(json.dumps(row)) for row in rows]"),
)  # fmt: skip
"""How other kinds of files begin and are called, and what to do with them."""


def samples() -> LabelledTexts:
    """A few dozen sentences of our own, for a first try without a download."""
    installed = (Path(base, "share/minitransformer") for base in (sys.prefix, HERE.parents[2]))
    places = [folder / "samples/reviews.csv" for folder in (data_folder(), *installed)]
    return read_table(next(filter(Path.is_file, places), places[0]))


def read_table(path: str | Path, label_names: Sequence[str] | None = None) -> LabelledTexts:
    """The user's own file: CSV, TSV or JSONL with the columns `text` and `label`.

    UTF-8 and UTF-16 are read, and a CSV with commas, semicolons or tabs. Warnings tell of labels
    that differ in case or spaces only, and of texts with several labels.

    Args:
        label_names: the labels that a model knows; any other is an error. By default the labels of
            the file, in alphabetical order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown file type or encoding, no rows, a missing column or one that is there
            twice, an empty text or label, a value that is no text or no label, labels that are
            amounts, an unknown label; the message names the file and the line.
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
                f"known labels: {listed([repr(name) for name in names])}"
            )
    if label_names is None:
        refuse_amounts(path, Counter(row["label"] for _, row in rows))
    warn_of_doubts(path, [(row["text"], row["label"]) for _, row in rows])
    texts, labels = zip(*((row["text"], index[row["label"]]) for _, row in rows), strict=True)
    return LabelledTexts(texts, labels, names, str(path))


def refuse_amounts(path: str | Path, count: Counter[str]) -> None:
    """Reject labels that are amounts: numbers, most of them seen once, or many with fractions."""
    numbers, rows = {number_in(name) for name in count}, count.total()
    many = 10 if any(number and number % 1 for number in numbers) else rows / 2
    if None not in numbers and len(count) > max(5, min(many, rows / 2)):
        raise ValueError(
            f"{path}: the column label has {len(count)} different numbers in {rows} rows; this looks "
            "like a regression, and a classifier takes each number for a class of its own: give each "
            "range of numbers a name, such as low and high"
        )


def number_in(text: str) -> float | None:
    """The number that a text writes, with a decimal point or comma; None if it is none."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None


def warn_of_doubts(path: str | Path, given: Sequence[tuple[str, str]]) -> None:
    """Say which labels are perhaps one, and how many texts have several; `given` has both in pairs."""
    count = Counter(label for _, label in given)
    alike: dict[Any, list[str]] = {}
    for name in sorted(count):
        number = number_in(name)
        key = " ".join(name.casefold().split()) if number is None else number
        alike.setdefault(key, []).append(f"{name!r} ({count[name]} rows)")
    doubts = [
        f"the labels {', '.join(names)} are different classes; write them alike if they are one"
        for names in alike.values()
        if len(names) > 1
    ]
    labels: dict[str, set[str]] = {}
    for text, label in given:
        labels.setdefault(same(text) or text, set()).add(label)
    if several := [text for text, _ in given if len(labels[same(text) or text]) > 1]:
        n = sum(len(found) > 1 for found in labels.values())
        doubts.append(f"{n} texts have more than one label, such as {several[0][:60]!r}")
    for doubt in doubts:
        warnings.warn(f"{path}: {doubt}", stacklevel=3)


def read_texts(path: str | Path) -> list[str]:
    """Texts to predict: the column `text` of a CSV, TSV or JSONL, or the lines of any other file.

    Raises: as `read_table`.
    """
    if Path(path).suffix.lower() in TABLES:
        return [row["text"] for _, row in read_rows(path, ("text",))]
    lines = lines_of(read_text(path))
    if blank := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        more = f" (and of {len(blank) - 1} more lines)" if len(blank) > 1 else ""
        raise ValueError(f"{path}, line {blank[0]}: the text is empty{more}; remove the line")
    return lines


def read_rows(path: str | Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table, each with its line number; every column is there and not empty."""
    text, kind = read_text(path), Path(path).suffix.lower()
    if kind not in TABLES:
        raise ValueError(f"{path}: give a .csv, .tsv or .jsonl file with columns text and label")
    if kind == ".jsonl":
        missing, parsed = "the object has no key {!r} (keys: {})", parse_jsonl(path, text)
    else:
        missing = "there is no column {0!r} (columns: {1}); name it {0!r} in the first line"
        parsed = parse_csv(path, text, kind)
    rows, kinds = [], dict[str, int]()
    for line, raw in parsed:
        row = {}
        for column in columns:
            if column not in raw:
                problem = missing.format(column, ", ".join(map(repr, raw)) or "none")
                raise ValueError(f"{path}, line {line}: {problem}")
            row[column] = "" if raw[column] is None else written(raw[column]).strip()
            if wrong := problem_of(column, raw[column], row[column]):
                raise ValueError(f"{path}, line {line}: the {column} {wrong}")
        if "label" in columns:
            kinds.setdefault(KINDS.get(type(raw["label"]), "a text"), line)
            if len(kinds) > 1:
                (one, first), (other, _) = kinds.items()
                raise ValueError(
                    f"{path}, line {line}: the label {row['label']} is {other}, that of line {first} "
                    f"{one}; write all labels alike"
                )
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{path} has no rows; it needs the columns {' and '.join(columns)}")
    return rows


KINDS = dict.fromkeys((int, float), "a number") | {
    bool: "a truth value", list: "a list", dict: "an object",
}  # fmt: skip
"""The types of JSON that are no text."""


def written(value: Any) -> str:
    """A value of JSON as text: 1 and 1.0 are the same number."""
    whole = isinstance(value, float) and value.is_integer()
    return value if isinstance(value, str) else json.dumps(int(value) if whole else value)


def problem_of(column: str, value: Any, text: str) -> str | None:
    """Why a value, which reads as this text, is no text or no label; None if it is one."""
    kind = KINDS.get(type(value))
    if not text:
        return "is empty; fill it in or remove the row"
    if text.lower() in ("nan", "infinity", "-infinity") and (column == "label" or kind):
        return f"is {text}, which pandas writes for an empty cell; fill it in or remove the row"
    if kind in ("a list", "an object") or (kind and column == "text"):
        remedy = {
            "text": "give one text in quotes; join a pair of texts into one",
            "label": "give one label per row, such as a word in quotes",
        }
        return f"is {kind}, {text[:40]}; {remedy[column]}"
    return half_character(text)


def half_character(text: str) -> str | None:
    """What is wrong with a text that no file can hold; None for any other."""
    odd = re.search("[\ud800-\udfff]", text)
    cause = "half of a pair, or a byte that is not UTF-8"
    return f"has the broken character {odd[0]!a} ({cause}); remove it" if odd else None


def parse_csv(path: str | Path, text: str, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) for each row of a CSV or TSV."""
    mark = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)  # Excel's own
    text, skipped = (text[mark.end() :], 1) if mark else (text, 0)
    delimiter = mark[1] if mark else delimiter_of(text.partition("\n")[0], kind)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    csv.field_size_limit(2**31 - 1)  # a text may be a book
    line = skipped
    try:
        header = [name.strip() for name in next(reader, [])]
        if "text" not in header:
            yield line + 1, dict.fromkeys(header)
        for name in ("text", "label"):
            if header.count(name) > 1:
                twice = f"there are {header.count(name)} columns {name!r}; rename all but one"
                raise ValueError(f"{path}, line {line + 1}: {twice}")
        for row in reader:
            line = reader.line_num + skipped
            if len(row) > len(header):
                raise ValueError(
                    f"{path}, line {line}: {len(row)} fields where the first line names {len(header)}; "
                    f"put texts with a {delimiter!r} in quotes"
                )
            if row:
                yield line, dict(zip_longest(header, row))
    except csv.Error as error:
        at = max(line, 1) + 1
        raise ValueError(f"{path}, line {at}: {error}; check the quotes from there on") from error


def delimiter_of(header: str, kind: str) -> str:
    """What separates the columns: a tab in a TSV; in a CSV that which gives a column `text`."""

    def quality(delimiter: str) -> tuple[bool, int]:
        fields = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return "text" in fields, len(fields)

    return "\t" if kind == ".tsv" else max(",;\t|", key=quality)


def parse_jsonl(path: str | Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line of a JSONL."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
            raise ValueError(f"the key {twice[0]!r} is there twice")
        return dict(pairs)

    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
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
        advice = "it is a folder" if Path(path).is_dir() else "check the name and the folder"
        raise FileNotFoundError(f"there is no file {str(path) or repr('')}; {advice}")
    return Path(path)


def read_text(path: str | Path) -> str:
    """The text of a file that is not empty, in UTF-8 or UTF-16."""
    path = existing(path)
    raw = path.read_bytes()
    for start, endings, advice in OTHER_KINDS:
        if path.suffix.lower() in endings or (start and raw.startswith(start)):
            raise ValueError(f"{path} is {advice}; give a .csv, .tsv or .jsonl file, or plain text")
    text = decode(raw, path)
    if not text.strip():
        raise ValueError(f"{path} is empty; put texts into it")
    if "\r" in text.strip() and "\n" not in text:
        raise ValueError(
            f"{path} has the line ends of old Macs, so that all of it would be one line; save it with "
            f"Unix line ends: tr '\\r' '\\n' < {quote(path.name)} > new{path.suffix}"
        )
    return text


def encoding_of(raw: bytes) -> str:
    """UTF-16, as Excel's "Unicode text", told by its mark or its many zeros; otherwise UTF-8."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if 10 * raw.count(0) > len(raw):  # every other byte of most letters
        return "utf-16-le" if raw[1::2].count(0) > raw[::2].count(0) else "utf-16-be"
    return "utf-8-sig"


def decode(raw: bytes, path: Path, first: int = 1) -> str:
    """The text of a file from its line `first` on; an error names the line of the first bad byte."""
    try:
        return raw.decode(encoding_of(raw) if first == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = error.object  # without the mark at the start of the file
        line, byte = first + bad[: error.start].count(b"\n"), bad[error.start]
        raise ValueError(
            f"{path}, line {line}: the byte 0x{byte:02x} is not UTF-8; save the file as UTF-8 (for a "
            f"Latin-1 file: iconv -f latin1 -t utf-8 {quote(path.name)} > new{path.suffix})"
        ) from None


def harmless(cell: str) -> str:
    """The text of a cell that no spreadsheet takes for a formula.

    Not at its start, and not behind a line feed or a semicolon, where other readers begin a cell.
    """
    formula = r"[ \t]*[=+\-@\uff1d\uff0b\uff0d\uff20]"
    return re.sub(rf"(^|[\n\r\t;])(?={formula})|^(?=[\t\r])", r"\1'", cell)
