"""Models, prompts and drafters of tests that decode."""

from functools import cache

import torch
from torch import Tensor

import families
import foretell as ft
from foretell.decoding import AutoLength, Committed, Draft, drafter_for

RECURRENT = {"mamba": "linear_attention"}
RESTORED = ["qwen3_next", "qwen3_5_text", "lfm2", "lfm2_conv"]
"""Families whose layers keep a state that is put back."""
SERVED = [name for name in families.FAMILIES if name not in {*families.UNFIT, *RECURRENT}]
SHAPES = {
    "plain": None,
    "trunk": ft.ParallelHeads.Config(depth=3),
    "final-copy": ft.ParallelHeads.Config(depth=3, tap="final", init="copy"),
    "sequential": ft.SequentialHeads.Config(depth=3),
    "shared": ft.SequentialHeads.Config(depth=2, shared=True, init="copy"),
    "causal": ft.ParallelHeads.Config(depth=3, variant="causal", init="copy"),
    "anticausal-weighted": ft.ParallelHeads.Config(depth=3, variant="anticausal", tap="weighted"),
    "linear-fused": ft.ParallelHeads.Config(depth=2, variant="linear", tap="fused"),
    "residual": ft.ResidualHeads.Config(depth=2),
}
HEADED = [shape for shape in SHAPES if shape != "plain"]
NEW = 14


@cache
def attached(family: str, shape: str) -> ft.MTPModel:
    torch.manual_seed(5)
    return ft.MTPModel(families.build(family), SHAPES[shape]).eval()


@cache
def prompts(family: str) -> tuple[Tensor, ...]:
    """One short, one that ends just before the sliding windows do, one past them."""
    return tuple(families.prompt(1, length, seed=length) for length in (1, 13, 29))


@cache
def reference(family: str, number: int, new: int = NEW) -> list[int]:
    """The continuation that transformers' own `generate` gives."""
    lm = attached(family, "plain").lm
    row = prompts(family)[number]
    mask = torch.ones_like(row)
    out = lm.generate(row, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True)
    continuation = out[0, row.shape[1] :].tolist()
    assert len(continuation) == new
    return continuation


class Checked:
    """Asks a drafter and checks its answer against the heads run over the whole row at once."""

    def __init__(self, model: ft.MTPModel) -> None:
        self.model, self.drafts = model, 0
        self.inner = drafter_for(model.backbone, model.require_head())
        self.layers, self.longest = self.inner.layers, self.inner.longest

    def start(self, past, sampler, rows, capacity) -> None:
        self.inner.start(past, sampler, rows, capacity)

    def draft(self, committed: Committed, limit: int) -> Draft:
        draft = self.inner.draft(committed, limit)
        assert draft.tokens.shape == (1, min(self.model.depth, limit))
        length = committed.lengths[0]
        last = length - 2  # the position the heads predict from
        row = torch.cat([committed.tokens[:, :length], draft.tokens], dim=1)
        output = self.model.backbone(row, layers=self.model.layers)
        torch.testing.assert_close(
            committed.output.final[:, committed.last[0]],
            output.final[:, last],
            rtol=1e-3,
            atol=1e-3,
        )
        self.compare(row, draft, output, last)
        return draft

    def compare(self, row, draft: Draft, output, last: int) -> None:
        """Every drafted token is what the heads say at place `last` of the row (1, T)."""
        states = self.model.depth_hidden(row, output)
        for token, state in zip(draft.tokens[0].tolist(), states, strict=False):
            logits = self.model.backbone.unembed(state[0, last])
            assert logits[token] >= logits.max() - 1e-3
            self.drafts += 1


def short_context(family: str) -> ft.MTPModel:
    config = families.FAMILIES[family]()
    for name in ("max_position_embeddings", "n_positions"):
        if hasattr(config, name):
            setattr(config, name, 24)
    torch.manual_seed(3)
    return ft.attach(type(families.build(family))(config).eval(), "sequential", depth=3)


class Told(AutoLength):
    """Chooses what it is told, over and over."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(max(lengths))
        self.lengths = lengths

    def choose(self) -> int:
        self.chosen.append(self.lengths[len(self.chosen) % len(self.lengths)])
        return self.chosen[-1]
