"""The training loop: what a step is, and what a run goes on from.

A step is `accumulate` passes, the gradients of all processes added up, and one step of the
optimiser. All that is random in it follows from the seed, its number and the process, so that a
resumed run needs no state but weights, optimiser and the number of steps done.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import default_collate

from foretell.data import PackedBlocks, StreamedBlocks
from foretell.model import MTPModel
from foretell.objective import MTPOutput
from foretell.training.config import TrainConfig
from foretell.training.marginals import marginal_targets
from foretell.training.optimizers import make_optimizer, set_rates
from foretell.training.order import endless_order, own_passes
from foretell.training.plan import total_steps
from foretell.training.processes import (
    is_sharded,
    mean_over_processes,
    reshard,
    rows_per_pass,
    spread,
    synchronized,
)
from foretell.training.progress import Clock
from foretell.training.roles import roles
from foretell.training.rundir import ResumePoint, RunDirectory
from foretell.training.snapshots import load_snapshot, save_snapshot
from foretell.training.states import StateCache

Batch = dict[str, Tensor]

FIRST = 10
"""Steps of a process that are reported one by one, for people to see that it runs."""


@dataclass(frozen=True)
class Step:
    """What one step gave.

    Attributes:
        number: from 1.
        depth_losses: (K+1,) this process's share of the mean losses of the step, in nats.
        measured: which of them are known: those of depths that learn, and now and then the others.
        gradient_norm: before it was cut.
        learning_rate: of the heads.
    """

    number: int
    depth_losses: Tensor
    measured: tuple[bool, ...]
    gradient_norm: Tensor
    learning_rate: float


class Trainer:
    """One process's part of a run.

    Args:
        model: ready to train: what rests is frozen, what learns has its type.
        blocks: the corpus.
        config: the settings.
        run: where checkpoints go.
        clock: of the run.
        resume: where to go on, if not at the beginning.

    Attributes:
        begun: steps that earlier processes did.
        done: steps done so far, those included.
        total_steps: how many there will be; None where only time limits the run.
    """

    def __init__(
        self,
        model: MTPModel,
        blocks: PackedBlocks | StreamedBlocks,
        config: TrainConfig,
        run: RunDirectory,
        clock: Clock,
        resume: ResumePoint | None = None,
    ) -> None:
        self.model, self.blocks, self.config = model, blocks, config
        self.run, self.clock = run, clock
        self.processes = PartialState()
        self.per_pass = rows_per_pass(config, self.processes.num_processes)
        rows = len(blocks) if isinstance(blocks, PackedBlocks) else None
        self.total_steps = total_steps(config, rows)
        self.objective = config.objective
        if not config.backbone_learns:
            self.objective = self.objective.replace(backbone=0.0)
        known = roles(model)  # while it can still run by itself
        self.spread = spread(model, config)
        self.device = model.backbone.device
        self.optimizer = make_optimizer(model, config, known)
        self.states = self._state_cache(rows)
        self.begun = self.done = 0
        if resume is not None:
            self.begun = self.done = resume.step
            load_snapshot(resume.checkpoint / "learned", model, self.optimizer, is_sharded(model))

    def _state_cache(self, rows: int | None) -> StateCache | None:
        """This process's part of the cache that the settings ask for."""
        if not self.config.cache_gb or rows is None:
            return None
        limit = int(self.config.cache_gb * 2**30 / self.processes.num_processes)
        path = self.run.states(self.processes.process_index)
        with self._autocast():
            return StateCache(path, self.model, rows, self.blocks.block_size, limit)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a step reads, over all processes, the filling of blocks included."""
        return self.config.batch_size * self.config.block_size

    # -- the loop -------------------------------------------------------------------------------

    def train(self, follow: Callable[[Step], None]) -> None:
        """Take all steps that are left; `follow` is told of each when it is done."""
        self.clock.start()
        self.clock.tick()
        self.model.train()
        steps = self._steps()
        while not self.over:
            step = self._step(next(steps))
            self.done = step.number
            self.clock.tick()
            follow(step)

    @property
    def over(self) -> bool:
        """Whether all steps are done, or the time is up."""
        return self.done == self.total_steps or self.clock.fraction() >= 1.0

    @property
    def fraction(self) -> float:
        """Share of the run that is done, 0…1: along steps or along time, whichever is further."""
        along_steps = self.done / self.total_steps if self.total_steps else 0.0
        return min(1.0, max(along_steps, self.clock.fraction()))

    def _steps(self) -> Iterator[list[Batch]]:
        """The passes of this process in each step that is left."""
        blocks = self.blocks
        shape = (
            self.per_pass,
            self.config.accumulate,
            self.processes.process_index,
            self.processes.num_processes,
        )
        begin = self.done * self.config.batch_size
        if isinstance(blocks, PackedBlocks):
            read = blocks.__getitem__ if self.states is None else partial(_numbered, blocks)
            order = islice(endless_order(len(blocks), self.config.seed), begin, None)
            for passes in own_passes(order, *shape):
                yield [self._batch([read(row) for row in rows]) for rows in passes]
        else:
            for streamed in own_passes(islice(blocks, begin, None), *shape):
                yield list(map(self._batch, streamed))

    def _batch(self, rows: Sequence[Batch]) -> Batch:
        """Rows as one batch, on the device that computes."""
        return {
            name: tensor.to(self.device, non_blocking=True)
            for name, tensor in default_collate(list(rows)).items()
        }

    def _step(self, passes: Sequence[Batch]) -> Step:
        """One step of the optimiser."""
        origin = (self.config.seed, self.done, self.processes.process_index)
        torch.manual_seed(int(np.random.SeedSequence(origin).generate_state(1)[0]))
        self._warm_up_heads()
        rate = set_rates(self.optimizer, self.config, self.fraction)
        counts = self._counts(passes)
        losses = []
        for place, batch in enumerate(passes, start=1):
            with synchronized(self.spread, place == len(passes)):
                output = self._forward(batch, counts)
                output.loss.backward()
            losses.append(output.depth_losses)
        if self.config.backbone_learns and not self.model.backbone_trains:
            self.model.lm.zero_grad()  # what heads passed on to a backbone that rests
        learning = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(learning, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        measured = tuple(self.reports(self.done + 1) or weight > 0 for weight in self._weights())
        return Step(self.done + 1, torch.stack(losses).sum(0), measured, whole, rate)

    def _weights(self) -> tuple[float, ...]:
        """Of the depths, in the step that is next; 0 where nothing learns."""
        own, *others = self.objective.at(self.model.depth, self.fraction, self.done)
        return (own if self.model.backbone_trains else 0.0, *others)

    def reports(self, step: int) -> bool:
        """Whether `step` is told of: the first ones one by one, then every `log_every`th."""
        return step % self.config.log_every == 0 or step - self.begun <= FIRST

    def _forward(self, batch: Batch, counts: Tensor) -> MTPOutput:
        """The loss of one pass."""
        given: dict[str, Any] = dict(batch)
        index = given.pop("index", None)
        row = batch["input_ids"], batch["position_ids"]
        objective, passes = self.objective, self.config.accumulate
        with self._autocast():
            if objective.distill == "marginal":
                given["marginals"] = marginal_targets(
                    self.model, *row, objective, passes, batch.get("labels")
                )
            if self.states is not None:
                given["trunk"] = self.states.read(index, *row)
            output: MTPOutput = self.spread(
                **given,
                objective=objective,
                weights=self._weights(),
                counts=counts,
                passes=passes,
                measures_all=self.reports(self.done + 1),
            )
        return output

    def _autocast(self) -> AbstractContextManager[None]:
        mixed = self.config.precision == "bf16-mixed"
        return torch.autocast(self.model.backbone.device.type, torch.bfloat16, enabled=mixed)

    def _counts(self, passes: Sequence[Batch]) -> Tensor:
        """By what the losses of each depth are divided, (K+1,).

        That is the number of targets in the step over all passes and processes, per process,
        because DDP and FSDP take the mean of the processes' gradients; 1 where there is none.
        """
        counts = torch.stack([self._targets_of(batch) for batch in passes]).sum(0)
        mean = mean_over_processes(counts)  # half a target, where two processes share one
        return mean.masked_fill(mean == 0, 1.0)

    def _targets_of(self, batch: Batch) -> Tensor:
        labels = batch.get("labels", batch["input_ids"])
        return self.model.count_targets(labels, batch["position_ids"])

    def _warm_up_heads(self) -> None:
        """Let the backbone rest as long as only the heads are to learn.

        Its parameters stay among those that learn, as DDP and FSDP know them from the beginning.
        """
        if limit := self.config.head_warmup:
            ready = self.done >= limit if limit >= 1 else self.fraction >= limit
            self.model.backbone_trains = ready
            self.model.train()

    # -- held-out loss and checkpoints ------------------------------------------------------------

    @torch.no_grad()
    def measure(self, blocks: PackedBlocks) -> tuple[float, ...]:
        """Mean depth losses on held-out blocks, (K+1,) in nats."""
        self.model.eval()
        sums, counts = torch.zeros(2, self.model.depth + 1, dtype=torch.float64)
        for start in range(0, len(blocks), self.per_pass):
            rows = range(start, min(start + self.per_pass, len(blocks)))
            batch = self._batch([blocks[row] for row in rows])
            targets = self._targets_of(batch).cpu()
            with self._autocast():
                sums += self.model(**batch).depth_losses.cpu() * targets
            counts += targets
        reshard(self.model)
        self.model.train()
        return tuple((sums / counts.clamp(min=1.0)).tolist())

    def checkpoint(self) -> None:
        """Write what a run goes on from: one form for every number of processes."""
        sharded, main = is_sharded(self.model), self.processes.is_main_process
        if sharded or main:
            directory = self.run.checkpoint(self.done)
            save_snapshot(directory / "learned", self.model, self.optimizer, sharded)
        self.processes.wait_for_everyone()
        if main:
            self.run.mark_complete(self.done, self.clock.seconds())


def _numbered(blocks: PackedBlocks, row: int) -> Batch:
    """A block that knows its number."""
    return {**blocks[row], "index": torch.tensor(row)}
