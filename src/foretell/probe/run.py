"""Many positions, row by row: sampled, measured by every method, counted, and resumed.

Shapes: T row length, P positions of a row.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell.data import PackedBlocks
from foretell.errors import InputError
from foretell.files import local_path, refusing, require_replaceable, write_whole
from foretell.model import MTPModel
from foretell.probe.classes import TokenClasses
from foretell.probe.methods import Place, Predictor
from foretell.tally import Tally
from foretell.targets import IGNORE, NO_TARGET

PER_ROW = 16
"""Positions sampled in one row, at most: neighbours have little new to tell."""

JOURNAL = "journal of the run"

AXES = ("method", "depth", "document_kind", "token_class")


def measure(
    model: MTPModel,
    blocks: PackedBlocks,
    methods: Sequence[Predictor],
    *,
    depth: int,
    positions: int,
    seed: int = 0,
    classes: TokenClasses | None = None,
    journal: "Journal | None" = None,
    progress: Callable[[float], None] | None = None,
) -> Tally:
    """Score `methods` at about `positions` random positions.

    Positions are those from which every depth predicts a token that is learned, no prompt.

    Args:
        model: its backbone is probed.
        blocks: text that the model has not seen.
        methods: see `foretell.probe.methods`.
        depth: K.
        positions: how many.
        seed: of the positions.
        classes: tells the class of the predicted token; None: all are of one class.
        journal: keeps what is done, and knows what was done before.
        progress: told the share done.

    Returns:
        Means by method, depth, kind of document and class of token.

    Raises:
        InputError: no positions are asked for, or none has a target at every depth; the tokens are
            another tokenizer's.
    """
    if positions < 1:
        raise InputError(f"positions is {positions}; ask for at least 1.")
    blocks.require_vocabulary(model.backbone.vocab_size)
    model.eval()
    rows = _draw_rows(blocks, depth, positions, seed)
    if not rows:
        raise InputError(NO_TARGET)
    tally = Tally(*AXES)
    done = journal.done if journal is not None else {}
    for number, (index, where) in enumerate(rows.items()):
        if index not in done:
            done[index] = _measure_row(model, blocks, index, where, methods, depth, classes)
            if journal is not None:
                journal.write(index, done[index])
        tally.merge(done[index])
        if progress is not None:
            progress((number + 1) / len(rows))
    return tally


def _draw_rows(blocks: PackedBlocks, depth: int, positions: int, seed: int) -> dict[int, Tensor]:
    """Random rows until there are enough positions, by their index; (≤ `PER_ROW`,) of each."""
    chosen: dict[int, Tensor] = {}
    found, per_row = 0, min(PER_ROW, positions)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
    for index in order.tolist():
        if found >= positions:
            break
        random = torch.Generator().manual_seed(seed * 1_000_003 + index)
        where = _draw(_last_document(blocks[index])[1], depth, per_row, random)
        if len(where):
            chosen[index] = where
            found += len(where)
    return chosen


@torch.inference_mode()
def _measure_row(
    model: MTPModel,
    blocks: PackedBlocks,
    index: int,
    where: Tensor,
    methods: Sequence[Predictor],
    depth: int,
    classes: TokenClasses | None,
) -> list[list[Any]]:
    """Records of a tally: every method at positions `where` (P,) of the row's last document."""
    tally, device = Tally(*AXES), model.backbone.device
    start, learned = _last_document(blocks[index])
    row = blocks[index]["input_ids"][start : start + len(learned)]
    document = int(blocks.documents(index)[start])
    kind = blocks.document_kinds[document] if blocks.document_kinds else "text"
    names = ["token"] * len(row) if classes is None else classes(row.tolist(), kind)
    place = Place.read(model.backbone, row.unsqueeze(0).to(device), where.to(device), depth)
    for method in methods:
        for k, scores in method(place):
            tally.add(
                (method.name, k, kind),
                [document] * len(where),
                {name: value.cpu().numpy() for name, value in scores.items()},
                [names[t + k + 1] for t in where.tolist()],
            )
    return tally.records()


def _draw(learned: Tensor, depth: int, count: int, random: torch.Generator) -> Tensor:
    """Up to `count` positions, in order, whose targets at depths 0…`depth` are all learned."""
    if len(learned) < depth + 2:
        return torch.zeros(0, dtype=torch.long)
    usable = learned[1:].unfold(0, depth + 1, 1).all(-1).nonzero().flatten()
    return usable[torch.randperm(len(usable), generator=random)[:count]].sort().values


def _last_document(block: dict[str, Tensor]) -> tuple[int, Tensor]:
    """Where the last document of a block begins, and (T',) which of its tokens are learned.

    What fills it up is left out.
    """
    start = int((block["position_ids"] == 0).nonzero()[-1])
    learned = block.get("labels", block["input_ids"])[start:] != IGNORE
    end = int(learned.nonzero().max()) + 1 if learned.any() else 0
    return start, learned[:end]


class Journal:
    """What is done of a run, line by line, so that one that was stopped goes on.

    What follows a line that was not written whole, and all of a run with other settings, does not
    count.

    Args:
        path: of the file; made with the first line.
        settings: what the numbers depend on.

    Raises:
        InputError: another file is there.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = local_path(path), json.loads(json.dumps(settings))
        self.done: dict[int, list[Any]] = {}
        self._begun = False
        require_replaceable(self.path, JOURNAL, _is_journal)
        lines = _whole_lines(self.path)
        if lines and lines[0] == self.settings:
            self.done = {index: records for index, records in lines[1:]}

    def write(self, index: int, records: list[Any]) -> None:
        """Keep what was found in one row.

        Raises:
            InputError: the file cannot be written.
        """
        with refusing(self.path, JOURNAL):
            if not self._begun:
                self._begin()
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([index, records]) + "\n")

    def _begin(self) -> None:
        """Write anew what counts, in place of what may end in half a line."""
        self._begun = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [self.settings, *([index, records] for index, records in self.done.items())]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def remove(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)


def _is_journal(content: bytes) -> bool:
    """Settings on the first line, which is written whole, and rows after it."""
    try:
        return isinstance(json.loads(content.splitlines()[0]), dict)
    except ValueError:
        return False


def _whole_lines(path: Path) -> list[Any]:
    """The content of the lines before the first that is none; nothing where there is no file."""
    found: list[Any] = []
    content = path.read_bytes() if path.is_file() else b""
    with suppress(ValueError):
        for line in content.splitlines(keepends=True):
            found.append(json.loads(line if line.endswith(b"\n") else b""))
    return found
