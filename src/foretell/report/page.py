"""The page: everything in one file that opens from disk and loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from foretell.files import replace_file, require_replaceable
from foretell.formatting import text, title
from foretell.report.charts import Chart, charts_of, is_figure
from foretell.report.charts.selecting import accepted
from foretell.report.drafts import continuations
from foretell.report.predicted import comparisons
from foretell.report.sources import Source, Sources, collect
from foretell.report.tables import tables_of
from foretell.results import Row
from foretell.results.tables import Predicted, Speed


@dataclass(frozen=True)
class Fact:
    """A number of the summary: what it is, and whose."""

    value: str
    what: str
    whose: str


def write_report(
    paths: Sequence[Path], out: Path, *, figures: Path | None = None, mixed: bool = False
) -> list[Chart]:
    """Write a page of result files and runs; each file is written whole or not at all.

    Args:
        paths: result files, or directories with them or with training runs.
        out: the page.
        figures: a directory for every figure as SVG and PNG.
        mixed: allow results of models that have nothing to do with each other.

    Returns:
        The figures.

    Raises:
        InputError: see `foretell.report.sources.collect`; or a file cannot be written, or is there
            and not a report's.
    """
    sources = collect(paths, mixed=mixed)
    charts = charts_of(sources)
    drawn = {} if figures is None else {figures / chart.name: chart for chart in charts}
    require_replaceable(out, "report", is_page)  # all of them, before any is written
    for name, end in product(drawn, (".svg", ".png")):
        require_replaceable(Path(f"{name}{end}"), "figure", is_figure)
    replace_file(out, render(sources, charts).encode("utf-8"), "report", is_page)
    for name, chart in drawn.items():
        replace_file(Path(f"{name}.svg"), chart.svg().encode("utf-8"), "figure", is_figure)
        replace_file(Path(f"{name}.png"), chart.png(), "figure", is_figure)
    return charts


def render(sources: Sources, charts: Sequence[Chart]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("foretell.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = lambda value, field: text(field, value)
    environment.filters["heading"] = title
    environment.filters["marked"] = marked
    environment.filters["inline"] = lambda chart: Markup(chart.inline())
    style, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        title=f"foretell: {', '.join(sources.models) or 'report'}",
        style=Markup(style),
        lead=lead(sources),
        verdicts=verdicts(sources),
        facts=summary(sources),
        charts=charts,
        compared=comparisons(sources.results),
        continuations=continuations(sources.results),
        files=[(s, tables_of(s, place)) for place, s in enumerate(sources.results, start=1)],
        origins=[
            (s, _lines(s.result.provenance), _lines(s.result.settings)) for s in sources.results
        ],
        runs=sources.runs,
    )


def is_page(content: bytes) -> bool:
    """Whether this is a page made here, perhaps under our earlier name."""
    return re.search(rb'name="generator" content="fore(tell|token) report"', content) is not None


def lead(sources: Sources) -> str:
    """One sentence that says what is shown, and where it was measured."""
    results = sources.results
    shown = {
        "how fast decoding is with and without drafts": _any(results, Speed),
        "how often drafted tokens are accepted": any(map(accepted, results)),
        "what the model itself knows about its next tokens": _any(results, Predicted),
        "how training went": bool(sources.runs),
    }
    what = [phrase for phrase, there in shown.items() if there] or ["what was measured"]
    listed = ", ".join(what[:-1]) + " and " * (len(what) > 1) + what[-1]
    origins = [source.result.provenance for source in results]
    places = dict.fromkeys(
        f"{origin.get('device_name') or origin.get('cpu')} in {origin['dtype']}"
        for origin in origins
        if origin.get("dtype") and (origin.get("device_name") or origin.get("cpu"))
    )
    where = f", measured on {' and '.join(places)}" if 0 < len(places) <= 2 else ""
    return f"This page shows {listed}{where}."


def _any(sources: Sequence[Source], kind: type[Row]) -> bool:
    return any(source.table(kind) for source in sources)


def verdicts(sources: Sources) -> list[tuple[str, str]]:
    """Models, and whether their heads pay, in the words of the commands that measured it."""
    said = [source.result.settings.get("verdicts", {}) for source in sources.results]
    found = ((str(model), str(words)) for of_file in said for model, words in of_file.items())
    return list(dict.fromkeys(found))


def marked(words: str) -> Markup:
    """What stands between backticks, as what can be typed."""
    parts = enumerate(words.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else p for n, p in parts)


def summary(sources: Sources) -> list[Fact]:
    """The few numbers that people come for: what heads bring, and what is fastest of all."""
    rows = [row for source in sources.results for row in source.table(Speed)]
    drafting = [row for row in rows if row.drafter not in (None, "none")]
    heads = [row for row in drafting if row.drafter == "heads"]
    facts = [
        _best(heads, "tokens_per_forward", "tokens per forward with heads"),
        _best(heads, "speedup", "the speed of plain decoding, with heads"),
        _best(drafting, "speedup", "the speed of plain decoding, fastest of all"),
        _identical(drafting),
    ]
    return [fact for fact in facts if fact is not None]


def _best(rows: Sequence[Speed], field: str, what: str) -> Fact | None:
    if not rows:
        return None
    best = max(rows, key=lambda row: float(getattr(row, field)))
    whose = ", ".join(filter(None, (best.method, best.model)))
    return Fact(text(field, getattr(best, field)), what, whose)


def _identical(rows: Sequence[Speed]) -> Fact | None:
    same = [row.identical for row in rows if row.identical is not None]
    if not same:
        return None
    asked = sum(row.prompts for row in rows if row.identical is not None)
    what = "outputs identical to plain decoding"
    return Fact(f"{sum(same):,} of {asked:,}", what, "all methods that draft")


LONG = 200
"""Characters of a setting that are shown."""


def _lines(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values; what is long is cut."""
    shown = []
    for name, value in values.items():
        line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        shown.append((name.replace("_", " "), line if len(line) <= LONG else f"{line[:LONG]} …"))
    return shown
