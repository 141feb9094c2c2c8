import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import families
import foretell as ft
from foretell.cli.probe_tables import _advice
from foretell.data import Document, PackedBlocks
from foretell.decoding import LookupDrafter
from foretell.errors import InputError
from foretell.probe import (
    DraftModel,
    Journal,
    Marginalization,
    NGram,
    NGrams,
    ProbeOptions,
    PromptLookup,
    RepeatLast,
    TokenClasses,
    measure,
    prediction,
)
from foretell.probe import run as probe_run
from foretell.probe.layers import linear_cka, read_layers, spread_layers, train_probes
from foretell.probe.linear import fit
from foretell.probe.prediction import Costs, Prediction, Range, measure_costs, predict, speedup
from foretell.probe.rows import depth_rows, expected_rows, part_rows
from foretell.probe.scores import Scorer, Truth, among_likeliest, entropy, entropy_bounds
from foretell.tally import Tally
from packs import WITH_EOS

SIZE = 12


def blocks(count: int = 6, vocab: int = families.VOCAB) -> PackedBlocks:
    """Each block one document of its own, of which one repeats itself."""
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, vocab, (count, SIZE), generator=random).numpy().astype(np.int32)
    tokens[0] = np.arange(SIZE) % 3 + 5
    starts = np.arange(count) * SIZE
    kinds = ["python" if number % 2 else "text" for number in range(count)]
    return PackedBlocks(tokens, starts, num_bytes=120, document_kinds=kinds)


def distributions(count: int, vocab: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(count, vocab, generator=random)).double().softmax(-1)


# -- scores -------------------------------------------------------------------------------------


def test_scores_are_those_of_the_definitions() -> None:
    """Three depths at five positions, by hand."""
    p = [distributions(5, 7, seed=k) for k in range(3)]
    q = [distributions(5, 7, seed=9 + k) for k in range(3)]
    texts = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))
    chain = [chances.argmax(-1) for chances in p]
    chain[1] = q[1].argmax(-1)  # so that something stands behind it
    scorer = Scorer()
    for k in range(3):
        target = Truth(texts[k], p[k], chain[k])
        found = scorer.distribution(k, q[k], target)
        for row in range(5):
            ranked = q[k][row].argsort(descending=True).tolist()
            token = int(texts[k, row])
            assert found["top1"][row] == (ranked[0] == token)
            assert found["top5"][row] == (token in ranked[:5])
            assert float(found["nll"][row]) == pytest.approx(-math.log(q[k][row, token]))
            chances = q[k][row].tolist()
            assert float(found["entropy"][row]) == pytest.approx(
                -sum(c * math.log(c) for c in chances)
            )
            agrees = [int(q[j][row].argmax()) == int(p[j][row].argmax()) for j in range(k + 1)]
            assert found["agreement"][row] == agrees[k]
            assert found["acceptance"][row] == (all(agrees[1:]) if k else agrees[0])
            drawn = math.prod(
                min(1.0, float(q[j][row, texts[j, row]] / p[j][row, texts[j, row]]))
                for j in range(1, k)
            )
            overlap = float(torch.minimum(p[k][row], q[k][row]).sum())
            assert float(found["speculative"][row]) == pytest.approx(drawn * overlap)
            own = [int(q[j][row].argmax()) == int(chain[j][row]) for j in range(k + 1)]
            assert found["own_agreement"][row] == own[k]


def test_drawn_tokens_stand_as_often_as_speculative_sampling_says() -> None:
    """Texts drawn from p: the mean of the closed form is the frequency of Leviathan's rule."""
    p, q = distributions(2, 6, seed=1), distributions(2, 6, seed=2)
    count, random = 40_000, torch.Generator().manual_seed(0)
    texts = [
        torch.multinomial(p[k].expand(count, -1), 1, True, generator=random)[:, 0] for k in (0, 1)
    ]
    scorer = Scorer()
    expected = [
        scorer.distribution(k + 1, q[k].expand(count, -1), Truth(texts[k], p[k].expand(count, -1)))[
            "speculative"
        ].mean()
        for k in (0, 1)
    ]
    stands = torch.ones(count, dtype=torch.bool)
    for k in (0, 1):
        drafted = torch.multinomial(q[k].expand(count, -1), 1, True, generator=random)[:, 0]
        ratio = (p[k] / q[k])[drafted]
        stands &= torch.rand(count, generator=random) < ratio
        assert float(stands.float().mean()) == pytest.approx(float(expected[k]), abs=0.01)


