import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import families
import foretell as ft
import released
from foretell.checkpoints import load_causal_lm
from foretell.errors import CheckpointError, HeadError, InputError
from foretell.formats import LAYOUTS, Checkpoint, export, import_heads, layout
from foretell.formats.files import write_checkpoint
from pairing import pairs

pytestmark = pytest.mark.usefixtures("_tried_once")

NATIVE = list(released.BACKBONES)
ROUND_TRIPS = [
    ("mimo", "qwen2"),
    ("mimo", "llama"),
    ("medusa", "gemma2"),
    ("medusa", "gpt_neox"),
    ("eagle", "llama"),
    ("eagle", "qwen2"),
    ("eagle", "qwen3"),
    ("eagle3", "llama"),
    ("eagle3", "qwen3"),
    ("qwen3_5", "qwen3_5_text"),
    ("qwen3_next", "qwen3_next"),
    ("deepseek_v3", "deepseek_v3"),
    ("glm4_moe", "glm4_moe"),
]
APART = ("medusa", "eagle", "eagle3")


def model_for(name: str, family: str, depth: int = 2) -> ft.MTPModel:
    model = ft.MTPModel(families.build(family), layout(name).head(depth)).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def imported(source: Path, out: Path, backbone: Path | None = None) -> ft.MTPModel:
    import_heads(source, out, backbone)
    return ft.MTPModel.from_pretrained(out)


# -- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "dtype"), pairs(ROUND_TRIPS, [torch.float32, torch.bfloat16])
)
def test_what_is_exported_comes_back_bit_for_bit(tmp_path, name, family, dtype) -> None:
    """In one type or the other, and so in both where several families have the layout."""
    model = model_for(name, family)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(tmp_path / "model")
    done = export(tmp_path / "model", name, tmp_path / "out")
    assert done.parameters == sum(p.numel() for p in model.head.parameters())
    apart = tmp_path / "model" if name in APART else None
    again = imported(tmp_path / "out", tmp_path / "again", apart)
    mine, theirs = model.head.state_dict(), again.head.state_dict()
    more = theirs.keys() - mine.keys()  # a Llama written as a Qwen2
    assert mine.keys() <= theirs.keys()
    assert all((name, family) == ("mimo", "llama") and not theirs[key].any() for key in more)
    for key in mine:
        assert released.same_bits(mine[key], theirs[key]), key
    tokens = families.prompt(1, 10)
    before, after = (m.backbone(tokens).final for m in (model, again))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_every_layout_has_a_round_trip() -> None:
    assert {name for name, _ in ROUND_TRIPS} == LAYOUTS.keys() - {"transformers", "vllm"}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", NATIVE)
def test_only_the_modules_tensors_move(tmp_path: Path, name: str, sharded: bool) -> None:
    """load → perturb → save, on names and shapes as published."""
    source = tmp_path / "released"
    released.write(name, source, sharded=sharded, dtype=torch.bfloat16)
    before = released.read(source)
    model = imported(source, tmp_path / "heads")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(1)
    reference = None if name == "mimo" else str(source)
    model.save_pretrained(tmp_path / "trained", backbone_path=reference)
    like = source if name == "mimo" else None
    export(tmp_path / "trained", name, tmp_path / "back", like=like)
    after = released.read(tmp_path / "back")
    assert after.keys() == before.keys()
    copies = (f"{released.LAYERS}.embed_tokens.weight", "shared_head.head.weight")
    for key in before:
        moved = released.is_module(name, key) and not key.endswith((*copies, "correction_bias"))
        assert released.same_bits(before[key], after[key]) != moved, key
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text()) or name == "mimo"
    if sharded:
        index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == after.keys()


@pytest.mark.parametrize("name", NATIVE)
def test_a_fine_tune_that_never_touches_the_modules_still_saves_them(tmp_path, name) -> None:
    """The backbone moves, in float32; transformers alone would have dropped the modules."""
    source = tmp_path / "released"
    released.write(name, source, dtype=torch.bfloat16)
    before = released.read(source)
    model = imported(source, tmp_path / "heads")
    with torch.no_grad():
        model.lm.get_input_embeddings().weight.add_(0.5)
    model.save_pretrained(tmp_path / "tuned")
    assert not any(released.is_module(name, k) for k in released.read(tmp_path / "tuned"))
    export(tmp_path / "tuned", name, tmp_path / "back", like=source)
    after = released.read(tmp_path / "back")
    assert after.keys() == before.keys()
    moved = {key for key in before if not released.same_bits(before[key], after[key])}
    expected = {key for key in before if key.endswith("embed_tokens.weight")}
    assert moved == expected  # the copy in the module too
    assert torch.equal(after["model.embed_tokens.weight"], model.lm.get_input_embeddings().weight)


