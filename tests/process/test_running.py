"""How apps are started, probed and described: environment, files, ports, output."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from spaces_platform.errors import DiskFull, Invalid, Unavailable
from spaces_platform.ports import Resources, RunStatus
from tests.process import apps
from tests.process.harness import SETTINGS, SMALL, Machine, exited, processes_with, ready, status, text, wait_for

TELL_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)), flush=True)"


def test_the_environment_is_the_specs_and_nothing_of_the_platforms(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLATFORM_SECRET", "canary")
    settings = replace(SETTINGS, platform_env={"https_proxy": "http://proxy:3128"})
    orchestrator = place.orchestrator(settings)
    secret = 'it\'s "quoted" $HOME `id` \\ \n second line é'
    spec = place.spec(
        TELL_ENVIRONMENT, env={"SECRET": secret, "GRADIO_SERVER_PORT": "{PORT}", "LD_PRELOAD": "/nothing.so"}
    )
    orchestrator.start(spec)
    seen = exited(orchestrator, spec.id)
    lines = [line.text for line in orchestrator.logs(spec.id) if line.text.startswith("{")]
    env = json.loads(lines[0])
    port = str(seen.endpoint).rpartition(":")[2]
    assert env.pop("SECRET") == secret
    assert env.pop("GRADIO_SERVER_PORT") == env.pop("PORT") == port
    assert env.pop("https_proxy") == "http://proxy:3128"
    assert env.pop("LANG") == "C.UTF-8"
    assert env.pop("PYTHONUNBUFFERED") == "1"
    for name in ("HOME", "TMPDIR", "PATH", "USER", "LOGNAME", "LD_PRELOAD", "SPACES_RUN"):
        assert env.pop(name)
    assert set(env) <= {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "PYTHONPATH"}


def test_the_environment_folder_comes_first_on_the_path(place: Machine) -> None:
    environment = place.root / "environment"
    (environment / "bin").mkdir(parents=True)
    tool = environment / "bin" / "greet"
    tool.write_text("#!/bin/sh\necho from the environment $VIRTUAL_ENV\n")
    tool.chmod(0o755)
    resolve = place.resolve
    place.resolve = lambda ref: replace(resolve(ref), environment_dir=environment)  # type: ignore[method-assign]
    orchestrator = place.orchestrator()
    spec = replace(place.spec(""), argv=("greet",))
    orchestrator.start(spec)
    assert exited(orchestrator, spec.id).exit_code == 0
    assert text(orchestrator, spec.id) == f"from the environment {environment}"


def test_no_secret_is_on_disk_or_in_a_command_line(place: Machine) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server(), env={"SECRET": "canary-5f1e"})
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    for found in (place.root / "run").rglob("*"):
        if found.is_file():
            assert b"canary-5f1e" not in found.read_bytes(), found
    for pid in processes_with(f"{place.root}"):
        assert b"canary-5f1e" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_an_app_writes_in_its_own_folders_and_the_artifact_stays_as_it_was(place: Machine) -> None:
    orchestrator = place.orchestrator()
    source = """
import os, tempfile
for folder in (".", os.environ["HOME"], tempfile.gettempdir(), "/dev/shm"):
    open(folder + "/written", "w").close()
