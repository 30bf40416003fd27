"""Small GPT-2 and T5 folders as transformers writes them, and the comparison with them."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

VOCAB = 41


def randomise(model: torch.nn.Module, std: float = 0.25) -> torch.nn.Module:
    """Weights of this order, random biases and gains: nothing hides behind small or plain ones."""
    for number, (name, p) in enumerate(model.named_parameters()):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        gain = "ln_" in name or "layer_norm" in name
        p.data = 1 + 0.3 * noise if gain and name.endswith("weight") else std * noise
    return model.eval()


def hf_gpt2(**changes) -> GPT2LMHeadModel:
    sizes = dict(
        vocab_size=VOCAB, n_embd=21, n_head=3, n_layer=3, n_inner=34, n_positions=17,
        attn_implementation="eager", bos_token_id=40, eos_token_id=40,
    )  # fmt: skip
    return randomise(GPT2LMHeadModel(GPT2Config(**(sizes | changes))))


def hf_t5(**changes) -> T5ForConditionalGeneration:
    """v1.0; v1.1 with `V1_1`."""
    sizes = dict(
        vocab_size=VOCAB, d_model=22, num_heads=3, d_kv=5, num_layers=2, num_decoder_layers=3,
        d_ff=34, relative_attention_num_buckets=8, relative_attention_max_distance=12,
        attn_implementation="eager", decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(**(sizes | changes)))
    if (
        not model.config.scale_decoder_outputs
    ):  # v1.1's last map is its own, which the config says not
        model.lm_head.weight = torch.nn.Parameter(torch.empty(model.lm_head.weight.shape))
    return randomise(model, std=0.2)


V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def words(*special: str) -> Tokenizer:
    """A tokenizer of whole words, `VOCAB` in all."""
    pieces = [*special, *(f"w{i}" for i in range(VOCAB - len(special)))]
    backend = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, special[-1]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special))
    return backend


def save(model, folder):
    """A folder as transformers writes it, with a tokenizer.json."""
    model.save_pretrained(folder)
    t5 = model.config.model_type == "t5"
    backend = words("<pad>", "</s>", "<unk>") if t5 else words("<|endoftext|>")
    backend.save(str(folder / "tokenizer.json"))
    return folder


def padded(padding: str, length: int = 11, seed: int = 1):
    """Ids, and which of them are real; the first row has no padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (4, length), generator=generator)
    real = torch.ones_like(ids, dtype=torch.bool)
    for n in range(1, 4):
        if padding == "left":
            real[n, : 2 * n] = False
        if padding == "right":
            real[n, -2 * n :] = False
    return ids.where(real, 0), real
