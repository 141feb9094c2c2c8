"""The command line: parse, call, print. Everything it does can be done from Python."""

import os
import sys

import typer

from foretoken.cli import bench, demo, evaluate, generate, info, probe, train
from foretoken.errors import ForetokenError

app = typer.Typer(
    name="foretoken",
    help="Multi-token prediction for any Hugging Face causal language model.\n\n"
    "MODEL is a Hub id (owner/name), a local Hugging Face or foretoken directory, or one of the "
    "bundled models: tiny (next-token training only), tiny-mtp (trained with three heads).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("info")(info.info)
app.command("probe")(probe.probe)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("bench")(bench.bench)


def main() -> None:
    """Run the command line; what foretoken raises on purpose is one line and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app()
    except ForetokenError as error:
        print(f"foretoken: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("foretoken: interrupted", file=sys.stderr)
        sys.exit(130)