@given(st.integers(0, 1000), st.floats(0, 0.9))
def test_bounds_hold_for_every_completion(seed: int, share: float) -> None:
    whole = distributions(4, 6, seed)
    random = torch.Generator().manual_seed(seed)
    covered = whole * (1 - share * torch.rand(whole.shape, generator=random, dtype=whole.dtype))
    missing = 1 - covered.sum(-1, keepdim=True)
    least, most = entropy_bounds(covered, missing)
    true = entropy(whole)
    assert bool((least <= true + 1e-9).all())
    assert bool((true <= most + 1e-9).all())
    tokens = torch.randint(6, (4,), generator=random)
    for count in (1, 2, 5):
        ranks = (whole > whole.gather(1, tokens.unsqueeze(1))).sum(-1)
        sure, possible = among_likeliest(covered, missing, tokens, count)
        assert bool((~sure | (ranks < count)).all())
        assert bool((possible | (ranks >= count)).all())


def test_what_is_missing_lifts_only_so_many() -> None:
    """Either of two others may pass, not both: they would need 0.02 and 0.04, and 0.05 is left."""
    covered = torch.tensor([[0.30, 0.28, 0.26, 0.06, 0.05]]).double()
    missing, token = torch.tensor([[0.05]]).double(), torch.tensor([0])
    found = [tuple(map(bool, among_likeliest(covered, missing, token, n))) for n in (1, 2, 9)]
    assert found == [(False, True), (True, True), (True, True)]
    lowest = torch.tensor([4])
    assert [bool(among_likeliest(covered, missing, lowest, n)[1]) for n in (3, 4)] == [False, True]


def test_the_bounds_of_entropy_are_reached() -> None:
    covered, missing = torch.tensor([[0.5, 0.1, 0.2]]).double(), torch.tensor([[0.2]]).double()
    least, most = entropy_bounds(covered, missing)
    assert float(least) == pytest.approx(float(entropy(torch.tensor([[0.7, 0.1, 0.2]]).double())))
    assert float(most) == pytest.approx(float(entropy(torch.tensor([[0.5, 0.25, 0.25]]).double())))


# -- classes ------------------------------------------------------------------------------------


class Pieces:
    """A tokenizer whose tokens are given pieces of text; 0 is special."""

    all_special_ids = (0,)

    def __init__(self, *pieces: str) -> None:
        self.pieces = ["<end>", *pieces, "a"]

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(self.pieces) - 1]}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in ids)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("python", ["keyword", "identifier", "word inside", "punctuation", "whitespace"]),
        ("text", ["word start", "word start", "word inside", "punctuation", "whitespace"]),
    ],
)
def test_classes_of_tokens(kind: str, expected: list[str]) -> None:
    pieces = ["def", " na", "me2", "():", "\n    ", "ret", "urn", " 12", "34", " x", "\ufffd"]
    classes = TokenClasses(Pieces(*pieces))(range(1, len(pieces) + 1), kind)
    rest = ["keyword" if kind == "python" else "word start", "word inside", "number", "number"]
    name = "identifier" if kind == "python" else "word start"
    assert classes == [*expected, *rest, name, "word inside"]
    assert TokenClasses(Pieces("x"))([0, 1], kind) == ["special", name]


# -- baselines ----------------------------------------------------------------------------------


def test_ngrams_are_counted_as_by_the_definition() -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(0, 4, length).astype(np.int32) for length in (9, 1, 30)]
    counts = NGram(documents, 4, depth=2)

    def naive(ending: list[int], depth: int) -> np.ndarray:
        found = np.full(4, 0.25)
        for length in range(min(3, len(ending)) + 1):
            wanted = ending[len(ending) - length :]
            following: Counter[int] = Counter()
            for document in documents:
                row = document.tolist()
                if not length:
                    following.update(row)
                    continue
                for end in range(length, len(row) + 1):
                    place = end + depth
                    if row[end - length : end] == wanted and place < len(row):
                        following[row[place]] += 1
            total, kinds = sum(following.values()), len(following)
            if kinds:
                seen = np.array([following[token] for token in range(4)])
                found = (seen + kinds * found) / (total + kinds)
        return found

    for depth in range(3):
        for ending in ([1], [2, 3], [0, 1, 2], [3, 3, 3, 1], documents[2].tolist()):
            found = counts.distribution(np.array(ending), depth)
            np.testing.assert_allclose(found, naive(ending, depth))
            assert found.sum() == pytest.approx(1)


