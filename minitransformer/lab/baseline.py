"""The bar to clear: counting words."""

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from ..data.datasets import LabelledTexts


def tf_idf(train: LabelledTexts, valid: LabelledTexts) -> Pipeline:
    """Logistic regression on weighed counts of words, pairs of words and pieces of words.

    Its one setting, how far the weights may grow, is chosen on the validation set.
    """
    best = (-1.0, None)
    for C in (1.0, 4.0, 16.0):
        counting = make_pipeline(
            make_union(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            ),
            LogisticRegression(C=C, max_iter=1000),
        ).fit(train.texts, train.labels)
        accuracy = counting.score(valid.texts, valid.labels)
        if accuracy > best[0]:
            best = (accuracy, counting)
    return best[1]
