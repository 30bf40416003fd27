"""The command line: `python -m minitransformer COMMAND --help`."""

import argparse
import sys
import warnings

from .commands import evaluate, experiment, finetune, grade, mistakes, predict, pretrain, verify

COMMANDS = (verify, mistakes, finetune, pretrain, experiment, predict, evaluate, grade)
"""In the order of `--help`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error of the user's prints one clear line and exits with 2."""
    args = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_, **__: print("note:", text, file=sys.stderr)
            return args.run(args)
    except (OSError, ValueError, KeyError, FloatingPointError) as error:
        # str(KeyError) is the repr of its message
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"minitransformer: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nstopped; {str(stop) or 'nothing was written'}", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m minitransformer",
        description="Check the formulas, pretrain or fine-tune a model on texts, and use it.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
