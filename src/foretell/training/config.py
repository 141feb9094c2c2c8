"""What a training run can be told: one model, read from YAML or from the command line."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SkipValidation,
    ValidationError,
    model_validator,
)

from foretell.errors import InputError
from foretell.files import local_path
from foretell.heads import HeadConfig, ParallelHeads, head_class
from foretell.objective import ObjectiveConfig

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _head(value: Any) -> Any:
    """A head's config from a mapping, a kind, or `none`."""
    if value is None or value == "none":
        return None
    if isinstance(value, HeadConfig):
        return value
    values = {"kind": value} if isinstance(value, str) else value
    if not isinstance(values, dict):
        raise ValueError("give a kind, or a mapping such as {kind: parallel, depth: 3}")
    values = {"kind": "parallel", "depth": 3, **values}
    return head_class(str(values["kind"])).Config.from_dict(values)


def _objective(value: Any) -> Any:
    if isinstance(value, dict):
        return ObjectiveConfig.from_dict(value)
    if not isinstance(value, ObjectiveConfig):
        raise ValueError("give a mapping, such as {weights: mean, scale: 0.3}")
    return value


HeadSettings = Annotated[
    SkipValidation[HeadConfig | None],
    BeforeValidator(_head),
    PlainSerializer(lambda head: "none" if head is None else head.to_dict()),
]
ObjectiveSettings = Annotated[
    SkipValidation[ObjectiveConfig],
    BeforeValidator(_objective),
    PlainSerializer(lambda objective: objective.to_dict()),
]


