"""What a training run can be told: one model, read from YAML or from the command line."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foretoken.errors import InputError
from foretoken.heads import HeadConfig, head_class
from foretoken.objective import ObjectiveConfig

Positive = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """Settings of a run. The defaults suit heads on a frozen backbone.

    Attributes:
        recipe: `frozen` trains heads on the weights given; `pretrain` draws new random weights for
            the backbone's config and trains them together with the heads.
        head: kind of head, or `none` for next-token training alone (recipe `pretrain`).
        depth: K, how many tokens beyond the next one the heads predict.
        tap: which hidden state they read; None is the design's default.
        shared: one sequential module for every depth.
        init: weights of new blocks, `fresh` or a `copy` of the backbone's last block.
        loss: `sum` (Gloeckle) or `mean` (DeepSeek's λ/D) over depths.
        loss_scale: λ.
        epochs, steps, minutes: when to stop; the one reached first. The learning rate falls along
            the one that is furthest.
        batch_size: rows per step.
        block_size: T, tokens per row.
        optimizer: `adamw`, or `muon` for the matrices of the blocks beside AdamW for the rest.
        learning_rate: of AdamW at its peak.
        matrix_learning_rate: of Muon at its peak.
        weight_decay: of matrices.
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
        compile: compile the blocks with `torch.compile`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Literal["frozen", "pretrain"] = "frozen"
    head: str = "parallel"
    depth: int = 3
    tap: str | int | None = None
    shared: bool = False
    init: Literal["fresh", "copy"] = "fresh"
    loss: Literal["sum", "mean"] = "sum"
    loss_scale: Annotated[float, Field(gt=0)] = 1.0
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive = 16
    block_size: Annotated[int, Field(ge=8)] = 256
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    matrix_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    cooldown: Annotated[float, Field(gt=0, le=1)] = 0.2
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["float32", "bf16-mixed", "bf16"] = "float32"
    attention: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    log_every: Positive = 10
    save_every: Annotated[int, Field(ge=0)] = 200
    compile: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise ValueError("say when to stop: epochs, steps or minutes")
        if self.head == "none" and self.recipe != "pretrain":
            raise ValueError("head 'none' leaves nothing to train; it goes with recipe 'pretrain'")
        if self.recipe == "frozen" and self.precision == "bf16":
            raise ValueError(
                "precision 'bf16' rounds the backbone, which recipe 'frozen' must leave as it is; "
                "use 'bf16-mixed'"
            )
        self.head_config()
        return self

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
    def from_yaml(cls, path: Path, **overrides: Any) -> Self:
        """Read a file of settings; `overrides` win over it."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(values, dict):
            raise InputError(f"{path}: must be a mapping of settings to values.")
        return cls.parse({**values, **overrides}, str(path))

    def head_config(self) -> HeadConfig | None:
        """The head to build."""
        if self.head == "none":
            return None
        values: dict[str, Any] = {"depth": self.depth, "init": self.init}
        if self.tap is not None:
            values["tap"] = self.tap
        if self.shared:
            values["shared"] = True
        return head_class(self.head).Config.from_dict(values)

    def objective_config(self) -> ObjectiveConfig:
        """What is learned at each depth."""
        return ObjectiveConfig(weights=self.loss, scale=self.loss_scale)
