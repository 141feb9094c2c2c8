"""Heads that draft some of the model's tokens: drafts, losses, training, files, measurements."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import families
import foretell as ft
from drafting import reference
from foretell.data import PackedBlocks
from foretell.data.vocabulary import coverage_by_size, learned_tokens, most_frequent
from foretell.decoding import TreeShape
from foretell.decoding.drafters.output import HeadOutput
from foretell.errors import CheckpointError, HeadError, InputError
from foretell.evaluation import measure_heads
from foretell.formats import (
    export,
    head_for,
    import_heads,
    layout,
    layouts_for,
    require_layout,
)
from foretell.heads import DraftVocabulary
from foretell.objective import ObjectiveConfig
from foretell.targets import IGNORE
from foretell.training import Plan, train
from foretell.training.config import TrainConfig
from foretell.training.vocabulary import read_vocabulary
from runs import VOCAB, Stop, corpus, metrics, settings, small_model, stop_at, stream

KINDS = {
    "parallel": {"kind": "parallel"},
    "residual": {"kind": "residual"},
    "sequential": {"kind": "sequential"},
    "rollout": {"kind": "sequential", "shared": True, "rollout": "token"},
}


def few(family: str, kind: str, size: int = 20) -> ft.MTPModel:
    """New heads that draft `size` tokens, among them some that this model likes to say."""
    torch.manual_seed(5)
    config = ft.heads.new_heads({**KINDS[kind], "depth": 3, "vocabulary": size})
    model = ft.MTPModel(families.build(family), config).eval()
    liked = model.lm(families.prompt(4, 12)).logits.mean((0, 1)).topk(size).indices
    model.head.vocabulary.choose(liked)
    return model


# -- the map ------------------------------------------------------------------------------------


def test_places_and_spreading_are_each_others_inverse() -> None:
    vocabulary = DraftVocabulary(3)
    vocabulary.choose(torch.tensor([7, 2, 5]))
    tokens = torch.tensor([[0, 2, 5], [7, 8, IGNORE]])
    expected = torch.tensor([[IGNORE, 0, 1], [2, IGNORE, IGNORE]])
    assert torch.equal(vocabulary.places(tokens), expected)
    spread = vocabulary.spread(torch.tensor([[0.2, 0.3, 0.5]]), 9)
    assert spread.tolist() == [pytest.approx([0, 0, 0.2, 0, 0, 0.3, 0, 0.5, 0])]
    with pytest.raises(InputError, match="2 different tokens were given; 3 are drafted"):
        vocabulary.choose(torch.tensor([7, 2, 2]))


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "biased"])
@pytest.mark.parametrize("learns", [True, False])
def test_some_logits_are_those_of_all(family: str, learns: bool) -> None:
    """With the family's scaling, soft-capping and bias; gradients reach the output head's rows."""
    lm = families.build("llama" if family == "biased" else family)
    if family == "biased":
        lm.lm_head.bias = torch.nn.Parameter(torch.randn(families.VOCAB))
    backbone = ft.attach(lm, depth=1).backbone
    backbone.output.requires_grad_(learns)
    tokens, final = torch.tensor([3, 9, 40]), torch.randn(2, 5, backbone.hidden_size)
    some, every = backbone.unembed_some(tokens)(final), backbone.unembed(final)[..., tokens]
    torch.testing.assert_close(some, every)
    assert some.requires_grad == learns
    if learns:
        (gradient,) = torch.autograd.grad(some.square().sum(), backbone.output.weight)
        (wanted,) = torch.autograd.grad(every.square().sum(), backbone.output.weight)
        torch.testing.assert_close(gradient, wanted)


# -- drafts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_next", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_backbones_and_drafts_the_likeliest_of_the_few(
    family: str, kind: str
) -> None:
    model = few(family, kind)
    drafted: set[int] = set()
    named = HeadOutput.named

    def seen(self: HeadOutput, draft):
        result = named(self, draft)
        drafted.update(result.tokens.flatten().tolist())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadOutput, "named", seen)
        row = families.prompt(1, 13, seed=13)
        found = model.decode(row, max_new_tokens=14, stop_tokens=())
    assert found.new_tokens == reference(family, 1)
    assert drafted <= set(model.head.vocabulary.tokens.tolist())
    assert len(drafted) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [TreeShape(widths=(3, 2)), TreeShape(nodes=8)])
def test_trees_too(kind: str, shape: TreeShape) -> None:
    model = few("llama", kind, size=5)
    drafter = model.drafter_named("heads", 3, shape)
    row = families.prompt(1, 13, seed=13)
    found = model.decode(row, max_new_tokens=14, stop_tokens=(), drafter=drafter)
    assert found.new_tokens == reference("llama", 1)
    with pytest.raises(InputError, match="6 wide, the vocabulary has 5"):
        model.drafter_named("heads", 3, TreeShape(widths=(6, 1)))


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_a_draft_is_the_likeliest_of_the_few(kind: str) -> None:
    """Of the full logits of the heads, the best one inside."""
    model = few("llama", kind)
    tokens = model.head.vocabulary.tokens
    row = families.prompt(1, 12)
    with torch.inference_mode():
        output = model.backbone(row, layers=model.layers)
        state = model.depth_hidden(row, output)[0][0, -2]  # depth 1: what it drafts after 11 tokens
        wanted = tokens[model.backbone.unembed(state)[tokens].argmax()]
        found = HeadOutput(model.backbone, model.head).logits(state).argmax()
    assert tokens[found] == wanted


# -- losses -------------------------------------------------------------------------------------


def direct(model: ft.MTPModel, tokens: Tensor) -> Tensor:
    """The mean loss of each depth 1…K over the tokens that are drafted, the long way."""
    inside = model.head.vocabulary.tokens
    hidden = model.depth_hidden(tokens, model.backbone(tokens, layers=model.layers))
    losses = []
    for depth, states in enumerate(hidden, start=1):
        logs = model.backbone.unembed(states)[..., inside].log_softmax(-1)
        chosen = [
            -logs[b, t, (inside == tokens[b, t + 1 + depth]).nonzero().item()]
            for b in range(tokens.shape[0])
            for t in range(tokens.shape[1] - 1 - depth)
            if tokens[b, t + 1 + depth] in inside
        ]
        losses.append(torch.stack(chosen).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@pytest.mark.parametrize("in_order", [True, False])
def test_tokens_outside_are_no_targets(kind: str, in_order: bool) -> None:
    model = few("llama", kind)
    model.depth_by_depth = in_order
    tokens = families.prompt(3, 14, seed=2)
    output = model(tokens)
    expected = direct(model, tokens)
    torch.testing.assert_close(output.depth_losses[1:], expected.detach())
    model.zero_grad()
    own = F.cross_entropy(model.lm(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    (own + expected.sum()).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output.loss.backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=2e-4, atol=4e-6)


def test_a_teacher_says_how_likely_each_of_the_few_is_among_them() -> None:
    model = few("llama", "residual")
    tokens, inside = families.prompt(2, 10), model.head.vocabulary.tokens
    objective = ObjectiveConfig(distill="backbone", backbone=0.0)
    logs = model.lm(tokens).logits[..., inside].log_softmax(-1)  # also a new residual head's own
    expected = 0.0
    for depth in (1, 2, 3):
        target = tokens[:, 1 + depth :]
        learned = torch.isin(target, inside)
        p, q = logs[:, depth:-1][learned], logs[:, : -1 - depth][learned]
        expected += (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(model(tokens, objective=objective).loss, expected)


# -- training -----------------------------------------------------------------------------------


def test_the_most_frequent_and_those_that_are_needed() -> None:
    counts = torch.tensor([5, 0, 9, 9, 1, 0])
    assert most_frequent(counts, 3, [5]).tolist() == [2, 3, 5]
    assert most_frequent(counts, 2, [5, 70]).tolist() == [2, 5]
    assert most_frequent(counts, 5, []).tolist() == [0, 1, 2, 3, 4]


def uneven(blocks: int = 24) -> PackedBlocks:
    """Even tokens mostly, and only of these are answers: prompts are odd and not learned."""
    rng = np.random.default_rng(0)
    tokens = 2 * rng.integers(0, 5, (blocks, 16)).astype(np.int32) + 20
    learned = np.tile(np.arange(16) >= 6, (blocks, 1))
    tokens[~learned] = 11
    tokens[0, 8] = 3  # a rare one
    return PackedBlocks(tokens, np.arange(blocks) * 16, num_bytes=1000, learned=learned)


def test_how_much_of_unseen_text_the_frequent_tokens_are() -> None:
    """Counted in the first and third block, looked for in the second and fourth."""
    tokens = np.zeros((4, 8), np.int32)
    tokens[0] = [1, 1, 1, 2, 2, 3, 3, 3]
    tokens[1] = [1, 1, 3, 5, 5, 5, 2, 2]
    blocks = PackedBlocks(tokens[:2], np.arange(2) * 8, num_bytes=10)
    assert coverage_by_size(blocks, 10) == {1: 2 / 8, 2: 3 / 8, 4: 5 / 8, 8: 1.0}
    assert min(coverage_by_size(blocks, 1000)) == 16
    assert coverage_by_size(PackedBlocks(tokens[:1], np.zeros(1, int), num_bytes=1), 10) == {}


def test_a_large_corpus_is_counted_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretell.data.vocabulary.COUNTED", 2)
    tokens = np.repeat(np.arange(6, dtype=np.int32), 4).reshape(6, 4)
    blocks = PackedBlocks(tokens, np.arange(6) * 4, num_bytes=10)
    assert learned_tokens(blocks, 6).tolist() == [4, 0, 0, 4, 0, 0]


@pytest.mark.parametrize("recipe", ["frozen", "joint"])
def test_training_chooses_what_is_frequent_in_what_is_learned(recipe: str, tmp_path: Path) -> None:
    config = settings(recipe=recipe, head={"kind": "sequential", "vocabulary": 6}, save_every=3)
    model, plans = small_model(config.head), []
    model.generation_config.eos_token_id = 47
    with pytest.raises(Stop):
        train(model, uneven(), config, tmp_path / "run", begin=plans.append, report=stop_at(5))
    chosen = [20, 22, 24, 26, 28, 47]
    assert model.head.vocabulary.tokens.tolist() == chosen
    assert (plans[0].drafted, plans[0].coverage) == (6, pytest.approx(1 - 1 / 240))
    again = small_model(config.head)
    again.generation_config.eos_token_id = 47
    result = train(again, uneven(), config, tmp_path / "run")
    loaded = ft.MTPModel.from_pretrained(result.directory)
    assert loaded.head.vocabulary.tokens.tolist() == chosen
    assert loaded.head.config.vocabulary == 6
    lines = metrics(tmp_path / "run")
    assert lines[-1]["depth_losses"][1] < lines[0]["depth_losses"][1] < math.log(6) + 1


@pytest.mark.parametrize("chosen", [[20, 22, 30, 31], [0, 1, 2, 3]])
def test_what_was_chosen_before_stays(chosen: list[int], tmp_path: Path) -> None:
    """Also where it is what heads draft of which nobody has said so, and from run to run."""
    config = settings(recipe="frozen", head={"kind": "parallel", "vocabulary": 4}, steps=2)
    model = small_model(config.head)
    model.head.vocabulary.choose(torch.tensor(chosen))
    result = train(model, uneven(), config, tmp_path / "run")
    assert model.head.vocabulary.tokens.tolist() == chosen
    loaded = ft.MTPModel.from_pretrained(result.directory)
    train(loaded, uneven(), settings(recipe="native", head="none", steps=1), tmp_path / "more")
    assert loaded.head.vocabulary.tokens.tolist() == chosen


def test_a_stream_whose_tokens_were_counted_knows_what_was_learned(tmp_path: Path) -> None:
    sketches = []
    for vocabulary in (None, 40):
        head = {"kind": "parallel", "depth": 1, "vocabulary": vocabulary}
        config = settings(recipe="frozen", head=head, streaming=True, steps=1, batch_size=1)
        blocks = stream()
        train(small_model(head, vocab=1024), blocks, config, tmp_path / f"run{vocabulary}")
        sketches.append(len(blocks.sketch))
    assert sketches[0] == sketches[1] < 20


def test_marginals_teach_the_few(tmp_path: Path) -> None:
    objective = {"distill": "marginal", "marginal_width": 2}
    head = {"kind": "parallel", "vocabulary": 30}
    config = settings(recipe="frozen", head=head, objective=objective, steps=2, log_every=1)
    train(small_model(config.head), corpus(), config, tmp_path / "run")
    assert all(map(math.isfinite, metrics(tmp_path / "run")[-1]["depth_losses"]))


# -- files --------------------------------------------------------------------------------------


def test_a_map_that_cannot_be_is_refused(tmp_path: Path) -> None:
    model = few("llama", "residual")
    model.save_pretrained(tmp_path / "heads")
    again = ft.MTPModel.from_pretrained(tmp_path / "heads")
    assert torch.equal(again.head.vocabulary.tokens, model.head.vocabulary.tokens)
    for place, value in ((0, 5), (-1, 5000), (0, -1)):
        broken = few("llama", "residual")
        broken.head.vocabulary.tokens[place] = value
        if value == 5:
            broken.head.vocabulary.tokens[1] = value
        with pytest.raises(CheckpointError, match="cannot be saved: the draft vocabulary is not"):
            broken.save_pretrained(tmp_path / "broken")
        assert not (tmp_path / "broken").exists()
        save_file(broken.head.state_dict(), tmp_path / "heads" / "heads.safetensors")
        with pytest.raises(CheckpointError, match="draft vocabulary is not 20 rising") as caught:
            ft.MTPModel.from_pretrained(tmp_path / "heads")
        assert "\n" not in str(caught.value)


def test_heads_with_a_vocabulary_of_another_size_are_refused(tmp_path: Path) -> None:
    few("llama", "residual").save_pretrained(tmp_path / "heads")
    file = tmp_path / "heads" / "foretell.json"
    told = json.loads(file.read_text())
    told["head"]["vocabulary"] = 21
    file.write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"do not fit their own config: vocabulary\.tokens"):
        ft.MTPModel.from_pretrained(tmp_path / "heads")


def test_more_tokens_than_the_model_has() -> None:
    with pytest.raises(InputError, match=r"head\.vocabulary is 99; LlamaForCausalLM has 48 tokens"):
        small_model({"kind": "parallel", "depth": 2, "vocabulary": 99})
    with pytest.raises(InputError, match="vocabulary is 0; it must be at least 1"):
        settings(head={"kind": "parallel", "vocabulary": 0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "is not JSON"),
        ('{"a": 1}', "must be a list of token ids"),
        ("[]", "must be a list of token ids"),
        ("[1, true]", "must be a list of token ids"),
        ("[1, 48]", "the model has no token 48; it has 48"),
        ("[1, -1]", "the model has no token -1"),
        ("[1, 2]", "leaves out 7, which ends a text"),
    ],
)
def test_a_list_that_cannot_be_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_vocabulary(tmp_path / "tokens.json", VOCAB, [7])
    assert "\n" not in str(caught.value)


def test_a_list_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("[9, 7, 1, 9]")
    assert read_vocabulary(tmp_path / "tokens.json", VOCAB, [7]).tolist() == [1, 7, 9]
    with pytest.raises(InputError, match="cannot be read"):
        read_vocabulary(tmp_path / "none.json", VOCAB, [7])
    told = {"steps": 1, "vocabulary_file": "x"}
    with pytest.raises(InputError, match="say the same"):
        TrainConfig.parse({**told, "head": {"vocabulary": 3}})
    with pytest.raises(InputError, match="is for new heads"):
        TrainConfig.parse({**told, "recipe": "native"})


def test_layouts_without_such_heads_say_so() -> None:
    model = few("llama", "residual")
    assert "medusa" not in layouts_for(model)
    assert "medusa" in layouts_for(ft.attach(families.build("llama"), "residual", depth=2))


def test_heads_for_a_layout_draft_few_tokens_where_it_can_hold_such() -> None:
    few = {"depth": 2, "vocabulary": 9}
    told = head_for("eagle3", few)
    assert (told["vocabulary"], told["block"]) == (9, "wide")
    with pytest.raises(InputError, match="vocabulary is 9, and --for medusa makes it None"):
        head_for("medusa", few)
    config = ft.heads.new_heads({**head_for("medusa", {"depth": 2}), "vocabulary": 9})
    with pytest.raises(HeadError, match="medusa cannot hold this model: its heads draft any token"):
        require_layout("medusa", ft.MTPModel(families.build("llama"), config))


def exported_eagle3(where: Path) -> ft.MTPModel:
    config = layout("eagle3").head(2).replace(vocabulary=9)
    model = ft.MTPModel(families.build("llama"), config).eval()
    model.head.vocabulary.choose(torch.arange(5, 50, 5))
    model.save_pretrained(where / "model")
    export(where / "model", "eagle3", where / "out")
    return model


def test_eagle3_has_them_as_its_engines_read_them(tmp_path: Path) -> None:
    model = exported_eagle3(tmp_path)
    tokens = model.head.vocabulary.tokens
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert (written["d2t"] + torch.arange(9)).tolist() == tokens.tolist()
    assert written["t2d"].nonzero().squeeze(1).tolist() == tokens.tolist()
    assert written["t2d"].shape == (families.VOCAB,)
    assert torch.equal(written["lm_head.weight"], model.backbone.output.weight[tokens])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["draft_vocab_size"], config["vocab_size"]) == (9, families.VOCAB)
    found = import_heads(tmp_path / "out", tmp_path / "again", tmp_path / "model")
    assert found.parameters == sum(p.numel() for p in model.head.parameters())
    again = ft.MTPModel.from_pretrained(tmp_path / "again")
    for name, tensor in model.head.state_dict().items():
        assert torch.equal(again.head.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d2t": None}, "drafts 9 of 101 tokens, and d2t, which says which, is not in it"),
        ({"d2t": torch.zeros(8, dtype=torch.long)}, "d2t does not map its 9 drafted tokens"),
        ({"d2t": torch.arange(9).flip(0) * 5}, "d2t does not map"),
        ({"t2d": torch.ones(101, dtype=torch.bool)}, "d2t does not map"),
        ({"d2t": torch.full((9,), 99), "t2d": None}, "lm_head.weight is not the backbone's"),
        ({"lm_head.weight": torch.zeros(9, 32)}, "lm_head.weight is not the backbone's"),
    ],
)
def test_eagle3_heads_whose_map_is_not_right_are_refused(changes, message, tmp_path: Path) -> None:
    exported_eagle3(tmp_path)
    file = tmp_path / "out" / "model.safetensors"
    tensors = {**load_file(file), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_heads(tmp_path / "out", tmp_path / "again", tmp_path / "model")
    assert "\n" not in str(caught.value)


# -- measured -----------------------------------------------------------------------------------


def test_what_is_measured_says_how_much_is_covered() -> None:
    model = few("llama", "parallel")
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, families.VOCAB, (2, 24)).astype(np.int32)
    blocks = PackedBlocks(tokens, np.arange(2) * 24, num_bytes=100)
    rows = {row.depth: row for row in measure_heads(model, blocks).rows()}
    assert rows[0].coverage.value is None
    inside = model.head.vocabulary.tokens.numpy()
    for depth in (1, 2, 3):
        targets = tokens[:, 1 + depth :]
        assert rows[depth].coverage.value == pytest.approx(np.isin(targets, inside).mean())
        expected = direct(model, torch.from_numpy(tokens.astype(np.int64)))[depth - 1]
        assert rows[depth].nll.value == pytest.approx(expected.item(), rel=1e-4)
    model.head.draft_only(None)
    assert measure_heads(model, blocks).rows()[1].coverage.value is None


def test_trained_heads_can_be_told_what_to_draft(tmp_path: Path) -> None:
    model = ft.attach(families.build("llama"), "sequential", depth=2).eval()
    tokens = torch.arange(30, 0, -2)
    model.head.draft_only(tokens)
    assert model.head.config.vocabulary == 15
    found = model.decode(families.prompt(1, 13, seed=13), max_new_tokens=14, stop_tokens=())
    assert found.new_tokens == reference("llama", 1)
    model.save_pretrained(tmp_path / "heads")
    again = ft.MTPModel.from_pretrained(tmp_path / "heads")
    assert torch.equal(again.head.vocabulary.tokens, tokens.flip(0))
    again.head.draft_only(None)
    assert again.head.config == ft.SequentialHeads.Config(depth=2)


def test_what_to_draft_is_kept_where_the_head_is_or_refused() -> None:
    model = few("llama", "parallel").to("meta")
    model.head.draft_only(torch.arange(4))
    assert model.head.vocabulary.tokens.device.type == "meta"
    with pytest.raises(InputError, match="vocabulary is 0; it must be at least 1"):
        model.head.draft_only(torch.arange(0))
    assert (model.head.config.vocabulary, len(model.head.vocabulary)) == (4, 4)


@pytest.mark.parametrize(
    "tokens",
    [[5.5], ["a"], [[1], [2, 3]], torch.arange(101) > 90, torch.tensor([1.0, 2.0])],
    ids=str,
)
def test_what_are_no_token_ids_is_not_drafted(tokens) -> None:
    """A mask over the vocabulary would be read as the tokens 0 and 1."""
    model = few("llama", "residual")
    with pytest.raises(InputError, match="are not token ids; give a list of whole numbers"):
        model.head.draft_only(tokens)
    model.head.draft_only({7, 3})
    assert model.head.vocabulary.tokens.tolist() == [3, 7]


def test_a_file_need_not_list_an_end_that_the_model_has_no_token_for(tmp_path: Path) -> None:
    """Some configs name one behind their vocabulary."""
    (tmp_path / "tokens.json").write_text("[3, 7]")
    assert read_vocabulary(tmp_path / "tokens.json", 50, [7, 5000]).tolist() == [3, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_the_model_has_not_are_no_draft(kind: str) -> None:
    model = few("llama", kind)
    for token in (-1, families.VOCAB):
        model.head.draft_only([3, token])
        with pytest.raises(InputError, match="is not 2 rising token ids of 0…100"):
            model.decode(families.prompt(1, 5), max_new_tokens=4)


def test_tokens_that_the_model_has_no_more_are_not_learned() -> None:
    model = few("llama", "parallel")
    model.head.draft_only([3, 90])
    model.lm.resize_token_embeddings(60)
    with pytest.raises(InputError, match="is not 2 rising token ids of 0…59"):
        model(families.prompt(2, 8) % 60)


def test_a_plan_says_nothing_of_heads_that_draft_any_token() -> None:
    config = settings()
    plan = Plan.of(small_model(), corpus(), config, begun=0, processes=1)
    assert (plan.drafted, plan.coverage) == (None, None)
    assert replace(plan, drafted=3).drafted == 3
