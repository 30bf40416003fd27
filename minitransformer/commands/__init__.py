"""The commands of the command line: one module each, with `add` and `run`.

`run` imports what it needs when it runs: `--help`, a mistyped option and a missing file are answered
before torch is loaded, which takes seconds.
"""
