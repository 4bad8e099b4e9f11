"""Apps go on while what runs them is restarted: the control plane, and the engine itself. T38 for containers."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from spaces_platform.adapters.docker import orchestrator as module
from spaces_platform.errors import Unavailable
from spaces_platform.ports import Observation, RunStatus
from tests.containers.harness import Place, exited, gone, place_on, ready, text
from tests.containers.neighbourhood import call
from tests.process import apps
from tests.process.harness import wait_for
from tests.services.engine import Engine, copy_image, own_engine

SECONDS = 60.0
CLONE_NEWNET = 0x40000000
COUNTS = apps.server("""
import threading, time
def count():
    for n in range(100000):
        os.write(1, b"\\nline %d\\n" % n)
        time.sleep(0.02)
threading.Thread(target=count, daemon=True).start()
""")
"""Counts from 0 on; what others print cannot come into the middle of a line."""


def known(seen: Observation) -> Observation:
    """An observation without what is found out by probing alone."""
    return replace(seen, probe="", listening=())


def get(endpoint: str | None) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{endpoint}/", timeout=20) as answer:
        return str(answer.read().decode())


@contextmanager
def visited(endpoint: str | None) -> Iterator[None]:
    """Somebody visits an app all the while; one failure is too many."""
    over, answers, failed = threading.Event(), [], list[BaseException]()

    def visit() -> None:
        while not over.wait(0.01):
            try:
                answers.append(get(endpoint))
            except OSError as error:
                failed.append(error)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        yield
        before = len(answers)
        wait_for("it is visited", lambda: len(answers) > before + 5 or failed, SECONDS)
    finally:
        over.set()
        visitor.join()
    assert failed == []
    assert set(answers) == {"ok"}


# --- the control plane -----------------------------------------------------------------------------------------------
def test_a_new_control_plane_finds_everything_as_it_is(place: Place) -> None:
    first = place.orchestrator()
    serving, frozen, ended, hanging, leaving = (
        place.spec(COUNTS, space_id=1), place.spec(apps.server(), space_id=2), place.spec(apps.exits(7, "bye")),
        place.spec(apps.HANG, space_id=3), place.spec(apps.IGNORES_TERM, space_id=4),
    )  # fmt: skip
    for spec in (serving, frozen, ended, hanging, leaving):
        first.start(spec)
    for spec in (serving, frozen, leaving):
        ready(first, spec.id)
    exited(first, ended.id)
    first.freeze(frozen.id)
    wait_for("there is output", lambda: len(first.logs(serving.id)) > 3, SECONDS)
    first.stop(leaving.id, grace=0.5)
    before = first.observe()
    with visited(before[serving.id].endpoint):
        first.close()
        second = place.orchestrator()
    after = second.observe()
    for spec in (serving, frozen, hanging):
        assert known(after[spec.id]) == known(before[spec.id])
    assert (after[ended.id].status, after[ended.id].exit_code) == (RunStatus.EXITED, 7)
    assert text(second, ended.id) == "bye"
    second.thaw(frozen.id)
    assert get(after[frozen.id].endpoint) == "ok"
    # Who was told to end is ended, though whoever told it is gone.
    gone(second, leaving.id)
    # Lines have the numbers that they had, and none is missing or doubled.
    lines = wait_for("more output", lambda: len(found := second.logs(serving.id)) > 30 and found, SECONDS)
    counted = [line for line in lines if line.text.startswith("line")]
    assert [line.text for line in counted] == [f"line {n}" for n in range(len(counted))]
    assert [line.n for line in lines] == list(range(1, len(lines) + 1))


def test_what_ended_while_nobody_looked_is_told_with_its_code(place: Place) -> None:
    first = place.orchestrator()
    spec = place.spec(apps.server())
    first.start(spec)
    ready(first, spec.id)
    first.close()
    pid = place.containers()[spec.id]["State"]["Pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for("it has ended", lambda: not place.containers()[spec.id]["State"]["Running"], SECONDS)
    seen = place.orchestrator().observe()[spec.id]
    assert (seen.status, seen.exit_code) == (RunStatus.EXITED, -9)


def test_a_start_that_was_cut_short_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between making a container and starting it."""
    first = place.orchestrator()
    spec = place.spec(apps.server())
    monkeypatch.setattr(module.Engine, "start", lambda *_: os._exit(0))
    child = os.fork()
    if child == 0:
        first.start(spec)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    monkeypatch.undo()
    first.close()
    assert place.containers()[spec.id]["State"]["Status"] == "created"
    second = place.orchestrator()
    assert second.observe() == {}
    assert place.containers() == {}
    second.start(spec)
    ready(second, spec.id)


