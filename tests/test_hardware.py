"""Types of numbers that the machine emulates, and what is said of them."""

import pytest
import torch

from foretell import demo, hardware
from foretell.cli import common, watching

CPU = torch.device("cpu")


@pytest.fixture
def emulated(monkeypatch):
    """A machine that emulates bfloat16, and computes everything else as fast as float32."""
    hardware.slowdown.cache_clear()
    monkeypatch.setattr(hardware, "_seconds", lambda dtype: 46.6 if dtype == torch.bfloat16 else 1)
    yield
    hardware.slowdown.cache_clear()


def test_float32_and_accelerators_are_never_slow(emulated):
    assert hardware.slowdown(torch.float32) == 1.0
    assert hardware.slowdown(torch.bfloat16, "cuda") == 1.0


def test_products_are_timed_on_this_machine():
    hardware.slowdown.cache_clear()
    assert 0.05 < hardware.slowdown(torch.bfloat16) < 5000


def test_commands_warn_of_an_emulated_type(emulated, capsys):
    common.warn_slow(torch.float16, CPU, "unused")
    assert capsys.readouterr().err == ""
    common.warn_slow(torch.bfloat16, CPU, "leave --dtype at auto")
    assert capsys.readouterr().err == (
        "Warning: this CPU emulates bfloat16: products of matrices take 47 times as long as in "
        "float32; leave --dtype at auto.\n"
    )


def test_the_demo_trains_in_what_the_machine_computes_fast(emulated, monkeypatch):
    assert demo.training_config(1.0, 0).precision == "float32"
    hardware.slowdown.cache_clear()
    monkeypatch.setattr(hardware, "_seconds", lambda dtype: 1)
    assert demo.training_config(1.0, 0).precision == "bf16-mixed"


def test_a_run_in_float32_is_told_of_a_faster_type(emulated, monkeypatch):
    monkeypatch.setattr(hardware, "QUICK", 0.67)
    assert watching.describe_precision(CPU) is None
    hardware.slowdown.cache_clear()
    monkeypatch.setattr(hardware, "_seconds", lambda dtype: 4 if dtype == torch.float32 else 1)
    assert watching.describe_precision(torch.device("cuda")) is None
    assert watching.describe_precision(CPU) == (
        "This CPU multiplies matrices 4.0 times as fast in bfloat16 as in float32: --precision "
        "bf16-mixed is likely to train faster."
    )
