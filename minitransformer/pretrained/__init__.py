"""Checkpoints in and out, in the formats of Hugging Face's `transformers`.

Reading order: `checkpoints` (folders and files), `hf_config` (what a family's module must have, and
what all share), then the families: `bert`, `gpt2`, `t5`.
"""

from .checkpoints import load_pretrained, save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]
