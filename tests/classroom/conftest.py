"""The search for the line at fault takes up to three seconds; `test_lines` alone switches it on."""

import pytest

from minitransformer.classroom.engine import lines


@pytest.fixture(autouse=True)
def no_search(monkeypatch):
    monkeypatch.setattr(lines, "SECONDS", 0.0)
