import itertools
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import families
import foretell as ft
from drafting import (
    HEADED,
    NEW,
    RECURRENT,
    RESTORED,
    SERVED,
    SHAPES,
    Checked,
    attached,
    prompts,
    reference,
    short_context,
)
from foretell.backbone import Backbone, forget_abilities
from foretell.checkpoints import load_causal_lm, load_tokenizer
from foretell.decoding import (
    Committed,
    Draft,
    Drafter,
    Exact,
    ModelDrafter,
    NoDrafter,
    Step,
    TreeShape,
    drafter_for,
)
from foretell.decoding.cache import require_rollback, restoring
from foretell.errors import BackboneError, InputError
from pairing import pairs

SLIDING = ["mistral", "gemma2", "gemma3_text", "gpt_oss", "starcoder2", "exaone4"]
ODD = ["gpt_neo", "gemma4_text"]
"""Layers are numbered under another name; blocks read inputs made from the tokens."""
DRAFTED = [
    "llama",
    "mistral",
    "gemma3_text",
    "gpt2",
    "gpt_oss",
    "deepseek_v3",
    "cohere",
    "falcon_alibi",
]
"""Families on which every way to accept is walked through."""


class Oracle:
    """Knows the continuation, and spoils the drafted tokens it is told to.

    Args:
        prompt: tokens before the continuation.
        continuation: what the backbone will say.
        lengths: how many tokens to draft in each round, over and over.
        right: how many of them are right before the first wrong one; None: all.
        inner: a drafter that is asked too, each time, and whose answer is checked.
    """

    layers: tuple[int, ...] = ()

    def __init__(self, prompt, continuation, lengths, right, inner=None) -> None:
        self.begin, self.continuation = prompt.shape[1], continuation
        self.lengths, self.right, self.inner = lengths, right, inner
        self.longest = max(lengths)
        self.layers = inner.layers if inner else ()
        self.expected: list[tuple[int, int]] = []

    def start(self, past, sampler, rows, capacity) -> None:
        if self.inner is not None:
            self.inner.start(past, sampler, rows, capacity)

    def draft(self, committed: Committed, limit: int) -> Draft:
        done = committed.lengths[0] - self.begin
        tokens = committed.tokens[0, self.begin : committed.lengths[0]]
        assert tokens.tolist() == self.continuation[:done]
        if self.inner is not None:
            self.inner.draft(committed, limit)
        number = len(self.expected)
        length = self.lengths[number % len(self.lengths)]
        right = self.right[number % len(self.right)]
        draft = torch.tensor(self.continuation[done : done + min(length, limit)], dtype=torch.long)
        if right < len(draft):
            draft[right:] = (draft[right:] + 1) % families.VOCAB
        self.expected.append((len(draft), min(right, len(draft))))
        return Draft(draft.unsqueeze(0))


def check_steps(steps: list[Step], new: int) -> None:
    """The bookkeeping of a whole generation of `new` tokens."""
    assert sum(len(step.tokens) for step in steps) == new
    assert (steps[0].drafted, steps[0].accepted) == (0, 0)
    assert len(steps[0].tokens) == 1
    for step in steps:
        assert 0 <= step.accepted <= step.drafted
        assert len(step.tokens) == step.accepted + 1


# -- identity with transformers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "shape"), [*((family, "plain") for family in SERVED), *pairs(SERVED, HEADED, 4, 1)]
)
def test_greedy_output_is_that_of_transformers(family: str, shape: str) -> None:
    """Plain decoding continues every prompt, each family's two kinds of heads one each.

    They are other kinds than those whose drafts are checked below.
    """
    model, plain = attached(family, shape), shape == "plain"
    turn = SERVED.index(family) + [*SHAPES].index(shape)
    for number in range(3) if plain else [turn % 3]:
        row = prompts(family)[number]
        result = model.decode(row, torch.ones_like(row), max_new_tokens=NEW)
        assert result.new_tokens == reference(family, number)
        assert torch.equal(result.sequences[:, : row.shape[1]], row)
        assert result.sequences[0, row.shape[1] :].tolist() == result.new_tokens
        check_steps(result.row_steps, NEW)
        assert result.forwards == len(result.steps)
        assert result.tokens_per_forward == NEW / result.forwards
        if plain:
            assert result.tokens_per_forward == 1


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("right", [5, 2])
def test_a_drafter_that_is_right_or_half_right_changes_nothing(family: str, right: int) -> None:
    model = attached(family, "plain")
    row = prompts(family)[1]
    oracle = Oracle(row, reference(family, 1), [5], [right])
    result = model.decode(row, max_new_tokens=NEW, drafter=oracle)
    assert result.new_tokens == reference(family, 1)
    check_steps(result.row_steps, NEW)
    assert [(s.drafted, s.accepted) for s in result.row_steps[1:]] == oracle.expected
    assert max(s.accepted for s in result.row_steps) == right