@pytest.mark.parametrize("name", NATIVE)
def test_native_training_moves_the_modules_and_not_the_backbone(tmp_path, name) -> None:
    source = tmp_path / "released"
    released.write(name, source)
    model = imported(source, tmp_path / "heads")
    model.freeze_backbone()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    row = families.prompt(2, 16)
    before = model(row).depth_losses[1]
    for _ in range(3):
        optimizer.zero_grad()
        model(row).loss.backward()
        optimizer.step()
    assert model.eval()(row).depth_losses[1] < before
    where = str(source) if name != "mimo" else None
    model.save_pretrained(tmp_path / "trained", backbone_path=where)
    export(tmp_path / "trained", name, tmp_path / "back", like=source)
    old, new = released.read(source), released.read(tmp_path / "back")
    moved = {key for key in old if not released.same_bits(old[key], new[key])}
    assert moved
    assert all(released.is_module(name, key) for key in moved)


def test_heads_are_put_on_a_fine_tuned_copy_that_lost_them(tmp_path: Path) -> None:
    source = tmp_path / "released"
    released.write("glm4_moe", source)
    tuned = load_causal_lm(source)
    with torch.no_grad():
        tuned.lm_head.weight.add_(0.1)
    tuned.save_pretrained(tmp_path / "tuned")
    import_heads(source, tmp_path / "heads", tmp_path / "tuned")
    again = ft.MTPModel.from_pretrained(tmp_path / "heads")
    assert torch.equal(again.lm.lm_head.weight, tuned.lm_head.weight)
    assert again.head is not None


# -- what the numbers mean ----------------------------------------------------------------------


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (weight + offset)


@pytest.mark.parametrize("name", NATIVE)
def test_a_module_computes_what_its_published_tensors_say(tmp_path: Path, name: str) -> None:
    source = tmp_path / "released"
    released.write(name, source)
    tensors = released.read(source)
    model = imported(source, tmp_path / "heads")
    eps = model.lm.config.rms_norm_eps
    hidden, ahead = torch.randn(2, 1, 5, released.HIDDEN)
    block = released.BLOCKS[name]
    if name == "mimo":
        pair = [
            rms(hidden, tensors[block + "hidden_layernorm.weight"], eps),
            rms(ahead, tensors[block + "token_layernorm.weight"], eps),
        ]
        projection = tensors[block + "input_proj.weight"]
    elif name.startswith("qwen"):
        pair = [
            rms(ahead, tensors["mtp.pre_fc_norm_embedding.weight"], eps, 1),
            rms(hidden, tensors["mtp.pre_fc_norm_hidden.weight"], eps, 1),
        ]
        projection = tensors["mtp.fc.weight"]
    else:
        pair = [
            rms(ahead, tensors[block + "enorm.weight"], eps),
            rms(hidden, tensors[block + "hnorm.weight"], eps),
        ]
        projection = tensors[block + "eh_proj.weight"]
    expected = torch.cat(pair, dim=-1) @ projection.T
    found = model.head.chain[0].fuse(hidden, ahead)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    contract = layout(name).contract
    assert model.head.config.recycle == contract.recycle
    assert model.head.config.tap == contract.tap == ("last" if name == "mimo" else "final")
    assert model.head.config.zero_first == (not name.startswith("qwen"))


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_next"])
def test_experts_one_by_one_are_experts_together(tmp_path: Path, name: str) -> None:
    source = tmp_path / "released"
    released.write(name, source)
    tensors, model = released.read(source), imported(source, tmp_path / "heads")
    experts = model.head.chain[0].block.mlp.experts
    prefix = released.BLOCKS[name] + "mlp.experts.1."
    x = torch.randn(3, released.HIDDEN)
    gate, up = experts.gate_up_proj[1].chunk(2)
    assert torch.equal(x @ gate.T, x @ tensors[prefix + "gate_proj.weight"].T)
    assert torch.equal(x @ up.T, x @ tensors[prefix + "up_proj.weight"].T)
    assert torch.equal(experts.down_proj[1], tensors[prefix + "down_proj.weight"])


