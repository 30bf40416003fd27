"""Formulas become modules."""