def test_all_methods_at_the_same_positions() -> None:
    model, text = ft.MTPModel(families.build("llama")), blocks()
    other = ft.MTPModel(families.build("llama", seed=1))
    methods = [
        Marginalization(2, 8),
        NGrams(NGram([np.arange(50, dtype=np.int32)], families.VOCAB, 2)),
        PromptLookup(),
        RepeatLast(),
        DraftModel(other.backbone, families.VOCAB),
    ]
    tally = measure(model, text, methods, depth=2, positions=48)
    rows = depth_rows(tally)
    names = [method.name for method in methods]
    assert tally.keys("method") == names
    deeper = [row for row in rows if row.depth]
    assert {row.method for row in deeper} == set(names)
    assert {row.positions for row in rows} == {6 * (SIZE - 3)}  # 48 at least
    for row in rows:
        for name in ("top1", "agreement", "acceptance"):
            assert 0 <= getattr(row, name).value <= 1
    assert {row.document_kind for row in part_rows(tally, "document_kind")} == {
        "python",
        "text",
    }
    assert {row.rule for row in expected_rows(tally)} == {"exact", "speculative"}


def test_a_model_drafts_for_itself_what_always_stands() -> None:
    model = ft.MTPModel(families.build("llama"))
    methods = [DraftModel(model.backbone, families.VOCAB)]
    tally = measure(model, blocks(), methods, depth=3, positions=32)
    for row in depth_rows(tally):
        for name in ("agreement", "acceptance", "own_acceptance"):
            assert getattr(row, name).value == 1
        assert row.speculative.value == pytest.approx(1, abs=1e-5)
    last = [row for row in expected_rows(tally) if row.depth == 3]
    assert all(row.tokens_per_forward.value == pytest.approx(4, abs=1e-4) for row in last)


def test_a_text_that_repeats_itself_is_looked_up() -> None:
    model, text = ft.MTPModel(families.build("llama")), blocks(1)  # 5 6 7 5 6 7 …
    tally = measure(model, text, [PromptLookup(), RepeatLast()], depth=2, positions=16)
    drafted = LookupDrafter(2).continuation
    row, hits = text[0]["input_ids"], []
    for t in range(SIZE - 3):
        hits.append(
            [int(a) == int(b) for a, b in zip(drafted(row[: t + 2], 2), row[t + 2 :], strict=False)]
        )
    for depth in (1, 2):
        expected = sum(len(hit) >= depth and hit[depth - 1] for hit in hits) / len(hits)
        assert tally.means("top1", method="prompt-lookup", depth=depth)[0] == expected > 0.5
    assert tally.means("top1", method="repeat-last", depth=0)[0] == 0
    assert tally.means("top1", method="repeat-last", depth=2)[0] == 1


def test_another_vocabulary_cannot_draft() -> None:
    backbone = ft.MTPModel(families.build("llama")).backbone
    with pytest.raises(InputError, match="needs the same one"):
        DraftModel(backbone, families.VOCAB + 1)


# -- runs ---------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text, path = ft.MTPModel(families.build("llama")), blocks(), tmp_path / "x.partial"
    asked = {"depth": 1, "positions": 64}

    def run(settings: dict[str, int], **more: object) -> Tally:
        journal = Journal(path, settings)
        return measure(model, text, [Marginalization(1, 4)], journal=journal, **asked, **more)

    whole = depth_rows(measure(model, text, [Marginalization(1, 4)], **asked))

    def stop(share: float) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"a": 1}, progress=stop)
    with path.open("a") as stream:
        stream.write('[5, [["half')  # of a line
    measured: list[int] = []
    original = probe_run._measure_row

    def counting(*arguments: object) -> list[list[object]]:
        measured.append(arguments[2])  # type: ignore[arg-type]
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(probe_run, "_measure_row", counting)
    assert depth_rows(run({"a": 1})) == whole
    assert 0 < len(measured) < 6
    measured.clear()
    assert depth_rows(run({"a": 2})) == whole  # other settings: all anew
    assert len(measured) == 6
    Journal(path, {"a": 2}).remove()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"nonsense\n", b"\xff\xfe\n", b"\0\0\0\n", b"[]\n", b"\n"])
