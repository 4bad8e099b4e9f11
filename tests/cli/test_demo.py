"""What `make run` does, twice: with an example that needs no packages."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from spaces_platform import presence
from tests.cli.conftest import ROOT, Place


@contextmanager
def demo(place: Place) -> Iterator[list[str]]:
    """The lines up to the app's address, while it serves; then Ctrl-C."""
    argv = [
        sys.executable,
        "-m",
        "spaces_platform",
        "demo",
        str(ROOT / "examples" / "static-site"),
        "--port",
        str(place.port),
    ]
    with subprocess.Popen(
        argv, env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines: list[str] = []
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if line.startswith(("Live:", "Error:", "The platform goes on")):
                    break
            yield lines
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 0, "\n".join(lines)
    assert not presence.is_supervised(place.data)


def test_the_example_is_pushed_once_and_found_again(place: Place) -> None:
    with demo(place) as first:
        assert any(line.startswith("Pushing ") for line in first), first
        url = re.sub(r"^Live: ", "", first[-1])
        assert place.fetch(url)[0] == 200
    with demo(place) as second:
        assert any("is here already" in line for line in second), second
        assert not any(line.startswith(("Pushing", "remote:")) or "Build" in line for line in second), second
        assert place.fetch(url)[0] == 200
