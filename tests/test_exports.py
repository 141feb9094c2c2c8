"""What an engine reads of an export, whatever the backbone's checkpoint looks like."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import families
import foretell as ft
import released
from foretell.formats import LAYOUTS, export, huggingface, import_heads, layout
from foretell.loading import load_causal_lm

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
