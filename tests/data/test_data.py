"""Tables in, splits without leaks, batches without waste."""

import json
import warnings

import pytest
from untyped import untyped

import minitransformer as mt
from minitransformer.data import LabelledTexts
from minitransformer.data.downloads import read_member
from minitransformer.data.tokenizers import refuse_no_texts


@pytest.fixture(scope="module")
def movies():
    return mt.data.load("movies")


def write(tmp_path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("domain", "size", "positive"),
    [("movies", 10072, 0.496), ("products", 2985, 0.586), ("tweets", 3432, 0.683), ("editorials", 2970, 0.400)],
)  # fmt: skip
def test_domains_have_the_sizes_of_the_datasheet(domain, size, positive):
    texts = mt.data.load(domain)
    assert len(texts) == size and round(sum(texts.labels) / size, 3) == positive
    assert all(t == t.strip() and t for t in texts.texts)
    with pytest.raises(KeyError, match="no domain 'films'; there are: movies"):
        mt.data.load("films")


def test_read_table_reads_csv_tsv_and_jsonl_alike(tmp_path):
    rows = [('He said "no",\nthen left', "b"), ("naïve café", "a"), ("plain", "b")]
    csv = '\ufefflabel,text\r\nb,"He said ""no"",\nthen left"\r\na,naïve café\r\nb, plain \r\n'
    tsv = 'text\tlabel\tid\n"He said ""no"",\nthen left"\tb\t1\nnaïve café\ta\t2\nplain\tb\t3\n'
    jsonl = "\n".join(json.dumps({"text": t, "label": y}) for t, y in rows) + "\n\n"
    for name, content in (("x.csv", csv), ("x.tsv", tsv), ("x.jsonl", jsonl)):
        table = mt.data.read_table(write(tmp_path, name, content))
        assert table.texts == tuple(t for t, _ in rows) and table.labels == (1, 0, 1)
        assert table.label_names == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.xlsx", "text,label\na,b\n", "give a .csv, .tsv or .jsonl file"),
        ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"', "line 2: not JSON"),
        ("x.jsonl", '["a", "b"]\n', "line 1: not an object"),
        ("x.jsonl", '{"text": "a"}\n', r"line 1: the object has no key 'label' \(keys: 'text'\)"),
        ("x.jsonl", '{"text": null, "label": "b"}\n', "line 1: the text is empty"),
        ("x.tsv", b"text\tlabel\nok\ta\ncaf\xe9\tb\n", "line 3: the byte 0xe9 is not UTF-8"),
        ("x.csv", " \n", "is empty"),
        ("x.csv", "text,label\nonly one field\n", "line 2: the label is empty"),
        ("x.csv", b"text,label\nok,a\n\xff\xfeb,b\n", "line 3: the byte 0xff is not UTF-8"),
        ("x.csv", b"\xef\xbb\xbftext,label\nok,a\n\xff,b\n", "line 3: the byte 0xff is not UTF-8"),
        ("x.csv", 'text,label\n"two\nlines",a\n,b\n', "line 4: the text is empty"),
        ("x.csv", "review;label\na;b\n", "line 1: there is no column 'text' .*'review', 'label'"),
        ("x.tsv", "text,label\na,b\n", "line 1: there is no column 'text'"),
        ("x.tsv", "text\tlabel\na\tb\tc\n", "line 2: 3 fields where the first line names 2"),
        ("x.csv", "text,label\n", "has no rows"),
        (
            "x.jsonl",
            '{"text": "a", "label": "b"}\n{"text": "c", "label": ""}',
            "line 2: the label is empty",
        ),
        (
            "x.jsonl",
            '{"text": "a", "label": "b"}\n\n{"text": "c", "label": "b"}',
            "every row has the label 'b'",
        ),
    ],
)
def test_bad_tables_name_file_and_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        mt.data.read_table(write(tmp_path, name, content))


def test_read_table_takes_only_labels_that_the_model_knows(tmp_path):
    path = write(tmp_path, "x.csv", "text,label\nx,fine\ny,dull\n")
    known = mt.data.read_table(path, ("fine", "fair", "dull"))  # not alphabetical, one not there
    assert known.labels == (0, 2) and known.label_names == ("fine", "fair", "dull")
    with pytest.raises(ValueError, match=r"line 3: the label 'dull' was not .* 'fine', 'fair'"):
        mt.data.read_table(path, ("fine", "fair"))


def test_a_missing_file_is_named(tmp_path):
    for read in (mt.data.read_table, mt.data.read_texts):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.csv"):
            read(tmp_path / "none.csv")


def test_only_line_ends_end_a_line(tmp_path):
    """str.splitlines also cuts at U+2028, U+0085 and form feeds, which stand inside real texts."""
    texts = ["one\u2028two", "one\x85 two", "one\x0ctwo"]
    rows = [json.dumps({"text": t, "label": str(len(t))}, ensure_ascii=False) for t in texts[:2]]
    table = mt.data.read_table(write(tmp_path, "x.jsonl", "\r\n".join(rows) + "\r\n"))
    assert list(table.texts) == texts[:2]
    assert mt.data.read_texts(write(tmp_path, "x.txt", "\n".join(texts) + "\n")) == texts


