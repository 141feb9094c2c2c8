"""Where and in which type to compute, by name, and what the machine computes fast."""

import time
from functools import cache

import torch

from foretell.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types of weights by their names."""

SLOW = 3.0
"""Times as long as float32 from which a type is called slow: emulated ones take 10 to 100."""
QUICK = 0.67
"""Times as long as float32 up to which a type is worth a try in its place."""
_SIZE = 256
_TRIES = 3


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first accelerator, or the CPU.

    Raises:
        InputError: it is not available here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator()
        return (
            found if found is not None and torch.accelerator.is_available() else torch.device("cpu")
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        device = torch.device("meta")
    if device.type == "meta":  # nothing can be computed there
        raise InputError(f"device {name!r} is not available here; use auto or cpu.")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """The type of that name; `auto` is float32 on a CPU, and elsewhere `"auto"`, the stored type.

    Raises:
        InputError: the name is none of `DTYPES`.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


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


def is_quick(dtype: torch.dtype, device_type: str = "cpu") -> bool:
    """Whether training in `dtype` is likely to be faster than in float32 there."""
    return slowdown(dtype, device_type) < QUICK


def _seconds(dtype: torch.dtype) -> float:
    """Of one matrix product, the best of some."""
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    taken = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        matrix @ matrix
        taken.append(time.perf_counter() - began)
    return min(taken)