# --- the engine ------------------------------------------------------------------------------------------------------
def in_own_network(run: Callable[[], None]) -> None:
    """Run it, with all threads and programs that it starts, where there are no rules and networks but its own."""
    raised: list[BaseException] = []

    def inside() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            call("ip", "link", "set", "lo", "up")
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="needs root and docker.io")
def test_apps_go_on_while_the_engine_is_away(engine_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped as an upgrade does, and killed as a crash does."""
    monkeypatch.setattr(module, "PERIOD", 3600.0)

    def run() -> None:
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True)
            engine = stack.enter_context(own_engine(Path(stack.enter_context(folder)), "--live-restore"))
            copy_image(engine_url, engine.url)
            for end in (engine.stop, engine.kill):
                with place_on(engine.url) as place:
                    engine_restarts(place, engine, end)

    in_own_network(run)


def engine_restarts(place: Place, engine: Engine, end: Callable[[], None]) -> None:
    running = place.orchestrator()
    assert any("engine restarts" in words for words in running.isolation().holds)
    serving, frozen, dying, leaving = (
        place.spec(COUNTS, space_id=1), place.spec(apps.server(), space_id=2), place.spec(apps.server(), space_id=3),
        place.spec(apps.server(), space_id=4),
    )  # fmt: skip
    for spec in (serving, frozen, dying, leaving):
        running.start(spec)
    for spec in (serving, frozen, dying, leaving):
        ready(running, spec.id)
    running.freeze(frozen.id)
    wait_for("there is output", lambda: running.logs(serving.id), SECONDS)
    before, pid = running.observe(), place.containers()[dying.id]["State"]["Pid"]
    rules = call("iptables", "-S", f"SPACES-{place.instance}-OUT")
    with visited(before[serving.id].endpoint):
        end()
        # What was known last is told; what needs the engine says that it is away.
        assert running.observe() == before
        assert running.logs(serving.id)
        fresh = place.spec(apps.server(), space_id=5)
        with pytest.raises(Unavailable, match="start it"):
            running.start(fresh)
        with pytest.raises(Unavailable):
            running.stop(leaving.id, grace=0.1)
        # Who sleeps is woken all the same.
        running.thaw(frozen.id)
        assert get(before[frozen.id].endpoint) == "ok"
        running.freeze(frozen.id)
        os.kill(pid, signal.SIGKILL)
        subprocess.run(["iptables", "-F", "DOCKER-USER"], check=True)
        subprocess.run(["iptables", "-F", f"SPACES-{place.instance}-OUT"], check=True)
        assert running.observe() == before
        engine.start()
        # What happened meanwhile is seen, and what was asked is done.
        # Docker 28 does not know how it ended while nobody looked.
        newer = int(place.facts().version.partition(".")[0]) >= 28
        assert exited(running, dying.id, SECONDS).exit_code in ((-9, 255) if newer else (-9,))
        gone(running, leaving.id, SECONDS)
        hook = f"-A DOCKER-USER -i sp{place.instance[:4]}-+ -j SPACES-{place.instance}-OUT"
        wait_for("the fence is up again", lambda: hook in call("iptables", "-S", "DOCKER-USER"), SECONDS)
        assert call("iptables", "-S", f"SPACES-{place.instance}-OUT") == rules
    assert running.observe()[serving.id] == before[serving.id]
    running.thaw(frozen.id)
    assert get(before[frozen.id].endpoint) == "ok"
    running.start(fresh)
    ready(running, fresh.id)
    lines = wait_for("more output", lambda: len(found := running.logs(serving.id)) > 30 and found, SECONDS)
    counted = [line.text for line in lines if line.text.startswith("line")]
    assert counted == [f"line {n}" for n in range(len(counted))]
