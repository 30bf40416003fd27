"""The commands of the command line, one module each: `add` declares its options, `run` runs it.

`run` imports what it needs when it runs, so that `--help`, a mistyped option and a missing file are
answered before torch is loaded, which takes seconds.

Reading order, that of `--help`: `verify`, `mistakes`, `finetune`, `pretrain`, `experiment`,
`predict`, `evaluate`, `grade`; `inputs` has what several of them read.
"""
