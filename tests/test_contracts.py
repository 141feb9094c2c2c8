"""How engines run a chain: what is handed on, zeroed, normed, and whose past a draft continues."""

from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

import families
import foretell as ft
from foretell.decoding import Committed, Draft, drafter_for
from foretell.errors import BackboneError, HeadError, InputError
from foretell.heads import FINAL

NEW = 14
CHAIN = dict(depth=3, shared=True)
CONTRACTS = {
    "mimo": dict(tap="last", norms="backbone", recycle="normed", zero_first=True),
    "qwen3_next": dict(norms="backbone", recycle="normed"),
    "glm4_moe": dict(norms="backbone", zero_first=True),
    "eagle": dict(norms="none"),
    "eagle3": dict(tap="fused", norms="backbone", block="wide"),
}


@cache
def chain(family: str, contract: str, rollout: str) -> ft.MTPModel:
    torch.manual_seed(3)
    config = ft.SequentialHeads.Config(**CHAIN, **CONTRACTS[contract], rollout=rollout)
    model = ft.MTPModel(families.build(family), config).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "norm" in name:  # or norms that are left out would not be missed
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def rolled_out(model: ft.MTPModel, tokens: Tensor, length: int) -> list[Tensor]:
    """Logits of each drafted token behind `tokens` (1, T), with nothing kept: every step runs the
    module over everything before it.
    """
    head, backbone = model.head, model.backbone
    output = backbone(tokens[:, :-1], layers=head.layers)
    read = head.tap({FINAL: output.final, **output.states}, 1)
    ahead = backbone.embed(tokens[:, 1:])
    if head.config.zero_first:
        ahead = torch.cat([torch.zeros_like(ahead[:, :1]), ahead[:, 1:]], dim=1)
    logits, walked = [], tokens[:, :-1]
    following = tokens[:, -1:]
    for _ in range(length):
        call = backbone.block_call(walked, torch.arange(walked.shape[1]).unsqueeze(0), None)
        stream = head.step(read, ahead, 1, lambda block, x, depth: call(block, x))[:, -1:]  # noqa: B023
        normed = head.chain[0].norm(stream)
        logits.append(backbone.unembed(normed)[0, 0])
        handed = normed if head.config.recycle == "normed" else stream
        read = torch.cat([read, handed], dim=1)
        walked = torch.cat([walked, following], dim=1)
        following = logits[-1].argmax().view(1, 1)
        ahead = torch.cat([ahead, backbone.embed(following)], dim=1)
    return logits


class Checked:
    """A drafter, and beside it what it should draft; every other draft is made to be right."""

    def __init__(self, model: ft.MTPModel, continuation: list[int], begin: int) -> None:
        self.model, self.continuation, self.begin, self.rounds = model, continuation, begin, 0
        self.inner = drafter_for(model.backbone, model.head)
        self.layers, self.longest = self.inner.layers, self.inner.longest

    def start(self, past, sampler, rows, capacity) -> None:
        self.inner.start(past, sampler, rows, capacity)

    def draft(self, committed: Committed, limit: int) -> Draft:
        draft = self.inner.draft(committed, limit)
        length = committed.lengths[0]
        wanted = rolled_out(self.model, committed.tokens[:, :length], draft.size)
        for token, logits in zip(draft.tokens[0].tolist(), wanted, strict=True):
            assert logits[token] >= logits.max() - 1e-3
        self.rounds += 1
        right = self.continuation[length - self.begin :][: self.rounds % 4][: draft.size]
        tokens = draft.tokens.clone()
        tokens[0, : len(right)] = torch.tensor(right, dtype=torch.long)
        return Draft(tokens)


@pytest.mark.parametrize(
    ("family", "contract"),
    [
        *product(["llama", "qwen3"], CONTRACTS),
        ("qwen3_next", "mimo"),
        ("lfm2_conv", "qwen3_next"),
        ("gemma4_text", "mimo"),
    ],
)
def test_a_rollout_drafts_what_the_module_says_step_by_step(family: str, contract: str) -> None:
    model = chain(family, contract, "token")
    row = families.prompt(1, 9)
    own = model.lm.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=NEW)
    continuation = own[0, 9:].tolist()
    checked = Checked(model, continuation, 9)
    result = model.decode(row, max_new_tokens=NEW, drafter=checked)
    assert result.new_tokens == continuation
    assert checked.rounds > 2
    assert {step.accepted for step in result.row_steps} >= {0, 1, 2, 3}


