"""Experiments: strategies by numbers of labels and seeds, beside baselines, with their costs.

Reading order: `experiments`, `results`, `baseline`, `forgetting`, `memory`."""