@settings(max_examples=20)
@given(
    family=st.sampled_from(DRAFTED),
    number=st.integers(0, 2),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    right=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    new=st.integers(1, NEW),
)
def test_whatever_is_drafted_the_output_is_the_backbones(
    family, number, lengths, right, new
) -> None:
    row = prompts(family)[number]
    oracle = Oracle(row, reference(family, number), lengths, right)
    result = attached(family, "plain").decode(row, max_new_tokens=new, drafter=oracle)
    assert result.new_tokens == reference(family, number)[:new]
    check_steps(result.row_steps, new)
    assert [(s.drafted, s.accepted) for s in result.row_steps[1:]] == oracle.expected


# -- the drafters draft what the heads were trained to say --------------------------------------


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *pairs(SERVED, HEADED),
        *itertools.product(ODD, ["trunk", "sequential"]),
    ],
)
def test_drafts_are_what_a_pass_over_the_whole_row_says(family: str, shape: str) -> None:
    """After rejections and, with every second draft an oracle's, after every accepted length.

    Always with four kinds of heads for each family, a sequential one and a parallel one among them.
    """
    model = attached(family, shape)
    depth = model.depth
    row, checked = prompts(family)[1], Checked(model)
    lengths, right = [depth, depth, depth, depth, 0], list(range(depth + 1))
    oracle = Oracle(row, reference(family, 1), lengths, right, inner=checked)
    result = model.decode(row, max_new_tokens=NEW, drafter=oracle)
    assert result.new_tokens == reference(family, 1)
    assert checked.drafts > depth
    assert {step.accepted for step in result.row_steps} >= {0, 1, depth}


class CheckedModel:
    """Asks a draft model and checks its drafts against what it says without any cache."""

    layers: tuple[int, ...] = ()

    def __init__(self, inner: ModelDrafter, width: int) -> None:
        self.inner, self.width, self.longest = inner, width, inner.longest

    def start(self, past, sampler, rows, capacity) -> None:
        self.inner.start(past, sampler, rows, capacity)

    def draft(self, committed: Committed, limit: int) -> Draft:
        draft, prefix = (
            self.inner.draft(committed, limit),
            committed.tokens[:, : committed.lengths[0]],
        )
        for node in range(draft.size):
            before = draft.ancestors[:, node + 1, 1:].clone()
            before[:, node] = False
            row = torch.cat([prefix, draft.tokens[before].unsqueeze(0)], dim=1)
            logits = self.inner.model.unembed(self.inner.model(row).final[0, -1])
            better = logits > logits[draft.tokens[0, node]] + 1e-3
            assert better.sum() < self.width
        return draft


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *((family, None) for family in ("llama", "mistral", "falcon_alibi", *RESTORED)),
        *((family, TreeShape(widths=(2, 2, 2, 1))) for family in ("llama", "mistral")),
    ],
)
def test_a_draft_model_drafts_what_it_says(family: str, shape: TreeShape | None) -> None:
    """Also one with a recurrent state; nearly the same model, so that some of it is accepted."""
    model, twin = attached(family, "plain"), families.moved(families.build(family), 0.05)
    accepted = set()
    for number, row in enumerate(prompts(family)):
        inner = ModelDrafter(model.backbone, Backbone(twin), 4, shape)
        checked = CheckedModel(inner, 1 if shape is None else 2)
        result = model.decode(row, max_new_tokens=NEW, drafter=checked)
        assert result.new_tokens == reference(family, number)
        accepted |= {step.accepted for step in result.row_steps[1:-1]}
    assert len(accepted) > 1


