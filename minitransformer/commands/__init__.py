"""Commands that are too long for `__main__`: one module each, with `add` and `run`."""