def test_the_exported_backbone_of_mimo_is_a_qwen2_to_transformers(tmp_path: Path) -> None:
    model = model_for("mimo", "llama")
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "mimo", tmp_path / "out")
    plain = load_causal_lm(tmp_path / "out")
    assert type(plain).__name__ == "Qwen2ForCausalLM"
    tokens = families.prompt(2, 12)
    torch.testing.assert_close(plain(tokens).logits, model.lm(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_tied_head_is_written_out_where_a_layout_has_it_untied(small_llama, tmp_path) -> None:
    model = ft.MTPModel(small_llama, layout("mimo").head(1))
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "mimo", tmp_path / "out")
    tensors = released.read(tmp_path / "out")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_a_tied_head_that_is_stored_all_the_same_follows_the_embedding(tmp_path: Path) -> None:
    """A fine-tune is saved without it; engines and transformers would read the old one."""
    source = tmp_path / "released"
    released.write("glm4_moe", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = released.read(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    model = imported(source, tmp_path / "heads")
    with torch.no_grad():
        model.lm.get_input_embeddings().weight.add_(0.5)
    model.save_pretrained(tmp_path / "tuned")
    assert "lm_head.weight" not in released.read(tmp_path / "tuned")
    export(tmp_path / "tuned", "glm4_moe", tmp_path / "back", like=source)
    after = released.read(tmp_path / "back")
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert torch.equal(after["lm_head.weight"], model.lm.get_input_embeddings().weight)


def test_qwen35_as_published_is_a_vision_model(tmp_path: Path) -> None:
    """Its language model lies one name deeper, and its config too."""
    source = tmp_path / "released"
    released.write("qwen3_5", source)
    text = json.loads((source / "config.json").read_text())
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
              "text_config": text, "vision_config": vision}  # fmt: skip
    (source / "config.json").write_text(json.dumps(config))
    before = {
        name if "visual" in name else re.sub(r"^model\.", "model.language_model.", name): tensor
        for name, tensor in released.read(source).items()
    }
    save_file(before, source / "model.safetensors", metadata={"format": "pt"})
    model = imported(source, tmp_path / "heads")
    with torch.no_grad():
        model.lm.get_input_embeddings().weight.add_(0.5)
        for parameter in model.head.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    export(tmp_path / "tuned", "qwen3_5", tmp_path / "back", like=source)
    after = released.read(tmp_path / "back")
    assert after.keys() == before.keys()
    moved = {name for name in before if not released.same_bits(before[name], after[name])}
    modules = {name for name in before if released.is_module("qwen3_5", name)}
    assert moved == modules | {"model.language_model.embed_tokens.weight"}
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


@pytest.mark.parametrize("name", ["glm4_moe", "mimo"])
def test_modules_beyond_those_that_are_written_do_not_stay(tmp_path: Path, name: str) -> None:
    source, first = tmp_path / "released", released.BLOCKS[name]
    released.write(name, source)
    tensors = released.read(source)
    number = int(first.split(".")[2])
    second = first.replace(str(number), str(number + 1))
    tensors |= {k.replace(first, second): t.clone() for k, t in tensors.items() if first in k}
    save_file(tensors, source / "model.safetensors")
    model = imported(source, tmp_path / "heads")
    assert model.depth == 2
    one = ft.MTPModel(model.lm, layout(name).head(1))
    one.save_pretrained(tmp_path / "one")
    export(tmp_path / "one", name, tmp_path / "out", like=source)
    after = released.read(tmp_path / "out").keys()
    assert after == {name for name in tensors if not name.startswith(second)}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 1


def test_what_is_added_to_an_export_of_several_shards_loses_nothing(tmp_path: Path) -> None:
    """Modules lie in a shard of their own, into which further ones go."""
    released.write("glm4_moe", tmp_path / "released", sharded=True)
    for number in (1, 2):
        base = Checkpoint(tmp_path / ("out1" if number == 2 else "released"))
        (out := tmp_path / f"out{number}").mkdir()
        write_checkpoint(base, out, replace={f"added.{number}": torch.ones(number)})
    after = released.read(tmp_path / "out2")
    assert after.keys() == released.read(tmp_path / "released").keys() | {"added.1", "added.2"}
    assert Checkpoint(tmp_path / "out2").tensor("added.1").tolist() == [1]


def test_transformers_own_mtp_runs_what_is_exported_for_it(tmp_path: Path) -> None:
    """The same tokens in the same number of passes, from plain `generate(use_mtp=True)`."""
    config = families.FAMILIES["glm4_moe"]()
    config.num_hidden_layers, config.hidden_size = 46, 32  # it knows a GLM by its 46 layers
    config.first_k_dense_replace = 45
    lm = type(families.build("glm4_moe"))(config).eval()
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(lm.generation_config, field, None)
    model = ft.MTPModel(lm, layout("transformers").head(1))
    row = families.prompt(1, 9)
    text = model.decode(row, max_new_tokens=40, drafter=None, draft_length=1).sequences
    model.freeze_backbone()
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        model(text).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "transformers", tmp_path / "out")
    own = model.decode(row, max_new_tokens=30)
    assert 0 < sum(step.accepted for step in own.row_steps) < len(own.row_steps)
    plain = load_causal_lm(tmp_path / "out")
    passes = []
    plain.model.register_forward_hook(lambda *_: passes.append(1))
    found = plain.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=30, do_sample=False, use_mtp=True
    )
    assert torch.equal(found, own.sequences)
    assert abs(len(passes) - own.forwards) <= 1


