"""`python -m minitransformer verify`: check that every formula holds."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser("verify", help="check every formula of the ledger; exit 1 if one fails")
    p.add_argument("formulas", nargs="*", help="ids such as attention layer_norm; all by default")
    p.add_argument("--seed", type=int, default=20171206, help="of the random inputs")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the ledger."""
    from ..proofs.verify import verify

    found = verify(args.formulas or None, args.seed)
    print(found)
    return 0 if found.ok else 1
