"""Next-token quality on lm-eval's tasks, through the backbone as the ordinary model that it is.

EleutherAI's Language Model Evaluation Harness (Gao et al., https://github.com/EleutherAI/
lm-evaluation-harness); an extra: `pip install '.[lm-eval]'`. Heads take no part.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from foretell.errors import not_installed
from foretell.model import MTPModel
from foretell.results.tables import HarnessScore
from foretell.tally import Estimate


def require_harness() -> None:
    """Raise `InputError` unless lm-eval is installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise not_installed("lm-eval", "lm-eval") from None


def run_harness(
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
) -> list[HarnessScore]:
    """A row per task and metric, with the harness's own standard error as its interval.

    Args:
        model: its backbone is asked.
        tokenizer: of the model.
        tasks: lm-eval's names of them.
        limit: questions of each task; None: all.

    Raises:
        InputError: lm-eval is not installed.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    asked = HFLM(pretrained=model.lm, tokenizer=tokenizer, device=str(model.backbone.device))
    found = simple_evaluate(model=asked, tasks=list(tasks), limit=limit)
    return [row for task, values in found["results"].items() for row in _scores(task, values)]


def _scores(task: str, values: dict[str, Any]) -> list[HarnessScore]:
    """`{"acc,none": 0.5, "acc_stderr,none": 0.1}` → one row."""
    rows = []
    for name, value in values.items():
        metric, comma, chosen = name.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        found, error = Estimate(value), values.get(f"{metric}_stderr,{chosen}")
        if isinstance(error, int | float):
            found = Estimate(value, value - 1.96 * error, value + 1.96 * error)
        rows.append(HarnessScore(task=task, metric=metric, value=found))
    return rows
