"""Weights of 8 bits: exact products, and decoding that is lossless against the quantised model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import families
import foretell as ft
from command_line import fine, refused
from foretell.backbone.int8 import Int8Linear, largest, multiply, quantize, quantize_within
from foretell.checkpoints import Adapters
from foretell.decoding import drafter_for
from foretell.errors import BackboneError, CheckpointError, InputError


def exact(rows: Tensor, integers: Tensor, scales: Tensor) -> Tensor:
    """The product with inputs in two bytes, in integers of any size."""
    own = rows.abs().amax(1, keepdim=True) / 127
    coarse = (rows / own).round()
    fine = ((rows / own - coarse) * 254).round()
    whole = (254 * coarse + fine).long() @ integers.long().t()
    return (whole.double() / 254 * own.double() * scales.double()).float()


@pytest.mark.parametrize("outputs", [1, 3, 48])
@pytest.mark.parametrize("width", [2, 31, 64, 577])
@pytest.mark.parametrize("count", [1, 2, 5, 70])
def test_products_are_exact(count: int, width: int, outputs: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(count, width) * torch.logspace(-3, 3, count).unsqueeze(1)
    integers = torch.randint(-largest(), largest() + 1, (outputs, width), dtype=torch.int8)
    scales = torch.rand(outputs)
    expected = exact(rows, integers, scales)
    tolerance = 1e-6 * float(expected.abs().max())
    found = multiply(rows, integers, scales)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance)


EXTREMES = """
import torch
from foretell.backbone.int8 import largest, multiply
rows = torch.cat([torch.ones(3, 96), -torch.ones(3, 96)])
integers = torch.full((16, 96), largest(), dtype=torch.int8)
integers[8:] *= -1
found = multiply(rows, integers, torch.ones(16))
assert (found.abs() == 96 * largest()).all(), found
print(largest())
"""


@pytest.mark.parametrize("instructions", ["", "AVX2"])
def test_the_largest_numbers_do_not_overflow(instructions: str) -> None:
    """Without VNNI, oneDNN adds pairs in 16 bits, which end at 32,767."""
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions} if instructions else os.environ
    ran = subprocess.run(
        [sys.executable, "-c", EXTREMES], env=limited, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) in (63, 127)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_nearly_what_it_gave(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 80, bias=bias)
    rows = torch.randn(2, 7, 96)
    rows[..., 5] *= 100  # of single bytes nothing but this would be left
    given, expected = Int8Linear.of(layer.weight, layer.bias)(rows), layer(rows).detach()
    assert given.shape == expected.shape
    assert float((given - expected).norm() / expected.norm()) < 0.01
    assert not torch.equal(given, expected)


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    torch.manual_seed(0)
    layer = Int8Linear.of(torch.randn(80, 96), None)
    rows = torch.randn(40, 96)
    together = layer(rows)
    for count in (1, 2, 3, 5, 8, 33):
        assert torch.equal(layer(rows[4 : 4 + count]), together[4 : 4 + count])


def test_rows_of_zeros_give_zeros_and_what_is_no_number_stays_none() -> None:
    layer = Int8Linear.of(torch.randn(80, 96), None)
    assert (layer(torch.zeros(2, 96)) == 0).all()
    assert layer(torch.full((2, 96), torch.nan)).isnan().all()


def test_no_rows_give_none() -> None:
    assert Int8Linear.of(torch.randn(80, 96), None)(torch.zeros(2, 0, 96)).shape == (2, 0, 80)


def test_scales_stay_exact_and_the_layer_on_a_cpu() -> None:
    layer = Int8Linear.of(torch.randn(80, 96), torch.randn(80))
    scales = layer.scales.clone()
    layer.to(torch.bfloat16)
    assert torch.equal(layer.scales, scales)
    assert layer(torch.ones(1, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(BackboneError, match="are for CPUs, and the model is on meta"):
        layer(torch.ones(1, 96, device="meta"))


def test_some_outputs_are_those_of_all() -> None:
    torch.manual_seed(0)
    layer, rows = Int8Linear.of(torch.randn(80, 96), torch.randn(80)), torch.randn(3, 96)
    places = torch.tensor([3, 7, 50])
    assert torch.equal(layer.some(places)(rows), layer(rows)[:, places])


def test_a_module_in_two_places_stays_one() -> None:
    shared = nn.Linear(64, 64)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": Conv1D(64, 96)})
    model["d"] = shared
    expected = model["c"](torch.ones(96))
    quantize_within(model)
    assert model["a"] is model["b"][0] is model["d"]
    assert isinstance(model["a"], Int8Linear)
    torch.testing.assert_close(model["c"](torch.ones(96)), expected, rtol=0.02, atol=0.02)


HEADS = {
    "sequential": ft.SequentialHeads.Config(depth=3, vocabulary=64),
    "parallel": ft.ParallelHeads.Config(depth=3),
    "residual": ft.ResidualHeads.Config(depth=2),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2", "lfm2"])
def test_drafts_are_lossless_against_the_quantised_model(family: str, kind: str) -> None:
    torch.manual_seed(5)
    model = ft.MTPModel(families.build(family), HEADS[kind]).eval()
    prompt = families.prompt(1, 9, seed=3)
    before = model.lm(prompt).logits.detach()
    model.quantize()
    after = model.lm(prompt).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.1
    expected = model.lm.generate(prompt, max_new_tokens=16, do_sample=False)
    own = drafter_for(model.backbone, model.require_head())
    for drafter in (own, "lookup", "none"):
        found = model.generate(prompt, max_new_tokens=16, drafter=drafter)
        assert torch.equal(found, expected), drafter


def test_an_input_embedding_keeps_its_numbers_and_a_tied_output_head_does_not() -> None:
    model = ft.MTPModel(families.build("gemma2"))
    table = model.lm.get_input_embeddings().weight.clone()
    model.quantize()
    assert torch.equal(model.lm.get_input_embeddings().weight, table)
    assert isinstance(model.lm.get_output_embeddings(), Int8Linear)
    assert model.backbone.vocab_size == len(table)


def test_once_more_changes_nothing() -> None:
    model = ft.attach(families.build("llama"), depth=2)
    model.quantize()
    kept = list(model.modules())
    model.quantize()
    assert kept == list(model.modules())


def test_it_is_another_backbone_and_says_how_it_is_stored() -> None:
    model = ft.attach(families.build("llama"), depth=2)
    before = model.fingerprint()
    model.quantize()
    assert model.fingerprint() != before
    assert model.backbone.packed_by == "torch.int8"


def test_it_is_for_decoding(tmp_path: Path) -> None:
    model = ft.attach(families.build("llama"), "sequential", depth=2)
    model.quantize()
    for path in (None, "somewhere"):
        with pytest.raises(CheckpointError, match="rounded to 8 bits"):
            model.save_pretrained(tmp_path / "saved", backbone_path=path)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    embedded = model.lm.get_input_embeddings()(families.prompt(1, 9)).requires_grad_()
    with pytest.raises(BackboneError, match="are for decoding: no gradient passes"):
        model.lm(inputs_embeds=embedded)


def test_a_model_with_too_few_linear_layers_is_refused_as_it_was() -> None:
    model = ft.MTPModel(families.build("mixtral"))
    expected = model.lm(families.prompt(1, 9)).logits
    with pytest.raises(BackboneError, match=r"Mixtral\w+ has \d+% of its weights in linear"):
        model.quantize()
    assert torch.equal(model.lm(families.prompt(1, 9)).logits, expected)


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_a_model_that_reads_weights_past_their_layers_is_refused_as_it_was(family: str) -> None:
    size = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 101, "time_step_rank": 32}
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **size)).eval()
    expected = lm(families.prompt(1, 9), use_cache=False).logits
    with pytest.raises(BackboneError, match="reads a weight past its layer; decode it without"):
        quantize(lm)
    assert torch.equal(lm(families.prompt(1, 9), use_cache=False).logits, expected)


def test_adapters_are_merged_before_and_not_after() -> None:
    model = ft.attach(families.build("llama"), depth=1)
    model.adapt(lambda lm: Adapters.add(lm, rank=2, alpha=4.0, dropout=0.0, targets="all-linear"))
    model.quantize()
    with pytest.raises(InputError, match="merge them, then quantize"):
        model.merge_adapters()


def test_commands_can_be_told() -> None:
    asked = [
        "generate",
        "tiny-mtp",
        "--prompt",
        "def main(",
        "--max-new-tokens",
        "12",
        "--json",
        "-",
    ]
    drafted, plain = (
        json.loads(fine(*asked, "--quantize", "int8", *more)) for more in ([], ["--plain"])
    )
    assert drafted["settings"]["quantize"] == "int8"
    assert drafted["provenance"]["dtype"] == "int8"
    assert drafted["settings"]["token_ids"] == plain["settings"]["token_ids"]
    assert "weights can be rounded to int8 only" in refused(*asked, "--quantize", "int3")