def test_what_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.partial"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.partial: .*another file is there"):
        Journal(path, {"a": 1})
    assert path.read_bytes() == content


def test_what_is_not_whole_of_a_journal_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    path.write_bytes(b"")
    journal = Journal(path, {"a": 1})
    assert journal.done == {}
    journal.write(3, [])
    with path.open("ab") as stream:
        stream.write(b"\0\0\n[4, []]\n")
    assert Journal(path, {"a": 1}).done == {3: []}


# -- layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [(1, (0, 1)), (4, (0, 1, 2, 3, 4))])
def test_layers_are_spread(count: int, expected: tuple[int, ...]) -> None:
    assert spread_layers(count) == expected


def test_the_lens_of_the_last_layer_is_the_model() -> None:
    model, text = ft.MTPModel(families.build("llama")), blocks()
    probes = train_probes(model, text, layers=(1, 4), depth=1, positions=40)
    table = read_layers(model, text, depth=1, positions=40, probes=probes)
    rows = {(row.method, row.layer, row.depth): row for row in table.rows()}
    last = rows["logit-lens", 4, 0]
    assert last.agreement.value == last.settled.value == 1
    assert {layer for method, layer, _ in rows if method == "linear-probe"} == {1, 4}
    assert {layer for method, layer, _ in rows if method == "logit-lens"} == set(range(5))
    settled = [rows["logit-lens", layer, 0].settled.value for layer in range(5)]
    assert settled == sorted(settled)
    assert all(
        rows["logit-lens", layer, 0].settled.value <= rows["logit-lens", layer, 0].agreement.value
        for layer in range(5)
    )
    assert [row.cka_final for row in table.drift][-1] == pytest.approx(1)
    assert table.drift[0].cosine == pytest.approx(1)


def test_a_linear_probe_finds_a_linear_map() -> None:
    random = torch.Generator().manual_seed(0)
    states = torch.randn(400, 8, generator=random)
    finals = states @ torch.randn(8, 8, generator=random) + 2
    output = torch.randn(8, 11, generator=random)
    probe = fit(states, finals, (finals @ output).argmax(-1), lambda x: x @ output)
    fresh = torch.randn(100, 8, generator=random)
    true = fresh @ torch.linalg.lstsq(states, finals - 2).solution + 2
    agree = ((probe(fresh) @ output).argmax(-1) == (true @ output).argmax(-1)).float().mean()
    assert float(agree) > 0.9


def test_a_linear_probe_is_no_worse_than_the_regression_it_begins_with() -> None:
    """What is read from states that know nothing is what is likely in general."""
    random = torch.Generator().manual_seed(0)
    states, finals = (torch.randn(2000, 4, generator=random) for _ in range(2))
    tokens = torch.randint(3, (2000,), generator=random)
    probe = fit(states, finals, tokens, lambda x: x[:, :3])
    loss = torch.nn.functional.cross_entropy(probe(states)[:, :3], tokens)
    assert float(loss) == pytest.approx(math.log(3), abs=0.05)


def test_alignment_ignores_rotation_and_scale() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=random)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=random)).Q
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    # The definition by Gram matrices, Kornblith et al. 2019, equations 3 and 4.
    y = torch.randn(50, 3, generator=random)
    center = torch.eye(50) - 1 / 50
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    hsic = (k * m).sum() / (k.norm() * m.norm())
    assert linear_cka(x, y) == pytest.approx(float(hsic), rel=1e-4)


# -- prediction ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("cost", "expected"), [(0.0, 3.3616), (0.1, 3.3616 / 1.4)])
def test_the_speedup_is_leviathans(cost: float, expected: float) -> None:
    """α = 0.8, γ = 4: (1 - α^{γ+1}) / ((1 - α)(γc + 1))."""
    acceptance = [0.8**k for k in range(1, 5)]
    assert speedup(acceptance, Costs([2.0] * 5, 2.0 * cost), 4) == pytest.approx(expected)


