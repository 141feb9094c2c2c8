"""Batches: every row is continued as it would be alone, plainly, whatever is drafted.

A quick slice runs always; every family with every drafter:

    pytest -m long tests/test_batches.py
"""

import copy
import gc
import weakref
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import families
import foretell as ft
from drafting import RESTORED, SERVED, Told, short_context
from foretell.backbone import Backbone
from foretell.checkpoints import load_causal_lm
from foretell.data import read_prompts
from foretell.decoding import (
    Batch,
    Committed,
    DecodeOptions,
    Draft,
    Drafter,
    LookupDrafter,
    MinimumBlock,
    ModelDrafter,
    NoDrafter,
    Sampling,
    StopStrings,
    StopTokens,
    TreeShape,
    decode,
    drafter_for,
    passes,
)
from foretell.decoding.cache import SlottedPast, slotted, takes_masks
from foretell.decoding.cache.slotted import SlottedLayer
from pairing import pairs

NEW, PAD = 12, 7
LENGTHS = (5, 1, 29, 13, 16, 3, 17, 8)
"""Of the prompts: around the sliding windows of 16, and the shortest there is."""
HEADS = {
    "parallel": ft.ParallelHeads.Config(depth=3, init="copy"),
    "residual": ft.ResidualHeads.Config(depth=3),
    "sequential": ft.SequentialHeads.Config(depth=3),
    "shared": ft.SequentialHeads.Config(depth=1, shared=True),
    "rollout": ft.SequentialHeads.Config(depth=3, shared=True, rollout="token"),
}
DRAFTERS = [
    "none",
    "lookup",
    "model",
    "model tree",
    *(f"{kind}{shape}" for kind in HEADS for shape in ("", " tree")),
]
TREES = {"parallel": TreeShape(widths=(2, 2, 1)), "residual": TreeShape(nodes=7)}
COMB = TreeShape(widths=(2, 2, 2))
DEPTH = 3


@cache
def lm(family: str) -> PreTrainedModel:
    """The backbone; `short` before a family's name cuts its context to 24 tokens."""
    kind, _, name = family.rpartition(" ")
    return short_context(name).lm if kind == "short" else families.build(name)


@cache
def attached(family: str, kind: str) -> ft.MTPModel:
    torch.manual_seed(5)
    return ft.MTPModel(lm(family), HEADS.get(kind)).eval()


@cache
def draft_model(family: str) -> Backbone:
    """Nearly the same model, which drafts right now and then."""
    return Backbone(families.moved(copy.deepcopy(lm(family)), 0.03))


def prompt(length: int) -> list[int]:
    """The same words again and again, so that there is something to look up."""
    return families.prompt(1, 6, seed=length)[0].repeat(5)[:length].tolist()


@cache
def alone(family: str, length: int) -> list[int]:
    """What transformers' own `generate` makes of the prompt of that length."""
    model, row = lm(family), torch.tensor([prompt(length)])
    new = min(NEW, (attached(family, "none").backbone.max_length or NEW + length) - length)
    out = model.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=new, do_sample=False
    )
    return out[0, length:].tolist()


def padded(lengths: list[int], side: str) -> tuple[Tensor, Tensor]:
    """The prompts of those lengths as a batch, and its mask."""
    width = max(lengths)
    rows = torch.full((len(lengths), width), PAD)
    mask = torch.zeros_like(rows)
    for number, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(length)
        rows[number, where], mask[number, where] = torch.tensor(prompt(length)), 1
    return rows, mask


