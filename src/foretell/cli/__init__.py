"""The command line: parse, call, print. Everything it does can be done from Python.

To parse, nothing is imported but `options` and `commands/`; what a command does, once it runs.
"""

import inspect
import logging
import os
import signal
import sys
import warnings
from functools import cache
from pkgutil import resolve_name
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from foretell import __version__
from foretell.cli import options
from foretell.cli.commands.bench import Bench
from foretell.cli.commands.demo import Demo
from foretell.cli.commands.distill import Distill
from foretell.cli.commands.evaluate import Evaluate
from foretell.cli.commands.export import Export, Import
from foretell.cli.commands.generate import Generate
from foretell.cli.commands.info import Info
from foretell.cli.commands.probe import Probe
from foretell.cli.commands.report import Report
from foretell.cli.commands.serve import Serve
from foretell.cli.commands.train import Train
from foretell.errors import ForetellError, InputError

COMMANDS: dict[str, tuple[type[options.Command], str]] = {
    "demo": (Demo, "foretell.cli.demo:demo"),
    "info": (Info, "foretell.cli.info:info"),
    "probe": (Probe, "foretell.cli.probe:probe"),
    "train": (Train, "foretell.cli.train:train"),
    "distill": (Distill, "foretell.cli.distill:distill"),
    "eval": (Evaluate, "foretell.cli.evaluate:evaluate"),
    "generate": (Generate, "foretell.cli.generate:generate"),
    "bench": (Bench, "foretell.cli.bench:bench"),
    "serve": (Serve, "foretell.cli.serve:serve"),
    "report": (Report, "foretell.cli.report:report"),
    "export": (Export, "foretell.cli.export:export"),
    "import": (Import, "foretell.cli.export:import_"),
}
"""What each can be told, and the function that does it: imported once it runs."""

WORK = dict(COMMANDS.values())


def _run(command: options.Command, version: bool) -> None:
    """Do what was parsed. Where the result goes to standard output, people read the other one."""
    from foretell.cli import common

    common.console.stderr = getattr(command, "json", None) == options.STDOUT
    try:
        resolve_name(WORK[type(command)])(command)
    finally:
        common.console.stderr = False


app = typer.Typer(
    name="foretell",
    help="Multi-token prediction for any Hugging Face causal language model.\n\n"
    "MODEL is a Hub id (owner/name), a local Hugging Face or foretell directory, or one of the "
    "bundled models: tiny (next-token training only), tiny-mtp (trained with three heads), "
    "smollm2-mtp (heads for SmolLM2-135M-Instruct, which `make smollm2` brings).\n\n"
    '\b\nExample: foretell generate tiny-mtp --prompt "def main(" --show-drafts',
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    result_callback=_run,
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


# Typer brings its own copy of click or uses the real one, depending on its release.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


class _Command(TyperCommand):
    """Names arguments by their metavar alone, as options are: no braces, no types of Python."""

    def __init__(self, *arguments: Any, **facts: Any) -> None:
        super().__init__(*arguments, **facts)
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                vars(parameter)["display_type_rich"] = lambda ctx: None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [piece.translate({ord("{"): None, ord("}"): None}) for piece in pieces]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            error.ctx = error.ctx or ctx  # the parser leaves out whose help to see
            raise


def _help(command: type[options.Command]) -> str:
    """Its docstring, with lines of examples left as they are, to be copied."""
    return (inspect.getdoc(command) or "").replace("\nExample:", "\n\b\nExample:")


for _name, (_kind, _) in COMMANDS.items():
    app.command(_name, cls=_Command, help=_help(_kind))(_kind)


@cache
def _parser() -> Any:
    """All commands with their options, made once however often `main` is called."""
    return typer.main.get_command(app)


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def run() -> None:
    """The program `foretell`: `main`, without what libraries warn of, which is for developers.

    Tests call `main`, so that a warning fails them. `python -W …` shows them here too.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
    try:
        main()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # to ask again changes nothing about how it ends
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise


def main() -> None:
    """Run the command line; what foretell raises on purpose is one line and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        words = sys.argv[1:] or ["--help"]
        _require_text(words)
        status = _parser()(words, prog_name="foretell", standalone_mode=False)
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


def _require_text(words: list[str]) -> None:
    """Refuse bytes that are no text, which neither tokenizers nor result files take."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{word[:100]!r} is not UTF-8; write it in that, or rename what it names."
            ) from None


def _printable(message: str) -> str:
    """One line, whatever names a file or a checkpoint brought into it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
