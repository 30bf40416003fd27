"""Batches train a model."""
