"""Freed memory stays within, and goes at the end; measured by what the system has to hand out."""

import resource
import sys

import pytest
import torch

from glmkit.training.keeping import freed_memory_kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of Linux")
MOST = 9 << 20
"""Numbers of 36 MB: more than the C library would ever keep by itself."""


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def pages_of_steps() -> int:
    """Return the pages that steps get from the system, after a first one that took more."""
    torch.ones(MOST)
    before = faults()
    for _ in range(24):
        torch.ones(MOST - (1 << 20))
    return faults() - before


@pytest.mark.usefixtures("one_thread")
def test_later_steps_get_the_memory_of_the_first():
    with freed_memory_kept():
        within = pages_of_steps()
    assert within < pages_of_steps() / 2


def test_it_ends_with_errors_too():
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
