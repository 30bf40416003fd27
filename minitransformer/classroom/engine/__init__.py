"""How a check answers: mistakes as patches of the right answer, and the diagnosis that names them.

Reading order: `patches`, `diagnosis`, `several`, `quiz`, then their parts: `running`, `numbers`, `limits`, `lines`, `edits`."""
