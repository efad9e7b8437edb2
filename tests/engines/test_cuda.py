"""The promise on a GPU: what CUDA writes with a cache is what the CPU computes without one."""

import pytest

from families import FAMILIES, SLOTTED
from flashback.patterns.registry import PATTERNS
from on_device import CUDA, check_a_long_text


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_equals_the_cpus_recomputation(family: str, pattern: str, device: str) -> None:
    """With jumps, passages that repeat, and some that are not found."""
    if pattern == "slot" and family not in SLOTTED:
        pytest.skip("sliding windows have no slot")
    if device == "cpu" and family != "llama":
        pytest.skip("test_parity.py and test_slot.py check the CPU")
    check_a_long_text(family, pattern, device)
