"""Apps under gVisor: the orchestrator's contract holds there too, and what is different is as docs/containers.md says.

The engine is one of our own whose default runtime is gVisor, so that tests of other modules run there as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from spaces_platform.adapters.docker import cgroups
from spaces_platform.adapters.docker.spec import cgroup_parent
from spaces_platform.cli.doctor import engine as doctor
from spaces_platform.errors import PlatformError
from spaces_platform.ports import RunStatus
from tests.containers.harness import SMALL, Place, alive, exited, gone, ran, ready, text
from tests.containers.neighbourhood import HOST, LAN, METADATA, PORTS, PUBLIC, Neighbourhood, neighbourhood, settled
from tests.containers.test_run_fence import (  # noqa: F401  as they are, on this engine
    gateway_of,
    on_tcp,
    probe,
    test_names_are_resolved_through_the_engine,
)
from tests.containers.test_run_freezing import (  # noqa: F401
    SAYS_GOODBYE,
    engine,
    frozen,
    running,
    test_a_frozen_app_is_told_to_end_and_ends,
)
from tests.containers.test_run_limits import (  # noqa: F401
    BOMB,
    hogged,
    neighbour,
    test_a_full_disk_is_the_apps_own,
)
from tests.containers.test_run_restarts import get
from tests.containers.test_run_sandbox import (  # noqa: F401
    MAY,
    TRY_EVERYTHING,
    test_an_app_finds_no_secret_of_another,
)
from tests.process import apps
from tests.process.harness import wait_for
from tests.services.engine import IMAGE, copy_image, own_engine
from tests.services.gvisor import runsc

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dockerd") is None, reason="an engine of our own needs root and docker.io"
)
SECONDS = 60.0
BROKEN = "runsc-broken"
STARTS_NOTHING = '#!/bin/sh\ncase "$*" in *" start "*) echo no >&2; exit 1;; esac\nexec {program} "$@"\n'


@pytest.fixture(scope="module")
def engine_url(engine_url: str) -> Iterator[str]:
    """An engine that has gVisor, one that makes containers and starts none, and the test image."""
    with tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        program, broken = runsc(folder), folder / "broken"
        broken.write_text(STARTS_NOTHING.format(program=program))
        broken.chmod(0o755)
        flags = ("--live-restore", "--default-address-pool=base=10.211.0.0/16,size=26", "--default-runtime=runsc")
        runtimes = (f"--add-runtime=runsc={program}", f"--add-runtime={BROKEN}={broken}")
        with own_engine(folder, *flags, *runtimes) as made:
            copy_image(engine_url, made.url)
            yield made.url


@pytest.fixture
def around() -> Iterator[Neighbourhood]:
    with neighbourhood() as made:
        yield made


# --- what an app is -------------------------------------------------------------------------------------------------
HARMLESS = {"unshare user", "unshare mount", "keyctl", "raw", "packet"}
"""What an app may do in a kernel of its own: with users of its own it has rights, over nothing but itself."""


def test_an_app_has_a_kernel_of_its_own_and_every_way_out_is_shut(place: Place) -> None:
    orchestrator = place.orchestrator(runtime="runsc")
    report = json.loads(ran(place, orchestrator, TRY_EVERYTHING))
    status = report["status"]
    assert (status["Uid"].split(), status["Gid"].split()) == (["1000"] * 4, ["1000"] * 4)
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert {path for path, said in report["written"].items() if said == "done"} == MAY
    assert {name for name, said in report["tries"].items() if said == "done"} <= HARMLESS
    assert (report["sockets"], report["tokens"], report["init"]) == ([], [], "docker-init")
    found = orchestrator.isolation()
    assert found.words.startswith("runsc, fenced network")
    assert "a kernel of its own for each app (gVisor)" in found.holds
    assert not any("names" in words for words in found.lacks)


# --- what it can use up ---------------------------------------------------------------------------------------------
def test_a_fork_bomb_is_refused_more_inside_and_ends_when_told(place: Place) -> None:
    orchestrator = place.orchestrator()
    with neighbour(place, orchestrator):
        forks = BOMB.replace("        pass", "        print('refused', flush=True)\n        raise SystemExit")
        assert ran(place, orchestrator, forks, resources=replace(SMALL, processes=48)).count("refused") > 1
        spec = place.spec(BOMB, resources=replace(SMALL, processes=16, cpus=0.5))
        orchestrator.start(spec)
        wait_for("the bomb has gone off", lambda: "lit" in text(orchestrator, spec.id), SECONDS)
        processes = place.members(spec.id)
    orchestrator.stop(spec.id, grace=0.5)
    gone(orchestrator, spec.id)
    wait_for("all its processes have ended", lambda: not alive(processes), SECONDS)


def test_a_memory_hog_is_ended_alone_and_that_is_named(place: Place) -> None:
    seen = hogged(place)
    assert seen.out_of_memory
    assert seen.exit_code != 0


@pytest.mark.parametrize(("source", "code"), [("raise SystemExit(42)", 42), ("import os; os.abort()", -6)])
def test_how_it_ended_is_known(place: Place, source: str, code: int) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(f"print('line', flush=True)\n{source}")
    orchestrator.start(spec)
    seen = exited(orchestrator, spec.id)
    assert (seen.exit_code, seen.out_of_memory, text(orchestrator, spec.id)) == (code, False, "line")


# --- what it reaches ------------------------------------------------------------------------------------------------
def test_apps_reach_a_few_ports_of_public_addresses_and_nothing_near(place: Place, around: Neighbourhood) -> None:
    orchestrator = place.orchestrator()
    outside = [(host, port) for host in (PUBLIC, LAN, METADATA) for port in PORTS]
    mine = [(address, around.host_port) for address in (gateway_of(place, orchestrator), HOST)]
    mapped = [(f"::ffff:{address}", port) for address, port in (*mine, (LAN, 80), (METADATA, 80))]
    udp = [(host, port) for host in (LAN, PUBLIC, METADATA) for port in (53, 80)]
    allowed = [(PUBLIC, port) for port in (80, 443, 8080)]
    assert probe(place, orchestrator, [*outside, *mine, *mapped], udp)["reached"] == sorted(allowed)
    assert settled(around, on_tcp(*allowed)) == on_tcp(*allowed)


def test_what_the_host_asks_for_names_apps_are_told_anew(place: Place, tmp_path: Path) -> None:
    """The file is mounted: it is written in place, and an app that runs sees the change."""
    orchestrator = place.orchestrator()
    shows = apps.server().replace('b"ok"', 'open("/etc/resolv.conf", "rb").read()')
    spec = place.spec(shows)
    orchestrator.start(spec)
    endpoint = ready(orchestrator, spec.id).endpoint
    assert "127.0.0.11" not in get(endpoint)
    names = orchestrator._names
    names._source = tmp_path / "resolv.conf"
    names._source.write_text("nameserver 192.0.2.53\n")
    assert names.refresh() == ""
    wait_for("the app sees it", lambda: get(endpoint) == "nameserver 192.0.2.53\n", SECONDS)


# --- sleep ----------------------------------------------------------------------------------------------------------
def test_a_frozen_app_is_paused_by_gvisor_and_found_so_by_the_next_platform(place: Place) -> None:
    first = place.orchestrator()
    spec, container = frozen(place, first)
    found = place.containers()[spec.id]["State"]
    assert found["Paused"] is True
    assert cgroups.is_frozen(found["Pid"], container) is False, "held from outside, gVisor would answer nobody"
    first.close()
    second = place.orchestrator()
    assert second.observe()[spec.id].status is RunStatus.FROZEN
    second.thaw(spec.id)
    assert get(second.observe()[spec.id].endpoint) == "ok"


# --- what does not work ---------------------------------------------------------------------------------------------
def test_a_start_that_fails_leaves_no_process_and_doctor_says_it(place: Place) -> None:
    assert doctor.check_runtime(place.url, "runsc", IMAGE).level == "ok"
    assert doctor.check_runtime(place.url, "runsc", "spaces/none:1").found.startswith("runsc, not tried")
    told = doctor.check_runtime(place.url, BROKEN, IMAGE)
    assert (told.level, told.found) == ("fail", f"{BROKEN} starts no container")
    assert not list(cgroups.ROOT.glob("*/spaces-doctor")), "an empty group is something that outlives a check"
    orchestrator = place.orchestrator(runtime=BROKEN)
    with pytest.raises(PlatformError):
        orchestrator.start(place.spec(apps.server()))
    assert cgroups.running_below(cgroup_parent(place.instance, place.facts())) == {}
    with docker.APIClient(base_url=place.url, version="auto") as client:
        assert client.containers(all=True) == []
