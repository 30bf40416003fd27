"""How a check answers: mistakes as patches of the right answer, diagnosis, limits.

Reading order: `patches`, `diagnosis`, then what it is made of: `running`, `numbers`, `limits`; `quiz`."""
