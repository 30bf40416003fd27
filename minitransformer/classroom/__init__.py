"""Checks that say which mistake was made, the mistakes that they know, and a clinic of models with one."""