class Helped:
    """Asks a drafter, and puts some of its first tokens right: how many depends on a row's length.

    Heads that were never trained are hardly ever right; so rows accept, and different lengths.

    Attributes:
        said: what the drafter itself proposed, by prompt, number of tokens so far and limit.
    """

    def __init__(self, inner: Drafter, texts: dict[int, list[int]]) -> None:
        self.inner, self.layers, self.longest = inner, inner.layers, inner.longest
        self.texts = {length: prompt(length) + new for length, new in texts.items()}
        self.said: dict[tuple[int, int, int], list[int]] = {}

    def start(self, past, sampler, rows, capacity) -> None:
        self.inner.start(past, sampler, rows, capacity)

    def select(self, places) -> None:
        self.inner.select(places)

    def draft(self, committed: Committed, limit: int) -> Draft:
        draft = self.inner.draft(committed, limit)
        tokens = draft.tokens.clone()
        for row, length in enumerate(committed.lengths):
            stands = committed.tokens[row, :length].tolist()
            name = next(n for n, text in self.texts.items() if text[:length] == stands)
            self.said[name, length, min(limit, self.longest)] = draft.tokens[row].tolist()
            right = length % (DEPTH + 2)
            way = self.way(draft, row)[:right]
            for node, token in zip(way, self.texts[name][length:], strict=False):
                tokens[row, node - 1] = token
        return replace(draft, tokens=tokens)

    @staticmethod
    def way(draft: Draft, row: int) -> list[int]:
        """Nodes to the deepest leaf, the last of several: in a tree not the first ones."""
        depths = draft.depths[row]
        node, way = int((depths == depths.max()).nonzero()[-1]), []
        while node > 0:
            way.insert(0, node)
            node = node - 1 if draft.parents is None else int(draft.parents[row, node - 1])
        return way


def drafter(family: str, name: str, length: int | None = None) -> Drafter:
    kind, _, tree = name.partition(" ")
    backbone = attached(family, "none").backbone
    if kind == "none":
        return NoDrafter()
    if kind == "lookup":
        return LookupDrafter(length or DEPTH, 2)
    shape = TREES.get(kind, COMB) if tree else None
    if kind == "model":
        return ModelDrafter(backbone, draft_model(family), length or DEPTH, shape)
    length = length or (DEPTH + 1 if kind == "shared" else DEPTH)  # deeper than it was trained
    return drafter_for(backbone, attached(family, kind).require_head(), length, shape)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        *((name, False) for name in DRAFTERS),
        ("parallel", True),
        pytest.param("model", True, marks=pytest.mark.long),
    ],
)
def test_what_a_batch_has_read_is_given_back_when_it_ends(name: str, compiled: bool) -> None:
    """Not when Python next looks for cycles, which is seldom, and by numbers of objects."""
    model, one = attached("llama", "none"), drafter("llama", name)
    rows, mask = padded([5] if compiled else [5, 1, 13], "right")  # one shape is traced sooner
    alive: list[weakref.ref[SlottedLayer]] = []

    class Watched(SlottedLayer):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            alive.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foretell.decoding.cache.slotted.SlottedLayer", Watched)
        options = {"max_new_tokens": NEW, "drafter": one, "compiled": compiled}
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        if compiled:  # torch.compile leaves cycles of its own
            model.decode(rows, mask, **options)
            alive.clear()
        gc.collect()
        gc.disable()
        try:
            model.decode(rows, mask, **options)
            del one, options
            assert alive
            assert not [layer for layer in alive if layer() is not None]
        finally:
            gc.enable()


# -- every family, every drafter ------------------------------------------------------------------

QUICK = [
    *(("llama", name) for name in DRAFTERS),
    ("mistral", "parallel tree"),
    ("gemma3_text", "sequential tree"),
    ("gpt2", "model tree"),
    ("mixtral", "residual"),
    ("qwen3_next", "parallel"),
]
CHAINS = {"falcon_alibi", *RESTORED}
"""Families that take no masks of ours: one row at a time, and no trees."""
ALL = [
    pytest.param(family, name, marks=[] if (family, name) in QUICK else pytest.mark.long)
    for family in SERVED
    for name in DRAFTERS
    if not (family in CHAINS and name.endswith("tree"))
]


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_row_is_continued_as_alone(family: str, name: str) -> None:
    model = attached(family, "none")
    assert bool(takes_masks(model.backbone)) == (family not in CHAINS)
    texts = {length: alone(family, length) for length in LENGTHS}
    said = {}
    for length in LENGTHS[:3]:
        one = Helped(drafter(family, name), {length: texts[length]})
        result = model.decode(torch.tensor([prompt(length)]), max_new_tokens=NEW, drafter=one)
        assert result.new_tokens == texts[length]
        said |= one.said
    for size, side in ((3, "left"), (8, "right")):
        lengths = list(LENGTHS[:size])
        rows, mask = padded(lengths, side)
        many = Helped(drafter(family, name), texts)
        result = model.decode(rows, mask, max_new_tokens=NEW, drafter=many)
        assert result.continuations == [texts[length] for length in lengths]
        assert torch.equal(result.sequences[:, : rows.shape[1]], rows)
        assert result.sequences[:, rows.shape[1] :].tolist() == result.continuations
        if name != "none":
            assert len({step.accepted for step in result.row_steps}) > 1
        if name.partition(" ")[0] in HEADS and name != "residual tree":  # near-ties of nodes
            common = said.keys() & many.said.keys()  # neighbours may have more room
            assert len(common) > 6
            for key in common:
                assert said[key] == many.said[key], key


