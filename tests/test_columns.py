"""Weights stored by columns say the same, and come back as they were."""

import torch
from torch import nn

import foretell as ft
from foretell.decoding import store_by_columns
from foretell.decoding.columns import LARGEST


def test_small_float32_matrices_change_their_order_and_nothing_else():
    kept = nn.Linear(4, 3)
    model = nn.ModuleDict(
        {"small": nn.Linear(4, 3), "large": nn.Linear(1, LARGEST), "other": nn.Linear(4, 3).half()}
    )
    model["small"].load_state_dict(kept.state_dict())
    for _ in range(2):
        store_by_columns(model)
        assert model["small"].weight.stride() == (1, 3)
        assert torch.equal(model["small"].weight, kept.weight)
    assert model["large"].weight.is_contiguous()
    assert model["other"].weight.is_contiguous()


def test_a_model_decodes_and_saves_as_before(small_llama, tmp_path):
    model = ft.attach(small_llama, "parallel", depth=2).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    before, lm = model.decode(ids, max_new_tokens=12), model.lm
    weights = {name: value.clone() for name, value in lm.state_dict().items()}
    store_by_columns(lm)
    assert model.decode(ids, max_new_tokens=12).steps == before.steps
    model.save_pretrained(tmp_path)
    again = ft.MTPModel.from_pretrained(tmp_path).lm.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
