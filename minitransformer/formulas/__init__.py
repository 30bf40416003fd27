"""The mathematics: every formula by hand, in torch twice, and the ledger that proves them equal."""
