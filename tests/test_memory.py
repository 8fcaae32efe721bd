"""The most memory that a command held."""

import sys

import pytest

from vitalk.errors import UserError
from vitalk.memory import peak_memory


def test_peak_memory_is_the_commands_own():
    ballast = bytearray(300_000_000)  # what the caller holds must not count
    idle = peak_memory([sys.executable, "-S", "-c", "pass"])
    busy = peak_memory([sys.executable, "-S", "-c", "bytearray(100_000_000)"])
    assert 1e6 < idle < 1e8 and 0.9e8 < busy - idle < 1.2e8
    assert len(ballast) == 300_000_000


def test_peak_memory_of_a_command_that_fails():
    with pytest.raises(UserError, match=r"failed: .*no luck"):
        peak_memory([sys.executable, "-c", "raise SystemExit('no luck')"])
