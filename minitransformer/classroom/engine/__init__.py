"""How a check answers: mistakes as patches of the right answer, diagnosis, limits.

Reading order: `patches`, `diagnosis`, `several`, `limits`."""