# -- what cannot be expressed -------------------------------------------------------------------

SEQUENTIAL = dict(depth=2, shared=True, norms="backbone")
REFUSED = [
    ("mimo", "qwen2", ft.ParallelHeads.Config(depth=2), "these heads are parallel"),
    ("mimo", "qwen2", ft.SequentialHeads.Config(**SEQUENTIAL, recycle="normed", zero_first=True),
     "tap is 'last' there and 'final' here"),
    ("mimo", "qwen2", ft.SequentialHeads.Config(depth=2, tap="last", zero_first=True,
                                                recycle="normed", norms="backbone"),
     "shared is True there and False here"),
    ("mimo", "qwen2", ft.SequentialHeads.Config(**SEQUENTIAL, tap="last", zero_first=True),
     "recycle is 'normed' there and 'stream' here"),
    ("mimo", "qwen3", "mimo", "Qwen2-shaped backbones, and this one is qwen3"),
    ("mimo", "gemma2", "mimo", "this one is gemma2"),
    ("medusa", "llama", ft.ResidualHeads.Config(depth=2, tap="trunk"), "these read 'trunk'"),
    ("medusa", "llama", ft.ParallelHeads.Config(depth=2), "these are parallel"),
    ("eagle", "gemma2", "eagle", "the backbone is gemma2"),
    ("eagle3", "llama", ft.SequentialHeads.Config(**SEQUENTIAL), "tap is 'fused' there"),
    ("qwen3_next", "llama", "qwen3_next", "it is for qwen3_next, and the backbone is llama"),
    ("deepseek_v3", "glm4_moe", "deepseek_v3", "the backbone is glm4_moe"),
    ("glm4_moe", "glm4_moe",
     ft.SequentialHeads.Config(**SEQUENTIAL, zero_first=True, block="dense"),
     "block is 'same' there and 'dense' here"),
    ("transformers", "deepseek_v3", "transformers", "after 61 layers"),
    ("vllm", "llama", ft.ParallelHeads.Config(depth=2), "these read 'trunk'"),
    ("vllm", "llama", ft.ParallelHeads.Config(depth=2, tap="final", variant="causal"),
     "these are causal"),
    ("vllm", "gemma2", ft.ParallelHeads.Config(depth=2, tap="final"), "kinds of attention"),
    ("vllm", "gpt2", ft.ResidualHeads.Config(depth=2), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "family", "config", "reason"), REFUSED)
def test_what_a_layout_cannot_express_is_refused_with_the_reason(
    tmp_path: Path, name: str, family: str, config, reason: str | None
) -> None:
    head = layout(config).head(2) if isinstance(config, str) else config
    ft.MTPModel(families.build(family), head).save_pretrained(tmp_path / "model")
    if reason is None:
        export(tmp_path / "model", name, tmp_path / "out")
        return
    with pytest.raises(HeadError, match=reason) as caught:
        export(tmp_path / "model", name, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_own_norms_pass_where_they_are_the_backbones(tmp_path: Path) -> None:
    """An epsilon of 1e-6, as ours have; with another one the numbers would be others."""
    lm = families.build("llama")
    config = ft.SequentialHeads.Config(depth=1, tap="last", zero_first=True)
    assert lm.config.rms_norm_eps == 1e-6
    ft.MTPModel(lm, config).save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "mimo", tmp_path / "out")
    for norm in [m for m in lm.modules() if hasattr(m, "variance_epsilon")]:
        norm.variance_epsilon = 1e-5
    lm.config.rms_norm_eps = 1e-5
    ft.MTPModel(lm, config).save_pretrained(tmp_path / "other")
    with pytest.raises(HeadError, match="norms is 'backbone' there and 'own' here"):
        export(tmp_path / "other", "mimo", tmp_path / "out2")


