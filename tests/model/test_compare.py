"""The table of switches."""

import pytest
import torch

import minitransformer as mt
from minitransformer.model.config import TransformerConfig


def test_only_what_differs_or_all_of_it_marked():
    bert, gpt2 = TransformerConfig.bert(), TransformerConfig.gpt2()
    few = mt.compare_switches(bert, gpt2, names=("BERT", "GPT-2"))
    every = mt.compare_switches(bert, gpt2, only_different=False)
    assert few.different == every.different == tuple(few.rows)
    assert set(every.rows) == set(vars(bert)) > set(few.rows)
    assert few.rows["norm_position"] == ("post", "pre") and "dropout" not in few.rows
    assert every.names == ("TransformerConfig", "TransformerConfig")
    assert "*  norm_position " in repr(every) and "\n   dropout " in repr(every)
    assert "<b>norm_position</b>" in every._repr_html_() and "<b>dropout" not in every._repr_html_()


def test_models_and_configs_alike():
    config = TransformerConfig.bert(
        vocab_size=9, d_model=6, n_heads=3, n_layers=1, d_ff=5, max_len=4
    )
    encoder = mt.Encoder(config)
    models = (config, encoder, mt.MaskedLM(encoder), mt.SequenceClassifier(encoder, 2))
    table = mt.compare_switches(*models)
    assert table.names[1:] == ("Encoder", "MaskedLM", "SequenceClassifier")
    assert table.different == () and repr(table) == "no switch differs"
    assert "no switch differs" in table._repr_html_()


def test_values_read_well():
    table = mt.compare_switches(*(TransformerConfig.t5(pad_id=i) for i in (None, 3)), names="ab")
    assert repr(table).splitlines()[-1].split() == ["*", "pad_id", "-", "3"]
    html = mt.compare_switches(TransformerConfig.t5(), names=["<i>"], only_different=False)
    assert "&lt;i&gt;" in html._repr_html_() and "<td>yes</td>" in html._repr_html_()


def test_what_has_no_switches_is_refused():
    with pytest.raises(TypeError, match="a Linear has no TransformerConfig"):
        mt.compare_switches(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="give the models"):
        mt.compare_switches()
    with pytest.raises(ValueError, match="there are 1 models and 2 names"):
        mt.compare_switches(TransformerConfig(), names=("a", "b"))
