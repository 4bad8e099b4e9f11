"""`python -m spaces_platform`: the command line, and the control plane's process (`control --data DIR`)."""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:2] == ["control"]:
        import gc

        # Importing makes many objects and no garbage: not looking for any starts the process a tenth sooner.
        gc.disable()
        from spaces_platform.control import main as control

        gc.freeze()
        gc.enable()
        sys.exit(control(sys.argv[2:]))
    from spaces_platform.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
