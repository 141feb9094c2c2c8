"""Charts of everything that result files and runs hold; each appears where its data are."""

from foretell.report.charts.classes import class_charts
from foretell.report.charts.depths import depth_charts
from foretell.report.charts.drafting import drafting_charts
from foretell.report.charts.drawing import Chart, is_figure
from foretell.report.charts.layers import layer_charts
from foretell.report.charts.lengths import length_charts
from foretell.report.charts.speed import recipe_charts, speed_charts
from foretell.report.charts.training import training_charts
from foretell.report.sources import Sources

__all__ = ["Chart", "charts_of", "is_figure"]


def charts_of(sources: Sources) -> list[Chart]:
    """All charts, what people look for first in front."""
    results, runs = sources.results, sources.runs
    return [
        *speed_charts(results),
        *drafting_charts(results),
        *length_charts(results),
        *depth_charts(results),
        *class_charts(results),
        *layer_charts(results, runs),
        *recipe_charts(results),
        *training_charts(runs),
    ]
