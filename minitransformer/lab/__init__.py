"""Experiments: strategies compared over numbers of labels and seeds, with baselines and costs.

Reading order: `grid` (which trials to make), `results` (what comes of them), `experiments` (the
runner), `baseline` (counting words), `forgetting` and `memory` (what a training costs).
"""