def test_labels_of_json_may_be_numbers(tmp_path):
    rows = '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'
    table = mt.data.read_table(write(tmp_path, "x.jsonl", rows))
    assert table.labels == (1, 0) and table.label_names == ("0", "1")


def test_samples_are_balanced_and_need_no_download():
    texts = mt.data.samples()
    assert len(texts) == 40 and sum(texts.labels) == 20 and len(set(texts.texts)) == 40
    assert all(set(part.labels) == {0, 1} for part in texts.split())
    assert "bad 20, good 20" in repr(texts)


def test_read_texts_reads_lines_and_columns(tmp_path):
    assert mt.data.read_texts(write(tmp_path, "a.txt", "one\ntwo\n")) == ["one", "two"]
    assert mt.data.read_texts(write(tmp_path, "a.csv", "id,text\n1,one\n")) == ["one"]
    with pytest.raises(ValueError, match="line 2: the text is empty"):
        mt.data.read_texts(write(tmp_path, "b.txt", "one\n\ntwo\n"))


def test_split_is_disjoint_stratified_and_seeded(movies):
    parts = movies.split(seed=0)
    assert sum(map(len, parts)) == len(movies)
    plain = [{" ".join(t.casefold().split()) for t in part.texts} for part in parts]
    assert not plain[0] & plain[1] and not plain[0] & plain[2] and not plain[1] & plain[2]
    for part in parts:
        assert abs(sum(part.labels) / len(part) - 0.496) < 0.005
    assert movies.split(seed=0) == parts
    assert set(movies.split(seed=1)[2].texts) != set(parts[2].texts), "others, not only reordered"


