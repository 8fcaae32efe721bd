"""The command line: one small file a verb; whatever is heavy is imported inside the verb that needs it."""

import os
import sys

import typer

from vitalk.errors import UserError

from . import adapt, bench, compress, evaluate, export, mels, reproduce, see, serve, speak, systems, train, voices

app = typer.Typer(
    name="vitalk",
    help="Vision transformers that see, speech models that talk, small enough for the machine you have.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (see, speak, serve, voices, compress, export, train, adapt, mels, reproduce):
    app.command(context_settings=getattr(verb, "CONTEXT", None))(getattr(verb, verb.__name__.rsplit(".", 1)[-1]))
app.add_typer(systems.app, name="systems")
app.add_typer(bench.app, name="bench")
app.add_typer(evaluate.app, name="eval")


def main() -> None:
    """Run the command line; bad input ends with one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"vitalk: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"vitalk: {error.strerror or error}{where}. Free space or choose another path.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("vitalk: interrupted", file=sys.stderr)
        sys.exit(130)