# -- any rows, any drafts, any end ----------------------------------------------------------------

LETTERS = "abcdefghij"


@cache
def letters() -> PreTrainedTokenizerFast:
    """One or two letters per token, as many tokens as the families have."""
    words = [*LETTERS, *(a + b for a in LETTERS for b in LETTERS)][: families.VOCAB]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def cut(tokens: list[int], new: int, stop_tokens: set[int], stop_strings: list[str]) -> list[int]:
    """Where plain decoding ends: one token after another, and a look at everything so far."""
    for count in range(1, min(new, len(tokens)) + 1):
        text = letters().decode(tokens[:count])
        if tokens[count - 1] in stop_tokens or any(string in text for string in stop_strings):
            return tokens[:count]
    return tokens[:new]


def test_a_stop_string_that_no_token_writes_is_refused() -> None:
    model, row = attached("llama", "none"), torch.tensor([prompt(5)])
    for string in ("abx", "x", "", "a b"):
        with pytest.raises(ft.InputError, match=f"stop string '{string}' can never appear"):
            model.decode(row, max_new_tokens=4, stop_strings=["ab", string], tokenizer=letters())
    with pytest.raises(ft.InputError, match="need the tokenizer too"):
        model.decode(row, max_new_tokens=4, stop_strings=["ab"])


@settings(max_examples=50)
@given(data=st.data())
def test_every_row_ends_where_it_would_alone(data: st.DataObject) -> None:
    """Prompts, padding, draft lengths and ends of any kind; `short` contexts fill up mid-block."""
    draw = data.draw
    family = draw(
        st.sampled_from(["llama", "mistral", "gpt2", "qwen3_next", "short gpt2", "short opt"])
    )
    longest = 23 if family.startswith("short") else 29
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=4, unique=True))
    rows, mask = padded(lengths, draw(st.sampled_from(["left", "right"])))
    texts = {length: alone(family, length) for length in lengths}
    spoken = texts[draw(st.sampled_from(lengths))]
    new, stop_tokens, stop_strings = draw(st.integers(1, NEW)), set(), []
    if draw(st.booleans()):
        stop_tokens = {draw(st.sampled_from(spoken))}
    if draw(st.booleans()):
        text = letters().decode(spoken)
        begin = draw(st.integers(0, len(text) - 1))
        stop_strings = [text[begin : begin + draw(st.integers(1, 5))]]
    name = draw(st.sampled_from([name for name in DRAFTERS if name != "none"]))
    if family in CHAINS:
        name = name.partition(" ")[0]
    limits = draw(st.lists(st.integers(0, DEPTH), min_size=1, max_size=4).filter(any))

    model = attached(family, "none")
    stops = [StopTokens(stop_tokens), StopStrings(stop_strings, letters())]
    batch = Batch(model.backbone, rows, mask, new, stops)
    helped = Helped(drafter(family, name), texts)
    options = DecodeOptions(drafter=helped)
    steps = list(decode(model.backbone, batch, options, length=Told(limits)))

    for length, row in zip(lengths, zip(*steps, strict=True), strict=True):
        found = [token for step in row for token in step.tokens]
        assert found == cut(texts[length], new, stop_tokens, stop_strings)
        for step in row:
            assert step.accepted <= step.drafted <= DEPTH
            assert len(step.tokens) - step.accepted in (0, 1)


