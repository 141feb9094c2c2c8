"""What a training run can be told: one model, read from YAML or from the command line."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from foretell.config import BaseConfig, Count, NotNegative, Number, Positive
from foretell.errors import InputError
from foretell.files import local_path
from foretell.heads import HeadConfig, new_heads
from foretell.objective import ObjectiveConfig

Share = Annotated[Number, Field(ge=0, lt=1)]
Every = Annotated[int, Field(ge=0)]


def _head(value: Any) -> HeadConfig | None:
    """A head's config from a mapping, a kind, or `none`."""
    if value is None or value == "none":
        return None
    if isinstance(value, HeadConfig):
        return value
    told = {"kind": value} if isinstance(value, str) else value
    if not isinstance(told, dict):
        raise InputError(
            f"head is {value!r}; give a kind, or a mapping such as {{kind: parallel, depth: 3}}."
        )
    return new_heads(told)


HeadSettings = Annotated[
    HeadConfig | None,
    BeforeValidator(_head),
    PlainSerializer(lambda head: "none" if head is None else head.to_dict()),
]


class LoraSettings(BaseConfig):
    """Adapters on the backbone (Hu et al. 2021, arXiv 2106.09685), made by peft."""

    rank: Count = 16
    """Rank of the update."""
    alpha: Positive = 32.0
    """Scale of the update, times its rank."""
    dropout: Share = 0.0
    """Dropout before the update."""
    targets: str | Annotated[list[str], Field(strict=False)] = "all-linear"
    """Names of the matrices adapted, or `all-linear` for all in the blocks."""
    merge: bool = True
    """Save the backbone with the update added, an ordinary checkpoint; otherwise base and adapters
    stay apart."""

    @classmethod
    def called(cls) -> str:
        return "lora"


