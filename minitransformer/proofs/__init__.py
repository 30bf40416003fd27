"""The proofs: every formula compared with every other implementation of it.

Reading order:

- `formula`: one row, a formula and everything that computes it;
- `draws`: random inputs;
- `rows_formulas`, `rows_modules`, `rows_decoder`, `rows_models`: the rows;
- `measure`: the errors of one row;
- `ledger`: all rows, and `show`, a row on a card;
- `verify`: the errors of all rows as a table.
"""
