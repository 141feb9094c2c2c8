"""How a continuation is drafted, judged and drawn: the options, and what their texts mean."""

from collections.abc import Mapping
from textwrap import shorten
from typing import Any, Literal

from foretell.cli import common
from foretell.decoding import AcceptanceRule, Drafter, Sampling, TreeShape, rule_named
from foretell.decoding.constraints import left_out, obeyed
from foretell.errors import InputError
from foretell.model import MTPModel


def parse_rule(text: str | None) -> AcceptanceRule:
    """`top-k:3` → `TopK(3)`; the lossless default where nothing was asked for."""
    return rule_named(text or "speculative")


def parse_length(text: str | None) -> int | Literal["auto"] | None:
    """`3` → 3; None is the drafter's own."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--draft-length {text}: give a number of tokens, or auto.") from None


def parse_tree(text: str | None, pass_width: int | None = None) -> TreeShape | None:
    """`4,2,1` → children by depth, `12` → this many nodes; None drafts chains."""
    if text is None:
        return None
    if pass_width is not None:
        raise InputError("passes of one width verify chains; leave out --tree or --pass-width.")
    return TreeShape.parse(text)


def sampling(
    temperature: float,
    seed: int,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
) -> Sampling:
    """What the options ask for, refusing those that would do nothing."""
    if temperature == 0 and (top_k, top_p, min_p) != (0, 1.0, 0.0):
        raise InputError("top-k, top-p and min-p choose what is drawn from; add --temperature 1.")
    return Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seeds=seed,
    )


def drafter_name(name: str | None, model: MTPModel, *, plain: bool = False) -> str:
    """Which drafter was asked for: heads, none, lookup, or a draft model by name."""
    if plain and name not in (None, "none"):
        raise InputError(f"--plain decodes without a drafter; leave out --drafter {name}.")
    if plain:
        return "none"
    return name or ("none" if model.head is None else "heads")


def drafter(
    name: str,
    model: MTPModel,
    length: int | Literal["auto"] | None = None,
    shape: TreeShape | None = None,
) -> Drafter:
    """The drafter of that name, see `drafter_name`; with `auto` it drafts as far as by default."""
    if name == "none" and length == "auto":
        raise InputError("without a drafter there is no draft; leave out --draft-length.")
    return model.drafter_named(name, None if length == "auto" else length, shape)


def describe_lengths(shares: Mapping[int, float]) -> str:
    """Of the passes, by how many tokens they drafted: 'drafted 0: 25.0 %, 3: 75.0 % of passes'."""
    found = ", ".join(f"{length}: {common.percent(share)}" for length, share in shares.items())
    return f"drafted {found} of passes"


def describe_config(model: MTPModel, sampling: Sampling) -> list[str]:
    """What is taken from the model's generation config, and what is not; nothing where it is bare.

    Args:
        model: that decodes.
        sampling: that was asked for.
    """
    lines, followed, drawn = [], obeyed(model.lm), left_out(model.lm)
    if sampling.repetition_penalty is not None:
        followed.pop("repetition_penalty", None)
    if followed:
        lines.append(f"From its generation config: {_listed(followed)}.")
    if drawn:
        lines.append(
            f"Not from its generation config: {_listed(drawn)}; to draw, give --temperature and "
            "the like."
        )
    return lines


def _listed(fields: Mapping[str, Any]) -> str:
    """'repetition_penalty 1.1, suppress_tokens [5, 7]', each at most a line's part long."""
    return ", ".join(f"{name} {shorten(str(value), 60)}" for name, value in fields.items())


def describe(rule: AcceptanceRule, temperature: float) -> str:
    """What kind of output this is, as 'greedy, lossless'."""
    chosen = f"sampled at temperature {temperature:g}" if temperature else "greedy"
    return f"{chosen}, {'lossless' if rule.lossless else 'LOSSY'}"
