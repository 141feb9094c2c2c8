"""What every layout is: a name, a contract, and how to write and read it.

A layout is one file here. What several share is in this one: names (`names`), reading and writing
of directories (`files`), and the layouts that keep their modules inside the backbone's checkpoint.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foretell.backbone import Backbone
from foretell.errors import CheckpointError, HeadError, InputError
from foretell.formats.contract import Chain, Contract
from foretell.formats.files import Checkpoint, write_checkpoint
from foretell.formats.names import ModuleNames
from foretell.heads.base import HeadConfig
from foretell.heads.sequential import SequentialHeads
from foretell.model import MTPModel

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

ATTENTION = {f"self_attn.{x}_proj.weight" for x in "qkvo"}
QKV_BIAS = {f"self_attn.{x}_proj.bias" for x in "qkv"}
LLAMA_BLOCK = {
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *ATTENTION,
    *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
}
"""Tensors of a block as Llama has it; Qwen2 adds `QKV_BIAS`."""


@dataclass(frozen=True)
class Loaded:
    """What a directory held.

    Attributes:
        head: the heads' config.
        tensors: the heads', under our names and in the type they are stored in.
        shared: what the directory stores of the backbone again, by the backbone's names: heads here
            have no embedding or output head of their own.
    """

    head: HeadConfig
    tensors: dict[str, Tensor]
    shared: dict[str, Tensor] = field(default_factory=dict)


LAYOUTS: dict[str, "Layout"] = {}
"""Every layout by its name."""


class Layout(ABC):
    """An external layout. A subclass with a `name` of its own is known by it.

    Attributes:
        name: on the command line.
        contract: how its engines run it; of several kinds of heads, that which is trained for by
            default.
        serve: the command that serves what `save` wrote, with `{out}` and `{model}` filled in.
        needs: what has to be installed beside the engine, in a sentence.
        apart: whether heads go into a directory of their own, without their backbone.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract]
    serve: ClassVar[str]
    needs: ClassVar[str] = ""
    apart: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            LAYOUTS[cls.name] = cls()

    def head(self, depth: int, kind: str | None = None) -> HeadConfig:
        """The config of heads that can be exported to this layout.

        Args:
            depth: K.
            kind: of the heads, for layouts that hold several.

        Raises:
            InputError: the layout holds no heads of that kind.
        """
        config = self._head(depth, kind)
        if kind is not None and config.kind != kind:
            raise InputError(f"{self.name} holds {config.kind} heads, not {kind}.")
        return config

    def _head(self, depth: int, kind: str | None) -> HeadConfig:
        return self.contract.head(depth)

    def contract_of(self, config: HeadConfig) -> Contract:
        """How its engines run heads of `config`, if they can."""
        return self.contract

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        """Why a backbone whose config is `base` cannot go into the layout; none: it can."""
        return []

    def check(self, model: MTPModel, base: Checkpoint) -> None:
        """Refuse what the layout cannot express.

        Raises:
            HeadError: with the reason.
        """
        reasons = self.refusals(model, base.text_config)
        config = model.require_head().config
        plain_norms = has_plain_norms(model.backbone)
        differences = self.contract_of(config).differences(config, plain_norms)
        if differences:
            raise HeadError(
                f"{self.name} runs heads in another way: {'; '.join(differences)}. "
                f"Train heads with `foretell train --for {self.name}`."
            )
        if reasons:
            raise HeadError(f"{self.name} cannot hold this model: {reasons[0]}.")

    def command(self, model: MTPModel) -> str:
        """`serve`, where it depends on the heads."""
        return self.serve

    @abstractmethod
    def save(self, model: MTPModel, base: Checkpoint, out: Path) -> None:
        """Write `model`'s heads, and whatever else the layout needs of the backbone's checkpoint
        `base`, into the existing directory `out`. `check` has passed.
        """

    @abstractmethod
    def recognises(self, base: Checkpoint) -> bool:
        """Whether a directory is in this layout."""

    @abstractmethod
    def load(self, base: Checkpoint) -> Loaded:
        """Read the heads of a directory.

        Raises:
            CheckpointError: they are not whole.
        """

    def backbone_config(self, base: Checkpoint) -> dict[str, Any]:
        """The config by which transformers reads the backbone in this layout; often its own."""
        return base.config

    def owns(self, name: str, base: Checkpoint) -> bool:
        """Whether a tensor of the directory belongs to the heads."""
        return False

    def repeats(self, name: str, base: Checkpoint) -> bool:
        """Whether a tensor of the directory is one of the backbone's, stored again."""
        return False


