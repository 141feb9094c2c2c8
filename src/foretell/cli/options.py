"""What commands can be told: the options that they share, and the names that help mentions.

Nothing heavy is imported here or in `commands/`, so that help and typing errors come at once. The
names stand here a second time for the same reason; a test holds them to what they are names of.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from foretell.errors import InputError

HEADS = ("parallel", "sequential", "residual")
TAPS = ("final", "trunk", "last", "weighted", "fused")
LAYOUTS = (
    "mimo", "medusa", "eagle", "eagle3", "qwen3_5", "qwen3_next", "deepseek_v3", "glm4_moe",
    "transformers", "vllm",
)  # fmt: skip
LOSSLESS_RULES = ("speculative", "exact")
LOSSY_RULES = {"top-k": 2, "distance": 1, "typical": 0.09, "minimum-block": 1}
"""With the number that each takes where none is given."""

STDOUT = Path("-")


class Command:
    """What a command was told. Its fields are the options, its docstring is the help."""

    def told(self, *names: str) -> dict[str, Any]:
        """These options, by name."""
        return {name: getattr(self, name) for name in names}


def _checked_seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; give one from 0 to {2**32 - 1}.")
    return seed


def _checked_result(path: Path | None) -> Path | None:
    """Refuse a path that cannot be written to at once, and not when the work is done."""
    if path is not None and path != STDOUT:
        from foretell.files import require_replaceable
        from foretell.provenance import is_result

        require_replaceable(path, "result file", is_result)
    return path


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hub id (owner/name), a directory, or a bundled model: tiny or tiny-mtp.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="TEXTS",
        help="Text to read: .txt, .md, .py, .jsonl or .parquet (field 'text', 'messages' with "
        "roles, or 'prompt' and 'completion'), a directory of these, or hub:NAME:CONFIG:SPLIT. "
        "stdlib:train and stdlib:held-out are Python's own standard library.",
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result file here; - writes it to standard output, and nothing else there.",
        callback=_checked_result,
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        metavar="TEXTS", help="Texts or conversations to take prompts from; as --data of train."
    ),
]
PromptTokens = Annotated[
    int, typer.Option(metavar="N", help="Longest prompt that is cut from a text, in tokens.")
]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", help="Add at most N tokens to a prompt.")]
BlockSize = Annotated[int, typer.Option(metavar="N", help="Tokens per row.")]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Skip records that cannot be used, and count them."),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="Seed for everything that is random.", callback=_checked_seed),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="MODEL",
        help="Where the backbone of MODEL's heads is, if not where they say.",
    ),
]
Device = Annotated[
    str,
    # Named, since typer 0.27 takes a metavar that is the name in capitals for the option's own.
    typer.Option("--device", metavar="DEVICE", help="Where to run: auto, cpu, cuda, cuda:1, mps."),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="Type of the weights: float32, bfloat16, float16, or auto (float32 on a CPU, "
        "otherwise as stored).",
    ),
]

Temperature = Annotated[
    float,
    typer.Option(metavar="T", help="Sample at this temperature; 0 takes the likeliest token."),
]
TopK = Annotated[
    int, typer.Option(metavar="N", help="Sample from the N likeliest tokens only; 0: from all.")
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="P", help="Sample from the likeliest tokens that together have probability P."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        metavar="P", help="Leave out tokens with less than P times the likeliest one's probability."
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Divide the scores of tokens that occurred before, also in greedy decoding. 1: do "
        "not. [default: the model's generation config]",
    ),
]
Drafter = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="heads, none, lookup (copies from the text so far), or a draft model: a directory, "
        "Hub id or bundled model. [default: heads, if MODEL has any]",
    ),
]
DraftLength = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Tokens per draft; auto: chosen at every step for speed, down to none. [default: all "
        "depths of the heads; 4 for other drafters]",
    ),
]
Tree = Annotated[
    str | None,
    typer.Option(
        metavar="SHAPE",
        help="Draft trees. 4,2,1: children of each node, by depth. 12: the 12 likeliest nodes.",
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:N]",
        help=f"Which drafted tokens are accepted. Lossless: {', '.join(LOSSLESS_RULES)}. Lossy, "
        "with their numbers if not given: "
        f"{', '.join(f'{name}:{number}' for name, number in LOSSY_RULES.items())}. "
        f"[default: {LOSSLESS_RULES[0]}]",
    ),
]
PassWidth = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Make every pass N tokens wide, so that near-ties do not depend on what is drafted.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the step: takes minutes at first, then runs faster."),
]
