"""The ledger: every formula's row, and what compares its implementations.

Reading order: `ledger`, `verify`, `draws`, then the rows."""
