"""Weights that are not plain tensors: heads on a quantised backbone, and what is refused.

The layers here pack as the known libraries do: numbers in a parameter of integers (bitsandbytes,
compressed-tensors), in buffers (GPTQ, AWQ), or in a tensor that only looks like one of floats
(torchao, quanto).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

import families
import foretell as ft
from foretell.backbone import Backbone, fingerprint
from foretell.backbone.weights import block_by_class, cast_parameters
from foretell.errors import InputError
from foretell.training import train
from runs import corpus, settings

TOKENS = torch.arange(24).unsqueeze(0)
HEAD = {"kind": "sequential", "depth": 2}


class Packed(nn.Module):
    """A matrix as integers and a scale."""

    def __init__(self, linear: nn.Linear, in_buffers: bool) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().max() / 127
        weight = (linear.weight.detach() / scale).round().to(torch.int8)
        if in_buffers:
            self.register_buffer("qweight", weight.int())
            self.register_buffer("scale", scale)
        else:
            self.qweight = nn.Parameter(weight, requires_grad=False)
            self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qweight.to(x.dtype) * self.scale.to(x.dtype))


class Wrapper(Tensor):
    """Looks like a matrix of floats, and is one of bfloat16; knows products and little else."""

    @staticmethod
    def __new__(cls, kept: Tensor) -> "Wrapper":
        return Tensor._make_wrapper_subclass(cls, kept.shape, dtype=torch.float32)

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["kept"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], *_: object) -> "Wrapper":
        return cls(parts["kept"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            return F.linear(args[0], args[1].kept.to(args[0].dtype), *args[2:])
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].kept)
        raise NotImplementedError(function)


def pack(model: PreTrainedModel, form: str, parts: str = "_proj") -> PreTrainedModel:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and parts in name:
            if form == "a wrapper":
                wrapper = Wrapper(module.weight.detach().bfloat16())
                module.weight = nn.Parameter(wrapper, requires_grad=False)
            else:
                model.set_submodule(name, Packed(module, in_buffers=form == "buffers"))
    model.config.quantization_config = {"quant_method": "ours"}
    return model


def packed(form: str = "integers", seed: int = 0) -> PreTrainedModel:
    return pack(families.build("llama", seed=seed), form)


def content(model: PreTrainedModel) -> dict[str, Tensor]:
    both = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n: getattr(t, "kept", t).detach().clone() for n, t in both.items()}


@pytest.mark.parametrize("form", ["integers", "buffers", "a wrapper"])
def test_heads_on_packed_weights(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = packed(form)
    before, mark = content(backbone), fingerprint(backbone)
    model = ft.attach(backbone, "sequential", depth=2)
    assert model.backbone.packed_by == "ours"
    plain = dict(ft.attach(families.build("llama"), "sequential", depth=2).head.named_parameters())
    own = dict(model.head.named_parameters())
    assert {n: (p.shape, p.dtype) for n, p in own.items()} == {
        n: (p.shape, p.dtype) for n, p in plain.items()
    }
    assert all(p.requires_grad and p.isfinite().all() for p in own.values())
    expected = backbone.generate(TOKENS[:, :8], max_new_tokens=16, do_sample=False)
    assert torch.equal(model.decode(TOKENS[:, :8], max_new_tokens=16).sequences, expected)
    config = settings(recipe="frozen", head=HEAD, steps=3)
    result = train(model, corpus(), config, tmp_path / "run", backbone_path="a/base")
    assert not any(movement.suspicious for movement in result.movements)
    after = content(backbone)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = ft.MTPModel.from_pretrained(result.directory, backbone=packed(form))
    assert again.fingerprint() == mark
    ft.MTPModel.from_pretrained(result.directory, backbone=packed(form, seed=1))
    assert mark in caplog.text


def test_a_fingerprint_sees_what_lies_in_buffers() -> None:
    one, other = packed("buffers"), packed("buffers")
    assert fingerprint(one) == fingerprint(other)
    other.model.layers[1].mlp.down_proj.qweight += 1
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("form", ["integers", "a wrapper"])
def test_a_cast_leaves_packed_weights_and_their_scales_alone(form: str) -> None:
    model = packed(form)
    before = content(model)
    cast_parameters(model, torch.bfloat16)
    for name, tensor in content(model).items():
        assert tensor.dtype == (before[name].dtype if "_proj" in name else torch.bfloat16) or (
            "inv_freq" in name
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"recipe": "joint"}, r"recipe joint changes .* packed \(ours\); use recipe frozen"),
        ({"recipe": "native", "head": "none"}, "recipe native changes"),
        ({"recipe": "lora"}, "lora.merge=false"),
    ],
)
def test_recipes_that_would_change_packed_weights_are_refused(
    tmp_path: Path, config: dict, message: str
) -> None:
    model = ft.attach(packed(), "sequential", depth=2)
    with pytest.raises(InputError, match=message):
        train(model, corpus(), settings(**{"head": HEAD, "steps": 1} | config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_packed_weights_that_cannot_be_saved_are_refused_at_the_start(tmp_path: Path) -> None:
    model = ft.attach(packed(), "sequential", depth=2)
    config = settings(recipe="frozen", head=HEAD, steps=1)
    with pytest.raises(ft.CheckpointError, match="cannot be saved beside heads: name the path"):
        train(model, corpus(), config, tmp_path / "run")
    with pytest.raises(ft.CheckpointError, match="name the path"):
        model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_copy_of_packed_weights_is_refused() -> None:
    with pytest.raises(ft.BackboneError, match=r"packed \(ours\), .* use init 'fresh'"):
        ft.attach(packed(), depth=1, init="copy")


def integer_table(model: PreTrainedModel) -> PreTrainedModel:
    model.lm_head.weight = nn.Parameter(torch.ones(101, 16, dtype=torch.uint8), requires_grad=False)
    return model


def on_meta(model: PreTrainedModel) -> PreTrainedModel:
    return model.to("meta")


def partly_on_meta(model: PreTrainedModel) -> PreTrainedModel:
    model.model.layers[1].to("meta")
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (integer_table, r"its Linear is packed \(torch.uint8\); leave embeddings"),
        (on_meta, "weights that are not in memory"),
        (partly_on_meta, "weights that are not in memory"),
    ],
)
def test_what_heads_cannot_read_is_refused_by_name(
    change: Callable[[PreTrainedModel], PreTrainedModel], message: str
) -> None:
    with pytest.raises(ft.BackboneError, match=f"^LlamaForCausalLM .*{message}"):
        ft.attach(change(families.build("llama")), depth=1)


def test_a_backbone_on_a_disk_is_refused(tmp_path: Path) -> None:
    saved, model = tmp_path / "saved", families.build("llama")
    ft.attach(model, depth=1).save_pretrained(saved)
    where = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb")}
    where |= {f"model.layers.{n}": "disk" if n == 2 else "cpu" for n in range(4)}
    where["lm_head"] = "cpu"
    offloaded = dispatch_model(model, where, main_device="cpu", offload_dir=tmp_path / "disk")
    with pytest.raises(ft.BackboneError, match=r"offloaded to a disk .* without offloading"):
        ft.attach(offloaded, depth=1)
    with pytest.raises(ft.BackboneError, match="not in memory"):
        ft.MTPModel.from_pretrained(saved, backbone=offloaded)


@pytest.mark.parametrize("family", sorted(families.FAMILIES.keys() - families.UNFIT))
def test_a_block_of_the_class_is_like_the_model_s_own(family: str) -> None:
    model = families.build(family)
    view = Backbone(model)
    path = next(name for name, part in model.named_modules() if part is view.blocks[-1])
    block, own = block_by_class(model, path), view.blocks[-1]
    for parameter in block.parameters():
        parameter.data.fill_(float("nan"))
    view._initialise(block)
    assert all(p.isfinite().all() for p in block.parameters())
    assert [(n, p.shape) for n, p in block.named_parameters()] == [
        (n, p.shape) for n, p in own.named_parameters()
    ]
    assert block.training == own.training
    again = view.new_block()
    for (name, buffer), (_, expected) in zip(
        block.named_buffers(), again.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, expected), name
