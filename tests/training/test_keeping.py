"""Freed memory stays with the process within, and goes at the end; in clean processes."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of memory")

BEGUN = """
from pathlib import Path

import torch

from glmkit.training.keeping import freed_memory_kept

LARGE = 128 << 20


def after_a_step():
    torch.ones(LARGE // 4)
    said = Path("/proc/self/status").read_text()
    return 1024 * int(said.split("VmRSS:")[1].split()[0]) - LARGE // 2


without = after_a_step() + LARGE // 2
"""
ENDS = """
with freed_memory_kept():
    print(after_a_step() > without)
print(after_a_step() < without)
"""
FAILS = """
try:
    with freed_memory_kept():
        after_a_step()
        raise KeyError
except KeyError:
    print(after_a_step() < without)
"""


def test_memory_stays_within_and_goes_at_the_end(forks):
    assert forks.run(BEGUN + ENDS).split() == ["True", "True"]


def test_it_ends_with_errors_too(forks):
    assert forks.run(BEGUN + FAILS).split() == ["True"]