open("app.py", "a").write("# changed")
os.mkdir("made")
print("wrote all", os.path.exists("data/file.txt"), os.path.islink("data/link"), flush=True)
"""
    spec = place.spec(source)
    app = place.root / "apps" / spec.artifact_ref
    (app / "data").mkdir()
    (app / "data" / "file.txt").write_text("x")
    (app / "data" / "link").symlink_to("file.txt")
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in app.rglob("*"))
    orchestrator.start(spec)
    assert exited(orchestrator, spec.id).exit_code == 0, text(orchestrator, spec.id)
    assert text(orchestrator, spec.id) == "wrote all True True"
    assert sorted((str(p), p.lstat().st_mtime_ns) for p in app.rglob("*")) == before
    assert (app / "app.py").read_text() == source


def test_a_large_app_is_shown_read_only_instead_of_copied(place: Machine) -> None:
    orchestrator = place.orchestrator(replace(SETTINGS, copy_limit=1 << 20))
    if not orchestrator.isolation().safe_for_strangers:
        pytest.skip("needs bubblewrap")
    spec = place.spec(apps.server("import os; print(os.access('.', os.W_OK), os.path.getsize('big'), flush=True)"))
    (place.root / "apps" / spec.artifact_ref / "big").write_bytes(bytes(2 << 20))
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    assert f"False {2 << 20}" in text(orchestrator, spec.id)
    assert not list((place.root / "run" / "deployments" / str(spec.id) / "work").iterdir())


def test_a_slow_start_and_errors_first_end_in_ready(place: Machine) -> None:
    orchestrator = place.orchestrator()
    slow = place.spec(apps.server("import time; time.sleep(0.7)"))
    sick = place.spec(apps.server(code="500 if App.count < 3 else 200"))
    for spec in (slow, sick):
        orchestrator.start(spec)
    seen = wait_for("the first error is told", lambda: (s := status(orchestrator, sick.id)) and "500" in s.probe and s)
    assert seen.status is RunStatus.STARTING
    for spec in (slow, sick):
        ready(orchestrator, spec.id)


@pytest.mark.parametrize(("host", "v6", "shown"), [("127.0.0.1", False, "127.0.0.1"), ("0.0.0.0", False, "0.0.0.0")])
def test_what_a_ready_app_listens_on_is_told(place: Machine, host: str, v6: bool, shown: str) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server(host=host, v6=v6))
    orchestrator.start(spec)
    seen = ready(orchestrator, spec.id)
    port = str(seen.endpoint).rpartition(":")[2]
    assert seen.listening == (f"{shown}:{port}",)


def test_a_bind_to_ipv6_only_is_told(place: Machine) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server(host="::1", v6=True))
    orchestrator.start(spec)
    seen = wait_for("it is told", lambda: (s := status(orchestrator, spec.id)) and bool(s.listening) and s)
    assert seen.listening == (f"[::1]:{str(seen.endpoint).rpartition(':')[2]}",)


def test_a_stranger_on_the_port_is_not_the_app(place: Machine) -> None:
    orchestrator = place.orchestrator(replace(SETTINGS, port_first=23990, port_last=23999))
    spec = place.spec(apps.HANG)
    orchestrator.start(spec)
    port = int(str(orchestrator.observe()[spec.id].endpoint).rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)) as stranger:

        def answer() -> None:
            while True:
                try:
                    connection, _ = stranger.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        told = "not this app's"
        seen = wait_for("it is told", lambda: (s := status(orchestrator, spec.id)) and told in s.probe and s)
        assert seen.status is RunStatus.STARTING
        stranger.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_ports_run_out_with_a_clear_error_and_come_back(place: Machine) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    orchestrator = place.orchestrator(replace(SETTINGS, port_first=free, port_last=free))
    first, second = place.spec(apps.HANG), place.spec(apps.HANG)
    orchestrator.start(first)
    with pytest.raises(Unavailable, match="no free port"):
        orchestrator.start(second)
    orchestrator.stop(first.id, grace=0)
    wait_for("the first is gone", lambda: first.id not in orchestrator.observe())
    orchestrator.start(second)
    assert orchestrator.observe()[second.id].endpoint == f"127.0.0.1:{free}"


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ("",)},
        {"argv": ("python", "a\0b")},
        {"env": {"A-B": "x"}},
        {"env": {"A": "x\0y"}},
        {"base_path": "x"},
        {"base_path": "/a b"},
        {"base_path": "/\r\nX: y"},
    ],
)
def test_specs_that_can_never_start(place: Machine, change: dict[str, object]) -> None:
    orchestrator = place.orchestrator()
    spec = replace(place.spec(""), **change)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        orchestrator.start(spec)
    assert not orchestrator.observe()
    assert not list((place.root / "run" / "deployments").iterdir())


def test_a_full_disk_is_named(place: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server())

    def full(self: object, facts: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("spaces_platform.adapters.process.record.Record.create", full)
        with pytest.raises(DiskFull):
            orchestrator.start(spec)
    orchestrator.start(spec)
    ready(orchestrator, spec.id)


def test_output_is_capped_and_marked(place: Machine) -> None:
    orchestrator = place.orchestrator()
    source = "import os\nfor n in range(40000): os.write(1, b'line %06d ' % n + b'x' * 40 + b'\\n')"
    spec = place.spec(source, resources=replace(SMALL, log_bytes=64 << 10))
    orchestrator.start(spec)
    exited(orchestrator, spec.id, 20)
    kept = sum(p.stat().st_size for p in (place.root / "run" / "deployments" / str(spec.id) / "log").iterdir())
    assert kept <= 64 << 10
    lines = orchestrator.logs(spec.id)
    assert "dropped" in lines[0].text
    assert [line.n for line in lines] == list(range(lines[0].n, lines[0].n + len(lines)))


def test_a_flood_costs_neither_disk_nor_processor_time(place: Machine) -> None:
    orchestrator = place.orchestrator(replace(SETTINGS, log_rate=256 << 10))
    spec = place.spec(
        apps.server(
            "import threading\ndef flood():\n  while True: os.write(1, (b'x' * 99 + b'\\n') * 655)\n"
            "threading.Thread(target=flood, daemon=True).start()"
        )
    )
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    pid = json.loads((place.root / "run" / "deployments" / str(spec.id) / "shim.json").read_text())["pid"]
    before, began = _cpu(pid), time.monotonic()
    wait_for("the flood is marked", lambda: "output too fast" in text(orchestrator, spec.id), 60)
    wait_for("some seconds of flood", lambda: time.monotonic() - began > 2.0)
    assert (_cpu(pid) - before) / (time.monotonic() - began) < 0.25
    kept = sum(p.stat().st_size for p in (place.root / "run" / "deployments" / str(spec.id) / "log").iterdir())
    assert kept <= SMALL.log_bytes
    assert orchestrator.observe()[spec.id].status is RunStatus.READY


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ready_is_told_within_moments_of_the_first_answer(place: Machine) -> None:
    orchestrator = place.orchestrator()
    best = 9.0
    for _ in range(3):
        spec = place.spec(apps.server("import time; print('%.6f' % time.monotonic(), flush=True)"))
        orchestrator.start(spec)
        ready(orchestrator, spec.id)
        told = next(at for at, number in place.changes if number == spec.id)
        best = min(best, told - float(text(orchestrator, spec.id).splitlines()[0]))
    assert best < 0.5, f"{best * 1000:.0f} ms after the app began to listen"


def test_observing_a_thousand_deployments_is_quick(place: Machine) -> None:
    folder = place.root / "run" / "deployments"
    for number in range(10_000, 11_000):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "deployment.json").write_text('{"port": 20000, "started_at": 1.5, "space_id": 1}')
        (folder / str(number) / "exit.json").write_text('{"code": 1, "out_of_memory": false}')
    began = time.monotonic()
    orchestrator = place.orchestrator()
    assert time.monotonic() - began < 15
    began = time.thread_time()
    assert len(orchestrator.observe()) == 1000
    assert time.thread_time() - began < 0.05


def test_limits_have_room_for_an_ordinary_app(place: Machine) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server(), resources=Resources())
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
