"""Odd settings in a folder's files: followed as transformers' Auto classes do, or rejected by name.

Each case changes a small folder. `None` means that ours must equal theirs in ids, special ids,
padding, cutting, probabilities and generated ids, in the folder and in the folder that we write from
it; a text must be in our error.
"""

import json
import shutil
import warnings

import pytest
import torch
from tiny_bert import hf_model
from tiny_models import hf_gpt2, hf_t5
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Tokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

import minitransformer as mt

WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] <s> </s> <pad> <unk> schön schon Über über uber ##s a b don
' t 中文 中 文 good bad film 12 x y z [E1] q Ab ab é e ! p u v w"""
WORDS = WORDS.split()
TEXTS = [
    "Schön über a  don't",
    "good 中文",
    "Ab [MASK] b [E1] é!",
    "<s> film x <new> </s>",
    "12\tbad",
]
AUTO = {
    mt.SequenceClassifier: AutoModelForSequenceClassification,
    mt.MaskedLM: AutoModelForMaskedLM,
    mt.CausalLM: AutoModelForCausalLM,
    mt.Seq2SeqLM: AutoModelForSeq2SeqLM,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """One small folder per family, with both kinds of tokenizer files where there are two."""
    root = tmp_path_factory.mktemp("bases")
    small = dict(vocab_size=len(WORDS), num_hidden_layers=1)
    hf_model(BertForSequenceClassification, num_labels=3, **small).save_pretrained(root / "bert")
    hf_model(BertForMaskedLM, **small).save_pretrained(root / "masked")
    for name in ("bert", "masked"):
        (root / name / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    shutil.copytree(root / "bert", root / "bert.json")
    BertTokenizer(str(root / "bert" / "vocab.txt")).save_pretrained(root / "bert.json")
    (root / "bert.json" / "vocab.txt").unlink()

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [*TEXTS, "the new film"], 262, special_tokens=["<|endoftext|>", "<x>"]
    )
    size = trained.get_vocab_size() + 2  # 264: two rows to spare
    ids = dict(bos_token_id=0, eos_token_id=5, pad_token_id=1)
    hf_gpt2(vocab_size=size, n_layer=1, n_positions=64, **ids).save_pretrained(root / "gpt2")
    trained.save_model(str(root / "gpt2"))
    shutil.copytree(root / "gpt2", root / "gpt2.json")
    files = (str(root / "gpt2" / name) for name in ("vocab.json", "merges.txt"))
    GPT2Tokenizer(*files, pad_token="<x>").save_pretrained(root / "gpt2.json")
    for name in ("vocab.json", "merges.txt"):
        (root / "gpt2.json" / name).unlink()

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("<new>", 0.0)]
    pieces += [(c, -3.0 - i / 9) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz'!12")]
    hf_t5(num_layers=1, num_decoder_layers=1, eos_token_id=1).save_pretrained(root / "t5")
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(root / "t5")
    pieces = [("<s>", 0.0), *pieces[:4], ("<mask>", 0.0), *pieces[5:]]
    hf_model(BertForMaskedLM, vocab_size=41, num_hidden_layers=1).save_pretrained(root / "xlm")
    XLMRobertaTokenizer(vocab=pieces).save_pretrained(root / "xlm")
    return root


def changed(bases, base: str, folder, changes: dict):
    """A copy of a base: `{file: entries}`; `...` removes an entry; None removes the file."""
    shutil.copytree(bases / base, folder)
    for name, entries in changes.items():
        path = folder / (name if "." in name else f"{name}.json")
        if entries is None:
            path.unlink()
            continue
        old = json.loads(path.read_text()) if path.exists() else {}
        for entry, value in entries.items():
            *way, last = entry.split("/")
            place = old
            for key in way:
                place = place[key]
            place[last] = value
            if value is ...:
                del place[last]
        path.write_text(json.dumps(old))
    return folder


def compare(folder, ours, tokenizer, outputs: bool) -> None:
    """Ids, special ids, padding, cutting and, if asked, outputs, against the Auto classes."""
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode_all(TEXTS, special=True) == theirs(TEXTS, truncation=True)["input_ids"]
    for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
        token = tokenizer.roles.get(f"{role}_token")
        found = None if token is None else tokenizer.id_of(token)
        assert found == getattr(theirs, f"{role}_token_id"), role
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = theirs(TEXTS, truncation=True, max_length=6)["input_ids"]
        assert tokenizer.encode_all(TEXTS, 6, special=True) == cut
        assert tokenizer.max_length == min(theirs.model_max_length, ours_config(ours).max_len)
    batch = tokenizer.batch(TEXTS, special=True)
    if theirs.pad_token is None:
        theirs.pad_token = theirs.eos_token
    padded = theirs(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(batch.ids, padded["input_ids"])
    assert torch.equal(batch.keep[:, 0, 0].long(), padded["attention_mask"])
    if not outputs:
        return
    hf = AUTO[type(ours)].from_pretrained(folder, attn_implementation="eager").eval()
    ids, mask = padded["input_ids"], padded["attention_mask"]
    with torch.no_grad():
        if isinstance(ours, mt.SequenceClassifier | mt.MaskedLM):
            logits, expected = ours(batch.ids, batch.keep), hf(ids, attention_mask=mask).logits
            real = mask.bool() if isinstance(ours, mt.MaskedLM) else slice(None)
            torch.testing.assert_close(logits[real].softmax(-1), expected[real].softmax(-1))
            if isinstance(ours, mt.SequenceClassifier):
                assert dict(enumerate(ours.labels)) == hf.config.id2label
                assert ours.dropout.p == hf.dropout.p
            return
        if isinstance(ours, mt.CausalLM):  # theirs goes on behind padding on the right
            theirs.padding_side = "left"
            padded = theirs(TEXTS, padding=True, truncation=True, return_tensors="pt")
            ids, mask = padded["input_ids"], padded["attention_mask"]
        kwargs = dict(max_new_tokens=9, do_sample=False)
        expected = hf.generate(input_ids=ids, attention_mask=mask, **kwargs)
        written = mt.generate(ours, batch.ids, 9, batch.keep)
        start = 1 if isinstance(ours, mt.Seq2SeqLM) else ids.shape[1]
        ends = hf.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        assert texts_of(written, start, ends) == texts_of(expected, start, ends)


def ours_config(model):
    return model.encoder.config if isinstance(model, mt.SequenceClassifier) else model.config


def texts_of(ids, start, ends):
    rows = ids[:, start:].tolist()
    stops = [next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]


def said(**entries):
    return {"tokenizer_config": entries}


TC, MAP, ADDED, CONFIG = "tokenizer_config", "special_tokens_map", "added_tokens", "config"
GEN, JSON = "generation_config", "tokenizer"
TOKEN = dict(lstrip=True, rstrip=False, normalized=False, single_word=False)
CASES = [
    # --- tokenizer_config.json beside a vocab.txt
    ("bert", {}, None),
    ("masked", {}, None),
    ("bert", said(do_lower_case=False), None),
    ("bert", said(strip_accents=False), None),
    ("bert", said(do_lower_case=False, strip_accents=True), None),
    ("bert", said(tokenize_chinese_chars=False), None),
    ("bert", said(do_lower_case="false"), "do_lower_case 'false'"),
    ("bert", said(do_lower_case=None), "do_lower_case None"),
    ("bert", said(strip_accents=1), "strip_accents 1"),
    ("bert", said(do_basic_tokenize=False), "do_basic_tokenize False"),
    ("bert", said(never_split=["Ab"]), "never_split ['Ab']"),
    ("bert", said(split_special_tokens=True), "split_special_tokens True"),
    ("bert", said(truncation_side="left"), None),
    ("bert", said(truncation_side="top"), "truncation_side 'top'"),
    ("bert", said(padding_side="left"), "padding_side 'left'"),
    ("bert", said(model_max_length=9), None),
    ("bert", said(model_max_length=10**30), None),
    ("bert", said(model_max_length="9"), "model_max_length '9'"),
    ("bert", said(tokenizer_class="BertTokenizerFast", do_lower_case=False), None),
    ("bert", said(tokenizer_class="DistilBertTokenizer", do_lower_case=False), None),
    ("bert", said(tokenizer_class="BertJapaneseTokenizer"), "'BertJapaneseTokenizer' is not"),
    ("bert", said(tokenizer_class="RobertaTokenizer"), "'RobertaTokenizer' is not"),
    ("bert", said(tokenizer_class="GPT2Tokenizer"), "GPT2Tokenizer"),
    ("bert", said(auto_map={"AutoTokenizer": ["a.B", None]}), "auto_map"),
    ("bert", {CONFIG: {"tokenizer_class": "BertJapaneseTokenizer"}}, "'BertJapaneseTokenizer' is"),
    # --- special tokens
    ("bert", said(cls_token="<s>", sep_token="</s>"), None),
    ("bert", said(pad_token="<pad>", unk_token="<unk>"), None),
    ("bert", {MAP: {"cls_token": "<s>", "unk_token": {"content": "<unk>", **TOKEN}}}, None),
    ("bert", {TC: {"pad_token": "<pad>"}, MAP: {"pad_token": "[PAD]"}}, None),
    ("bert", said(mask_token={"content": "[MASK]", **TOKEN, "__type": "AddedToken"}), None),
    ("bert", said(pad_token="<new>"), "<new>"),
    ("bert", said(pad_token=3), "pad_token must be a text, got 3"),
    ("bert", {MAP: {"additional_special_tokens": ["[E1]"]}}, None),
    ("bert", said(extra_special_tokens={"entity": "[E1]"}), None),
    ("bert", {ADDED: {"[E1]": WORDS.index("[E1]")}}, None),
    ("bert", {ADDED: {"[E1]": 9}}, "'[E1]' should have id 9"),
    ("bert", {ADDED: {"<new>": len(WORDS)}}, "<new>"),
    ("bert", {ADDED: {"[E1]": None}}, "'[E1]' should have id None"),
    ("bert", said(additional_special_tokens="[E1]"), "additional_special_tokens must be a list"),
    ("bert", said(added_tokens_decoder=["[E1]"]), "added_tokens_decoder is not an object"),
    ("bert", said(added_tokens_decoder={"x": {"content": "Ab"}}), "'Ab' should have id x"),
    ("bert", said(added_tokens_decoder={"3": 7}), "added_tokens_decoder must be a text, got 7"),
    ("bert", said(added_tokens_decoder={"32": {"content": "Ab", "special": False}}), None),
    ("bert", {TC: {"added_tokens_decoder": {}}, MAP: {"cls_token": "<s>"}}, None),
    # --- beside a tokenizer.json
    ("bert.json", {}, None),
    ("bert.json", said(do_lower_case=False), None),
    ("bert.json", said(do_lower_case=False, strip_accents=True), None),
    ("bert.json", said(tokenize_chinese_chars=False), None),
    ("bert.json", said(cls_token="<s>"), None),
    ("bert.json", {JSON: {"normalizer/lowercase": False}}, None),
    ("bert.json", {JSON: {"normalizer/lowercase": False}, TC: {"do_lower_case": ...}}, None),
    ("bert.json", {JSON: {"normalizer/lowercase": False}, TC: None}, "another way"),
    ("bert.json", {JSON: {"normalizer": None}}, None),
    ("bert.json", {JSON: {"pre_tokenizer": {"type": "Whitespace"}}}, None),
    ("bert.json", said(tokenizer_class="PreTrainedTokenizerFast"), None),
    ("bert.json", {JSON: {"normalizer": {"type": "Lowercase"}},
                   TC: {"tokenizer_class": "PreTrainedTokenizerFast"}}, "another way"),
    ("bert.json", {JSON: {"normalizer": {"type": "Lowercase"}},
                   TC: {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": ...,
                        "strip_accents": ..., "tokenize_chinese_chars": ...}}, None),
    ("bert.json", said(tokenizer_class="TokenizersBackend", do_lower_case=False), "another way"),
    ("bert.json", said(tokenizer_class="T5Tokenizer"), "T5Tokenizer"),
    ("bert.json", {JSON: {"truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0,
                                         "direction": "Left"}}}, None),
    ("bert.json", said(pad_token="<pad>"), None),
    ("gpt2", {}, None),
    ("gpt2", said(pad_token="<x>", padding_side="left"), None),
    ("gpt2", said(add_prefix_space=True), None),
    ("gpt2", said(add_prefix_space="yes"), "add_prefix_space 'yes'"),
    ("gpt2", said(add_bos_token=True), "add_bos_token True"),
    ("gpt2", said(bos_token="<x>", eos_token="<x>"), None),
    ("gpt2", {ADDED: {"<new>": 262}, MAP: {"pad_token": "<new>"}}, None),
    ("gpt2", {ADDED: {"<new>": 262}}, None),
    ("gpt2", {ADDED: {"<new>": 262, "<b>": 263, "<c>": 264}}, "<c>"),
    ("gpt2", {MAP: {"pad_token": {"content": "<x>", **TOKEN}}}, None),
    ("gpt2.json", said(add_prefix_space=True), None),
    ("gpt2.json", {JSON: {"pre_tokenizer/add_prefix_space": True},
                   TC: {"add_prefix_space": ...}}, "another way"),
    ("gpt2.json", said(tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=True), "another"),
    ("gpt2.json", said(padding_side="left", truncation_side="left"), None),
    ("gpt2.json", said(pad_token="<new>"), None),
    ("t5", {}, None),
    ("t5", said(padding_side="left"), None),
    ("t5", said(eos_token="<new>"), "eos_token='<new>'"),
    ("xlm", said(model_max_length=17), None),
    ("xlm", said(add_prefix_space=False), None),
    # --- config.json: the head
    ("bert", {CONFIG: {"architectures": ["BertForTokenClassification"]}}, "BertForTokenClassific"),
    ("bert", {CONFIG: {"architectures": ["BertForMultipleChoice"]}}, "BertForMultipleChoice"),
    ("bert", {CONFIG: {"architectures": "BertModel"}}, "architectures 'BertModel'"),
    ("bert", {CONFIG: {"architectures": ...}}, "architectures is None"),
    ("bert", {CONFIG: {"architectures": ["BertModel"]}}, "unexpected: classifier.weight"),
    ("masked", {CONFIG: {"architectures": ["BertForSequenceClassification"]}}, "no classifier.wei"),
    ("masked", {CONFIG: {"architectures": ["BertForNextSentencePrediction"]}}, "NextSentence"),
    ("bert", {CONFIG: {"problem_type": "multi_label_classification"}}, "multi_label_classification"),
    ("bert", {CONFIG: {"problem_type": "regression"}}, "regression"),
    ("bert", {CONFIG: {"problem_type": "single_label_classification"}}, None),
    ("bert", {CONFIG: {"id2label": {"0": "x", "1": "y", "2": "z"}}}, None),
    ("bert", {CONFIG: {"id2label": {"0": 1, "1": 2, "2": 3}}}, "id2label must name"),
    ("bert", {CONFIG: {"id2label": ["x", "y", "z"]}}, "id2label is not an object"),
    ("bert", {CONFIG: {"classifier_dropout": 0.4}}, None),
    ("bert", {CONFIG: {"classifier_dropout": "0.4"}}, "classifier_dropout must be a number"),
    ("gpt2", {CONFIG: {"architectures": ["GPT2ForSequenceClassification"]}}, "GPT2ForSequence"),
    ("gpt2", {CONFIG: {"architectures": ["GPT2DoubleHeadsModel"]}}, "GPT2DoubleHeadsModel"),
    ("t5", {CONFIG: {"architectures": ["T5EncoderModel"]}}, "T5EncoderModel"),
    # --- config.json: numbers
    *(("bert", {CONFIG: {entry: value}}, f"{entry} must")
      for entry, values in {"layer_norm_eps": (None, "1e-12", True, -1.0, float("nan")),
                            "hidden_dropout_prob": (None, "0.1", False),
                            "hidden_size": (None, "21", 21.0, True),
                            "type_vocab_size": (None, "2", True),
                            "initializer_range": (None, "0.02", True),
                            "pad_token_id": ("0", True, -1, 0.0),
                            "tie_word_embeddings": (None, "true", 1)}.items()
      for value in values),
    *(("gpt2", {CONFIG: {entry: value}}, f"{entry} must")
      for entry, values in {"n_inner": ("34", True, 34.0), "scale_attn_weights": (None, "true", 1),
                            "n_positions": (None, "64"), "bos_token_id": ("0", True)}.items()
      for value in values),
    *(("t5", {CONFIG: {entry: value}}, f"{entry} must")
      for entry, values in {"num_decoder_layers": ("1", True), "dropout_rate": (None, "0.1"),
                            "scale_decoder_outputs": (None, "true", 1),
                            "decoder_start_token_id": ("0", True)}.items()
      for value in values),
    ("bert", {CONFIG: {"hidden_act": ["gelu"]}}, "hidden_act ['gelu'] is not known"),
    ("t5", {CONFIG: {"feed_forward_proj": 3}}, "feed_forward_proj '3' is not known"),
    # --- config.json: the rest
    ("gpt2", {CONFIG: {"embd_pdrop": 0.3}}, "embd_pdrop 0.3 is not supported"),
    ("gpt2", {CONFIG: {"resid_pdrop": 0.3, "embd_pdrop": ...}}, "embd_pdrop 0.1 is not supported"),
    ("gpt2", {CONFIG: {"resid_pdrop": 0.3, "embd_pdrop": 0.3}}, None),
    ("gpt2", {CONFIG: {"hidden_size": 21}}, None),
    ("gpt2", {CONFIG: {"n_embd": ..., "hidden_size": 21}}, "hidden_size must be what n_embd is"),
    ("gpt2", {CONFIG: {"num_hidden_layers": 2}}, "num_hidden_layers must"),
    ("t5", {CONFIG: {"head_dim": 7}}, "head_dim must be what d_kv is, got 7"),
    ("bert", {CONFIG: {"quantization_config": {"bits": 8}}}, "quantization_config"),
    ("bert", {CONFIG: {"auto_map": {"AutoModel": "a.B"}}}, "auto_map"),
    ("bert", {CONFIG: {"pruned_heads": {"0": [1]}}}, "pruned_heads"),
    ("bert", {CONFIG: {"is_decoder": "false"}}, "is_decoder 'false'"),
    ("bert", {CONFIG: {"chunk_size_feed_forward": 1, "output_attentions": True}}, None),
    ("masked", {CONFIG: {"tie_word_embeddings": False}}, "missing: head.weight"),
    # --- generation_config.json
    ("gpt2", {GEN: {"eos_token_id": [7, 9]}}, None),
    ("gpt2", {GEN: None, CONFIG: {"eos_token_id": [7, 9]}}, None),
    ("gpt2", {GEN: {"eos_token_id": ...}}, None),
    ("gpt2", {GEN: {"eos_token_id": True}}, "eos_token_id must"),
    ("gpt2", {GEN: {"eos_token_id": [7, "9"]}}, "eos_token_id must"),
    ("t5", {GEN: {"decoder_start_token_id": 9, "eos_token_id": [4, 6]}}, None),
    ("gpt2", {GEN: {"max_length": 30, "temperature": 1.0, "top_k": 50, "num_beams": 1}}, None),
    *(("gpt2", {GEN: entry}, f"asks for {next(iter(entry))}=") for entry in (
        {"repetition_penalty": 1.3}, {"num_beams": 3}, {"do_sample": True}, {"forced_eos_token_id": 4},
        {"no_repeat_ngram_size": 2}, {"min_new_tokens": 4}, {"suppress_tokens": [3]},
        {"begin_suppress_tokens": [3]}, {"bad_words_ids": [[3]]}, {"forced_bos_token_id": 4},
        {"length_penalty": 2.0}, {"early_stopping": True}, {"something_new": 3})),
]  # fmt: skip


def name_of(case) -> str:
    base, changes, _ = case
    return f"{base} {json.dumps(changes, default=lambda _: '...', ensure_ascii=True)}"[:110]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_an_odd_setting_is_followed_or_rejected_by_name(bases, tmp_path, case):
    base, changes, message = case
    folder = changed(bases, base, tmp_path / "folder", changes)
    if message is not None:
        with pytest.raises(ValueError) as error:
            ours, tokenizer = mt.load_pretrained(folder)
            if base in ("gpt2", "t5"):
                mt.generate(ours, torch.tensor([[3]]), 2)
        assert message in str(error.value)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, tokenizer = mt.load_pretrained(folder)
    outputs = not changes or bool({CONFIG, GEN} & changes.keys())
    compare(folder, ours, tokenizer, outputs)
    written = mt.save_pretrained(ours, tokenizer, tmp_path / "written")
    compare(written, ours, tokenizer, outputs)
    again, same = mt.load_pretrained(written)
    assert ours_config(again) == ours_config(ours) and same.to_json() == tokenizer.to_json()
    sides = ("roles", "padding_side", "truncation_side", "max_length", "pad_id")
    assert all(getattr(same, side) == getattr(tokenizer, side) for side in sides)