@settings(max_examples=20)
@given(
    family=st.sampled_from(DRAFTED),
    shape=st.sampled_from(["trunk", "final-copy", "sequential", "shared"]),
    number=st.integers(0, 2),
    lengths=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    right=st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
def test_drafts_are_right_after_any_history(family, shape, number, lengths, right) -> None:
    model, row = attached(family, shape), prompts(family)[number]
    oracle = Oracle(row, reference(family, number), lengths, right, inner=Checked(model))
    result = model.decode(row, max_new_tokens=NEW, drafter=oracle)
    assert result.new_tokens == reference(family, number)


@pytest.mark.parametrize("shape", HEADED)
def test_heads_that_learned_are_accepted(small_llama, shape: str) -> None:
    """On a row that model and heads know by heart, nearly every draft stands."""
    config = SHAPES[shape]
    model = ft.MTPModel(small_llama, config)
    text = torch.arange(16).repeat(3).unsqueeze(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(text).loss
        loss.backward()
        optimizer.step()
    row = text[:, :20]
    result = model.decode(row, max_new_tokens=25, drafter=Checked(model.eval()))
    own = model.lm.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=25, do_sample=False
    )
    assert torch.equal(result.sequences, own)
    check_steps(result.row_steps, 25)
    assert result.tokens_per_forward > 1 + 0.6 * model.depth


# -- where it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_exactly_as_many_tokens_as_asked_for(shape: str, new: int) -> None:
    row = prompts("llama")[1]
    result = attached("llama", shape).decode(row, max_new_tokens=new)
    assert result.new_tokens == reference("llama", 1)[:new]
    check_steps(result.row_steps, new)


@pytest.mark.parametrize("length", [0, 1, 4])
@pytest.mark.parametrize("place", range(8))
def test_nothing_follows_a_stop_token(place: int, length: int) -> None:
    """Also inside an accepted draft, and as its last token."""
    row, words = prompts("llama")[2], reference("llama", 2)
    stop = words[place]
    place = words.index(stop)
    oracle = Oracle(row, words, [length], [length])
    result = attached("llama", "plain").decode(
        row, max_new_tokens=NEW, stop_tokens={stop}, drafter=oracle
    )
    assert result.new_tokens == words[: place + 1]
    assert result.sequences.shape[1] == row.shape[1] + place + 1
    for step in result.row_steps:
        assert step.accepted <= step.drafted
        assert len(step.tokens) <= step.accepted + 1


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("correct", [0, 5])
def test_learned_positions_fill_up_to_the_last_one(family: str, correct: int) -> None:
    model = short_context(family)
    row = families.prompt(1, 13)
    plain = model.decode(row, max_new_tokens=100, drafter=NoDrafter())
    assert plain.sequences.shape == (1, 24)
    assert plain.full == [True]
    assert model.decode(row, max_new_tokens=100).new_tokens == plain.new_tokens
    oracle = Oracle(row, plain.new_tokens, [5], [correct])
    result = model.decode(row, max_new_tokens=100, drafter=oracle)
    assert result.new_tokens == plain.new_tokens
    check_steps(result.row_steps, 11)
    assert model.decode(row[:, :1].repeat(1, 23), max_new_tokens=5).sequences.shape == (1, 24)
    for length in (24, 25):
        with pytest.raises(InputError, match=f"prompt has {length} tokens.*context 24; shorten"):
            model.decode(row[:, :1].repeat(1, length), max_new_tokens=1)


@pytest.mark.parametrize("family", ["qwen3_next", "lfm2"])
def test_what_is_restored_is_not_read_ever_longer(family: str, monkeypatch) -> None:
    """A state goes back to before a rejected draft, and what stands is read again: at most so much
    that a text takes as long as it is, not its square."""
    widths, model = [], attached(family, "plain")
    call = Backbone.__call__

    def recorded(self, tokens, **options):
        widths.append(tokens.shape[1])
        return call(self, tokens, **options)

    class Wrong(NoDrafter):
        longest = 3

        def draft(self, committed, limit):
            own = committed.tokens[:, committed.lengths[0] - 1, None]
            return Draft((own + 1).remainder(families.VOCAB).expand(-1, min(limit, self.longest)))

    row, new = prompts(family)[1], 60
    monkeypatch.setattr(Backbone, "__call__", recorded)
    result = model.decode(row, max_new_tokens=new, stop_tokens=(), drafter=Wrong())
    assert result.new_tokens == reference(family, 1, new)
    assert max(widths[1:]) <= 16 + 1 + Wrong.longest
    assert sum(step.drafted > 0 for step in result.row_steps) > new // 2


def test_nor_by_sequential_heads_that_keep_a_state(monkeypatch) -> None:
    """They read their last positions again with every draft, whatever was accepted."""
    widths, model = [], attached("lfm2_conv", "sequential")
    call = Backbone.block_call

    def recorded(self, tokens, *arguments):
        widths.append(tokens.shape[1])
        return call(self, tokens, *arguments)

    row, new = prompts("lfm2_conv")[1], 60
    monkeypatch.setattr(Backbone, "block_call", recorded)
    checked = Checked(model)
    result = model.decode(row, max_new_tokens=new, stop_tokens=(), drafter=checked)
    assert result.new_tokens == reference("lfm2_conv", 1, new)
    assert checked.drafts > new
    assert max(widths) <= 16 + 2 * (model.depth + 1)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_alibi"])
def test_a_tree_that_cannot_be_verified_is_refused(family: str) -> None:
    model = attached(family, "trunk")
    tree = drafter_for(model.backbone, model.require_head(), shape=TreeShape(nodes=4))
    with pytest.raises(BackboneError, match=r"ForCausalLM cannot verify trees.*draft chains"):
        model.stream(prompts(family)[0], max_new_tokens=4, drafter=tree)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), {}, "prompt is empty"),
        (torch.zeros(0, 4, dtype=torch.long), {}, r"shape \(0, 4\); give rows"),
        (torch.zeros(4, dtype=torch.long), {}, r"shape \(4,\); give rows"),
        (torch.tensor([[1, families.VOCAB]]), {}, "outside the model's vocabulary of 101"),
        (torch.tensor([[1, -1]]), {}, "outside the model's vocabulary of 101"),
        (torch.zeros(1, 4, dtype=torch.long), {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (torch.zeros(1, 4, dtype=torch.long), {"max_new_tokens": -3}, "max_new_tokens is -3"),
        (
            torch.zeros(1, 2, dtype=torch.long),
            {"attention_mask": torch.tensor([[1, 0, 1]])},
            "attention mask has shape",
        ),
    ],
)
@pytest.mark.parametrize("shape", ["plain", "trunk"])
def test_a_prompt_that_cannot_be_continued_is_refused(row, options, message, shape: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        attached("llama", shape).decode(row, **{"max_new_tokens": 4, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", ["plain", "trunk", "sequential"])
@pytest.mark.parametrize("family", RECURRENT)
def test_a_cache_without_a_way_back_is_refused_by_name(family: str, shape: str) -> None:
    with pytest.raises(BackboneError) as caught:
        attached(family, shape).decode(families.prompt(), max_new_tokens=4)
    message = str(caught.value)
    assert RECURRENT[family] in message
    assert "\n" not in message


@pytest.mark.parametrize("family", RESTORED)
def test_rounding_is_no_reason_to_refuse(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, other types; while a state that is not put back is one."""

    def untried(dtype: torch.dtype) -> PreTrainedModel:
        model = families.build(family).to(dtype)
        forget_abilities(model)
        return model

    for seed in range(4):
        for dtype in (torch.float32, torch.bfloat16):
            require_rollback(Backbone(families.moved(untried(dtype), 0.03, seed)))
    monkeypatch.setattr(restoring, "_copied", lambda state: {})
    for dtype in (torch.float32, torch.bfloat16):
        if (family, dtype) == ("lfm2_conv", torch.bfloat16):
            continue  # two rejected tokens in a short convolution look like rounding there
        with pytest.raises(BackboneError, match="cannot be restored"):
            require_rollback(Backbone(untried(dtype)))


# -- rule and loop ------------------------------------------------------------------------------


@given(
    own=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    flips=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_the_exact_rule_accepts_the_longest_right_beginning(own, flips) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(own), 5).float()
    draft = [(o + f) % 5 for o, f in zip(own[:-1], flips, strict=False)]
    verdict = Exact()(Draft(torch.tensor([draft], dtype=torch.long)), logits.unsqueeze(0))
    right = next(
        (i for i, (d, o) in enumerate(zip(draft, own, strict=False)) if d != o), len(draft)
    )
    assert (int(verdict.accepted), int(verdict.next_token)) == (right, own[right])
    assert Exact.lossless


def test_a_step_is_seen_as_soon_as_it_is_committed() -> None:
    model, row = attached("llama", "plain"), prompts("llama")[1]
    asked = []

    class Counting(NoDrafter):
        def draft(self, committed: Committed, limit: int) -> Draft:
            asked.append((committed.lengths[0], int(committed.last), limit))
            return super().draft(committed, limit)

    drafter: Drafter = Counting()
    stream = (step for (step,) in model.stream(row, max_new_tokens=3, drafter=drafter))
    assert next(stream).tokens == (reference("llama", 1)[0],)
    assert asked == []
    assert [step.tokens for step in stream] == [(token,) for token in reference("llama", 1)[1:3]]
    assert asked == [(14, 12, 1), (15, 0, 0)]


def test_decoding_leaves_no_trace() -> None:
    model, row = attached("gemma2", "sequential"), prompts("gemma2")[1]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = row.clone()
    first = model.decode(row, max_new_tokens=6)
    second = model.decode(row, max_new_tokens=6)
    assert first.steps == second.steps
    assert torch.equal(row, kept)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_streams_may_take_turns_and_end_in_any_order() -> None:
    model, row = attached("llama", "trunk"), prompts("llama")[1]
    expected = model.decode(row, max_new_tokens=8).steps
    first = model.stream(row, max_new_tokens=4)
    second = model.stream(row, max_new_tokens=8, drafter=NoDrafter())
    found = [list(next(stream)[0].tokens) for stream in (first, second)]
    for stream, tokens in zip((first, second), found, strict=True):
        tokens += [token for (step,) in stream for token in step.tokens]
    assert found == [reference("llama", 1)[:4], reference("llama", 1)[:8]]
    assert model.decode(row, max_new_tokens=8).steps == expected
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@cache
def stories(where: Path) -> tuple[PreTrainedModel, dict[Tensor, Tensor]]:
    """A trained model; two texts, and how transformers' own `generate` goes on with them."""
    lm, tokenizer = load_causal_lm(where, dtype=torch.float32), load_tokenizer(where)
    said = {}
    for text in ("Once upon a time", "Lily and Tom went to the park. They"):
        row = tokenizer(text, return_tensors="pt").input_ids
        said[row] = lm.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
        )
    return lm, said


@pytest.mark.data
@pytest.mark.parametrize("shape", SHAPES)
def test_real_weights_decode_as_in_transformers(data_dir: Path, shape: str) -> None:
    lm, said = stories(data_dir / "models" / "stories260K")
    model = ft.MTPModel(lm, SHAPES[shape])
    for row, own in said.items():
        result = model.decode(row, max_new_tokens=40)
        assert torch.equal(result.sequences, own)
        oracle = Oracle(row, own[0, row.shape[1] :].tolist(), [4], [4, 0, 2])
        again = model.decode(row, max_new_tokens=40, drafter=oracle)
        assert torch.equal(again.sequences, own)
        assert again.tokens_per_forward > 2


@pytest.mark.parametrize("eos", [5, [5, 9]])
def test_generation_ends_where_the_model_says(eos: int | list[int]) -> None:
    lm = families.build("llama")
    prompt = families.prompt(1, 9, 3)
    free = lm.generate(prompt, do_sample=False, max_new_tokens=24)[0, 9:].tolist()
    ids = [free[10]] if isinstance(eos, int) else [free[14], free[10]]
    lm.generation_config.eos_token_id = ids[0] if isinstance(eos, int) else ids
    lm.generation_config.pad_token_id = 0
    model = ft.attach(lm, "parallel", depth=3)
    expected = lm.generate(prompt, do_sample=False, max_new_tokens=24)
    assert expected.shape[1] < 9 + 24
    assert torch.equal(model.decode(prompt, max_new_tokens=24).sequences, expected)
    assert len(model.decode(prompt, max_new_tokens=24, stop_tokens=()).new_tokens) == 24
