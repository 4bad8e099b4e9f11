"""The `spaces` command: every verb, its options and its help; the work is done elsewhere.

Owns: the command tree and turning errors into exit codes. Does not own: what a command does. Invariant: importing this
module imports neither the platform nor an HTTP client, so that help and completion answer at once.
"""

from __future__ import annotations

import os
import sys

import typer

from spaces_platform.cli import domain_commands, hardware_commands, platform_commands, space_commands, volume_commands
from spaces_platform.cli.console import INTERRUPTED, USAGE, Failure, report

app = typer.Typer(
    name="spaces",
    help="Push a Gradio, Streamlit, Dash or static app with git, get a URL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
platform_commands.add_to(app)
space_commands.add_to(app)
domain_commands.add_to(app)
hardware_commands.add_to(app)
volume_commands.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage, 3 not signed in, 4 not found, 130 interrupted."""
    from spaces_platform.errors import Invalid, PlatformError

    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        app(args=arguments, prog_name="spaces", standalone_mode=True)
    except Failure as exc:
        report(exc, as_json)
        sys.exit(exc.code)
    except PlatformError as exc:
        failure = Failure(exc.message, code=USAGE if isinstance(exc, Invalid) else 1, error_code=exc.code)
        report(failure, as_json)
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (`spaces logs | head`): nothing is wrong, and nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