def test_rows_of_different_lengths_roll_out_as_they_do_alone() -> None:
    model = chain("llama", "mimo", "token")
    rows = [families.prompt(1, length, seed=length) for length in (1, 6, 11)]
    alone = [model.decode(row, max_new_tokens=NEW) for row in rows]
    padded = torch.zeros(3, 11, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for number, row in enumerate(rows):
        padded[number, -row.shape[1] :], mask[number, -row.shape[1] :] = row[0], 1
    together = model.decode(padded, mask, max_new_tokens=NEW)
    assert together.continuations == [one.new_tokens for one in alone]
    stop = alone[1].new_tokens[3]  # the second row ends, the others go on
    stopped = [model.decode(row, max_new_tokens=NEW, stop_tokens=[stop]) for row in rows]
    ended = model.decode(padded, mask, max_new_tokens=NEW, stop_tokens=[stop])
    assert ended.continuations == [one.new_tokens for one in stopped]
    assert len({len(row) for row in ended.continuations}) > 1
    for number, one in enumerate(alone):
        steps = [step[number] for step in together.steps if step[number].tokens]
        assert [s.accepted for s in steps] == [s.accepted for s in one.row_steps]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_what_is_drafted_by_depth_is_what_was_trained(contract: str) -> None:
    """At every depth the first draft is the likeliest token of the pass that training makes."""
    model = chain("llama", contract, "depth")
    for length in (2, 9):
        row = families.prompt(1, length)
        steps = model.decode(row[:, :-1], max_new_tokens=1)
        place = length - 2
        drafted = drafter_log(model, row[:, :-1])
        taught = torch.tensor([steps.new_tokens[0], *drafted]).unsqueeze(0)
        whole = torch.cat([row[:, :-1], taught], dim=1)  # a deeper depth reads what is drafted
        output = model.backbone(whole, layers=model.layers)
        hidden = model.depth_hidden(whole, output)
        for token, state in zip(drafted, hidden, strict=True):
            logits = model.backbone.unembed(state[0, place])
            assert logits[token] >= logits.max() - 1e-4


def drafter_log(model: ft.MTPModel, row: Tensor) -> list[int]:
    """The first draft behind a prompt."""
    log: list[list[int]] = []
    inner = drafter_for(model.backbone, model.head)

    class Noted:
        layers, longest = inner.layers, inner.longest
        start = inner.start

        def draft(self, committed: Committed, limit: int) -> Draft:
            draft = inner.draft(committed, limit)
            log.append(draft.tokens[0].tolist())
            return draft

    model.decode(row, max_new_tokens=6, drafter=Noted())
    return log[0]


def test_the_first_embedding_of_each_document_is_zero_for_depth_one_alone() -> None:
    model = chain("llama", "mimo", "depth")
    row = families.prompt(1, 12)
    packed = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
    together = model.backbone(row, position_ids=packed, layers=model.layers)
    both = model.depth_hidden(row, together, [1])[0]
    for start in (0, 6):
        part = row[:, start : start + 6]
        alone = model.depth_hidden(part, model.backbone(part, layers=model.layers), [1])[0]
        torch.testing.assert_close(both[:, start : start + 5], alone[:, :5], rtol=1e-4, atol=1e-4)
    output = model.backbone(row, layers=model.layers)
    before = model.depth_hidden(row, output, [1])[0][0]
    for place, unmoved in ((1, True), (2, False)):  # x_1 is read at position 0 alone
        changed = row.clone()
        changed[0, place] = (row[0, place] + 1) % families.VOCAB
        after = model.depth_hidden(changed, output, [1])[0][0]
        assert torch.equal(before, after) == unmoved


@pytest.mark.parametrize(
    ("family", "options", "error", "message"),
    [
        ("gpt2", dict(norms="none"), HeadError, "input_layernorm"),
        ("gpt2", dict(block="wide"), BackboneError, "not Llama-shaped"),
        ("gemma2", dict(block="wide"), BackboneError, "pre_feedforward_layernorm"),
        ("llama", dict(block="wide", init="copy"), InputError, "cannot be a copy"),
        ("llama", dict(rollout="token", shared=False), InputError, "use shared true"),
        ("llama", dict(norms="new"), InputError, "norms is 'new'"),
    ],
)
def test_what_does_not_go_together_is_refused(family, options, error, message) -> None:
    with pytest.raises(error, match=message):
        ft.MTPModel(families.build(family), ft.SequentialHeads.Config(**{**CHAIN, **options}))


def test_only_sequential_heads_have_wide_blocks() -> None:
    with pytest.raises(InputError, match="with parallel heads; use sequential heads"):
        ft.ParallelHeads.Config(depth=2, block="wide")
