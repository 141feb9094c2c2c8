"""What a run is about to do, before it does it, and whether that is enough."""

from dataclasses import dataclass

from foretell.data import PackedBlocks, StreamedBlocks
from foretell.model import MTPModel
from foretell.training.config import TrainConfig

ENOUGH = 50
"""Steps below which a run learns little, whatever it reads. A rule of thumb."""

MANY = 20
"""Passes over the data above which a run learns its texts by heart. A rule of thumb."""


@dataclass(frozen=True)
class Plan:
    """What a run is about to do.

    Attributes:
        documents: in the corpus; None where it is streamed, and not counted.
        tokens: in the corpus; None likewise.
        rows: in the corpus; None likewise.
        steps: how many there will be; None where only time limits the run.
        minutes: that it may take; None where only steps limit it.
        begun: steps that an earlier process did.
        batch_size: rows per step.
        smallest: batch that its processes and passes can share; larger ones are multiples of it.
        block_size: tokens per row.
        learns: numbers that learn, by part: heads, backbone, adapters.
        rests: numbers that do not.
        device: where it runs.
        precision: as in the settings.
        processes: that share it.
        drafted: how many of the model's tokens heads can draft; None: any.
        coverage: share of what is learned that they can draft.
    """

    documents: int | None
    tokens: int | None
    rows: int | None
    steps: int | None
    minutes: float | None
    begun: int
    batch_size: int
    smallest: int
    block_size: int
    learns: dict[str, int]
    rests: int
    device: str
    precision: str
    processes: int
    drafted: int | None = None
    coverage: float | None = None

    @classmethod
    def of(
        cls,
        model: MTPModel,
        blocks: PackedBlocks | StreamedBlocks,
        config: TrainConfig,
        *,
        begun: int,
        processes: int,
        coverage: float | None = None,
    ) -> "Plan":
        """The plan of a run whose model is ready to train."""
        learns: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                owner = "heads" if name.startswith("head.") else "backbone"
                part = "adapters" if "lora_" in name else owner
                learns[part] = learns.get(part, 0) + parameter.numel()
        packed = blocks if isinstance(blocks, PackedBlocks) else None
        return cls(
            documents=None if packed is None else packed.num_documents,
            tokens=None if packed is None else packed.num_tokens,
            rows=None if packed is None else len(packed),
            steps=total_steps(config, None if packed is None else len(packed)),
            minutes=config.minutes,
            begun=begun,
            batch_size=config.batch_size,
            smallest=processes * config.accumulate,
            block_size=config.block_size,
            learns=learns,
            rests=sum(p.numel() for p in model.parameters()) - sum(learns.values()),
            device=str(model.backbone.device),
            precision=config.precision,
            processes=processes,
            drafted=None if model.head is None else model.head.config.vocabulary,
            coverage=coverage,
        )

    def too_many_passes(self, seconds: float = 0.0) -> float | None:
        """How often the data will be read, where that is more than `MANY` times; else None.

        Args:
            seconds: that a step takes; without it nothing is said of a run that time limits.
        """
        in_time = self.steps_in_time(seconds) if seconds else None
        limits = [steps for steps in (self.steps, in_time) if steps is not None]
        if self.rows is None or not limits or (self.minutes is not None and not seconds):
            return None
        passes = min(limits) * self.batch_size / self.rows
        return passes if passes > MANY else None

    def steps_in_time(self, seconds: float) -> int | None:
        """How many steps of that length fit into the time; None where it limits nothing."""
        return None if self.minutes is None else int(60 * self.minutes / seconds)

    def proposed_batch_size(self, seconds: float) -> int | None:
        """With which `ENOUGH` steps fit into the time; None where enough do with this one.

        The time of a step is taken to grow with its rows.

        Args:
            seconds: that a step takes with this one.
        """
        fitting = self.steps_in_time(seconds)
        if fitting is None or fitting >= min(ENOUGH, self.steps or ENOUGH):
            return None
        shares = self.batch_size * fitting // ENOUGH // self.smallest
        return self.smallest * max(1, shares)


def total_steps(config: TrainConfig, rows: int | None) -> int | None:
    """The number of steps, or None where only time limits the run.

    Args:
        config: the settings.
        rows: of the corpus; None for a stream.
    """
    limits = [config.steps] if config.steps else []
    if config.epochs and rows is not None:
        limits.append(max(1, round(config.epochs * rows / config.batch_size)))
    return min(limits, default=None)
