"""Nothing that a model is tested on was read in pretraining."""

import pytest

import minitransformer as mt
from minitransformer.data import corpora
from minitransformer.data.domains import same


@pytest.fixture(scope="module")
def everything():
    return corpora.corpus(*corpora.CORPORA)


@pytest.fixture(scope="module")
def parts():
    return {name: corpora.splits(name) for name in mt.data.DOMAINS}


def test_no_text_of_a_test_or_validation_split_is_in_a_corpus(everything, parts):
    read = {same(text) for part in everything for text in part}
    for name, (_, valid, test) in parts.items():
        assert not {same(t) for t in (*valid.texts, *test.texts)} & read, name


def test_a_corpus_has_all_training_texts_but_those_that_some_domain_tests(everything, parts):
    keys = [same(text) for part in everything for text in part]
    assert len(set(keys)) == len(keys) and "" not in keys
    tested = {same(t) for _, *rest in parts.values() for part in rest for t in part.texts}
    for train, _, _ in parts.values():
        assert {same(t) for t in train.texts} - set(keys) <= tested | {""}


def test_a_corpus_of_two_domains_is_that_of_each(everything):
    train, valid = corpora.corpus("newspaper", "chinese_reviews")
    assert not set(train) & set(valid) and 18 < len(train) / len(valid) < 20
    assert set(train) | set(valid) <= {t for part in everything for t in part}
    assert 30_000 < len(train) < 34_000


def test_bad_corpora_are_refused():
    with pytest.raises(KeyError, match="no corpus 'films'; there are: movies"):
        corpora.corpus("films")
    with pytest.raises(ValueError, match="at least one corpus"):
        corpora.corpus()