def test_split_keeps_equal_texts_together():
    texts = tuple(f"text {i // 3}" if i % 3 else f"  TEXT  {i // 3}" for i in range(60))
    data = LabelledTexts(texts, tuple(i // 3 % 2 for i in range(60)), ("a", "b"))
    parts = data.split((0.5, 0.5), seed=4)
    numbers = [{t.split()[1] for t in part.texts} for part in parts]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 20


def test_split_keeps_near_duplicates_together():
    """Punctuation, case, spaces and full-width letters make no other text; signs alone may."""
    ways = ("text {}", "Text {}!", "  TEXT, {} ", "“ｔｅｘｔ” {}")
    texts = (*(way.format(i) for i in range(20) for way in ways), ":)", ":(", "!", "?!")
    labels = (*(i % 2 for i in range(20) for _ in ways), 0, 1, 0, 1)
    parts = LabelledTexts(texts, labels, ("a", "b")).split((0.5, 0.5), seed=1)
    numbers = [{mt.data.domains.same(text) for text in part.texts} - {""} for part in parts]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 20
    assert sum(map(len, parts)) == 84


def test_labels_are_indices_and_are_numbered_anew_by_name():
    texts = LabelledTexts(("x", "y", "z"), (0, 1, 0), ("good", "bad", "absent"))
    assert texts.numbered_as(("bad", "fair", "good")).labels == (2, 0, 2)
    assert texts.majority == 2 / 3
    with pytest.raises(ValueError, match="has the label 'bad'; known labels: 'good', 'fine'"):
        texts.numbered_as(("good", "fine"))
    for labels in ((0, 1), (0, 1, 3), (0, 1, -1), (0, 1, 0.5), (0, 1, True)):
        with untyped(), pytest.raises(ValueError, match=r"one each|no index of the 3 label names"):
            LabelledTexts(("x", "y", "z"), labels, ("good", "bad", "absent"))


def test_split_refuses_a_label_seen_once():
    data = LabelledTexts(("a", "b", "c", "d", "d"), (0, 0, 0, 1, 1), ("many", "once"), "x.csv")
    with pytest.raises(
        ValueError, match=r"x.csv: label 'once' has 1 different text, too few for 3"
    ):
        data.split()
    with pytest.raises(ValueError, match="sum to 1"):
        data.split((0.5, 0.4))


def test_small_splits_have_every_label_in_every_part():
    data = LabelledTexts(tuple(f"t{i}" for i in range(9)), (0,) * 6 + (1,) * 3, ("a", "b"))
    for seed in range(5):
        assert all(set(part.labels) == {0, 1} for part in data.split(seed=seed))


def test_sample_is_seeded_and_bounded(movies):
    assert movies.sample(10, seed=1) == movies.sample(10, seed=1) != movies.sample(10, seed=2)
    with pytest.raises(ValueError, match="cannot take"):
        movies.sample(len(movies) + 1)


def test_batches_hold_every_example_once_with_its_label(movies, tokenizer):
    data = mt.data.encode(movies.sample(500), tokenizer)
    for seed in (None, 3):
        seen = []
        for batch in data.batches(32, seed):
            for row, keep, label, i in zip(
                batch.ids, batch.keep, batch.labels, batch.indices, strict=True
            ):
                assert tuple(row[keep[0, 0]].tolist()) == data.ids[i] and label == data.labels[i]
                seen.append(i)
        assert sorted(seen) == list(range(500))


def test_batches_follow_the_seed_and_waste_little(movies, tokenizer):
    data = mt.data.encode(movies, tokenizer)

    def order(seed):
        return [b.indices for b in data.batches(32, seed)]

    assert order(1) == order(1) != order(2)
    assert len({b.ids.shape[1] for b in data.batches(32, 1)}) > 20, "padded as each batch needs"
    assert all(not b.keep[:, 0, 0].all(0).logical_not().all() for b in data.batches(32, 1))
    padded = sum(b.ids.numel() for b in data.batches(32, 1))
    assert sum(map(len, data.ids)) / padded > 0.9
    assert sum(map(len, data.ids)) / (128 * len(data)) < 0.25


def test_batches_of_a_seed_mix_neighbours_and_lengths(movies, tokenizer):
    """Sorted batches would show the model all short texts first, and the same ones together."""
    data = mt.data.encode(movies.sample(500), tokenizer)
    lengths = [b.ids.shape[1] for b in data.batches(4, seed=1)]
    assert lengths[:40] != sorted(lengths[:40]) and lengths[:40] != sorted(lengths[:40])[::-1]
    one, two = ({frozenset(b.indices) for b in data.batches(4, seed)} for seed in (1, 2))
    assert len(one & two) < 25  # of 125
    plain = [b.ids.shape[1] for b in data.batches(4)]
    assert plain == sorted(plain)


def test_encode_cuts_long_texts_and_says_so(tokenizer):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 7 tokens and were cut"):
        data = mt.data.encode(["a b c d e f g h i", "a b"], tokenizer, max_length=7)
    assert [len(i) for i in data.ids] == [7, 4]
    assert tokenizer.tokens(data.ids[0])[-1] == "[SEP]"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(mt.data.encode(["a b c d e"], tokenizer, max_length=7).ids[0]) == 7
    assert len(tokenizer.encode("a b c d e f g h i")) == 11, "cutting once must not cut for ever"
    for length in (2, 513):
        with pytest.raises(ValueError, match="at least 3 and at most 512"):
            tokenizer.encode("a", max_length=length)


def test_encode_refuses_nothing_and_emptiness(tokenizer):
    with pytest.raises(ValueError, match="no texts"):
        mt.data.encode([], tokenizer)
    with pytest.raises(ValueError, match=r"text 1 \(counted from 0\) is empty"):
        mt.data.encode(["a", " \n"], tokenizer)


def test_special_tokens_in_a_text_are_text_unless_asked_for(tokenizer):
    said = tokenizer.tokens(tokenizer.encode("[SEP] a [PAD]"))
    assert said == ["[CLS]", "[", "sep", "]", "a", "[", "pad", "]", "[SEP]"]
    asked = tokenizer.encode("a [MASK]", special=True)
    assert tokenizer.tokens(asked) == ["[CLS]", "a", "[MASK]", "[SEP]"]
    assert tokenizer.batch(["a [MASK]"], special=True).ids.tolist() == [asked]
    assert mt.data.encode(["a [MASK]"], tokenizer).ids[0] != tuple(asked)
    gpt = mt.data.train_tokenizer(["an end"], extra=["<|endoftext|>"])
    assert gpt.decode(gpt.encode("<|endoftext|>")) == "<|endoftext|>"


def test_what_the_vocabulary_cannot_say_is_counted(tokenizer):
    texts = ["a 🙂 b 🙃", "plain", "w" * 101]
    with pytest.warns(UserWarning, match="2 of 3 texts .* 3 of 12 tokens are unknown"):
        mt.data.encode(texts, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode("plain")


def test_what_is_no_text_is_refused_by_its_place(tokenizer):
    for wrong in (("a", "b"), 1.5, None, b"a"):
        with pytest.raises(TypeError, match=r"text 1 \(counted from 0\) must be a str"):
            refuse_no_texts.__wrapped__(["a", wrong])
    with pytest.raises(ValueError, match=r"a single one is tokenizer\.encode"):
        mt.data.encode("a text", tokenizer)
    with pytest.raises(ValueError, match=r"text 0 .* broken character '\\ud800'"):
        tokenizer.encode("\ud800 x")


def test_a_damaged_archive_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"half a downlo")
    monkeypatch.setenv("MINITRANSFORMER_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"is damaged .* delete it and run `make data`"):
        mt.data.load("movies")
    with pytest.raises(ValueError, match="damaged"):
        read_member(b"", "x")


def test_decode_gives_the_text_again(tokenizer):
    assert tokenizer.decode(tokenizer.encode("Unbelievably good!")) == "unbelievably good!"
