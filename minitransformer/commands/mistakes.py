"""`python -m minitransformer mistakes`: check that the exercises recognise their mistakes."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser("mistakes", help="make every known mistake; exit 1 if one goes unseen")
    p.add_argument("exercises", nargs="*", help="names such as attention softmax; all by default")
    p.add_argument("--list", action="store_true", help="only list them, with the term they break")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print which mistakes the exercises recognise, or only list those they know."""
    from ..classroom.audit import catalogue, listed

    if args.list:
        print(listed(args.exercises or None))
        return 0
    found = catalogue(args.exercises or None)
    print(found)
    return 0 if found.ok else 1
