"""A head, a drafter, a rule and a layout that the package has never heard of, used by name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import families
import foretell as ft
import report_files
from foretell.data import PackedBlocks
from foretell.decoding import RULES, Draft, Verdict
from foretell.decoding.acceptance import AcceptanceRule, choose, longest
from foretell.decoding.drafters import NAMED, OF_HEADS, Drafter, ParallelDrafter
from foretell.errors import InputError
from foretell.evaluation import compare, measure_heads, methods_of, verdict_of_speed
from foretell.evaluation.rules import reported
from foretell.formats import LAYOUTS, Layout, export, import_heads, layout, layouts_for
from foretell.formats.base import Loaded
from foretell.formats.contract import SideBySide
from foretell.formats.files import save_tensors
from foretell.heads import HEADS, Head, HeadConfig
from foretell.report.page import summary
from foretell.report.predicted import comparisons
from foretell.report.sources import collect
from foretell.results import of_model, write_result
from foretell.training.config import TrainConfig


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """What a test adds is gone after it."""
    registries = (HEADS, NAMED, OF_HEADS, RULES, LAYOUTS)
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


def add_head() -> type[Head]:
    class Plain(Head):
        class Config(HeadConfig):
            kind: ClassVar[str] = "matrix"

        drafter = "from-matrices"
        runs_blocks = False

        def __init__(self, config, parts) -> None:
            super().__init__(config, parts)
            size = parts.hidden_size
            self.ahead = nn.ModuleList(nn.Linear(size, size) for _ in range(config.depth))

        def forward(self, states, embed_ahead, run, depths):
            return [self.ahead[k - 1](self.tap(states, k)) for k in depths]

    class FromMatrices(ParallelDrafter, of_heads="from-matrices"):
        pass

    return Plain


def test_a_design_that_extends_another_does_not_take_its_name() -> None:
    class Wider(ft.ParallelHeads):
        class Config(ft.ParallelHeads.Config):
            extra: int = 1

    assert HEADS["parallel"] is ft.ParallelHeads
    assert Wider not in HEADS.values()


def test_heads_that_name_an_unknown_drafter_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ft.attach(families.build("llama"), "parallel", depth=1)
    monkeypatch.setattr(ft.ParallelHeads, "drafter", "crystal-ball")
    with pytest.raises(ft.HeadError, match="'crystal-ball'; there are"):
        model.decode(families.prompt(), max_new_tokens=2)


def test_a_head_with_a_drafter_of_its_own(tmp_path: Path) -> None:
    kind = add_head()
    model = ft.attach(families.build("llama"), "matrix", depth=2)
    tokens = families.prompt(2, 10)
    model(tokens).loss.backward()
    assert all(parameter.grad.any() for parameter in model.head.parameters())
    row = families.prompt(1, 8)
    plain = model.decode(row, max_new_tokens=8, drafter="none").new_tokens
    assert model.decode(row, max_new_tokens=8).new_tokens == plain
    assert type(model.drafter_named("heads")).__name__ == "FromMatrices"
    model.save_pretrained(tmp_path / "model")
    again = ft.MTPModel.from_pretrained(tmp_path / "model")
    assert isinstance(again.head, kind)
    assert torch.equal(again(tokens).loss, model(tokens).loss)
    config = TrainConfig(recipe="frozen", head={"kind": "matrix", "depth": 2}, steps=1)
    assert isinstance(config.head, kind.Config)


def test_a_head_through_bench_eval_and_the_report(tmp_path: Path) -> None:
    """A figure of a kind that the package does not know is one of heads, as its rows say."""
    add_head()
    model = ft.attach(families.build("llama"), "matrix", depth=2)
    prompts = [families.prompt(1, 8, seed=n) for n in range(2)]
    table = compare(methods_of(model), prompts, max_new_tokens=8, repeats=1)
    assert verdict_of_speed(table.rows) is not None
    tokens = families.prompt(4, 16).numpy().astype(np.int32)
    depths = measure_heads(model, PackedBlocks(tokens, np.arange(4) * 16, num_bytes=200))
    for command, rows in (("bench", table.rows), ("eval", depths.all_rows())):
        named = of_model("toy", rows)
        write_result(tmp_path / f"{command}.json", command, {}, named, report_files.ORIGIN)
    report_files.write(tmp_path / "probe.json", "probe", report_files.probe_rows())
    sources = collect([tmp_path])
    facts = [fact for fact in summary(sources) if "with heads" in fact.what]
    assert [fact.whose for fact in facts] == ["matrix, toy"] * 2
    compared = comparisons(sources.results)
    assert {(one.who, one.behind) for one in compared} == {("matrix", "text"), ("matrix", "own")}


def test_a_drafter() -> None:
    class Same(Drafter, name="same"):
        """Drafts the last token again."""

        layers, longest = (), 1

        @classmethod
        def make(cls, backbone, head, length, shape):
            return cls()

        def start(self, past, sampler, rows, capacity) -> None: ...

        def draft(self, committed, limit):
            last = [n - 1 for n in committed.lengths]
            return Draft(committed.tokens[torch.arange(len(last)), last].unsqueeze(1)[:, :limit])

        def select(self, places) -> None: ...

    model, row = ft.MTPModel(families.build("llama")), families.prompt(1, 8)
    plain = model.decode(row, max_new_tokens=8).new_tokens
    drafted = model.decode(row, max_new_tokens=8, drafter="same")
    assert drafted.new_tokens == plain
    assert any(step.drafted for step in drafted.row_steps)


def test_a_rule() -> None:
    class Everything(AcceptanceRule, name="everything", number=1.0):
        lossless: ClassVar[bool] = False

        def __init__(self, least: float = 1.0) -> None:
            self.least = least

        def __call__(self, draft, logits, uniforms=None) -> Verdict:
            own = choose(draft, logits, uniforms)
            return longest(draft, torch.ones_like(draft.tokens, dtype=torch.bool), own)

    model = ft.attach(families.build("llama"), depth=2)
    found = model.decode(families.prompt(1, 8), max_new_tokens=9, rule="everything:2")
    assert all(step.accepted == step.drafted for step in found.row_steps)
    assert found.tokens_per_forward > 2
    assert reported()["everything:1"] is False
    with pytest.raises(InputError, match="everything:1"):
        model.decode(families.prompt(1, 8), max_new_tokens=2, rule="everything:much")


def test_a_layout(tmp_path: Path) -> None:
    """Heads go out by its name, and come back because it knows its own directories."""

    class Own(Layout):
        name = "own"
        apart = True
        contract = SideBySide(engine="none", heads="residual")
        serve = "engine {out} --model {model} --tokens {depth}"

        def recognises(self, base) -> bool:
            return base.config.get("model_type") == "own"

        def load(self, base) -> Loaded:
            return Loaded(self.head(base.config["depth"]), base.tensors(lambda name: True))

        def save(self, model, base, out) -> None:
            config = {"model_type": "own", "depth": model.depth}
            (out / "config.json").write_text(json.dumps(config))
            save_tensors(model.require_head().state_dict(), out / "model.safetensors")

        def owns(self, name, base) -> bool:
            return True

    torch.manual_seed(0)
    backbone, heads, out = (str(tmp_path / name) for name in ("backbone", "heads", "out"))
    model = ft.attach(families.build("llama"), layout("own").head(2))
    nn.init.normal_(model.require_head().heads[1][0].weight)  # new ones are zeros
    model.lm.save_pretrained(backbone)
    model.save_pretrained(heads, backbone_path=backbone)
    assert "own" in layouts_for(model)
    exported = export(heads, "own", Path(out))
    assert exported.serve == f"engine {out} --model {backbone} --tokens 2"
    assert "own" in Path(out, "README.md").read_text()
    found = import_heads(out, tmp_path / "again", backbone)
    assert (found.layout.name, found.modules) == ("own", 2)
    again = ft.MTPModel.from_pretrained(tmp_path / "again").require_head().state_dict()
    for name, tensor in model.require_head().state_dict().items():
        assert torch.equal(again[name], tensor), name
