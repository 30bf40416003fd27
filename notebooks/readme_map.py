"""Write the parts of README.md that follow from the code: where each formula is, and how long the files are.

    python notebooks/readme_map.py

A test fails when README.md and the code no longer agree; this command mends it.
"""

import ast
from pathlib import Path

import minitransformer as mt

ROOT = Path(__file__).parents[1]
PACKAGE = "minitransformer"

FILES = (
    ("formulas/by_hand.py", "every formula in NumPy, index by index"),
    ("formulas/ops.py", "the same in torch, written out: softmax, attention, norms, loss, AdamW"),
    ("model/config.py", "one model, many families: the switches"),
    ("model/attention.py", "multi-head attention and its masks"),
    ("model/layers.py", "embeddings, norms, feed-forward"),
    ("model/block.py", "the encoder's and the decoder's block"),
    ("model/transformer.py", "encoder, decoder, both"),
    ("model/heads.py", "a classifier, three language models"),
    ("training/strategies.py", "which layers learn, when, and how fast"),
    ("training/loop.py", "batches train a model"),
)

# article section, what it is, then ledger ids, `file` or `file:name`, and the notebook
MAP = (
    ("2.1", "how BERT, GPT and T5 were pretrained", "training/objectives.py:masked_lm_loss training/objectives.py:causal_lm_loss data/spans.py:CorruptedSpans", "08"),
    ("2.1", "one model, three families", "model/config.py:TransformerConfig pretrained/checkpoints.py:load_pretrained", "09"),
    ("2.2, 3.1", "full, partial, frozen fine-tuning; gradual unfreezing; LoRA", "training/strategies.py:Full training/strategies.py:LastLayers training/strategies.py:HeadOnly training/strategies.py:GradualUnfreezing training/lora.py:LoRALinear", "11"),
    ("2.3, 8.1", "transfer to another domain", "lab/experiments.py:Lab lab/forgetting.py:pairing_accuracy", "13"),
    ("3.2", "five steps: data, head, loss, AdamW and its schedule, evaluation", "mean_pool pooler cross_entropy adamw training/optim.py:warmup_then_linear training/finetune.py:finetune training/evaluate.py:evaluate", "10"),
    ("3.2", "when training does not work", "classroom/clinic/patients.py classroom/clinic/instruments.py", "20"),
    ("4", "Attention(Q, K, V)", "softmax attention causal_mask", "01"),
    ("4", "head_i, MultiHead", "model/attention.py:split_heads multi_head_attention", "02"),
    ("4", "Encoder(x)", "encoder_sublayer layer_norm feed_forward post_ln_block pre_ln_block", "03"),
    ("4", "Decoder(y, z)", "decoder_sublayer post_ln_decoder_block pre_ln_decoder_block model/kv_cache.py", "04"),
    ("4", "both together", "embeddings sinusoidal_positions post_ln_transformer", "05"),
    ("4", "their derivatives", "formulas/gradients.py:attention_backward formulas/block_gradients.py", "06"),
    ("5", "the worked example: tokens", "data/vocabulary.py:train_tokenizer data/tokenizers.py:Tokenizer", "07"),
    ("5", "the worked example: the command", "commands/finetune.py", "10"),
    ("6.2", "writing: sampling, beams", "inference/generation.py:generate inference/beam_search.py:beam_search causal_lm", "15"),
    ("8.2", "how much data?", "lab/experiments.py:trials lab/baseline.py:tf_idf", "12"),
)  # fmt: skip


def files() -> str:
    """The reading list."""
    lines = []
    for number, (file, what) in enumerate(FILES, 1):
        length = len((ROOT / PACKAGE / file).read_text().splitlines())
        lines.append(f"{number}. [`{file}`]({PACKAGE}/{file}) ({length} lines): {what}")
    return "\n".join(lines)


def table() -> str:
    """The map from the article to the code."""
    lines = ["| article | what | code | notebook |", "| --- | --- | --- | --- |"]
    for section, what, places, number in MAP:
        links = ", ".join(link(place) for place in places.split())
        (notebook,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        lines.append(f"| {section} | {what} | {links} | [{number}](notebooks/{notebook.name}) |")
    return "\n".join(lines)


def link(place: str) -> str:
    """A link to the line of a formula, a name or a file."""
    file, _, name = place.partition(":")
    if "." not in file:  # a formula's id
        file, line = mt.ledger.where(place).split(":")
        return f"[`{place}`]({PACKAGE}/{file}#L{line})"
    if not name:
        return f"[`{file}`]({PACKAGE}/{file})"
    tree = ast.parse((ROOT / PACKAGE / file).read_text())
    line = next(node.lineno for node in tree.body if getattr(node, "name", "") == name)
    return f"[`{name}`]({PACKAGE}/{file}#L{line})"


def written(readme: str) -> str:
    """The README with its generated parts renewed."""
    for mark, part in (("files", files()), ("map", table())):
        before, rest = readme.split(f"<!-- {mark} -->\n")
        after = rest.split(f"<!-- /{mark} -->")[1]
        readme = f"{before}<!-- {mark} -->\n{part}\n<!-- /{mark} -->{after}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