def test_unmerged_adapters_and_missing_heads_are_refused(small_llama, tmp_path: Path) -> None:
    small_llama.save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match="has no heads to export"):
        export(tmp_path / "plain", "mimo", tmp_path / "out")
    with pytest.raises(InputError, match=r"layout 'gguf' is unknown; choose from .*mimo"):
        export(tmp_path / "plain", "gguf", tmp_path / "out")
    with pytest.raises(CheckpointError, match="no multi-token module of a known layout"):
        import_heads(tmp_path / "plain", tmp_path / "out")


def test_heads_without_a_backbone_want_one_named(small_llama, tmp_path: Path) -> None:
    ft.MTPModel(small_llama, ft.ResidualHeads.Config(depth=2)).save_pretrained(tmp_path / "m")
    export(tmp_path / "m", "medusa", tmp_path / "out")
    with pytest.raises(InputError, match="name it with --backbone"):
        import_heads(tmp_path / "out", tmp_path / "again")
    other = families.build("llama")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is not the backbone's"):
        import_heads(tmp_path / "out", tmp_path / "again", tmp_path / "other")
    assert not (tmp_path / "again").exists()


def test_an_export_never_overwrites_the_model(small_llama, tmp_path: Path) -> None:
    ft.MTPModel(small_llama, layout("mimo").head(1)).save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="where the model lies"):
        export(tmp_path / "m", "mimo", tmp_path / "m")
    with pytest.raises(InputError, match="where the model lies"):
        import_heads(tmp_path / "m", tmp_path / "m")


def test_an_export_never_overwrites_the_backbone_of_an_earlier_one(tmp_path: Path) -> None:
    """Which lies in it, and which further heads were trained on."""
    first = ft.MTPModel(families.build("llama"), layout("medusa").head(1))
    first.save_pretrained(tmp_path / "first")
    export(tmp_path / "first", "medusa", tmp_path / "out")
    backbone = tmp_path / "out" / "backbone"
    again = ft.MTPModel(load_causal_lm(backbone), layout("medusa").head(2))
    again.save_pretrained(tmp_path / "second", backbone_path=str(backbone))
    with pytest.raises(InputError, match="where the model lies"):
        export(tmp_path / "second", "medusa", tmp_path / "out")
    with pytest.raises(InputError, match="where the model lies"):
        export(tmp_path / "first", "medusa", tmp_path / "out", like=backbone)
    with pytest.raises(InputError, match="where the model lies"):
        import_heads(tmp_path / "first", tmp_path / "out", backbone)
    assert (backbone / "model.safetensors").is_file()


def test_the_card_states_contract_figures_and_command(small_llama, tmp_path: Path) -> None:
    from foretell.results import write_result
    from foretell.results.provenance import provenance
    from foretell.results.tables import AcceptedByDepth
    from foretell.tally import Estimate

    ft.MTPModel(small_llama, layout("eagle").head(2)).save_pretrained(tmp_path / "m")
    rows = [AcceptedByDepth(method="sequential", depth=1, acceptance=Estimate(0.625))]
    origin = provenance(0, "cpu", torch.float32, command="foretell eval m --data text")
    write_result(tmp_path / "r.json", "eval", {"block_size": 64}, rows, origin)
    export(tmp_path / "m", "eagle", tmp_path / "out", results=[tmp_path / "r.json"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| concat | embedding, hidden |" in card
    assert "`foretell eval m --data text`" in card
    assert "0.625" in card
    assert "Not on record" in card
    assert f'"model": "{tmp_path / "out"}"' in card
    contract = json.loads((tmp_path / "out" / "foretell-contract.json").read_text())
    assert (contract["layout"], contract["tap"], contract["norms"]) == ("eagle", "final", "none")


def test_medusas_names_are_those_that_vllm_looks_for(small_llama, tmp_path: Path) -> None:
    """It skips others silently."""
    config = ft.ResidualHeads.Config(depth=2, layers=3)
    ft.MTPModel(small_llama, config).save_pretrained(tmp_path / "m")
    export(tmp_path / "m", "medusa", tmp_path / "out")
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert names == {"lm_head.weight"} | {
        f"blocks.{head}.layers.{layer}.{part}"
        for head in range(2)
        for layer in range(3)
        for part in ("weight", "bias")
    }
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (stored["num_heads"], stored["num_hidden_layers"]) == (2, 3)
    assert stored["medusa_fc_bias"]
    assert stored["original_lm_head"]
