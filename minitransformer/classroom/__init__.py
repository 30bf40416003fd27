"""Checks that say which mistake was made, and the mistakes that they know."""
