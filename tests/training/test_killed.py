"""A run that is killed at any moment goes on as if it had not been; a file of its own, for it takes long."""

import pytest
from crash import torture


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(tmp_path, kills):
    """`python tests/crash.py --kills 20` does it twenty times."""
    assert torture(tmp_path, kills, iterations=12 * kills, seed=1, longest=2.0 * kills, report=str) == []