class LoraSettings(BaseModel):
    """Adapters on the backbone (Hu et al. 2021, arXiv 2106.09685), made by peft.

    Attributes:
        rank: of the update.
        alpha: its scale times the rank.
        dropout: before the update.
        targets: names of the matrices adapted, or `all-linear` for all in the blocks.
        merge: save the backbone with the update added, an ordinary checkpoint; otherwise base and
            adapters stay apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Share = 0.0
    targets: str | list[str] = "all-linear"
    merge: bool = True


class TrainConfig(BaseModel):
    """Settings of a run. The defaults suit heads on a frozen backbone.

    Attributes:
        recipe: `frozen` trains new heads on the weights given; `joint` heads and backbone; `lora`
            heads and adapters on the backbone; `native` goes on training the heads that the model
            has; `pretrain` draws random weights for the backbone's config and trains it with heads.
        head: the new heads: `{kind: …}` with the fields of that kind's config, or `none` for
            next-token training alone (recipe `pretrain`). Recipe `native` takes none.
        objective: what each depth learns and how much it counts, see `ObjectiveConfig`.
        backbone_rate: learning rate of the backbone as a multiple of the heads' (differential
            rates: Mehra et al. 2025); 0 freezes it under `native`.
        head_warmup: how long only the heads learn, a share of the run below 1 or else a number of
            steps; the backbone stays bit-identical until then (Mehra et al. 2025).
        lora: adapters, for recipe `lora`.
        epochs, steps, minutes: when to stop; the one reached first. The learning rate falls along
            the one that is furthest.
        batch_size: rows per optimiser step, over all processes.
        accumulate: passes that a process divides its part of a step into, to save memory.
        block_size: T, tokens per row.
        optimizer: `adamw`, or `muon` for the matrices of the blocks beside AdamW for the rest.
        learning_rate: of AdamW at its peak.
        matrix_learning_rate: of Muon at its peak.
        weight_decay: of matrices and embeddings.
        schedule: how the rate falls after warm-up: `linear` or `cosine` to zero; `wsd` stays at the
            peak and falls linearly over the last part (warm-up, stable, decay: Hu et al. 2024,
            "MiniCPM", section 4), so that a run can be lengthened; or `constant`.
        warmup: share of the run over which the rate rises.
        cooldown: share of the run over which `wsd` falls.
        max_grad_norm: longer gradients are cut to this length.
        precision: `float32`; `bf16-mixed`, matrix products in bfloat16 over float32 weights
            (autocast); or `bf16`, weights and activations in bfloat16 and the optimiser's own
            copies in float32.
        attention: implementation to run, such as `sdpa` or `eager`; None leaves the model's own.
        seed: of the weights, the order of the data and everything else.
        log_every: steps between lines of the metrics.
        save_every: steps between checkpoints to resume from; 0 keeps none.
        held_out: share of the documents that is not trained on but measured on.
        evaluate_every: steps between losses on held-out blocks, where there are any; 0 never.
        streaming: read the corpus while training instead of before, so that it may be larger than
            memory.
        tensorboard: write the metrics for TensorBoard too.
        compile: compile the blocks with `torch.compile`.
        checkpoint_activations: compute activations again in the backward pass instead of keeping
            them.
        fsdp: with several processes, shard weights, gradients and optimiser state over them
            (FSDP2) instead of giving each a copy (DDP).
        cache_gb: disk that a frozen backbone's hidden states may take, so that later epochs need
            not run it; 0 keeps none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    recipe: Literal["frozen", "joint", "lora", "native", "pretrain"] = "frozen"
    head: HeadSettings = ParallelHeads.Config(depth=3)
    objective: ObjectiveSettings = ObjectiveConfig()
    backbone_rate: Annotated[float, Field(ge=0)] = 1.0
    head_warmup: Annotated[float, Field(ge=0)] = 0.0
    lora: LoraSettings = LoraSettings()
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive = 16
    accumulate: Positive = 1
    block_size: Annotated[int, Field(ge=8)] = 256
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    matrix_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    warmup: Share = 0.02
    cooldown: Annotated[float, Field(gt=0, le=1)] = 0.2
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["float32", "bf16-mixed", "bf16"] = "float32"
    attention: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    log_every: Positive = 10
    save_every: Annotated[int, Field(ge=0)] = 200
    held_out: Share = 0.0
    evaluate_every: Annotated[int, Field(ge=0)] = 100
    streaming: bool = False
    tensorboard: bool = False
    compile: bool = False
    checkpoint_activations: bool = False
    fsdp: bool = False
    cache_gb: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _native_has_its_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("recipe") == "native":
            if values.get("head", "none") not in (None, "none"):
                raise ValueError("recipe 'native' trains the model's own heads; name no head")
            return {**values, "head": "none"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise ValueError("say when to stop: epochs, steps or minutes")
        if self.head is None and self.recipe not in ("pretrain", "native"):
            raise ValueError("head 'none' leaves nothing to train; it goes with recipe 'pretrain'")
        if self.backbone_rate == 0 and self.recipe != "native":
            raise ValueError("backbone_rate 0 is recipe 'frozen'")
        if self.precision == "bf16" and not self.backbone_learns:
            raise ValueError(
                "precision 'bf16' rounds the backbone, which is to be left as it is; "
                "use 'bf16-mixed'"
            )
        if self.precision == "bf16" and self.recipe == "lora":
            raise ValueError("precision 'bf16' rounds the base under adapters; use 'bf16-mixed'")
        if not self.backbone_learns and self.head_warmup:
            raise ValueError("head_warmup is for recipes in which the backbone learns later")
        if self.streaming and self.cache_gb:
            raise ValueError("cache_gb keeps states of blocks read before; leave out streaming")
        if self.streaming and self.steps is None and self.minutes is None:
            raise ValueError("a stream has no epochs: say when to stop with steps or minutes")
        if self.cache_gb and self.backbone_learns:
            raise ValueError("cache_gb keeps the states of a backbone that does not change")
        return self

    @property
    def backbone_learns(self) -> bool:
        """Whether the backbone changes in this run."""
        return self.recipe != "frozen" and self.backbone_rate > 0

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "settings") -> Self:
        """Check plain values; the first thing wrong becomes one `InputError`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            what = first["msg"].removeprefix("Value error, ").rstrip(".")
            raise InputError(f"{where}: {name + ': ' if name else ''}{what}.") from None

    @classmethod
    def from_yaml(cls, path: Path, overrides: dict[str, Any] | None = None) -> Self:
        """Read a file of settings; `overrides` win over it, mappings field by field."""
        try:
            values = yaml.safe_load(local_path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(values, dict):
            raise InputError(f"{path}: must be a mapping of settings to values.")
        return cls.parse(merged(values, overrides or {}), str(path))


def merged(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`values` with `overrides` over them, mappings field by field.

    Another kind of head starts anew: the fields of the old one would not fit it.
    """
    result = dict(values)
    for name, value in overrides.items():
        old = result.get(name)
        if isinstance(old, str) and name == "head":
            old = {"kind": old}
        if isinstance(old, dict) and isinstance(value, dict):
            same = value.get("kind", old.get("kind")) == old.get("kind")
            result[name] = merged(old, value) if same else value
        else:
            result[name] = value
    return result
