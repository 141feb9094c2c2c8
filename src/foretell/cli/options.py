"""What commands can be told: the options that they share, and the settings of configs.

Nothing heavy is imported here or in `commands/`, so that help and typing errors come at once. What
help says of the library is read from `known.json`, which `make figures` writes.
"""

import json
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from foretell.errors import InputError

KNOWN: dict[str, Any] = json.loads(Path(__file__).with_name("known.json").read_text("utf-8"))
"""Settings by command and name, layouts and rules; see `docs/known.py`."""

STDOUT = Path("-")


def setting(path: str, metavar: str, *names: str, **more: Any) -> Any:
    """An option that sets a field of a command's config, which explains it and has its default.

    Args:
        path: the command, and where the setting stands in its config: `train.head.depth`.
        metavar: what is given.
        *names: of the option, where it has another name than its field.
        **more: what else an option of typer has.
    """
    command, _, name = path.partition(".")
    field = KNOWN[command][name]
    default = "" if field["default"] is None else f" [default: {field['default']}]"
    text = field["help"].replace("`", "") + default
    option = typer.Option(*names, metavar=metavar, help=text, **more)
    option.sets = name
    return option


class Command:
    """What a command was told. Its fields are the options, its docstring is the help."""

    def told(self, *names: str) -> dict[str, Any]:
        """These options, by name."""
        return {name: getattr(self, name) for name in names}

    @classmethod
    def sets(cls) -> dict[str, str]:
        """Where the fields stand that its options set, by the option."""
        return {
            name: option.sets
            for name, annotation in get_type_hints(cls, include_extras=True).items()
            for option in getattr(annotation, "__metadata__", ())
            if hasattr(option, "sets")
        }

    def settings(self) -> dict[str, Any]:
        """The settings that were given, nested as their config has them."""
        result: dict[str, Any] = {}
        for name, path in self.sets().items():
            if (value := getattr(self, name)) is not None:
                *outer, last = path.split(".")
                inside = result
                for part in outer:
                    inside = inside.setdefault(part, {})
                inside[last] = value
        return result


def _checked_seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; give one from 0 to {2**32 - 1}.")
    return seed


def _checked_quantize(name: str | None) -> str | None:
    if name not in (None, "int8"):
        raise InputError(f"--quantize {name}: weights can be rounded to int8 only.")
    return name


def _checked_result(path: Path | None) -> Path | None:
    """Refuse a path that cannot be written to at once, and not when the work is done."""
    if path is not None and path != STDOUT:
        from foretell.files import require_replaceable
        from foretell.results import is_result

        require_replaceable(path, "result file", is_result)
    return path


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hub id (owner/name), a directory, or a bundled model: tiny, tiny-mtp, smollm2-mtp.",
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
        "otherwise as stored; from Python it is as stored everywhere).",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="TYPE",
        help="Round the weights of model and heads first: int8. For CPUs, best with AMX. The "
        "model gets a little worse; drafts do not change its output.",
        callback=_checked_quantize,
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
        f"depths of the heads; {KNOWN['draft_length']} for other drafters]",
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
        help=f"Which drafted tokens are accepted. Lossless: {', '.join(KNOWN['lossless'])}. Lossy, "
        "with their numbers if not given: "
        f"{', '.join(f'{name}:{number}' for name, number in KNOWN['lossy'].items())}. "
        f"[default: {KNOWN['rule']}]",
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
    typer.Option(
        "--compile",
        help="Make the steps faster: CUDA graphs on a GPU; compiled on a CPU, which takes minutes "
        "at first.",
    ),
]
