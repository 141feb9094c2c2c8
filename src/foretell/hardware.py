"""What the machine computes fast."""

import time
from functools import cache

import torch

SLOW = 3.0
"""Times as long as float32 from which a type is called slow: emulated ones take 10 to 100."""
_SIZE = 256
_TRIES = 3


@cache
def slowdown(dtype: torch.dtype, device_type: str = "cpu") -> float:
    """How many times as long a matrix product takes in `dtype` as in float32; 1 off the CPU.

    Tried once per process (some ms): CPUs without instructions for bfloat16 or float16 emulate
    them, and what tells these CPUs apart differs from vendor to vendor.
    """
    if device_type != "cpu" or dtype == torch.float32:
        return 1.0
    return _seconds(dtype) / _seconds(torch.float32)


def is_slow(dtype: torch.dtype, device_type: str = "cpu") -> bool:
    """Whether training and wide passes in `dtype` would better be done in float32 there."""
    return slowdown(dtype, device_type) > SLOW


def _seconds(dtype: torch.dtype) -> float:
    """Of one matrix product, the best of some."""
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    taken = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        matrix @ matrix
        taken.append(time.perf_counter() - began)
    return min(taken)