@pytest.mark.parametrize("name", ["none", "lookup", "parallel tree", "sequential", "model"])
def test_rows_that_have_ended_leave_the_passes(name: str) -> None:
    model, lengths, limits = attached("llama", "none"), list(LENGTHS[:4]), [12, 2, 2, 7]
    rows, mask = padded(lengths, "left")
    batch = Batch(model.backbone, rows, mask, limits)
    one, sampling = drafter("llama", name), Sampling(temperature=1.0)
    sizes, steps = [], []
    options = DecodeOptions(drafter=one, sampling=sampling)
    for step in decode(model.backbone, batch, options):
        sizes.append(len(batch.present))
        steps.append(step)
        assert len(step) == 4
    assert sizes[0] == 4
    assert sizes[-1] == 1
    for row, limit in enumerate(limits):
        drawn = [token for step in steps for token in step[row].tokens]
        assert drawn == batch.rows[row].continuation
        assert len(drawn) == limit
        own = Batch(model.backbone, torch.tensor([prompt(lengths[row])]), None, limit)
        alone = replace(options, sampling=replace(sampling, seeds=row))
        work = decode(model.backbone, own, alone)
        assert [token for (step,) in work for token in step.tokens] == drawn


@pytest.mark.parametrize("kind", ["sequential", "parallel", "residual"])
def test_a_row_that_has_ended_may_stay_beside_heads_of_one_depth(kind: str) -> None:
    """It has nothing left to read, however long the others go on."""
    model, lengths, limits = attached("llama", "none"), [5, 9, 7], [1, 12, 4]
    own = ft.attach(model.lm, kind, depth=1).eval()
    rows, mask = padded(lengths, "right")
    alone = [
        own.decode(torch.tensor([prompt(length)]), max_new_tokens=limit, drafter=NoDrafter())
        for length, limit in zip(lengths, limits, strict=True)
    ]
    batch = own.decode(rows, mask, max_new_tokens=limits, pass_width=2)
    assert batch.continuations == [one.new_tokens for one in alone]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "prompts"),
    pairs(["stories260K", "TinyStories-656K"], ["HumanEval.jsonl.gz", "mbpp.jsonl"]),
)
def test_real_weights_continue_real_prompts_as_in_transformers(
    data_dir: Path, name: str, prompts: str
) -> None:
    where, new = data_dir / "models" / name, 32
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(where / "tokenizer.json"))
    torch.manual_seed(0)
    lm = load_causal_lm(where, dtype=torch.float32)
    model = ft.attach(lm, "sequential", depth=3, init="copy").eval()
    whole = read_prompts(str(data_dir / "prompts" / prompts), tokenizer, 40, 7, seed=0)
    found = [row[:, : 40 - 3 * number] for number, row in enumerate(whole)]
    expected = [
        lm.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=new, do_sample=False,
            eos_token_id=None,
        )[0, row.shape[1] :].tolist()
        for row in found
    ]  # fmt: skip
    width = max(row.shape[1] for row in found)
    rows = torch.cat([pad(row, (width - row.shape[1], 0)) for row in found])
    mask = torch.cat([pad(torch.ones_like(row), (width - row.shape[1], 0)) for row in found])
    heads = model.require_head()
    for one in (
        drafter_for(model.backbone, heads),
        drafter_for(model.backbone, heads, shape=TreeShape(nodes=8)),
        LookupDrafter(5),
        ModelDrafter(model.backbone, model.backbone, 3),
        ModelDrafter(model.backbone, model.backbone, 3, TreeShape(widths=(2, 2))),
    ):
        options = {"max_new_tokens": new, "stop_tokens": (), "drafter": one}
        assert model.decode(rows, mask, **options).continuations == expected
        assert model.decode(found[0], **options).new_tokens == expected[0]


@pytest.mark.parametrize("read", [[6, 6], [6, 4]])
@pytest.mark.parametrize("fixed", [False, True])
def test_every_row_has_a_tree_of_its_own(read: list[int], fixed: bool) -> None:
    backbone = attached("llama", "none").backbone
    tokens = families.prompt(2, 10)
    draft = Draft(tokens[:, 7:], torch.tensor([[0, 0, 2], [0, 1, 0]]))
    past = SlottedPast(backbone, 2, 16, fixed=fixed)
    with torch.inference_mode():
        backbone(tokens[:, :6], **past.enter(6))
        past.keep(read)
        found = backbone(tokens[:, 6:], **past.enter(4, draft)).final
        for row, ways in enumerate([[[0, 1], [0, 2, 3]], [[0, 1, 2], [0, 3]]]):
            for way in ways:
                nodes = 6 + torch.tensor(way)
                whole = torch.cat([tokens[row, : read[row]], tokens[row, nodes]])
                expected = backbone(whole.unsqueeze(0)).final[0, -1]
                torch.testing.assert_close(found[row, way[-1]], expected)


