"""A training step of 32 x 32 tokens at MiniLM's size: ours, Hugging Face's BertModel, nn.TransformerEncoder.

    python tests/benchmarks/training_step.py

"forward and backward" gives the three the same embedded input and float32 precision: the blocks
alone. "a whole step" starts from ids and ends with clipping and AdamW, each as its users write it:
torch's default optimizer and precision beside ours, and beside it the others with our optimizer
and precision too, so that one sees what the model itself gives.
"""

import torch
from common import interleave, machine, table
from torch import nn
from transformers import BertConfig, BertModel

import minitransformer as mt
from minitransformer.training.precision import matmul_precision

BATCH, LENGTH, D_MODEL, HEADS, LAYERS, D_FF, VOCAB = 32, 32, 384, 12, 6, 1536, 30522


class TorchEncoder(nn.Module):
    """Embeddings and torch's own encoder."""

    def __init__(self, dropout: float):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, D_MODEL), nn.Embedding(512, D_MODEL)
        layer = nn.TransformerEncoderLayer(D_MODEL, HEADS, D_FF, dropout, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.blocks(x, src_key_padding_mask=ids == 0)


def build(dropout: float) -> dict[str, nn.Module]:
    """The three models, in training mode."""
    torch.manual_seed(0)
    config = mt.TransformerConfig.bert(
        vocab_size=VOCAB, d_model=D_MODEL, n_heads=HEADS, n_layers=LAYERS, d_ff=D_FF,
        dropout=dropout, attention_dropout=dropout, pooler=False,
    )  # fmt: skip
    hf = BertConfig(
        vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=D_FF, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    models = {
        "nn.TransformerEncoder": TorchEncoder(dropout),
        "Hugging Face, sdpa": BertModel(hf, add_pooling_layer=False),
        "Hugging Face, eager": BertModel(hf, add_pooling_layer=False),
        "ours": mt.Encoder(config),
    }
    models["Hugging Face, sdpa"].set_attn_implementation("sdpa")
    models["Hugging Face, eager"].set_attn_implementation("eager")
    return {name: model.train() for name, model in models.items()}


def hidden_of(name: str, model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The last layer's output for ids."""
    if name.startswith("Hugging Face"):
        return model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    return model(ids)


def stepper(name: str, model: nn.Module, ids: torch.Tensor, optimizer, precision: str):
    """One training step as a function without arguments."""

    def step():
        with matmul_precision(precision):
            hidden = hidden_of(name, model, ids)
            (hidden * hidden).mean().backward()
        if optimizer is not None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.zero_grad()

    return step


def main(rounds: int = 9) -> None:
    ids = torch.randint(1, VOCAB, (BATCH, LENGTH))
    ids[::4, -5:] = 0  # a little padding, as bucketed batches have
    print(machine())
    for dropout in (0.1, 0.0):
        models = build(dropout)
        for precision in ("highest", "medium", "bfloat16"):
            steps = {n: stepper(n, m, ids, None, precision) for n, m in models.items()}
            title = f"forward and backward, dropout {dropout}, all in {precision}"
            print(table(title, interleave(steps, rounds), "Hugging Face, eager"), flush=True)
        whole = {}
        for name, model in models.items():
            ours = name == "ours"
            optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=ours or None)
            whole[name] = stepper(name, model, ids, optimizer, "medium" if ours else "highest")
        title = f"a whole step with AdamW, dropout {dropout}, each as its users write it"
        print(table(title, interleave(whole, rounds), "Hugging Face, eager"), flush=True)


if __name__ == "__main__":
    main()
