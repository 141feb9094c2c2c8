"""What an engine reads of an export, whatever the backbone's checkpoint looks like."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import families
import foretell as ft
import released
from foretell.checkpoints import load_causal_lm
from foretell.formats import LAYOUTS, Checkpoint, export, huggingface, import_heads, layout

pytestmark = pytest.mark.usefixtures("_tried_once")

IN_PLACE = {
    "mimo": "llama",
    "qwen3_5": "qwen3_5_text",
    "qwen3_next": "qwen3_next",
    "deepseek_v3": "deepseek_v3",
    "glm4_moe": "glm4_moe",
    "transformers": "glm4_moe",
}
APART = {"medusa": "gpt2", "eagle": "llama", "eagle3": "qwen2", "vllm": "qwen3"}
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
STORED = {"embedding": True, "output": True, "both": False, "claimed": False, "untied": True}
"""How `store` leaves a backbone, and whether in shards."""
CASES = [
    (name, family, stored)
    for name, family in {**IN_PLACE, **APART}.items()
    for stored in (STORED if name in ("mimo", "deepseek_v3", "medusa") else ("output", "claimed"))
]


def test_every_layout_is_tried() -> None:
    assert IN_PLACE.keys() | APART.keys() == LAYOUTS.keys()


def with_heads(name: str, family: str, tied: bool) -> ft.MTPModel:
    lm = families.build(family, tie_word_embeddings=tied)
    model = ft.MTPModel(lm, layout(name).head(1)).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def names(lm: torch.nn.Module) -> tuple[str, str]:
    found = {id(module): name for name, module in lm.named_modules()}
    parts = (lm.get_input_embeddings(), lm.get_output_embeddings())
    return tuple(f"{found[id(part)]}.weight" for part in parts)


def store(lm: torch.nn.Module, where: Path, stored: str, sharded: bool) -> None:
    """As other tools save it: a shared matrix under one name, the other, or both, or two matrices,
    which the config may take for one all the same (`claimed`).
    """
    lm.save_pretrained(where)
    tensors, (embedding, output) = released.read(where), names(lm)
    if stored in ("output", "both"):
        tensors[output] = tensors[embedding].clone()
    if stored == "output":
        del tensors[embedding]
    if stored == "claimed":
        config = json.loads((where / "config.json").read_text())
        config["tie_word_embeddings"] = True
        (where / "config.json").write_text(json.dumps(config))
    for file in where.glob("*.safetensors*"):
        file.unlink()
    if not sharded:
        save_file(tensors, where / "model.safetensors", metadata={"format": "pt"})
        return
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors"
             for i, name in enumerate(sorted(tensors))}  # fmt: skip
    for file in set(files.values()):
        part = {name: tensors[name] for name in files if files[name] == file}
        save_file(part, where / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (where / "model.safetensors.index.json").write_text(json.dumps(index))


def as_an_engine(where: Path) -> torch.nn.Module:
    """The backbone as vLLM reads it: what the config calls one matrix is the embedding."""
    config = json.loads((where / "config.json").read_text())
    tensors = released.read(where)
    lm = load_causal_lm(where)
    embedding, output = names(lm)
    with torch.no_grad():
        lm.get_input_embeddings().weight = torch.nn.Parameter(tensors[embedding])
        tied = config["tie_word_embeddings"]
        head = tensors[embedding if tied else output]
        lm.get_output_embeddings().weight = torch.nn.Parameter(head)
    return lm


@pytest.mark.parametrize(("name", "family", "stored"), CASES)
def test_engines_read_the_embedding_under_either_name(
    tmp_path: Path, monkeypatch, name: str, family: str, stored: str
) -> None:
    monkeypatch.setitem(huggingface.LAYERS, "glm4_moe", (families.LAYERS,))
    model = with_heads(name, family, tied=stored not in ("claimed", "untied"))
    store(model.lm, tmp_path / "plain", stored, STORED[stored])
    path = str(tmp_path / "plain")
    model.save_pretrained(tmp_path / "model", backbone_path=path)
    done = export(tmp_path / "model", name, tmp_path / "out")
    tokens = families.prompt(2, 9)
    expected = model.lm(tokens).logits
    served = tmp_path / "out"
    if name in APART:
        served = served / "backbone" if str(served / "backbone") in done.serve else Path(path)
        assert (served == Path(path)) == (stored not in ("output", "claimed"))
    torch.testing.assert_close(as_an_engine(served)(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    if name in ("transformers", "vllm"):
        return
    import_heads(tmp_path / "out", tmp_path / "again", served if name in APART else None)
    again = ft.MTPModel.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.lm(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    for key, tensor in model.head.state_dict().items():
        assert torch.equal(again.head.state_dict()[key], tensor), key


@pytest.mark.parametrize("stored", ["embedding", "output"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_checkpoint_a_model_was_made_from_may_have_either_name(
    tmp_path: Path, stored: str, nested: bool
) -> None:
    """As published, tied, under names as a vision model has them; then tuned and written back."""
    source, name = tmp_path / "released", "qwen3_5"
    lm = families.build("qwen3_5_text", tie_word_embeddings=True)
    store(lm, source, stored, sharded=False)
    tensors, inside = released.read(source), "model.language_model."
    config = json.loads((source / "config.json").read_text())
    generator = torch.Generator().manual_seed(1)
    last = f"model.layers.{families.LAYERS - 1}."
    shapes = released.MODULES[name] | {
        released.BLOCKS[name] + key.removeprefix(last): tuple(tensor.shape)
        for key, tensor in tensors.items()
        if key.startswith(last)
    }
    tensors |= {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    if nested:
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
        config = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
                  "text_config": config, "vision_config": vision,
                  "tie_word_embeddings": True}  # fmt: skip
        tensors = {
            inside + key.removeprefix("model.") if key.startswith("model.") else key: tensor
            for key, tensor in tensors.items()
        }
    config["mtp_num_hidden_layers"] = 1
    (source / "config.json").write_text(json.dumps(config))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    import_heads(source, tmp_path / "heads")
    model = ft.MTPModel.from_pretrained(tmp_path / "heads")
    embedding = inside + "embed_tokens.weight" if nested else EMBEDDING
    export(tmp_path / "heads", name, tmp_path / "same")
    assert torch.equal(released.read(tmp_path / "same")[embedding], lm.lm_head.weight)
    with torch.no_grad():
        model.lm.get_input_embeddings().weight.add_(0.5)
    model.save_pretrained(tmp_path / "tuned")
    export(tmp_path / "tuned", name, tmp_path / "back", like=source)
    after = released.read(tmp_path / "back")
    assert after.keys() == tensors.keys() - {OUTPUT} | {embedding}
    assert torch.equal(after[embedding], model.lm.get_input_embeddings().weight)


# -- types --------------------------------------------------------------------------------------


def as_trained(model: ft.MTPModel, where: Path) -> dict[str, torch.Tensor]:
    """A bfloat16 backbone, heads trained in float32 and only referring to it."""
    model.head.to(torch.float32)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))
    model.save_pretrained(where / "model", backbone_path=str(where / "plain"))
    return {key: tensor.clone() for key, tensor in model.head.state_dict().items()}


@pytest.mark.parametrize("name", ["mimo", "deepseek_v3", "medusa", "eagle", "eagle3"])
def test_heads_trained_in_float32_on_a_bfloat16_backbone_are_not_rounded(
    tmp_path: Path, name: str
) -> None:
    lm = families.build({**IN_PLACE, **APART}[name]).to(torch.bfloat16)
    lm.save_pretrained(tmp_path / "plain")
    trained = as_trained(ft.MTPModel(lm, layout(name).head(1)), tmp_path)
    export(tmp_path / "model", name, tmp_path / "out")
    written = layout(name).load(Checkpoint(tmp_path / "out")).tensors
    for key, tensor in trained.items():
        assert released.same_bits(written[key], tensor), key
    card = (tmp_path / "out" / "README.md").read_text()
    assert "stored in float32, the backbone in bfloat16" in card
    if name in IN_PLACE:
        before, after = released.read(tmp_path / "plain"), released.read(tmp_path / "out")
        assert all(released.same_bits(before[key], after[key]) for key in before)


def test_heads_written_back_into_a_release_keep_what_they_learned(tmp_path: Path) -> None:
    """What did not move has the bytes of the release; what moved, the values it moved to."""
    released.write("glm4_moe", tmp_path / "plain", dtype=torch.bfloat16)
    import_heads(tmp_path / "plain", tmp_path / "heads")
    model = ft.MTPModel.from_pretrained(tmp_path / "heads", dtype=torch.float32)
    moved = model.head.chain[0].projection.weight
    with torch.no_grad():
        moved.add_(1e-4)
    model.save_pretrained(tmp_path / "model", backbone_path=str(tmp_path / "plain"))
    for like in (None, tmp_path / "plain"):
        export(tmp_path / "model", "glm4_moe", tmp_path / "out", like=like)
        before, after = released.read(tmp_path / "plain"), released.read(tmp_path / "out")
        changed = {key for key in before if not released.same_bits(before[key], after[key])}
        assert changed == {f"model.layers.{families.LAYERS}.eh_proj.weight"}
        assert after[changed.pop()].dtype == torch.float32
        written = layout("glm4_moe").load(Checkpoint(tmp_path / "out")).tensors
        assert torch.equal(written["chain.0.projection.weight"], moved)


# -- what is said -------------------------------------------------------------------------------


STREAM = ft.SequentialHeads.Config(depth=2, shared=True, recycle="stream", zero_first=True)
SHOWN = [
    ("vllm", ft.ParallelHeads.Config(depth=2, tap="final")),
    ("vllm", ft.ParallelHeads.Config(depth=2, tap="final", variant="linear")),
    ("vllm", ft.ResidualHeads.Config(depth=2)),
    ("medusa", ft.ResidualHeads.Config(depth=2)),
    ("vllm", STREAM),
]


@pytest.mark.parametrize(("name", "config"), SHOWN)
def test_the_contract_that_is_shown_is_that_of_the_heads(tmp_path: Path, name: str, config) -> None:
    ft.MTPModel(families.build("llama"), config).save_pretrained(tmp_path / "model")
    done = export(tmp_path / "model", name, tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "foretell-contract.json").read_text())
    assert stated == {"layout": name, **done.contract}
    card = (tmp_path / "out" / "README.md").read_text()
    chained = ("recycle", "zero_first", "norms", "modules", "rollout")
    if config.kind == "sequential":
        assert [stated[field] for field in chained] == ["stream", True, "own", "one", "token"]
        assert "| recycle | stream |" in card
    else:
        assert stated["heads"] == config.kind
        assert stated["depths"] == "up to the number of heads"
        assert not stated.keys() & set(chained)
        assert "recycle" not in card


@pytest.mark.parametrize("name", ["vllm", "medusa"])
def test_a_card_says_what_its_engine_needs(tmp_path: Path, name: str) -> None:
    model = ft.MTPModel(families.build("llama"), layout(name).head(1))
    model.save_pretrained(tmp_path / "model")
    done = export(tmp_path / "model", name, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    installs = [line for line in (*done.notes, card) if "pip install" in line]
    assert bool(installs) == (name == "vllm")
    assert all("pip install --no-deps ." in line and "clone" in line for line in installs)


# -- what lies beside the weights ---------------------------------------------------------------

PLAIN = {
    "tokenizer.json": "{}",
    "chat_template.jinja": "one",
    "additional_chat_templates/tools.jinja": "two",
    "generation_config.json": '{"do_sample": true, "temperature": 0.6}',
    "tekken.json": "{}",
    "preprocessor_config.json": "{}",
    "NOTICE": "of the release",
}


def in_hub_cache(files: Path, cache: Path) -> Path:
    """A snapshot as the Hub's client keeps it: links to blobs."""
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(path for path in files.rglob("*") if path.is_file()):
        blob, link = blobs / str(number), snapshot / file.relative_to(files)
        file.rename(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def beside(where: Path) -> dict[str, str]:
    return {name: (where / name).read_text() for name in PLAIN if (where / name).is_file()}


def test_a_release_in_the_hubs_cache_is_copied_whole(tmp_path: Path) -> None:
    released.write("glm4_moe", tmp_path / "plain", sharded=True)
    for name, text in PLAIN.items():
        (tmp_path / "plain" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "plain" / name).write_text(text)
    source = in_hub_cache(tmp_path / "plain", tmp_path / "cache")
    before = released.read(source)
    import_heads(source, tmp_path / "heads")
    export(tmp_path / "heads", "glm4_moe", tmp_path / "out")
    assert beside(tmp_path / "out") == PLAIN
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    after = released.read(tmp_path / "out")
    assert all(released.same_bits(before[key], after[key]) for key in before)
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt"}


def test_a_tuned_models_own_tokenizer_is_written_whole(tmp_path: Path) -> None:
    """What it has of its own goes before what the release has, and no tokenizer is mixed."""
    source, tuned = tmp_path / "released", tmp_path / "tuned"
    released.write("glm4_moe", source)
    for name, text in PLAIN.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    import_heads(source, tmp_path / "heads")
    ft.MTPModel.from_pretrained(tmp_path / "heads").save_pretrained(tuned)
    own = {"tokenizer.json": '{"mine": 1}', "generation_config.json": '{"top_k": 9}'}
    for name, text in own.items():
        (tuned / name).write_text(text)
    export(tuned, "glm4_moe", tmp_path / "out", like=source)
    kept = ("preprocessor_config.json", "NOTICE")
    assert beside(tmp_path / "out") == own | {name: PLAIN[name] for name in kept}


def test_an_export_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    """Of another model, in the same directory: no backbone, template or card of the first."""
    first = ft.MTPModel(families.build("llama"), layout("medusa").head(1))
    first.save_pretrained(tmp_path / "first")
    (tmp_path / "first" / "chat_template.jinja").write_text("one")
    export(tmp_path / "first", "medusa", tmp_path / "out")
    assert (tmp_path / "out" / "backbone" / "chat_template.jinja").is_file()
    second = ft.MTPModel(families.build("qwen2"), layout("mimo").head(1))
    second.save_pretrained(tmp_path / "second")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    export(tmp_path / "second", "mimo", tmp_path / "out")
    export(tmp_path / "second", "mimo", tmp_path / "fresh")
    names = [{p.name for p in (tmp_path / x).iterdir()} for x in ("out", "fresh")]
    assert names[0] == names[1] | {"notes.txt"}


def test_heads_apart_are_served_with_what_transformers_dropped(tmp_path: Path) -> None:
    """Of a backbone that was tuned: as it lies, an engine of vision models could not read it."""
    source, tuned = tmp_path / "released", tmp_path / "tuned"
    released.write("glm4_moe", source)
    lm = load_causal_lm(source)
    lm.save_pretrained(tuned)
    model = ft.MTPModel(lm, layout("medusa").head(1))
    model.save_pretrained(tmp_path / "heads", backbone_path=str(tuned))
    done = export(tmp_path / "heads", "medusa", tmp_path / "out", like=source)
    assert str(tmp_path / "out" / "backbone") in done.serve
    served = released.read(tmp_path / "out" / "backbone")
    assert served.keys() == released.read(source).keys() > released.read(tuned).keys()


def test_importing_again_leaves_what_others_put_there(tmp_path: Path) -> None:
    released.write("glm4_moe", tmp_path / "plain")
    import_heads(tmp_path / "plain", tmp_path / "heads")
    (tmp_path / "heads" / "backbone").mkdir()
    (tmp_path / "heads" / "backbone" / "kept").touch()
    import_heads(tmp_path / "plain", tmp_path / "heads")
    assert (tmp_path / "heads" / "backbone" / "kept").exists()


@pytest.mark.parametrize("kind", ["sequential", "parallel", "residual"])
def test_what_was_written_for_the_plugin_is_not_read_back(tmp_path: Path, kind: str) -> None:
    lm = families.build("qwen3")
    lm.save_pretrained(tmp_path / "plain")
    model = ft.MTPModel(load_causal_lm(tmp_path / "plain"), layout("vllm").head(2, kind))
    model.save_pretrained(tmp_path / "heads", backbone_path=tmp_path / "plain")
    export(tmp_path / "heads", "vllm", tmp_path / "out")
    with pytest.raises(ft.CheckpointError, match="go on with the foretell directory"):
        import_heads(tmp_path / "out", tmp_path / "again", tmp_path / "plain")


@pytest.mark.parametrize("name", ["mimo", "medusa"])
def test_numbers_of_64_bits_are_not_packed(name: str, tmp_path: Path) -> None:
    """Their type begins as those of 6 bits do: F64, F6_E2M3."""
    model = with_heads(name, {**IN_PLACE, **APART}[name], tied=False).double()
    model.save_pretrained(tmp_path / "heads")
    export(tmp_path / "heads", name, tmp_path / "out")
    backbone = None if name in IN_PLACE else tmp_path / "heads"
    import_heads(tmp_path / "out", tmp_path / "again", backbone)
    again = ft.MTPModel.from_pretrained(tmp_path / "again")
    for key, tensor in model.head.state_dict().items():
        torch.testing.assert_close(again.head.state_dict()[key].double(), tensor.double())
