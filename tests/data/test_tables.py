"""The user's own files, as people save them: read, or refused by line with the remedy."""

import json
import warnings

import pytest

from minitransformer.data.tables import harmless, read_table, read_texts


def write(tmp_path, name: str, content: str | bytes):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


@pytest.mark.parametrize(
    "delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_tables_are_read_as_spreadsheets_save_them(tmp_path, delimiter, encoding):
    rows = [["label", " text "], ["böse", '"a, b; c\nd"'], ["gut", "fünf"]]
    content = "\r\n".join(delimiter.join(row) for row in rows)
    for start in ("", f"sep={delimiter}\r\n"):
        table = read_table(write(tmp_path, "x.csv", (start + content).encode(encoding)))
        assert table.texts == ("a, b; c\nd", "fünf") and table.label_names == ("böse", "gut")
    lines = read_texts(write(tmp_path, "x.txt", "eins\r\nzwei\r\n".encode(encoding)))
    assert lines == ["eins", "zwei"]


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("x.xlsx", b"PK\x03\x04", "save it as CSV"),
        ("x.csv", b"PK\x03\x04", "a spreadsheet"),
        ("x.xls", b"\xd0\xcf\x11\xe0", "save it as CSV"),
        ("x.csv.gz", b"\x1f\x8b", "unpack it first: gunzip"),
        ("x.jsonl", b"\x1f\x8b", "unpack it first: gunzip"),
        ("x.bz2", b"BZh9", "bunzip2"),
        ("x.parquet", b"PAR1", r"read_parquet"),
        ("x.txt", b"%PDF-1.7", "a PDF"),
        ("x.json", b'[{"text": "a"}]', "one object per line"),
        ("x.csv", b"text,label\ra,b\rc,d\r", "line ends of old Macs"),
        ("x.txt", b"one\rtwo", "line ends of old Macs"),
        ("x.csv", b"\xff\xfet\x00e", "is not UTF-8; save the file as UTF-8"),
    ],
)
def test_other_kinds_of_files_get_the_right_advice(tmp_path, name, content, advice):
    for read in (read_table, read_texts):
        with pytest.raises(ValueError, match=advice):
            read(write(tmp_path, name, content))
    for place, what in ((tmp_path, "it is a folder"), ("", "no file ''")):
        with pytest.raises(FileNotFoundError, match=what):
            read_table(place)


OTHER = {"text": "fine", "label": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": ["b", "c"]}, r'line 1: the label is a list, \["b", "c"\]'),
        ({"text": "a", "label": {"b": 1}}, "line 1: the label is an object"),
        ({"text": "a", "label": float("nan")}, "line 1: the label is NaN"),
        ({"text": "a", "label": float("inf")}, "line 1: the label is Infinity"),
        ({"text": "a", "label": "nan"}, "line 1: the label is nan"),
        ({"text": "a", "label": None}, "line 1: the label is empty"),
        ({"text": ["a", "b"], "label": "b"}, "line 1: the text is a list.*join a pair"),
        ({"text": {"en": "a"}, "label": "b"}, "line 1: the text is an object"),
        ({"text": 5, "label": "b"}, "line 1: the text is a number, 5; give one text in quotes"),
        ({"text": True, "label": "b"}, "line 1: the text is a truth value"),
        ({"text": float("nan"), "label": "b"}, "line 1: the text is NaN"),
        ({"text": "\ud800", "label": "b"}, r"line 1: the text has the broken character '\\ud800'"),
        ({"text": "a", "label": 1}, "line 2: the label b is a text, that of line 1 a number"),
        ({"text": "a", "label": True}, "line 2: the label b is a text, that of line 1 a truth value"),
    ],
)  # fmt: skip
def test_values_that_are_no_text_or_label_are_refused_by_line(tmp_path, row, message):
    path = write(tmp_path, "x.jsonl", f"{json.dumps(row)}\n{json.dumps(OTHER)}\n")
    with pytest.raises(ValueError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label,label\na,b,c\n", "line 1: there are 2 columns 'label'"),
        ("x.csv", "text,text,label\na,b,c\n", "line 1: there are 2 columns 'text'"),
        ("x.jsonl", '{"text": "a", "label": "b", "text": "c"}', "line 1: .*'text' is there twice"),
        ("x.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("x.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", "line 1: not JSON"),
        ("x.csv", 'text,label\na,b\n"c,d\ne,f\n', "line 3: .*check the quotes"),
    ],
    ids=["labels", "texts", "keys", "deep", "long", "quote"],
)
def test_broken_tables_are_refused_by_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, name, content))


def labelled(tmp_path, *labels: str):
    rows = "".join(f"text number {i};{label}\n" for i, label in enumerate(labels))
    return write(tmp_path, "x.csv", f"text;label\n{rows}")


def test_amounts_are_no_classes(tmp_path):
    for labels in ([f"{i / 10:.2f}" for i in range(30)], [f"{i / 8:.3f}".replace(".", ",") for i in range(12)],
                   [str(7 * i - 40) for i in range(30)], [f"{i % 15 / 2}" for i in range(300)]):  # fmt: skip
        with pytest.raises(ValueError, match="looks like a regression"):
            read_table(labelled(tmp_path, *labels))
    for labels in ([str(i % 5) for i in range(30)], [f"{i % 9 / 2 + 1}" for i in range(60)],
                   [str(i % 77) for i in range(300)]):  # fmt: skip
        assert len(read_table(labelled(tmp_path, *labels)))


def test_one_and_one_point_nought_are_the_same_number_in_json(tmp_path):
    rows = [{"text": f"t{i}", "label": y} for i, y in enumerate((1, 1.0, 0))]
    table = read_table(write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows))))
    assert table.label_names == ("0", "1") and table.labels == (1, 1, 0)
    rows = [{"text": f"t{i}", "label": y} for i, y in enumerate((True, False))]
    table = read_table(write(tmp_path, "y.jsonl", "\n".join(map(json.dumps, rows))))
    assert table.label_names == ("false", "true")


def test_labels_and_texts_in_doubt_are_counted(tmp_path):
    with pytest.warns(UserWarning, match=r"'Good' \(1 rows\), 'good' \(2 rows\)"):
        read_table(labelled(tmp_path, "good", "Good", "bad", "good"))
    with pytest.warns(UserWarning, match=r"'so  so' \(1 rows\), 'so so' \(1 rows\)"):
        read_table(labelled(tmp_path, "so so", "so  so", "bad"))
    with pytest.warns(UserWarning, match=r"'1' \(1 rows\), '1.0' \(1 rows\)"):
        read_table(labelled(tmp_path, "1", "1.0", "2"))
    with pytest.warns(UserWarning, match="1 texts have more than one label, such as 'Fine'"):
        read_table(write(tmp_path, "x.csv", "text,label\nFine,good\nfine!,bad\nother,bad\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_table(labelled(tmp_path, "good", "bad", "good"))


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        ("=1+1", "'=1+1"), ("+a", "'+a"), ("-a", "'-a"), ("@a", "'@a"), ("  =1", "'  =1"),
        ("＝1", "'＝1"), ("\ta", "'\ta"), ("\ra", "'\ra"), ("a;=1", "a;'=1"), ("a; @b", "a;' @b"),
        ("a\n=1", "a\n'=1"), ("a\r\n-1", "a\r\n'-1"), ("a\t=1", "a\t'=1"),
        ("a = 1 - 2", "a = 1 - 2"), ("a; b\nc", "a; b\nc"), ("", ""),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(cell, safe):
    assert harmless(cell) == safe
