"""Draw the README's figure: `python notebooks/readme_figure.py` writes notebooks/attention.png.

One sentence in the real model: what four of its 72 heads look at, layer by layer.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import minitransformer as mt
from minitransformer import plots

SENTENCE = "The plot is thin, but she saves it."
HEADS = {  # (layer, head), counted from 0
    (0, 2): "layer 1: the token before",
    (1, 4): "layer 2: the tokens after",
    (2, 0): "layer 3: “it” finds “saves”",
    (5, 8): "layer 6: what matters",
}

encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
ids = tokenizer.batch([SENTENCE]).ids
tokens, maps = tokenizer.tokens(ids[0]), mt.attention_maps(encoder, ids)

_, axes = plt.subplots(1, 4, figsize=(12, 4.2), dpi=80, sharey=True, layout="constrained")
for ax, (layer, head) in zip(axes, HEADS, strict=True):
    plots.attention(maps[layer][0, head], tokens, title=HEADS[layer, head], ax=ax)
    ax.set(ylabel="query: looking" if ax is axes[0] else "")
plt.suptitle(
    r"$\mathrm{softmax}(QK^\top/\sqrt{d_k})$ of a real sentence in a real model", fontsize=13
)
plt.savefig(Path(__file__).parent / "attention.png")