class InPlace(Layout):
    """Modules beside the backbone's tensors, in one checkpoint.

    Attributes:
        names: of a module's tensors.
        families: the backbones' `model_type`.
        counts: the field of the config that counts modules.
        behind: whether modules are numbered behind the backbone's last layer.
        most: how many modules the layout holds.
    """

    contract: ClassVar[Chain]
    names: ClassVar[ModuleNames]
    families: ClassVar[tuple[str, ...]]
    counts: ClassVar[str]
    behind: ClassVar[bool] = False
    most: ClassVar[int] = 64

    def indices(self, base: Checkpoint) -> list[int]:
        """The numbers of the modules that are there."""
        first = self._first(base.text_config)
        found: list[int] = []
        while len(found) < self.most and self.names.at(first)["projection"] in base.files:
            found.append(first)
            first += 1
        return found

    def _first(self, config: Mapping[str, Any]) -> int:
        if not self.behind:
            return 0
        layers = config.get("num_hidden_layers")
        if not isinstance(layers, int) or layers < 1:
            raise CheckpointError(f"config.json: num_hidden_layers is {layers!r}.")
        return layers

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        family = base.get("model_type")
        if family not in self.families:
            return [f"it is for {' and '.join(self.families)}, and the backbone is {family}"]
        return []

    def recognises(self, base: Checkpoint) -> bool:
        types = {base.config.get("model_type"), base.text_config.get("model_type")}
        return bool(types & {*self.families}) and bool(self.indices(base))

    def owns(self, name: str, base: Checkpoint) -> bool:
        first = self._first(base.text_config)
        if self.behind and name.startswith("model.layers."):
            number = name.split(".")[2]
            return number.isdigit() and int(number) >= first
        return any(self.names.owns(name, index) for index in self.indices(base) or [first])

    def repeats(self, name: str, base: Checkpoint) -> bool:
        numbers = self.indices(base)
        return name in {copy.format(i=i) for copy, _ in self.names.copies for i in numbers}

    def load(self, base: Checkpoint) -> Loaded:
        indices = self.indices(base)
        theirs = base.tensors(lambda name: self.owns(name, base))
        tensors: dict[str, Tensor] = {}
        for place, index in enumerate(indices):
            module = self.names.read(theirs, index, str(base.directory))
            tensors |= {f"chain.{place}.{name}": tensor for name, tensor in module.items()}
        return Loaded(self._config(len(indices)), tensors)

    def _config(self, modules: int) -> HeadConfig:
        if modules == 1 and self.contract.modules == "one":
            return self.contract.head(1)
        values = {**self.contract.head(modules).to_dict(), "shared": False, "rollout": "depth"}
        return SequentialHeads.Config.from_dict(values)

    def save(self, model: MTPModel, base: Checkpoint, out: Path) -> None:
        modules = chain(model)
        first = self._first(base.text_config)
        split = not any(name.endswith("mlp.experts.down_proj") for name in base.files)
        tensors: dict[str, Tensor] = {}
        for place, module in enumerate(modules):
            tensors |= self.names.write(module, first + place, split_experts=split)
            for name, source in self.names.copies:
                name = name.format(i=first + place)
                if name not in base.files:
                    tensors[name] = original(base, source)
        beyond = self.indices(base)[len(modules) :]  # modules that the engine would still find
        write_checkpoint(
            base,
            out,
            config=self.config(base, len(modules)),
            replace=tensors | self.more(base, tensors),
            drop=lambda name: any(self.names.owns(name, index) for index in beyond),
        )

    def more(self, base: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the engine reads beside the backbone and its modules, which are `tensors`."""
        return {}

    def config(self, base: Checkpoint, modules: int) -> dict[str, Any]:
        """The backbone's config, with the number of modules in it."""
        config = copy.deepcopy(base.config)
        inner = config if base.text_config is base.config else config["text_config"]
        inner[self.counts] = modules
        return config


def chain(model: MTPModel) -> list[dict[str, Tensor]]:
    """The tensors of each module of sequential heads."""
    state = model.require_head().state_dict()
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("chain."))
    prefixes = [f"chain.{place}." for place in range(count)]
    return [
        {name.removeprefix(p): tensor for name, tensor in state.items() if name.startswith(p)}
        for p in prefixes
    ]


def original(base: Checkpoint, name: str) -> Tensor:
    """A tensor of the backbone; its output head is the embedding where they are tied."""
    if name == OUTPUT and name not in base.files:
        name = EMBEDDING
    return base.tensor(name)


def require_block(block: Sequence[str], allowed: Sequence[set[str]], what: str) -> list[str]:
    """Why a block of these tensors is none of those that a layout can hold."""
    found = set(block)
    if any(found == names for names in allowed):
        return []
    nearest = min(allowed, key=lambda names: len(found ^ names))
    more, fewer = sorted(found - nearest), sorted(nearest - found)
    odd = f"has {more[0]}" if more else f"lacks {fewer[0]}"
    return [f"it is for {what} blocks, and the heads' block {odd}"]


def block_names(model: MTPModel) -> list[str]:
    """The tensors of the first module's block; none where heads have no modules."""
    state = model.head.state_dict() if model.head is not None else {}
    prefix = "chain.0.block."
    return [name.removeprefix(prefix) for name in state if name.startswith(prefix)]


def has_plain_norms(backbone: Backbone) -> bool:
    """Whether the backbone's norm is an RMSNorm with an epsilon of 1e-6, as `norms="own"` has."""
    norm = backbone.fresh_norm()
    own = nn.RMSNorm(backbone.hidden_size, eps=1e-6).to(backbone.device, backbone.dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, backbone.hidden_size, generator=generator) * 2e-3
    x = x.to(backbone.device, backbone.dtype)
    with torch.no_grad():
        like = torch.allclose(norm(x).float(), own(x).float(), rtol=1e-3)
    weights = list(norm.parameters())
    return like and len(weights) == 1 and bool((weights[0] == 1).all())
