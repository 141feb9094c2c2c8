"""Directories from elsewhere: refused with file and reason, nothing run, nothing written."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import families
import foretell as ft
import released
from foretell.checkpoints import load_causal_lm, load_tokenizer
from foretell.errors import CheckpointError, ForetellError, InputError
from foretell.formats import Checkpoint, export, import_heads

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
FP8 = torch.float8_e4m3fn


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def edit_json(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


def rename_in_index(source: Path, file: str) -> None:
    index = json.loads((source / INDEX).read_text())
    first = min(index["weight_map"])
    index["weight_map"][first] = file
    (source / INDEX).write_text(json.dumps(index))


def replace_by_pickle(source: Path) -> None:
    for path in [*source.glob("*.safetensors"), source / INDEX]:
        path.unlink()
    with (source / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Trap(source.parent / "was-run"), file)


def pickle_called_safetensors(source: Path) -> None:
    with (source / SHARD).open("wb") as file:
        pickle.dump(Trap(source.parent / "was-run"), file)


def link_out(source: Path) -> None:
    outside = source.parent / "secret.safetensors"
    (source / SHARD).rename(outside)
    (source / SHARD).symlink_to(outside)


def link_config_out(source: Path) -> None:
    outside = source.parent / "secret.json"
    (source / "config.json").rename(outside)
    (source / "config.json").symlink_to(outside)


def tensor_like_a_path(source: Path) -> None:
    tensors = {"../../etc/passwd": torch.zeros(2)}
    save_file(tensors, source / "model-00004.safetensors")
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["../../etc/passwd"] = "model-00004.safetensors"
    (source / INDEX).write_text(json.dumps(index))


def change_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]):
    def edit(source: Path) -> None:
        index = json.loads((source / INDEX).read_text())["weight_map"]
        tensors = load_file(source / index[name])
        tensors[name] = change(tensors[name])
        save_file({k: v.contiguous() for k, v in tensors.items()}, source / index[name])

    return edit


def drop_from_index(name: str) -> Callable[[Path], None]:
    def edit(source: Path) -> None:
        index = json.loads((source / INDEX).read_text())
        del index["weight_map"][name]
        (source / INDEX).write_text(json.dumps(index))

    return edit


def two_sets_of_weights(source: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(2)}, source / "model.safetensors")


def adapters_beside(source: Path) -> None:
    """transformers would read them into the model; a pickle, if that is what there is."""
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with (source / "adapter_model.bin").open("wb") as file:
        pickle.dump(Trap(source.parent / "was-run"), file)


L = released.LAYERS
BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "pickle": (replace_by_pickle, ["pytorch_model.bin", "pickle file"]),
    "pickle in disguise": (pickle_called_safetensors, [SHARD, "not a whole safetensors"]),
    "symlink": (link_out, [SHARD, "link out of the checkpoint"]),
    "symlinked config": (link_config_out, ["config.json", "link out of the checkpoint"]),
    "path in a name": (tensor_like_a_path, ["model-00004", "'../../etc/passwd'"]),
    "path in the index": (lambda s: rename_in_index(s, "../secret.safetensors"), ["outside"]),
    "absolute path": (lambda s: rename_in_index(s, "/etc/x.safetensors"), ["outside"]),
    "code in the index": (lambda s: rename_in_index(s, "model.bin"), [INDEX, "'model.bin'"]),
    "missing shard": (lambda s: (s / SHARD).unlink(), [SHARD, "is missing"]),
    "wrong shard": (lambda s: rename_in_index(s, SHARD), [SHARD, "lacks", INDEX]),
    "no weight map": (lambda s: edit_json(s / INDEX, weight_map=[1]), [INDEX, "weight_map"]),
    "no files": (lambda s: edit_json(s / INDEX, weight_map={"a": 1}), [INDEX, "weight_map"]),
    "two sets of weights": (two_sets_of_weights, ["model.safetensors", INDEX, "remove one"]),
    "adapters": (adapters_beside, ["adapter_config.json", "merge"]),
    "truncated": (lambda s: (s / SHARD).write_bytes((s / SHARD).read_bytes()[:-9]), [SHARD]),
    "no config": (lambda s: (s / "config.json").unlink(), ["config.json", "is missing"]),
    "broken config": (lambda s: (s / "config.json").write_text("{"), ["config.json", "JSON"]),
    "list config": (lambda s: (s / "config.json").write_text("[]"), ["config.json", "object"]),
    "deep config": (lambda s: (s / "config.json").write_text("[" * 99999), ["config.json"]),
    "fp8": (
        lambda s: edit_json(s / "config.json", quantization_config={"quant_method": "fp8"}),
        ["config.json", "quantised (fp8)", "bfloat16"],
    ),
    "fp8 tensors": (
        change_tensor(f"model.layers.{L}.eh_proj.weight", lambda t: t.to(FP8)),
        ["eh_proj.weight", "F8_E4M3", "bfloat16"],
    ),
    "vocabulary": (
        lambda s: edit_json(s / "config.json", vocab_size=7),
        ["lm_head.weight", "(101, 64)", "(7, 64)"],
    ),
    "width": (lambda s: edit_json(s / "config.json", hidden_size=32), ["(101, 64)", "(101, 32)"]),
    "module's shape": (
        change_tensor(f"model.layers.{L}.eh_proj.weight", lambda t: t[:, :-2]),
        ["projection.weight", "(64, 128) expected", "(64, 126) found"],
    ),
    "module's norm": (drop_from_index(f"model.layers.{L}.enorm.weight"), ["lacks", "enorm.weight"]),
    "module's expert": (
        drop_from_index(f"model.layers.{L}.mlp.experts.3.up_proj.weight"),
        ["expert 3", "up_proj"],
    ),
    "module's attention": (
        drop_from_index(f"model.layers.{L}.self_attn.o_proj.weight"),
        ["self_attn.o_proj.weight", "none found"],
    ),
    "layers": (
        lambda s: edit_json(s / "config.json", num_hidden_layers="4"),
        ["num_hidden_layers is '4'"],
    ),
    "remote code": (
        lambda s: edit_json(s / "config.json", model_type="own", auto_map={"AutoConfig": "c.C"}),
        ["no multi-token module", "auto_map", "not run"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_with_file_and_reason(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "released"
    released.write("glm4_moe", source, sharded=True)
    damage, parts = BAD[kind]
    damage(source)
    with pytest.raises(ForetellError) as caught:
        import_heads(source, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(source) if kind != "layers" else "", *parts):
        assert part in message
    left = {path.name for path in tmp_path.iterdir()} - {"released"}
    assert not left - {"secret.safetensors", "secret.json"}  # nothing run, nothing half-written


def test_code_beside_a_checkpoint_is_neither_run_nor_copied(tmp_path: Path) -> None:
    source = tmp_path / "released"
    released.write("mimo", source)
    import_heads(source, tmp_path / "heads")  # its modules would have ended the process
    export(tmp_path / "heads", "mimo", tmp_path / "back", like=source)
    for folder in ("heads", "back"):
        assert not list((tmp_path / folder).glob("*.py"))


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer])
def test_code_of_its_own_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch, load) -> None:
    """transformers by itself asks on the terminal, and runs it on a y."""
    asked, source = [], tmp_path / "own"
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    families.build("llama").save_pretrained(source)
    (source / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    names = {name: f"own.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")}
    edit_json(source / "config.json", model_type="own", auto_map=names)
    text = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="brings code of its own, which is not run"):
        load(source)
    assert not asked
    assert not (tmp_path / "was-run").exists()


def test_what_a_model_was_made_from_must_not_be_quantised(tmp_path: Path) -> None:
    """Tensors would be cut to its types, without the scales that belong to them."""
    source = tmp_path / "released"
    released.write("glm4_moe", source)
    import_heads(source, tmp_path / "heads")
    ft.MTPModel.from_pretrained(tmp_path / "heads").save_pretrained(tmp_path / "tuned")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**tensors, name: tensors[name].to(FP8)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="stored as F8_E4M3, quantised"):
        export(tmp_path / "tuned", "glm4_moe", tmp_path / "out", like=source)
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    import foretell.formats.exporting
    from foretell.formats import layout

    model = ft.MTPModel(families.build("qwen2"), layout("mimo").head(1))
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "mimo", tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def full(*args) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(foretell.formats.exporting, "write_card", full)
    with pytest.raises(InputError, match="space"):
        export(tmp_path / "model", "mimo", tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_the_hubs_cache_with_its_links_is_read(tmp_path: Path) -> None:
    """Snapshots there are links to blobs, two directories up."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    released.write("glm4_moe", snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert Checkpoint(snapshot).files
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"")
    with pytest.raises(CheckpointError, match="link out of the checkpoint"):
        Checkpoint(snapshot)