class TrainConfig(BaseConfig):
    """Settings of a run. The defaults suit heads on a frozen backbone."""

    recipe: Literal["frozen", "joint", "lora", "native", "pretrain"] = "frozen"
    """`frozen`: heads on unchanged weights. `joint`: heads and backbone. `lora`: heads, and
    adapters on the backbone. `native`: the heads that MODEL has. `pretrain`: backbone and heads
    from scratch.

    `pretrain` draws random weights for the backbone's config.
    """
    head: HeadSettings = new_heads({})
    """The new heads: `{kind: …}` with the fields of that kind's config, or `none` for next-token
    training alone (recipe `pretrain`). Recipe `native` takes none."""
    vocabulary_file: str | None = None
    """File that lists the tokens that new heads draft, a JSON list of ids, in place of the
    `head.vocabulary` most frequent ones."""
    objective: Annotated[ObjectiveConfig, Field(strict=False)] = ObjectiveConfig()
    """What each depth learns and how much it counts, see `ObjectiveConfig`."""
    backbone_rate: NotNegative = 1.0
    """Learning rate of the backbone as a multiple of the heads' (differential rates: Mehra et al.
    2025); 0 freezes it under `native`."""
    head_warmup: NotNegative = 0.0
    """How long only the heads learn, a share of the run below 1 or else a number of steps; the
    backbone stays bit-identical until then (Mehra et al. 2025)."""
    lora: Annotated[LoraSettings, Field(strict=False)] = LoraSettings()
    """Adapters, for recipe `lora`."""
    epochs: Positive | None = None
    """Stop after N passes over the data.

    Of `epochs`, `steps` and `minutes` the one reached first ends the run. The learning rate falls
    along the one that is furthest.
    """
    steps: Count | None = None
    """Stop after N steps."""
    minutes: Positive | None = None
    """Stop after N minutes."""
    batch_size: Count = 16
    """Rows per step.

    Over all processes and passes.
    """
    accumulate: Count = 1
    """Passes that a process divides its part of a step into, to save memory."""
    block_size: Annotated[int, Field(ge=8)] = 256
    """Tokens per row."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw` or `muon`.

    Muon is for the matrices of the blocks, beside AdamW for the rest.
    """
    learning_rate: Positive = 1e-3
    """Peak rate of AdamW."""
    matrix_learning_rate: Positive = 0.02
    """Peak rate of Muon."""
    weight_decay: NotNegative = 0.0
    """Decay of matrices and embeddings."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """How the rate falls after warm-up: `linear` or `cosine` to zero; `wsd` stays at the peak and
    falls linearly over the last part; or `constant`.

    `wsd` (warm-up, stable, decay: Hu et al. 2024, "MiniCPM", section 4) lets a run be lengthened.
    """
    warmup: Share = 0.02
    """Share of the run over which the rate rises."""
    cooldown: Annotated[Positive, Field(le=1)] = 0.2
    """Share of the run over which `wsd` falls."""
    max_grad_norm: Positive = 1.0
    """Longer gradients are cut to this length."""
    precision: Literal["float32", "bf16-mixed", "bf16"] = "float32"
    """`float32`, `bf16-mixed` or `bf16`.

    `bf16-mixed` multiplies matrices in bfloat16 over float32 weights (autocast). `bf16` has weights
    and activations in bfloat16, and the optimiser's own copies in float32.
    """
    attention: str | None = None
    """Implementation to run, such as `sdpa` or `eager`; the model's own if none is given."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed for everything that is random.

    The weights, the order of the data and the rest.
    """
    log_every: Count = 10
    """Steps between lines of the metrics."""
    save_every: Every = 200
    """Steps between checkpoints; 0: none.

    A run that is interrupted resumes from the last one.
    """
    held_out: Share = 0.0
    """Share of the documents that is not trained on but measured on."""
    evaluate_every: Every = 100
    """Steps between losses on held-out blocks, where there are any; 0: never."""
    streaming: bool = False
    """Read the corpus while training instead of before, so that it may be larger than memory."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too."""
    compile: bool = False
    """Compile the blocks with `torch.compile`."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    fsdp: bool = False
    """With several processes, shard weights, gradients and optimiser state over them (FSDP2)
    instead of giving each a copy (DDP)."""
    cache_gb: NotNegative = 0.0
    """Disk, in GB, that a frozen backbone's hidden states may take, so that later epochs need not
    run it; 0: none."""

    @classmethod
    def called(cls) -> str:
        return "a run"

    @model_validator(mode="before")
    @classmethod
    def _native_has_its_own(cls, told: dict[str, Any]) -> dict[str, Any]:
        if told.get("recipe") == "native":
            if told.get("head", "none") not in (None, "none"):
                raise InputError("recipe 'native' trains the model's own heads; name no head.")
            return {**told, "head": "none"}
        return told

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise InputError("say how long to train: give epochs, steps or minutes.")
        if self.head is None and self.recipe not in ("pretrain", "native"):
            raise InputError("head 'none' leaves nothing to train; it goes with recipe 'pretrain'.")
        if self.vocabulary_file is not None:
            if self.head is None:
                raise InputError("vocabulary_file is for new heads, and there are none.")
            if self.head.vocabulary is not None:
                raise InputError(
                    "vocabulary_file and head.vocabulary say the same; give one of them."
                )
        if self.backbone_rate == 0 and self.recipe != "native":
            raise InputError("backbone_rate 0 is recipe 'frozen'.")
        if self.precision == "bf16" and not self.backbone_learns:
            raise InputError(
                "precision 'bf16' rounds the backbone, which is to be left as it is; "
                "use 'bf16-mixed'."
            )
        if self.precision == "bf16" and self.recipe == "lora":
            raise InputError("precision 'bf16' rounds the base under adapters; use 'bf16-mixed'.")
        if not self.backbone_learns and self.head_warmup:
            raise InputError("head_warmup is for recipes in which the backbone learns later.")
        if self.streaming and self.cache_gb:
            raise InputError("cache_gb keeps states of blocks read before; leave out streaming.")
        if self.streaming and self.steps is None and self.minutes is None:
            raise InputError("a stream has no epochs: say how long to train with steps or minutes.")
        if self.cache_gb and self.backbone_learns:
            raise InputError("cache_gb keeps the states of a backbone that does not change.")
        return self

    @property
    def backbone_learns(self) -> bool:
        """Whether the backbone changes in this run."""
        return self.recipe != "frozen" and self.backbone_rate > 0

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "settings") -> Self:
        """From plain values; a message begins with `where` they stand."""
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

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
