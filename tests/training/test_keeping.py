"""Freed memory stays with the process within, and goes at the end."""

import sys
from pathlib import Path

import pytest
import torch

from glmkit.training.keeping import freed_memory_kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of memory")
LARGE = 128 << 20


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    said = Path("/proc/self/status").read_text()
    return 1024 * int(said.split("VmRSS:")[1].split()[0])


def after_a_step() -> int:
    torch.ones(LARGE // 4)
    return resident()


@pytest.mark.usefixtures("one_thread")
def test_memory_stays_within_and_goes_at_the_end():
    without = after_a_step()
    with freed_memory_kept():
        assert after_a_step() > without + LARGE // 2
    assert resident() < without + LARGE // 2


def test_it_ends_with_errors_too():
    without = after_a_step()
    with pytest.raises(KeyError), freed_memory_kept():
        after_a_step()
        raise KeyError
    assert resident() < without + LARGE // 2
