"""How another engine is put in the place of this machine's; it is got and run by `make test-engine`."""

from __future__ import annotations

from pathlib import Path

from tests.engines.programs import CLIENT, PLUGINS, in_place, patched


def test_programs_use_the_libraries_that_they_came_with() -> None:
    line = " ".join(patched(Path("/e/bin/dockerd"), Path("/e/tree")))
    assert "--set-interpreter /e/tree/lib64/ld-linux-x86-64.so.2" in line
    assert line.endswith("--set-rpath /e/tree/usr/lib/x86_64-linux-gnu /e/bin/dockerd")


def test_what_is_put_in_their_place_is_seen_by_the_command_alone() -> None:
    argv = in_place(Path("/e"), ["pytest", "a b"])
    assert argv[:4] == ["unshare", "--mount", "--propagation", "private"]
    assert argv[-5:] == ["/e", f"/{PLUGINS}", f"/{CLIENT}", "pytest", "a b"]
    script = argv[6]
    assert script.count("mount --bind") == 2
    assert script.endswith('exec "$@"')