def test_noise_makes_no_speedup_beyond_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow moment while the plain pass was timed, as on a busy machine."""
    monkeypatch.setattr(prediction, "_turn", lambda actions: [5.0, 3.0, 4.0, 0.1])
    costs = measure_costs(ft.MTPModel(families.build("llama")), 2)
    assert costs == Costs([3.0, 3.0, 4.0], 0.1)
    assert speedup([0.5, 0.25], costs, 2) < 1.75


def test_what_is_recommended() -> None:
    cheap, dear = Costs([1.0, 1.0, 1.0], 0.05), Costs([1.0, 2.0, 3.0], 0.5)
    ranges = {"text": Range([0.1, 0.0], [0.3, 0.1]), "own": Range([0.5, 0.2], [0.6, 0.4])}
    known = {"ranges": ranges, "num_layers": 8}
    good = Prediction(costs=cheap, layers=[8, 7], share=0.9, **known)
    assert (good.depth, good.tap, good.recipe) == (2, "final", "frozen")
    early = Prediction(costs=dear, layers=[3, 5], share=0.4, **known)
    assert (early.depth, early.tap, early.recipe) == (0, "weighted", "joint")
    assert Prediction(costs=cheap, layers=[7, 8], share=0.9, **known).tap == "trunk"
    assert Prediction(costs=cheap, layers=[], share=None, **known).recipe == "joint"
    chosen = [row.depth for row in good.rows() if row.chosen]
    assert chosen == [2, 2]
    # Between 0.97 and 1.03 at depth 1: it may pay, which the verdict says, whatever the middle is.
    open_ = Prediction(costs=Costs([1.0, 1.45, 1.9], 0.1), layers=[], share=None, **known)
    low, high = open_.speedups(1)
    assert low < 1.0 < high
    assert open_.depth == 1
    assert f"is open: {low:.2f}× to {high:.2f}× plain decoding" in _advice(open_)
    assert "would not pay" in _advice(early)
    assert _advice(good).startswith("Recommended")
    for row in good.rows():
        assert row.tokens_per_forward.min <= row.tokens_per_forward.max


def test_few_positions_make_linear_probes_cheap() -> None:
    """Layers are read at fewer positions too, and learned from in fewer steps."""
    assert [ProbeOptions(positions=n).read_at for n in (8, 512, 4096)] == [32, 2048, 2048]
    assert ProbeOptions(positions=8, layer_positions=100).read_at == 100
    rows: list[int] = []

    def unembed(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return hidden

    for size in (32, 7168):
        rows.clear()
        states = torch.randn(size, 8)
        fit(states, states, torch.randint(8, (size,)), unembed)
        assert sum(rows) < 12 * size
    assert rows.count(512) > 50


def test_a_prediction_from_measurements() -> None:
    model, text = ft.MTPModel(families.build("llama")), blocks()
    tally = measure(model, text, [Marginalization(2, 8)], depth=2, positions=48)
    probes = train_probes(model, text, layers=(2, 4), depth=2, positions=40)
    layers = read_layers(model, text, depth=2, positions=40, probes=probes).tally
    costs = measure_costs(model, 2)
    assert len(costs.verify) == 3
    assert min(*costs.verify, costs.draft) > 0
    found = predict(tally, layers, costs, 2, 4)
    assert set(found.layers) <= {2, 4}
    for behind, name in (("text", "acceptance"), ("own", "own_acceptance")):
        for k, high in zip((1, 2), found.ranges[behind].high, strict=True):
            assert high >= tally.means(f"{name}_max", method="marginalization", depth=k)[0] - 1e-9
    assert found.ranges["own"].low == [0.0, 0.0]  # no n-grams were measured
    without = predict(tally, None, costs, 2, 4)
    assert without.ranges["text"].low == [0.0, 0.0]
    assert without.share is None


# -- documents ----------------------------------------------------------------------------------


def test_kinds_and_sizes_of_documents() -> None:
    texts = [Document("abc", "x/a.py"), Document("dé", "b.md"), Document("fg", "many.jsonl:3")]
    for alone in (False, True):
        packed = PackedBlocks.from_documents(texts, WITH_EOS, 4, one_document_per_block=alone)
        assert packed.document_kinds == ("python", "markdown", "many")[: packed.num_documents]
        assert round(float(packed.document_bytes.sum())) == packed.num_bytes
        assert packed.document_lengths().sum() == packed.num_tokens
        lengths = packed.document_lengths().tolist()
        numbers = [
            number
            for index in range(len(packed))
            for number, token in zip(
                packed.documents(index).tolist(),
                packed[index].get("labels", packed[index]["input_ids"]).tolist(),
                strict=True,
            )
            if token >= 0
        ]
        assert [numbers.count(n) for n in range(packed.num_documents)] == lengths