class ForTheFirst(NoDrafter):
    """Drafts three tokens, of which the first row may take them all and the others none."""

    def draft(self, committed: Committed, limit: int) -> Draft:
        reach = torch.zeros_like(committed.last)
        reach[0] = 3
        return Draft(committed.tokens.new_zeros(len(reach), 3), reach=reach)


@pytest.mark.parametrize(("spare", "grows"), [(0, True), (passes.DRAFT_SLOTS, False)])
def test_slots_are_set_aside_for_drafts_of_rows_that_have_ended(monkeypatch, spare, grows) -> None:
    """A row that takes three drafted tokens a pass ends early, and its drafts go on behind it."""
    grown, grow = [], SlottedLayer.grow

    def noted(layer, capacity) -> None:
        grown.append(capacity)
        grow(layer, capacity)

    monkeypatch.setattr(SlottedLayer, "grow", noted)
    monkeypatch.setattr(passes, "DRAFT_SLOTS", spare)
    rows = torch.tensor([prompt(9)] * 5)
    result = attached("llama", "none").decode(
        rows, drafter=ForTheFirst(), rule=MinimumBlock(3), max_new_tokens=NEW
    )
    assert not result.steps[-1][0].tokens
    assert bool(grown) == grows


@pytest.mark.parametrize("name", ["none", "parallel", "sequential", "tree"])
def test_slots_are_added_as_texts_grow(monkeypatch, name: str) -> None:
    """Of rows that differ in length, behind drafts too; no text is to fill its row to the end."""
    model = attached("llama", "parallel" if name == "tree" else name)
    tokens = pad(torch.tensor([prompt(29)]), (0, 0, 0, 1))
    tokens[1, :13] = torch.tensor(prompt(13))
    mask = torch.ones_like(tokens)
    mask[1, 13:] = 0

    def found() -> list[list[int]]:
        shape = TreeShape((2, 2)) if name == "tree" else None
        drafter = drafter_for(model.backbone, model.head, shape=shape) if model.head else None
        given = {"drafter": drafter, "max_new_tokens": 40, "stop_tokens": ()}
        return model.decode(tokens, mask, **given).continuations

    whole, grown, grow = found(), [], SlottedLayer.grow
    monkeypatch.setattr(slotted, "AT_FIRST", 4)
    monkeypatch.setattr(slotted, "FIXED_SLOTS", 1)
    monkeypatch.setattr(SlottedLayer, "grow", lambda *told: grown.append(told[1]) or grow(*told))
    assert found() == whole
    assert grown


def test_a_text_may_be_as_long_as_anybody_says() -> None:
    """Where it ends by itself, room for a billion tokens is never used."""
    model = attached("llama", "sequential")
    tokens = torch.tensor([prompt(9)])
    short = model.decode(tokens, max_new_tokens=24, stop_tokens=(11, 12, 13)).continuations
    for most in (10**9, 10**15):
        found = model.decode(tokens, max_new_tokens=most, stop_tokens=short[0][5:6])
        assert found.continuations == [short[0][:6]]


def test_wide_passes_need_no_more_slots_than_were_set_aside(monkeypatch) -> None:
    """With other slots they would add in another order."""
    monkeypatch.setattr(passes, "require_invariance", lambda *_: None)
    backbone = attached("llama", "none").backbone
    whole = Batch(backbone, torch.tensor([prompt(40)]), None, 180)
    wide = passes.Passes(backbone, whole, 64, False)
    wide.past.keep([40 + 180 - 1])
    wide.past.enter(64)
    assert wide.past.slots.capacity == 512


@pytest.mark.parametrize("capacity", [34, 300, 4300])
def test_a_compiled_pass_never_sees_the_last_slot(capacity: int) -> None:
    """torch would compile "all slots" apart. Passes of one width see the same slots always."""
    backbone = attached("llama", "none").backbone
    for more in (0, 300):
        past = SlottedPast(backbone, 1, capacity, compiled=True)
        past.keep([capacity - 2 + more])
        past.enter(2)
        assert capacity + more <= past.slots.seen < past.slots.capacity
    past = SlottedPast(backbone, 1, capacity, fixed=True, compiled=True)
    seen = set()
    for read in (1, capacity - 2):
        past.keep([read])
        past.enter(2)
        seen.add(past.slots.seen)
    assert seen == {past.slots.capacity}


