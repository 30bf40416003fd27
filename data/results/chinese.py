"""Notebook 08's long training: a small Chinese BERT, and what its reading is worth in labels.

    python data/results/chinese.py

pretrains once (2,000 steps), fine-tunes 24 times, counts 12 times, and writes `chinese.jsonl` beside
this file, one line per measurement: 10 to 30 minutes on two cores. Stopped, it goes on where it was.
"""

import json
import tempfile
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import minitransformer as mt

LENGTH, STEPS, LABELS, SEEDS = 64, 2000, (100, 300, 1000, 3000), range(3)
HOLES = ("房间很干[MASK]", "这本书[MASK]常好", "服务态[MASK]很差", "性价[MASK]不高")


def fine_tuned(few, valid, test, letters, config, seed, weights):
    """The test accuracy after 100 steps on a few reviews, from given weights or from new ones."""
    torch.manual_seed(seed)
    encoder = mt.Encoder(config.with_(dropout=0.1, attention_dropout=0.1))
    if weights is not None:
        encoder.load_state_dict(weights)
    model = mt.SequenceClassifier(encoder, 2, pooling="mean", seed=seed)
    parts = [mt.data.encode(p, letters, LENGTH) for p in (few, valid.sample(min(len(few), 300)))]
    lr = 2e-3 if weights is None else 1e-3  # each was the better on validation
    mt.finetune(model, *parts, steps=100, validate_every=50, lr=lr, seed=seed, progress=False)
    return mt.evaluate(model, mt.data.encode(test, letters, LENGTH)).accuracy


def counted(few, valid, test):
    """The test accuracy of TF-IDF and logistic regression, its one setting chosen on validation."""
    best = (0.0, 0.0)
    some = valid.sample(min(len(few), 300))
    for C in (1.0, 4.0, 16.0):
        counts = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        model = make_pipeline(counts, LogisticRegression(C=C, max_iter=1000))
        model.fit(few.texts, few.labels)
        scores = model.score(some.texts, some.labels), model.score(test.texts, test.labels)
        best = max(best, scores)
    return best[1]


def main():
    texts, unseen = mt.data.corpus("chinese_reviews")
    letters = mt.data.train_tokenizer(
        texts, "characters", bert=True, min_count=5, max_length=10_000
    )
    end = letters.id_of("[SEP]")
    parts = [
        mt.data.MaskedTexts(
            mt.data.pack(mt.data.encode(t, letters), LENGTH, end), letters, share=0.3
        )
        for t in (texts, unseen)
    ]
    config = mt.TransformerConfig.bert(
        vocab_size=letters.vocab_size, d_model=128, n_heads=4, n_layers=4, d_ff=512,
        max_len=LENGTH, norm_position="pre", init_std=0.05, pooler=False, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = mt.MaskedLM(mt.Encoder(config))
    history = mt.pretrain(
        model, *parts, steps=STEPS, validate_every=100, lr=3e-3, batch_size=64,
        checkpoint=Path(tempfile.gettempdir()) / "minitransformer-chinese", checkpoint_every=100,
        resume=True,
    )  # fmt: skip

    path = Path(__file__).with_suffix(".jsonl")
    done = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    made = {tuple(json.loads(line).get(k) for k in ("way", "labels", "seed")) for line in done}
    with open(path, "a", encoding="utf-8") as file:

        def write(**line):
            print(json.dumps(line, ensure_ascii=False), file=file, flush=True)

        for v in () if any("step" in line for line in done) else history.validations:
            write(step=v["step"], loss=v["valid_loss"], right=v["valid_masked_accuracy"])
        for text in () if any("hole" in line for line in done) else HOLES:
            ids = torch.tensor([letters.encode(text)])
            hole = (ids[0] == letters.id_of("[MASK]")).nonzero().item()
            with torch.no_grad():
                p = model(ids)[0, hole].softmax(-1).topk(3)
            guesses = zip(letters.tokens(p.indices.tolist()), p.values.tolist(), strict=True)
            write(hole=text, guesses=[[token, round(share, 3)] for token, share in guesses])
        train, valid, test = mt.data.load("chinese_reviews").split(seed=0)
        test = test.sample(1000)
        for seed in SEEDS:
            for n in LABELS:
                few = train.sample(n, seed)
                for way, weights in (("new", None), ("pretrained", model.encoder.state_dict())):
                    if (way, n, seed) not in made:
                        a = fine_tuned(few, valid, test, letters, config, seed, weights)
                        write(way=way, labels=n, seed=seed, accuracy=a)
                if ("TF-IDF", n, seed) not in made:
                    a = counted(few, valid, test)
                    write(way="TF-IDF", labels=n, seed=seed, accuracy=a)


if __name__ == "__main__":
    main()
