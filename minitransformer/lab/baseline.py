"""The bar to clear: counting words."""

from typing import TYPE_CHECKING

from ..data.datasets import LabelledTexts

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def tf_idf(train: LabelledTexts, valid: LabelledTexts) -> "Pipeline":
    """Logistic regression on TF-IDF counts of words, word pairs and pieces of words.

    Its one setting, the strength of the regularisation, is chosen on the validation set.
    """
    # here, since scikit-learn takes a second to load
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    fitted = [
        make_pipeline(
            make_union(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            ),
            LogisticRegression(C=C, max_iter=1000),
        ).fit(train.texts, train.labels)
        for C in (1.0, 4.0, 16.0)
    ]
    return max(fitted, key=lambda counting: counting.score(valid.texts, valid.labels))
