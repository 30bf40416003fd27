"""The bar to clear: counting words."""

from typing import TYPE_CHECKING

from ..data.datasets import LabelledTexts

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def tf_idf(train: LabelledTexts, valid: LabelledTexts) -> "Pipeline":
    """Logistic regression on weighed counts of words, pairs of words and pieces of words.

    Its one setting, how far the weights may grow, is chosen on the validation set.
    """
    # here, since scikit-learn takes a second to load
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

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
