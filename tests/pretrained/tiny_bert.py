"""Small BERT folders as transformers writes them, and ways to spoil them."""

import json

import safetensors.torch
import torch
from transformers import BertConfig, BertModel

VOCAB = 41
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB - 5))]


def hf_model(cls=BertModel, seed: int = 0, **changes):
    """A small model of transformers' with weights of order 1: nothing hides behind small ones."""
    sizes = dict(
        vocab_size=VOCAB, hidden_size=21, num_attention_heads=3, num_hidden_layers=3,
        intermediate_size=34, max_position_embeddings=17, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager", layer_norm_eps=1e-3,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = cls(BertConfig(**(sizes | changes)))
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
        p.data = 1 + 0.3 * noise if "LayerNorm.weight" in name else 0.3 * noise
    return model.eval()


def save(model, folder, **options):
    """A folder as transformers writes it, with a vocab.txt."""
    model.save_pretrained(folder, **options)
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    return folder


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    state = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file(state, path, {"format": "pt"})
