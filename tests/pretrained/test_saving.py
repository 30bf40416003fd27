"""A saved folder is the old model or the new one, and never somebody else's folder."""

import json
import shutil

import pytest
import torch
from killing import killed_at_every_call

import minitransformer as mt
from minitransformer.pretrained.checkpoints import refuse_foreign

WORDS = ["good", "bad", "film", "plot", "the", "a"]


@pytest.fixture(scope="module")
def words():
    return mt.data.train_tokenizer([" ".join(WORDS)] * 3, "words", 60, 16, bert=True)


def classifier(tokenizer, seed: int, labels: tuple[str, ...]) -> mt.SequenceClassifier:
    torch.manual_seed(seed)
    config = mt.TransformerConfig.bert(
        vocab_size=tokenizer.vocab_size, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_len=16
    )
    model = mt.SequenceClassifier(mt.Encoder(config), len(labels), "mean")
    model.labels = labels
    return model.eval()


def gpt(tokenizer) -> mt.CausalLM:
    config = mt.TransformerConfig.gpt2(
        vocab_size=tokenizer.vocab_size, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_len=16
    )
    return mt.CausalLM(mt.Decoder(config))


def test_killed_at_any_system_call_the_old_or_the_new_model_answers(words, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)
    models = [classifier(words, 0, ("bad", "good")), classifier(words, 1, ("good", "bad"))]
    data = mt.data.encode(["good film", "bad plot the a"], words)
    old = mt.save_pretrained(models[0], words, tmp_path / "old")
    (old / "vocab.txt").write_text("of the old model")
    folder, answers = tmp_path / "model", [(m.labels, mt.predict(m, data).tolist()) for m in models]

    def copy() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)

    seen = []
    for _ in killed_at_every_call(lambda: mt.save_pretrained(models[1], words, folder), copy):
        again, tokenizer = mt.load_pretrained(folder)
        seen.append(answers.index((again.labels, mt.predict(again, data).tolist())))
        assert tokenizer.to_json() == words.to_json()
        refuse_foreign(folder)
    assert seen == sorted(seen) and {*seen} == {0, 1}
    assert not (folder / "vocab.txt").exists(), "nothing of the old model is left"


def test_somebody_elses_config_is_no_model(words, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "my app"}')
    (tmp_path / "tokenizer.json").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is not a model's folder"):
            mt.save_pretrained(gpt(words), words, tmp_path, overwrite)
    for text in ("[]", "not JSON", '{"model_type": 3}', "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(FileExistsError, match="is not a model's folder"):
            refuse_foreign(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "keep"
    for text in ('"minitransformer": 3', '"architectures": "x"', '"architectures": [null]'):
        (tmp_path / "config.json").write_text(f'{{"model_type": "bert", {text}}}')
        with pytest.raises(FileExistsError, match="a model of another kind"):
            refuse_foreign(tmp_path, ["GPT2LMHeadModel"])


def test_a_model_of_another_kind_is_replaced_only_when_asked(words, tmp_path):
    model = classifier(words, 0, ("bad", "good"))
    kinds = [model.encoder, model, mt.MaskedLM(model.encoder), gpt(words)]
    folder = tmp_path / "model"
    for before in kinds:
        mt.save_pretrained(before, words, folder, overwrite=True)
        mt.save_pretrained(before, words, folder)  # its own kind
        with_a_head = kinds[1:3] if before is model.encoder else []
        for other in (m for m in kinds if m is not before and m not in with_a_head):
            with pytest.raises(FileExistsError, match=r"a model of another kind, .*overwrite=True"):
                mt.save_pretrained(other, words, folder)
        for other in with_a_head:
            mt.save_pretrained(other, words, folder)
            mt.save_pretrained(before, words, folder, overwrite=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gpt2"
