"""Sampled continuations against exact enumeration, from prompt to token, for every drafter.

Rows of a batch with seeds of their own are independent draws. The quick run draws 6,000 times per
combination; all combinations with 100,000 draws each:

    pytest -m long tests/test_sampling.py
"""

import itertools
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

import families
import foretell as ft
from chances import p_value
from foretell.backbone import Backbone
from foretell.decoding import (
    Batch,
    DecodeOptions,
    Draft,
    Exact,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    Sampling,
    SpeculativeSampling,
    TreeShape,
    decode,
    drafter_for,
    length,
)
from foretell.decoding.sampling import Sampler
from foretell.decoding.tree import comb, tree
from foretell.errors import InputError
from pairing import pairs

V, LENGTH, TEMPERATURE, TOP_P = 5, 3, 1.3, 0.95
PROMPT = [1, 3, 1, 3, 1]
SAMPLED = Sampling(temperature=TEMPERATURE, top_p=TOP_P)
COOL = TemperatureLogitsWarper(TEMPERATURE)


def toy(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


HEADS = {
    "parallel": ft.ParallelHeads.Config(depth=2),
    "residual": ft.ResidualHeads.Config(depth=2),
    "sequential": ft.SequentialHeads.Config(depth=2),
    "shared": ft.SequentialHeads.Config(depth=1, shared=True),
    "rollout": ft.SequentialHeads.Config(depth=2, shared=True, rollout="token"),
    "few": ft.SequentialHeads.Config(depth=2, vocabulary=3),
    "fewer": ft.ParallelHeads.Config(depth=2, vocabulary=2),
}


def disturbed(owner: ft.MTPModel, seed: int = 0) -> ft.MTPModel:
    """With heads that draft in a way of their own: new ones of all kinds nearly agree."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in owner.require_head().parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
    return owner.eval()


@cache
def model(kind: str) -> ft.MTPModel:
    owner = ft.MTPModel(toy(0), HEADS[kind])
    if (vocabulary := owner.require_head().vocabulary) is not None:
        vocabulary.choose(torch.tensor([4, 1, 3][: len(vocabulary)]))
    return disturbed(owner, list(HEADS).index(kind))


@cache
def another() -> Backbone:
    return Backbone(toy(1))


def drafter(name: str):
    kind, _, shape = name.partition(" ")
    tree = {"": None, "tree": TreeShape(widths=(2, 2)), "dynamic": TreeShape(nodes=4)}[shape]
    if kind == "none":
        return NoDrafter()
    if kind == "lookup":
        return LookupDrafter(2, 1)
    backbone = model("parallel").backbone
    if kind == "model":
        return ModelDrafter(backbone, another(), 2, tree)
    owner = model(kind)
    return drafter_for(owner.backbone, owner.require_head(), 2, tree)


DRAFTERS = [
    "none",
    "lookup",
    "model",
    "model tree",
    "model dynamic",
    *(f"{kind}{shape}" for kind in HEADS for shape in ("", " tree", " dynamic")),
]
RULES = {"speculative": SpeculativeSampling(), "exact": Exact()}


def draws_tokens(name: str) -> bool:
    """Whether a drafter draws its tokens; where it chooses them both rules are one function."""
    return " " not in name and name not in ("none", "lookup")


@cache
def exact(*processors: LogitsProcessor) -> torch.Tensor:
    """The probability of each of the V^LENGTH continuations, one plain forward per prefix."""
    lm, found = model("parallel").lm, torch.ones(1)
    processors = processors or (COOL, TopPLogitsWarper(TOP_P))
    prefixes = torch.tensor([PROMPT])
    for _ in range(LENGTH):
        with torch.no_grad():
            scores = lm(prefixes).logits[:, -1]
        for processor in processors:
            scores = processor(prefixes, scores)
        found = (found.unsqueeze(1) * scores.softmax(-1)).flatten()
        prefixes = torch.cat(
            [prefixes.repeat_interleave(V, 0), torch.arange(V).repeat(len(prefixes)).unsqueeze(1)],
            1,
        )
    return found


def draws(
    name: str, rule, count: int, rows: int, sampling: Sampling = SAMPLED, **options
) -> torch.Tensor:
    """How often each continuation was drawn."""
    owner = model(name.split()[0] if name.split()[0] in HEADS else "parallel")
    prompts = torch.tensor([PROMPT]).expand(rows, -1)
    counts = torch.zeros(V**LENGTH, dtype=torch.long)
    for first in range(0, count, rows):
        result = owner.decode(
            prompts,
            max_new_tokens=LENGTH,
            sampling=replace(sampling, seeds=first),
            drafter=drafter(name),
            rule=rule,
            **options,
        )
        counts += numbered(result.sequences[:, len(PROMPT) :])
    return counts


def numbered(continuations: torch.Tensor) -> torch.Tensor:
    """How often each of the V^LENGTH continuations occurs in (B, LENGTH)."""
    number = (continuations * V ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    return torch.bincount(number, minlength=V**LENGTH)


def test_the_toy_is_worth_testing() -> None:
    likely = exact()
    assert (likely == 0).any()  # cut off by top-p
    assert (likely > 0.005).sum() > 12
    assert likely.max() < 0.3


class Counted(SpeculativeSampling):
    """Counts the drafts whose tokens were drawn, and the others."""

    def __init__(self) -> None:
        self.drawn = self.chosen = 0

    def __call__(self, draft, logits, uniforms=None):
        if draft.size and draft.probabilities is None:
            self.chosen += 1
        elif draft.size:
            self.drawn += 1
        return super().__call__(draft, logits, uniforms)


@pytest.mark.parametrize("name", DRAFTERS)
def test_which_drafters_draw_their_tokens(name: str) -> None:
    rule = Counted()
    draws(name, rule, 8, 8)
    assert bool(rule.drawn) == draws_tokens(name)
    assert bool(rule.chosen) != draws_tokens(name) or name == "none"


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name in DRAFTERS for rule in RULES if draws_tokens(name) or rule == "exact"],
)
def test_draws_follow_the_backbones_distribution(name: str, rule: str) -> None:
    """By both rules where tokens are drawn: elsewhere speculative sampling is the exact rule."""
    assert p_value(draws(name, RULES[rule], 6000, 1000), exact()) > 0.001


class Hopeless(NoDrafter):
    """Draws what the backbone never says: a token that top-p cuts off, where there is one."""

    longest = 1

    def draft(self, committed, limit):
        lm, sampler = model("parallel").lm, Sampler(SAMPLED, 1, torch.device("cpu"))
        ends = torch.tensor(committed.lengths).unsqueeze(1) - 1
        logits = lm(committed.tokens).logits.take_along_dim(ends.unsqueeze(-1), 1)
        worst = sampler.warped(logits).argmin(-1)
        drawn_from = torch.nn.functional.one_hot(worst, V).float()
        return (
            Draft(worst, probabilities=drawn_from) if limit else NoDrafter.draft(self, committed, 0)
        )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "low", "high"), [("hopeless", 0.0, 0.2), ("itself", 0.99, 1.0)])
def test_draws_follow_it_where_drafts_never_or_always_stand(name, low, high, rule) -> None:
    backbone = model("parallel").backbone
    source = Hopeless() if name == "hopeless" else ModelDrafter(backbone, backbone, 2)
    prompts, accepted, drafted = torch.tensor([PROMPT]).expand(1000, -1), 0, 0
    counts = torch.zeros(V**LENGTH, dtype=torch.long)
    for first in range(0, 6000, 1000):
        sampling = replace(SAMPLED, seeds=first)
        result = model("parallel").decode(
            prompts, max_new_tokens=LENGTH, sampling=sampling, drafter=source, rule=RULES[rule]
        )
        counts += numbered(result.sequences[:, len(PROMPT) :])
        accepted += sum(step.accepted for step in result.row_steps)
        drafted += sum(step.drafted for step in result.row_steps)
    assert p_value(counts, exact()) > 0.001
    if rule == "speculative":
        assert low <= accepted / drafted <= high


@pytest.mark.parametrize("name", ["parallel", "sequential dynamic", "model"])
def test_draws_in_small_batches_follow_it_too(name: str) -> None:
    """Few draws: that a row says in a large batch what it says alone is shown below."""
    for rows, count in ((5, 250), (1, 75)):
        assert p_value(draws(name, SpeculativeSampling(), count, rows), exact()) > 0.001


@pytest.mark.parametrize("name", ["parallel", "lookup"])
def test_draws_in_passes_of_one_width_follow_it_too(name: str) -> None:
    assert p_value(draws(name, SpeculativeSampling(), 6000, 1000, pass_width=4), exact()) > 0.001


OTHERS = {
    "top-k": ({"top_k": 3}, (COOL, TopKLogitsWarper(3))),
    "min-p": ({"min_p": 0.3}, (COOL, MinPLogitsWarper(0.3))),
    "penalty": ({"repetition_penalty": 1.7}, (RepetitionPenaltyLogitsProcessor(1.7), COOL)),
    "all": (
        {"repetition_penalty": 1.7, "top_k": 4, "top_p": 0.9, "min_p": 0.1},
        (
            RepetitionPenaltyLogitsProcessor(1.7), COOL, TopKLogitsWarper(4), TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.1),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "what"),
    pairs(["sequential", "parallel tree"], ["top-k", "min-p", "all", "penalty"]),
)
def test_draws_follow_it_with_every_option(name: str, what: str) -> None:
    """As transformers' own processors have it, in their order; in chains or in trees, and the
    penalty, which reads the text, in both."""
    options, processors = OTHERS[what]
    expected = exact(*processors)
    assert (expected - exact()).abs().sum() > 0.1
    sampling = Sampling(temperature=TEMPERATURE, **options)
    assert p_value(draws(name, SpeculativeSampling(), 6000, 1000, sampling), expected) > 0.001


@pytest.mark.parametrize("name", ["parallel", "sequential"])
def test_draws_of_chosen_lengths_follow_it_too(name: str, monkeypatch) -> None:
    """Every step takes as long as every other, and has another length than the one before."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(length, "time", clock)
    for steps in ("COMPARED", "HOLD", "TRIAL", "EXPLORE", "EXPLORE_AT_MOST"):
        monkeypatch.setattr(length, steps, 1)
    owner = disturbed(ft.MTPModel(toy(0), HEADS[name]), 3)  # which has measured nothing yet
    found, lengths = [], set()
    for first in range(0, 6000, 1000):
        result = owner.decode(
            torch.tensor([PROMPT]).expand(1000, -1),
            max_new_tokens=2 * LENGTH,  # so that a text does not end meanwhile
            sampling=replace(SAMPLED, seeds=first),
            draft_length="auto",
        )
        found.append(result.sequences[:, len(PROMPT) :][:, :LENGTH])
        lengths |= set(result.draft_lengths[:LENGTH])
    assert lengths == {0, 1, 2}
    assert p_value(numbered(torch.cat(found)), exact()) > 0.001


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_a_hundred_thousand_draws(name: str, rule: str, rows: int) -> None:
    assert p_value(draws(name, RULES[rule], 100_000, rows), exact()) > 0.001


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    owner = model(name.split()[0] if name.split()[0] in HEADS else "parallel")
    texts = [PROMPT, [2], [4, 0, 2, 2, 2, 2, 1]]
    width = max(map(len, texts))
    prompts = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    options = {"max_new_tokens": 12, "drafter": drafter(name)}
    together = owner.decode(
        prompts, mask, sampling=Sampling(temperature=1.0, seeds=[7, 8, 9]), **options
    )
    for row, text in enumerate(texts):
        alone = owner.decode(
            torch.tensor([text]), sampling=Sampling(temperature=1.0, seeds=7 + row), **options
        )
        assert alone.new_tokens == together.continuations[row]


@pytest.mark.parametrize(
    "shape", [None, TreeShape((2, 2, 1)), TreeShape(nodes=2), TreeShape(nodes=9)]
)
@pytest.mark.parametrize("kind", [*HEADS, "model"])
def test_nor_on_where_they_end(kind: str, shape: TreeShape | None) -> None:
    """Near the end of a row there is room for less of a draft than beside it."""
    config = HEADS.get(kind, HEADS["parallel"])
    depth = config.depth if getattr(config, "shared", False) else 4
    owner = disturbed(ft.MTPModel(toy(0), config.replace(depth=depth)))
    backbone = owner.backbone
    if kind == "model":
        one = ModelDrafter(backbone, another(), 4, shape)
    else:
        one = drafter_for(backbone, owner.require_head(), 4, shape)
    texts, limits, seeds = (
        [PROMPT, [2, 0, 0, 3, 1], [4, 0, 2, 2, 1]] * 2,
        [3, 24, 12, 5, 2, 4],
        range(6),
    )

    def drawn(rows: slice) -> list[list[int]]:
        batch = Batch(backbone, torch.tensor(texts[rows]), None, limits[rows])
        sampling = Sampling(temperature=1.0, seeds=list(seeds[rows]))
        list(decode(backbone, batch, DecodeOptions(drafter=one, sampling=sampling)))
        return [row.continuation for row in batch.rows]

    together = drawn(slice(None))
    assert [len(row) for row in together] == limits
    assert together == [drawn(slice(row, row + 1))[0] for row in range(len(texts))]


class NoTwos(LogitsProcessor):
    """Forbids a token after itself: a rule that looks at the text."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[torch.arange(len(scores)), input_ids[:, -1]] = -torch.inf
        return scores


@pytest.mark.parametrize("name", ["none", "parallel", "parallel dynamic", "sequential", "lookup"])
def test_processors_that_read_the_text_see_every_branch(name: str) -> None:
    owner = model(name if name in HEADS else "parallel")
    prompt = torch.tensor([PROMPT])
    drawn = owner.decode(
        prompt.expand(50, -1),
        max_new_tokens=10,
        sampling=Sampling(temperature=1.0, processors=[NoTwos()]),
        drafter=drafter(name),
    )
    text = drawn.sequences[:, len(PROMPT) - 1 :]
    assert not (text[:, 1:] == text[:, :-1]).any()
    for sampling, options in (
        (Sampling(repetition_penalty=1.7), {"repetition_penalty": 1.7}),
        (Sampling(processors=[NoTwos()]), {"logits_processor": [NoTwos()]}),
    ):
        own = owner.lm.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, **options
        )
        result = owner.decode(prompt, max_new_tokens=10, sampling=sampling, drafter=drafter(name))
        assert torch.equal(result.sequences, own)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"min_p": 0.5}, {"top_p": 0.3}])
def test_only_what_the_warpers_leave_is_drawn(options) -> None:
    prompt = torch.tensor([PROMPT])
    owner = model("parallel")
    with torch.no_grad():
        logits = owner.lm(prompt).logits[0, -1]
    probabilities, order = logits.softmax(-1), logits.argsort(descending=True).tolist()
    allowed = {
        "top_k": set(order[:2]),
        "min_p": {t for t in range(V) if probabilities[t] >= 0.5 * probabilities.max()},
        "top_p": set(order[:1]) if probabilities.max() >= 0.3 else set(order[:2]),
    }[next(iter(options))]
    sampling = Sampling(temperature=1.0, **options)
    drawn = owner.decode(prompt.expand(300, -1), max_new_tokens=1, sampling=sampling)
    assert set(drawn.sequences[:, -1].tolist()) == allowed


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-30},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**wrong)
    assert "\n" not in str(caught.value)


def test_as_many_seeds_as_rows() -> None:
    with pytest.raises(InputError, match="2 seeds were given for 3 rows"):
        model("parallel").decode(
            torch.tensor([PROMPT]).expand(3, -1),
            max_new_tokens=2,
            sampling=Sampling(temperature=1.0, seeds=[1, 2]),
        )


def test_a_foreign_draft_model_and_a_tree_too_wide_or_too_deep_are_refused() -> None:
    backbone = model("parallel").backbone
    with pytest.raises(InputError, match="vocabulary of 101 tokens, the model one of 5"):
        ModelDrafter(backbone, Backbone(families.build("llama")))
    head = model("parallel").head
    with pytest.raises(InputError, match="6 wide, the vocabulary has 5"):
        drafter_for(backbone, head, None, TreeShape(widths=(6, 1)))
    with pytest.raises(InputError, match="2 tokens deep, drafts are 1 long"):
        drafter_for(backbone, head, 1, TreeShape(widths=(2, 1)))


def test_a_draft_beyond_the_random_numbers_is_refused() -> None:
    sampler = Sampler(Sampling(temperature=1.0), 2, torch.device("cpu"))
    sampler.begin([3, 5])
    assert sampler.uniforms(256).shape == (2, 2, 256)
    with pytest.raises(InputError, match="256 tokens were drafted; sampling judges at most 255"):
        sampler.uniforms(257)


def test_processors_that_know_more_than_a_rows_tokens_are_refused() -> None:
    owner, rows = ft.MTPModel(families.build("llama")).eval(), torch.tensor([PROMPT, PROMPT])
    by_call = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, owner.lm)
    with pytest.raises(InputError, match=r"Unbatched.* on the whole batch, once for every token"):
        owner.decode(rows[:1], max_new_tokens=2, sampling=Sampling(processors=[by_call]))
    constrained = PrefixConstrainedLogitsProcessor(lambda row, tokens: [len(tokens) % 5], 1)
    sampling = Sampling(processors=[constrained])
    with pytest.raises(InputError, match=r"PrefixConstrained.* has to know its row"):
        owner.decode(rows, max_new_tokens=2, sampling=sampling)
    alone = owner.decode(rows[:1], max_new_tokens=6, sampling=sampling, drafter=LookupDrafter(2))
    assert alone.new_tokens == [(len(PROMPT) + n) % 5 for n in range(6)]


def test_processors_compute_in_float32_whatever_the_weights_are() -> None:
    """As in transformers: rounded to bfloat16 again, 9.5455 would be a tie with 9.5625."""
    penalty = RepetitionPenaltyLogitsProcessor(1.1)
    sampler = Sampler(Sampling(), 1, torch.device("cpu"), [[penalty]])
    logits = torch.tensor([[[10.5, 9.5625]]], dtype=torch.bfloat16)
    nothing = Draft.nothing(1, logits.device)
    scores = sampler.scores(logits, nothing, lambda: [torch.tensor([0])])
    assert scores.dtype == torch.float32
    assert scores[0, 0, 0] == torch.tensor(10.5) / 1.1
    assert scores.argmax() == 1


def test_no_draft_is_deeper_than_there_are_random_numbers() -> None:
    limits = []

    class Guess(NoDrafter):
        def draft(self, committed, limit):
            limits.append(limit)
            return Draft(committed.tokens.new_zeros(1, limit))

    owner, prompt = ft.MTPModel(families.build("llama")), torch.tensor([PROMPT])
    sampling = Sampling(temperature=1.0)
    stream = owner.stream(prompt, max_new_tokens=400, sampling=sampling, drafter=Guess())
    assert [len(next(stream)) for _ in range(2)] == [1, 1]
    assert limits == [255]
    with pytest.raises(InputError, match="a pass is 1 to 256 tokens wide"):
        owner.decode(prompt, max_new_tokens=2, pass_width=257)
    shared = ft.attach(families.build("llama"), "sequential", depth=2, shared=True)
    with pytest.raises(InputError, match="draft length 256: a draft is at most 255 tokens long"):
        drafter_for(shared.backbone, shared.require_head(), 256)


@pytest.mark.parametrize("name", ["sequential", "model", "parallel"])
def test_a_dynamic_tree_has_at_most_the_nodes_that_there_are(name: str) -> None:
    owner = model(name if name in HEADS else "parallel")
    shape, backbone = TreeShape(nodes=4 * V), owner.backbone
    if name == "model":
        wide = ModelDrafter(backbone, another(), 2, shape)
    else:
        wide = drafter_for(backbone, owner.require_head(), 2, shape)
    prompt = torch.tensor([PROMPT])
    result = owner.decode(prompt, max_new_tokens=9, drafter=wide)
    assert (
        result.new_tokens == owner.decode(prompt, max_new_tokens=9, drafter=NoDrafter()).new_tokens
    )


@pytest.mark.parametrize("grow", [tree, comb])
@pytest.mark.parametrize(
    "shape",
    [*(TreeShape(nodes=n) for n in (1, 2, 3, 7, 12, 30)), TreeShape((2, 6, 1)), TreeShape((1, 4))],
    ids=str,
)
@pytest.mark.parametrize("kind", ["any", "equal", "masked"])
def test_what_a_row_drafts_within_its_reach_does_not_depend_on_others(kind, grow, shape) -> None:
    logits = 3 * torch.randn(9, 4, 60, generator=torch.Generator().manual_seed(0))
    if kind == "equal":  # many are, as in bfloat16
        logits = logits.round().bfloat16()
    if kind == "masked":
        logits[..., 2:] = -torch.inf
    reach = [0, 1, 2, 3, 4, 9, 1, 2, 3]
    together = grow(logits, shape, reach)
    assert (together.parents <= torch.arange(together.size)).all()
    for row, deep in enumerate(reach):
        counted = together.depths[row, 1:] <= deep
        alone = grow(logits[row : row + 1, :deep], shape, [deep]) if deep else None
        assert counted.sum() == (0 if alone is None else alone.size)
        if alone is not None:
            assert torch.equal(alone.tokens[0], together.tokens[row][: alone.size])
            assert torch.equal(alone.parents[0], together.parents[row][: alone.size])
            assert counted[: alone.size].all()
            twins = list(zip(alone.parents[0].tolist(), alone.tokens[0].tolist(), strict=True))
            assert len(set(twins)) == len(twins)


def test_beside_a_chain_are_others_than_its_own_tokens() -> None:
    """Also where several are equally likely: the chain has gone on from `argmax`."""
    logits = torch.randint(0, 2, (6, 3, 40), generator=torch.Generator().manual_seed(0)).float()
    for shape in (TreeShape(widths=(3, 3, 3)), TreeShape(nodes=9), TreeShape(widths=(1, 1))):
        draft = comb(logits, shape, [3] * 6)
        for row in range(6):
            node = 0
            for depth in range(3):
                children = [n + 1 for n, p in enumerate(draft.parents[row].tolist()) if p == node]
                tokens = [int(draft.tokens[row, child - 1]) for child in children]
                assert len(set(tokens)) == len(tokens)
                node = children[tokens.index(int(logits[row, depth].argmax()))]


@pytest.mark.parametrize("own", [False, True])
def test_rows_that_share_a_config_are_scored_together(monkeypatch, own: bool) -> None:
    """But a processor of the caller's sees one row at a time."""
    seen, call = [], RepetitionPenaltyLogitsProcessor.__call__

    def noted(processor, input_ids, scores):
        seen.append(tuple(input_ids.shape))
        return call(processor, input_ids, scores)

    monkeypatch.setattr(RepetitionPenaltyLogitsProcessor, "__call__", noted)
    given = {"processors": [RepetitionPenaltyLogitsProcessor(1.7)]} if own else {}
    sampling = Sampling(temperature=1.0, repetition_penalty=None if own else 1.7, **given)
    prompts = torch.tensor([PROMPT]).expand(4, -1)
    model("parallel").decode(prompts, max_new_tokens=3, sampling=sampling)
    length = len(PROMPT)
    assert seen[:4] == ([(1, length)] * 4 if own else [(4, length), *seen[1:4]])
    assert {rows for rows, _ in seen} >= ({1} if own else {4})
