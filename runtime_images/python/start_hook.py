"""Runs at the start of every Python of an app's environment, before the app's own code.

With SYSTEM=spaces, gradio starts the reload server of the `spaces` package: it listens on port 7887 of every address,
takes new code from anybody who connects, and clashes between two apps of one machine. Here it waits and does nothing.
Imports are the cost of every start: nothing but what the interpreter has loaded already.
"""

import sys


def _wait(stop_event: object, **_rest: object) -> None:
    stop_event.wait()  # type: ignore[attr-defined]


_module = type(sys)("spaces.reloading")
_module.start_reload_server = _wait  # type: ignore[attr-defined]
_module.reload_server_ports = set()  # type: ignore[attr-defined]
sys.modules["spaces.reloading"] = _module
