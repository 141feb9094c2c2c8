"""Products through oneDNN's layouts: the numbers of the modules, and modules left as they were."""

import gc
from functools import partial
from types import MethodType
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

import families
import foretell as ft
from foretell.backbone import Backbone, products
from foretell.backbone.products import Products
from foretell.decoding import ModelDrafter

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)

WIDE = 48


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every product that went through a layout."""
    rows: list[int] = []
    real = products._multiply

    def counted(given: Tensor, *rest: Any) -> Tensor:
        rows.append(given.numel() // given.shape[-1])
        return real(given, *rest)

    monkeypatch.setattr(products, "_multiply", counted)
    return rows


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 5), (7,), (), (2, 0), (2, 300)])
def test_products_are_those_of_the_module(
    shape: tuple[int, ...], bias: bool, quick: list[int]
) -> None:
    torch.manual_seed(0)
    module = nn.Linear(WIDE, 33, bias=bias)
    given = torch.randn(*shape, WIDE)
    expected = F.linear(
        given.double(), module.weight.double(), module.bias.double() if bias else None
    )
    with torch.inference_mode(), Products(module).quick():
        close(module(given), expected.float())
        if len(shape) == 2:
            close(module(given.transpose(0, 1)), expected.float().transpose(0, 1))
    count = given.numel() // WIDE
    assert set(quick) == ({count} if 2 <= count <= 32 else set())


def test_weights_that_change_are_multiplied_as_they_are(quick: list[int]) -> None:
    module, given = nn.Linear(WIDE, WIDE), torch.randn(3, WIDE)
    known = Products(module)

    def check() -> None:
        expected = F.linear(given, module.weight, module.bias)
        with torch.no_grad(), known.quick():
            close(module(given), expected)

    check()
    assert len(quick) == 1
    with torch.no_grad():
        module.weight.mul_(2)
    check()
    module.load_state_dict(nn.Linear(WIDE, WIDE).state_dict())
    check()
    module.weight = nn.Parameter(torch.randn(WIDE, WIDE))
    check()
    assert len(quick) == 1  # not through a layout of weights that are gone
    known = Products(module)
    check()
    assert len(quick) == 2
    module.weight.data[7, 3] += 0.5  # which PyTorch does not count
    known = Products(module)
    check()
    assert len(quick) == 3
    module.weight.data = module.weight.data.t().contiguous().t()  # stored by columns
    known = Products(module)
    check()
    assert len(quick) == 4


def test_gradients_and_autocast_do_without(quick: list[int]) -> None:
    module, given = nn.Linear(WIDE, WIDE), torch.randn(3, WIDE)
    known = Products(module)
    with known.quick():
        module(given).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(given).dtype == torch.bfloat16
    assert module.weight.grad is not None
    assert not quick


def test_modules_are_left_as_they_were() -> None:
    plain, own = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)
    forward = MethodType(lambda self, given: given, own)
    own.forward = forward  # type: ignore[method-assign]
    both = nn.Sequential(plain, own)
    known = Products(both)
    with known.quick():
        assert "forward" in vars(plain)
        assert own.forward is forward
        with pytest.raises(RuntimeError, match="shape"), known.quick():
            plain(torch.ones(WIDE + 1))
        assert "forward" in vars(plain)
    assert "forward" not in vars(plain)
    assert own.forward is forward


class Derived(nn.Linear):
    """Computes something else, perhaps."""


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(WIDE, WIDE, dtype=torch.bfloat16),
        nn.Linear(WIDE, WIDE, dtype=torch.float64),
        nn.Linear(WIDE, WIDE, device="meta"),
        Derived(WIDE, WIDE),
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(WIDE, WIDE)),
    ],
)
def test_what_is_no_plain_matrix_in_float32_is_left_alone(module: nn.Module) -> None:
    assert not Products(module).modules


def test_small_matrices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", WIDE * WIDE + 1)
    assert not Products(nn.Linear(WIDE, WIDE)).modules
    assert Products(nn.Linear(WIDE, WIDE + 1)).modules


def test_a_model_too_large_for_the_memory_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE))
    assert len(Products(module).modules) == 2
    other = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE))
    monkeypatch.setattr(products, "SHARE", 0.0)
    assert not Products(other).modules
    assert len(Products(module).modules) == 2  # they have them already


def test_layouts_go_with_their_weights() -> None:
    module = nn.Linear(WIDE, WIDE)
    Products(module)
    packed = ref(products._layouts[module.weight].packed)
    del module
    gc.collect()
    assert packed() is None


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_passes_go_through_them(family: str, quick: list[int]) -> None:
    """Those of the backbone, of heads with a vocabulary of their own, and of a draft model."""
    torch.manual_seed(0)
    lm, draft = families.build(family), Backbone(families.build(family))
    config = ft.SequentialHeads.Config(depth=4, vocabulary=families.VOCAB // 2)
    model, ids = ft.attach(lm, config).eval(), families.prompt(1, 9)
    expected = lm.generate(ids, max_new_tokens=12, do_sample=False)
    for drafter in ("none", "heads", "lookup", ModelDrafter(model.backbone, draft)):
        quick.clear()
        found = model.generate(ids, max_new_tokens=12, drafter=drafter, do_sample=False)
        assert found.tolist() == expected.tolist()
        assert set(quick) >= {"none": {9}, "lookup": {9}}.get(str(drafter), {9, 5})
    assert not [
        module for module in (*lm.modules(), *draft.model.modules()) if "forward" in vars(module)
    ]


def test_compiled_passes_go_through_them(
    small_llama: PreTrainedModel, quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = ft.attach(small_llama, "sequential", depth=2).eval()
    ids = torch.arange(9).unsqueeze(0)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    torch.compiler.reset()
    quick.clear()
    found = model.generate(ids, max_new_tokens=8, do_sample=False, compiled=True)
    torch.compiler.reset()
    assert found.tolist() == expected.tolist()
    assert quick.count(3) > 7  # of a pass over a token and two drafted ones
