"""Batches train a model. In reading order:

- `objectives`: what is minimised; `optim`: AdamW's groups, the learning rate's schedules;
- `lora` and `strategies`: which layers learn, when, and how fast; `summary`: the same as a table;
- `history`, `checkpointing`: what happened in a run, and how it resumes;
- `precision`, `parallel`: one step's loss and gradient;
- `loop`: the training loop itself;
- `frozen_cache`, `rows_in_use`: work that fine-tuning need not do; `evaluate`: how good it is;
- `finetune`, `pretrain`: the loop for a classifier and for a language model; `from_scratch`: what a
  new language model needs.
"""