def test_a_row_that_finds_nothing_to_copy_drafts_nothing() -> None:
    """Also where a lossy rule would accept whatever is drafted, and where there is less room."""
    tokens = torch.tensor([[1, 2, 3, 1], [4, 5, 6, 7], [0, 8, 9, 8]])
    output = attached("llama", "none").backbone(tokens)
    committed = Committed(
        tokens, [4, 4, 4], [0, 0, 0], output, torch.tensor([2, 2, 2]), None, [8, 8, 1]
    )
    draft = LookupDrafter(3, 1).draft(committed, 2)
    assert draft.tokens[0].tolist() == [2, 3]
    assert draft.deepest.tolist() == [2, 0, 2]
    logits = torch.zeros(3, 3, families.VOCAB)
    assert MinimumBlock(2)(draft, logits).accepted.tolist() == [2, 0, 2]
    batch = Batch(attached("llama", "none").backbone, tokens, None, [9, 9, 2])
    assert batch.within(draft).deepest.tolist() == [2, 0, 1]


@pytest.mark.parametrize("shape", [None, TreeShape(widths=(2, 2))])
def test_a_draft_model_of_a_shorter_context_drafts_for_those_it_can_read(shape) -> None:
    """A long neighbour takes no draft from a short row, nor the other way round."""
    model = attached("llama", "none")
    small = Backbone(families.moved(copy.deepcopy(lm("short gpt2")), 0.03))
    lengths, seeds = [5, 19, 29], [3, 4, 5]
    rows, mask = padded(lengths, "right")

    def run(rows: Tensor, mask: Tensor | None, seeds: list[int]):
        sampling = Sampling(temperature=0.5, seeds=seeds)
        drafter = ModelDrafter(model.backbone, small, DEPTH, shape)
        return model.decode(rows, mask, max_new_tokens=NEW, drafter=drafter, sampling=sampling)

    together = run(rows, mask, seeds)
    for number, length in enumerate(lengths):
        own = run(torch.tensor([prompt(length)]), None, seeds[number : number + 1])
        assert own.new_tokens == together.continuations[number]
        drafted = [step.drafted for step in own.row_steps]
        assert drafted == [steps[number].drafted for steps in together.steps[: own.forwards]]
        assert max(drafted) == (DEPTH if length < 24 else 0)


def spaced() -> PreTrainedTokenizerFast:
    """Words that carry the space before them, which decoding drops at the beginning of a text."""
    words = ["▁", "a", "b", "▁a", "▁b"]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [("▁", "a")]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def test_a_stop_string_that_begins_with_a_space_is_seen() -> None:
    """As the first token, and where it takes one token for every byte."""
    stop = StopStrings([" ab"], spaced())
    assert stop([], [3, 2]) == 2
    assert stop([], [0, 1, 2]) == 3
    assert stop([4, 0], [1, 2]) == 2
    assert stop([4, 1], [1, 2]) is None
    assert stop([], [1, 2]) is None


@pytest.mark.parametrize(
    ("family", "masked", "behind"),
    [
        ("gpt_neo", False, f" behind {families.WINDOW} tokens"),  # its local window goes by slots
        ("llama4_text", True, None),
        ("llama4_tempered", False, " behind 20 tokens"),  # so does its temperature
    ],
)
def test_windows_are_tried_behind_their_end(family: str, masked: bool, behind: str | None) -> None:
    lm = families.build(family)
    model, lengths = ft.attach(lm, "residual", depth=2), [5, 29, 16]
    assert takes_masks(model.backbone, 12)
    assert bool(takes_masks(model.backbone)) == masked
    assert masked or takes_masks(model.backbone).lacking.endswith(f"does not obey it{behind}")
    expected = []
    for length in lengths:
        row = torch.tensor([prompt(length)])
        own = lm.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=24, do_sample=False
        )
        expected.append(own[0, length:].tolist())
    rows, mask = padded(lengths, "left")
    for proposes in (None, LookupDrafter(4, 1)):
        result = model.decode(rows, mask, max_new_tokens=24, drafter=proposes)
        assert result.continuations == expected
