"""The command line: `python -m minitransformer COMMAND --help`."""

import argparse
import errno
import os
import sys
import warnings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error of the user's prints one clear line and exits with 2."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only
    try:
        args = parser().parse_args(arguments)
        from .options import check_numbers

        for name, value in vars(args).items():
            check_numbers(f"--{name.replace('_', '-')}", **{name: value})
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_, **__: print("note:", text, file=sys.stderr)
            code = args.run(args)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # whoever reads the output, such as `head`, has enough
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        return 0
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        return failed(f"{reason}; make room" if error.errno == errno.ENOSPC else reason)
    except (ValueError, TypeError, KeyError, FloatingPointError) as error:
        # str(KeyError) is the repr of its message
        return failed(error.args[0] if isinstance(error, KeyError) else error)
    except KeyboardInterrupt as stop:
        print(f"\nstopped; {str(stop) or 'nothing was written'}", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("MINITRANSFORMER_TRACEBACK"):
            raise
        kind = type(error).__name__
        advice = "to see where, set the environment variable MINITRANSFORMER_TRACEBACK=1"
        return failed(f"an error that was not foreseen, {kind}: {error}; {advice}")


def failed(problem: object) -> int:
    """Print what went wrong; the exit code."""
    print(f"minitransformer: {problem}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    # here, so that a Ctrl-C meets `main`
    from .commands import evaluate, experiment, finetune, grade, mistakes, predict, pretrain, verify

    top = argparse.ArgumentParser(
        prog="python -m minitransformer",
        description="Check the formulas, pretrain or fine-tune a model on texts, and use it.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (verify, mistakes, finetune, pretrain, experiment, predict, evaluate, grade):
        command.add(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
