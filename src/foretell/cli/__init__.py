"""The command line: parse, call, print. Everything it does can be done from Python."""

import logging
import os
import sys
import warnings
from typing import Annotated, cast

import typer

from foretell import __version__
from foretell.cli import (
    bench,
    demo,
    distill,
    evaluate,
    export,
    generate,
    info,
    probe,
    report,
    serve,
    train,
)
from foretell.errors import ForetellError

app = typer.Typer(
    name="foretell",
    help="Multi-token prediction for any Hugging Face causal language model.\n\n"
    "MODEL is a Hub id (owner/name), a local Hugging Face or foretell directory, or one of the "
    "bundled models: tiny (next-token training only), tiny-mtp (trained with three heads).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"foretell {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


app.command("demo")(demo.demo)
app.command("info")(info.info)
app.command("probe")(probe.probe)
app.command("train")(train.train)
app.command("distill")(distill.distill)
app.command("eval")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("bench")(bench.bench)
app.command("serve")(serve.serve)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("import")(export.import_)


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

# Typer brings its own copy of click or uses the real one, depending on its release.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


def run() -> None:
    """The program `foretell`: `main`, without what libraries warn of, which is for developers.

    Tests call `main`, so that a warning fails them. `python -W …` shows them here too.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
    main()


def main() -> None:
    """Run the command line; what foretell raises on purpose is one line and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="foretell", standalone_mode=False)
    except ForetellError as error:
        print(f"foretell: {_printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except _UsageError as error:
        path = error.ctx.command_path if error.ctx else "foretell"
        message = " ".join(error.format_message().split()).rstrip(".")
        print(f"foretell: {message}; see `{path} --help`.", file=sys.stderr)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):  # the first from an older Typer
        status = INTERRUPTED
    if status == INTERRUPTED:
        print("foretell: interrupted", file=sys.stderr)
    if status:
        sys.exit(status)


def _printable(message: str) -> str:
    """One line, whatever names a file or a checkpoint brought into it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
