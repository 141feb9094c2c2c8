"""What a run tells about itself: which parts moved, its curves, and what a weighted tap learned."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foretell.backbone.weights import is_plain
from foretell.files import whole_file, write_whole
from foretell.heads import WeightedTap
from foretell.model import MTPModel

SAMPLE = 4096
"""Values remembered of each parameter."""


@dataclass(frozen=True)
class Movement:
    """How far one part of a model went from where it began.

    Attributes:
        part: its name.
        parameters: how many numbers it holds.
        learns: whether it was to move.
        change: ‖now - then‖ / ‖then‖ over up to `SAMPLE` evenly spread values of each parameter;
            the norm itself where it began at zero.
    """

    part: str
    parameters: int
    learns: bool
    change: float

    @property
    def suspicious(self) -> str | None:
        """What is wrong, in words; None where nothing is."""
        if self.learns and self.change == 0:
            return f"{self.part} was to learn and did not move"
        if not self.learns and self.change != 0:
            return f"{self.part} was frozen and moved"
        return None


class Departure:
    """Remembers where the parameters were at the start of a run, on disk, so that it can resume.

    Packed weights are left out: they cannot learn, and how they are stored is their layer's affair.

    Args:
        path: a safetensors file; written unless it exists.
        model: at its start.
    """

    def __init__(self, path: Path, model: MTPModel) -> None:
        self.learns = {name: p.requires_grad for name, p in model.named_parameters()}
        if not path.is_file():
            plain = {name: _sample(p) for name, p in model.named_parameters() if is_plain(p)}
            with whole_file(path) as work:
                save_file(plain, work)
        self.path = path

    def movements(self, model: MTPModel) -> list[Movement]:
        """How far every part went."""
        before, part_of = load_file(self.path), _parts(model)
        parts: dict[str, list[tuple[nn.Parameter, Tensor, bool]]] = {}
        for name, parameter in model.named_parameters():
            if name in before:
                entry = (parameter, before[name], self.learns.get(name, True))
                parts.setdefault(part_of[name], []).append(entry)
        return [
            Movement(
                part,
                sum(parameter.numel() for parameter, _, _ in members),
                any(learns for _, _, learns in members),
                _change([(then, _sample(parameter)) for parameter, then, _ in members]),
            )
            for part, members in parts.items()
        ]


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].clone().cpu()


def _change(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    moved = math.hypot(*(float((now.float() - then.float()).norm()) for then, now in pairs))
    began = math.hypot(*(float(then.float().norm()) for then, _ in pairs))
    return moved / began if began else moved


def _parts(model: MTPModel) -> dict[str, str]:
    """`backbone block 3`, `head chain 1`, …: the part that each parameter belongs to, by name."""
    block_of = {
        id(parameter): f"backbone block {index}"
        for index, block in enumerate(model.backbone.blocks)
        for parameter in block.parameters()
    }
    parts = {}
    for name, parameter in model.named_parameters():
        owner, *path = name.split(".")
        if owner == "head":
            parts[name] = " ".join(
                ["head", path[0], *[part for part in path if part.isdigit()][:1]]
            )
        else:
            part = block_of.get(id(parameter), f"backbone {path[-2]}")
            parts[name] = f"{part} adapters" if "lora_" in name else part
    return parts


def draw_curves(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss against steps, one curve per depth, held-out losses dashed."""
    figure = Figure(figsize=(7, 4.2))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.13, top=0.97)  # a layout draws it twice
    axes = figure.subplots()
    for key, style, suffix in (("depth_losses", "-", ""), ("held_out_losses", "--", ", held out")):
        known = [line for line in lines if line.get(key)]
        depths = len(known[0][key]) if known else 0
        for depth in range(depths):
            steps, losses = [line["step"] for line in known], [line[key][depth] for line in known]
            axes.plot(steps, losses, style, color=f"C{depth}", label=f"depth {depth}{suffix}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss in nats per token")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    _save(figure, path)


def tap_weights(model: MTPModel) -> list[list[float]]:
    """What a weighted tap gives each layer, (depths, L+1); empty for other taps."""
    if model.head is None or not isinstance(model.head.tap, WeightedTap):
        return []
    tap = model.head.tap
    return [tap.weights(depth + 1).tolist() for depth in range(len(tap.logits))]


def draw_tap_weights(weights: Sequence[Sequence[float]], path: Path) -> None:
    """A heat map, depth by layer."""
    figure = Figure(figsize=(7, 1.5 + 0.4 * len(weights)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.array(weights), aspect="auto", cmap="viridis", vmin=0)
    axes.set_xlabel("residual state entering layer (the last one leaves the last block)")
    axes.set_yticks(range(len(weights)), [f"depth {depth + 1}" for depth in range(len(weights))])
    figure.colorbar(image, ax=axes, label="weight")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as work:
        figure.savefig(work, format="png", dpi=120)


def write_report(
    directory: Path, model: MTPModel, departure: Departure, lines: Iterable[dict[str, Any]]
) -> list[Movement]:
    """Write `movement.json`, `curves.png` and for a weighted tap `tap_weights.json` and `.png`."""
    movements = departure.movements(model)
    rows = [vars(movement) for movement in movements]
    write_whole(directory / "movement.json", json.dumps(rows, indent=2) + "\n")
    draw_curves(list(lines), directory / "curves.png")
    if weights := tap_weights(model):
        write_whole(directory / "tap_weights.json", json.dumps(weights) + "\n")
        draw_tap_weights(weights, directory / "tap_weights.png")
    return movements
