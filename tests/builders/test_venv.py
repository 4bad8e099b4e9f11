"""The venv builder with the real uv: layers, sharing, atomicity, limits and confinement."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from builders.confined import Sandbox
from builders.layout import Ref, owner_key
from builders.types import BuildCancelled, BuildError, Phase
from builders.uv import Progress, index_settings
from builders.venv import ArtifactMissing, VenvBuilder

from .conftest import App, Log, marked_processes, package

Make = Callable[..., VenvBuilder]
MIB = 1 << 20


def app_with(tmp_path: Path, body: str = "return ''", name: str = "thing", **files: str) -> App:
    return App(tmp_path / "app", {**package(name, body), "requirements.txt": f"./{name}\n", **files})


def run_python(builder: VenvBuilder, ref: str, code: str) -> str:
    local = builder.resolve(ref)
    done = subprocess.run(
        [str(local.python), "-c", code], cwd=local.app_dir, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# --- layers --------------------------------------------------------------------------------------------------------
def test_builds_environment_and_app(tmp_path: Path, make_builder: Make) -> None:
    builder, log = make_builder(), Log()
    app = app_with(tmp_path, "return 'hello'", helper_py="")
    artifact = app.build(builder, log)
    assert builder.exists(artifact.ref)
    assert artifact.ref == builder.ref(app.plan(builder), "ada")
    assert not artifact.reused_environment
    assert artifact.lock.startswith("thing @ ")
    assert artifact.size > 0
    assert run_python(builder, artifact.ref, "import thing; print(thing.OUT)") == "hello"
    assert log.phases[0][0] == Phase.CLONING
    assert {Phase.RESOLVING, Phase.INSTALLING, Phase.SEALING} <= {phase for phase, _ in log.phases}
    assert log.said("1/1")
    site = next((builder.resolve(artifact.ref).environment_dir or tmp_path).glob("lib/*/site-packages"))
    assert list((site / "__pycache__").glob("thing.*.pyc"))
    assert list((tmp_path / "builds" / "temp").iterdir()) == []


def test_code_only_change_reuses_the_environment(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    files = {f"mod{n}.py": f"x = {n}\n" for n in range(20)}
    first = App(tmp_path / "one", files).build(builder)
    second_app = App(tmp_path / "two", {**files, "app.py": "print('new')\n"})
    plan = second_app.plan(builder)
    log = Log()
    second = builder.build(plan, second_app.tree, owner="ada", log=log, cancelled=lambda: False)
    assert (first.reused_environment, second.reused_environment) == (False, True)
    assert builder.resolve(first.ref).environment_dir == builder.resolve(second.ref).environment_dir
    assert log.said("nothing to install")
    assert list(builder.resolve(second.ref).app_dir.glob("__pycache__/mod3.*.pyc"))


def test_same_plan_again_does_nothing(tmp_path: Path, make_builder: Make) -> None:
    builder, app = make_builder(), App(tmp_path / "app", {})
    first = app.build(builder)
    marker = builder.resolve(first.ref).app_dir.stat().st_ino
    log = Log()
    assert app.build(builder, log).ref == first.ref
    assert builder.resolve(first.ref).app_dir.stat().st_ino == marker
    assert log.phases == [(Phase.SEALING, "already built")]


def test_salt_makes_everything_anew(tmp_path: Path, make_builder: Make) -> None:
    builder, app = make_builder(), App(tmp_path / "app", {})
    first, second = app.build(builder), app.build(builder, salt="again")
    assert first.ref != second.ref
    assert not second.reused_environment


def test_owners_share_nothing(tmp_path: Path, make_builder: Make) -> None:
    builder, app = make_builder(), App(tmp_path / "app", {})
    ada, bob = app.build(builder, owner="ada"), app.build(builder, owner="bob")
    assert ada.ref != bob.ref
    assert not bob.reused_environment
    one, two = builder.resolve(ada.ref).environment_dir, builder.resolve(bob.ref).environment_dir
    assert one != two


def test_remove_keeps_what_others_use(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    one = App(tmp_path / "one", {}).build(builder)
    two = App(tmp_path / "two", {"app.py": "2"}).build(builder)
    environment = builder.resolve(one.ref).environment_dir
    assert environment
    builder.remove(one.ref)
    assert not builder.exists(one.ref)
    assert builder.exists(two.ref)
    builder.remove(two.ref)
    assert not environment.exists()
    builder.remove(two.ref)
    with pytest.raises(ArtifactMissing):
        builder.resolve(two.ref)


def test_static_site_needs_no_environment(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    app = App(tmp_path / "app", {"README.md": "---\nsdk: static\n---\n", "index.html": "hi"})
    local = builder.resolve(app.build(builder).ref)
    assert local.environment_dir is None
    assert (local.app_dir / "index.html").read_text() == "hi"
    assert local.python_path is not None
    assert (local.python_path / "runtime_images" / "static" / "server.py").is_file()


def test_site_is_built_and_only_its_output_kept(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    front = (
        "---\nsdk: static\napp_build_command: mkdir -p dist && date > dist/index.html\napp_file: dist/index.html\n---\n"
    )
    local = builder.resolve(App(tmp_path / "app", {"README.md": front}).build(builder).ref)
    assert [path.name for path in local.app_dir.iterdir()] == ["index.html"]
    with pytest.raises(BuildError) as caught:
        App(tmp_path / "bad", {"README.md": front.replace("mkdir -p dist && date >", "echo")}).build(builder)
    assert caught.value.reason == "no_build_output"


def test_output_that_is_a_link_outside_is_refused(tmp_path: Path, make_builder: Make) -> None:
    front = "---\nsdk: static\napp_build_command: ln -s /etc dist\napp_file: dist/index.html\n---\n"
    with pytest.raises(BuildError) as caught:
        App(tmp_path / "app", {"README.md": front}).build(make_builder())
    assert caught.value.reason == "no_build_output"


def test_packages_txt_needs_a_container(tmp_path: Path, make_builder: Make) -> None:
    with pytest.raises(BuildError) as caught:
        App(tmp_path / "app", {"packages.txt": "ffmpeg\n"}).build(make_builder())
    assert caught.value.reason == "needs_container"
    assert "ffmpeg" in caught.value.cause


@pytest.mark.installs
def test_from_the_index_twice_compiles_once(tmp_path: Path, make_builder: Make) -> None:
    builder, log, again = make_builder(), Log(), Log()
    app = App(tmp_path / "app", {"requirements.txt": "itsdangerous==2.2.0\n"})
    artifact = app.build(builder, log)
    assert artifact.lock == "itsdangerous==2.2.0\n"
    app.build(builder, again, salt="2")
    assert any("Compiled" in line for line in log.lines)
    # All that is installed comes compiled from the owner's cache; the start hook is not worth a line.
    assert not any("Compiled" in line for line in again.lines)
    for environment in builder.layout.root.glob("owners/*/python/environments/*/lib/python3.*/site-packages"):
        assert list((environment / "__pycache__").glob("_spaces_start.*.pyc"))


@pytest.mark.installs
def test_uv_lock_is_followed(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    project = '[project]\nname = "a"\nversion = "1"\nrequires-python = ">=3.10"\ndependencies = ["six<1.17"]\n'
    root = tmp_path / "app"
    App(root, {"pyproject.toml": project})
    subprocess.run([builder.uv, "lock", "-q"], cwd=root, check=True)
    assert App(root, {}).build(builder).lock == "six==1.16.0\n"


@pytest.mark.installs
def test_conflict_is_explained(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    with pytest.raises(BuildError) as caught:
        App(tmp_path / "app", {"requirements.txt": "flask==2.0.0\nclick==7.0\n"}).build(builder)
    assert caught.value.reason == "resolver_conflict", caught.value.evidence
    assert "click==7.0" in caught.value.cause
    assert "flask==2.0.0" in caught.value.cause
    assert list(tmp_path.glob("builds/owners/*/python/environments/*")) == []


# --- several at once, killed ones ----------------------------------------------------------------------------------
def test_two_builds_of_one_environment_install_once(tmp_path: Path, make_builder: Make) -> None:
    root = tmp_path / "builds"
    body = "import time; time.sleep(1); return str(time.time())"
    apps = [app_with(tmp_path / "one", body), app_with(tmp_path / "two", body)]
    builders, logs, artifacts = [make_builder(root), make_builder(root)], [Log(), Log()], {}

    def build(n: int) -> None:
        artifacts[n] = apps[n].build(builders[n], logs[n])

    threads = [threading.Thread(target=build, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert artifacts[0].ref == artifacts[1].ref
    assert sum(log.said("1/1") for log in logs) == 1
    assert sum(log.said("waiting for the same environment") for log in logs) == 1


def test_waiting_can_be_cancelled(tmp_path: Path, make_builder: Make) -> None:
    root = tmp_path / "builds"
    app = app_with(tmp_path, "import time; time.sleep(60)")
    stop, log = threading.Event(), Log()

    def build() -> None:
        with pytest.raises(BuildCancelled):
            app.build(make_builder(root), cancelled=stop.is_set)

    first = threading.Thread(target=build)
    first.start()
    _until(lambda: any(root.glob("owners/*/python/environments/*/bin/python")))
    with pytest.raises(BuildCancelled):
        app.build(make_builder(root), log, cancelled=lambda: log.said("waiting for the same environment"))
    stop.set()
    first.join(10)
    assert not first.is_alive()


@pytest.mark.parametrize("sandboxed", [True, False])
def test_cancel_ends_everything_within_a_second(sandboxed: bool, tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    if not sandboxed:
        builder.sandbox = Sandbox(setpriv=builder.sandbox.setpriv)
    elif not builder.sandbox.bwrap:
        pytest.skip("bubblewrap does not work here")
    # A daemon, in a session of its own, whose parent ends. It says itself that it is there: no other knows when.
    body = (
        "import time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        open(os.environ['TMPDIR'] + '/started', 'w').close()\n        time.sleep(300)\n"
        "    os._exit(0)\n"
        "time.sleep(300)"
    )
    app = app_with(tmp_path, body)
    seen: list[float] = []

    def cancelled() -> bool:
        if not seen and list(tmp_path.glob("builds/temp/*/scratch/tmp/started")):
            assert len(marked_processes(builder)) >= 3
            seen.append(time.monotonic())
        return bool(seen)

    with pytest.raises(BuildCancelled):
        app.build(builder, cancelled=cancelled)
    assert time.monotonic() - seen[0] < 10
    assert marked_processes(builder) == []
    assert list(tmp_path.glob("builds/temp/*")) == []
    assert list(tmp_path.glob("builds/owners/*/python/environments/*")) == []


def test_killed_builder_leaves_nothing_that_exists(tmp_path: Path, make_builder: Make) -> None:
    root = tmp_path / "builds"
    app = app_with(tmp_path, "import time; open(os.environ['TMPDIR'] + '/started', 'w').close(); time.sleep(300)")
    code = (
        "import sys; from pathlib import Path; from tests.builders.conftest import *\n"
        "builder = VenvBuilder(Path(sys.argv[2])); App(Path(sys.argv[1]), {}).build(builder)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "app"), str(root)], cwd=Path.cwd())
    try:
        _until(lambda: any(root.glob("temp/*/scratch/tmp/started")))
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert list(root.glob("temp/*"))
    builder = make_builder(root)
    assert marked_processes(builder) == []
    assert list(root.glob("temp/*")) == []
    assert list(root.glob("owners/*/python/environments/*")) == []
    assert not builder.exists(builder.ref(app.plan(builder), "ada"))


def test_sweep_spares_running_builds(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    with builder.layout.temp() as folder:
        assert make_builder(tmp_path / "builds").layout.sweep() == []
        assert folder.is_dir()


def test_large_caches_are_dropped_unless_in_use(tmp_path: Path, make_builder: Make) -> None:
    builder = make_builder()
    artifact = app_with(tmp_path).build(builder)
    cache = builder.layout.cache("ada")
    (cache / "wheel").write_bytes(b"x" * MIB)
    assert builder.trim_caches(1 << 30) == 0
    with builder.layout.using_cache("ada", lambda: False):
        assert builder.trim_caches(MIB // 2) == 0
    assert builder.trim_caches(MIB // 2) >= MIB
    assert not cache.exists()
    assert run_python(builder, artifact.ref, "import thing; print(1)") == "1"
    assert not app_with(tmp_path).build(builder, salt="2").reused_environment


# --- limits --------------------------------------------------------------------------------------------------------
NAP = "import time; time.sleep(60)"
FILL = "with open({path}, 'wb') as f:\n    f.write(b'x' * 200_000_000)\n"
LIMITS = [
    ({"memory": 300 * MIB}, f"x = [b'x' * 10_000_000 * n for n in range(1, 12)]\n{NAP}", "out_of_memory"),
    ({"processes": 25}, f"for n in range(60):\n    if os.fork() == 0:\n        {NAP}\n{NAP}", "too_many_processes"),
    ({"seconds": 1.5}, "while True: pass", "build_timeout"),
    ({"disk": 60 * MIB}, FILL.format(path="os.environ['TMPDIR'] + '/big'") + NAP, "disk_limit"),
    ({"disk": 60 * MIB}, FILL.format(path="os.environ['HOME'] + '/big'") + "return ''", "disk_limit"),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "body", "reason"), LIMITS)
def test_limits_are_hit_and_named(
    limits: dict[str, float], body: str, reason: str, tmp_path: Path, make_builder: Make
) -> None:
    builder = make_builder(**limits)
    began = time.monotonic()
    with pytest.raises(BuildError) as caught:
        app_with(tmp_path, body).build(builder)
    assert caught.value.reason == reason
    assert time.monotonic() - began < 15
    # All of them were sent SIGKILL; on a busy machine some take a moment to be gone.
    end = time.monotonic() + 10
    while marked_processes(builder) and time.monotonic() < end:
        threading.Event().wait(0.05)
    assert marked_processes(builder) == []
    assert list(tmp_path.glob("builds/temp/*")) == []


def test_large_tree_is_refused_before_it_is_written(tmp_path: Path, make_builder: Make) -> None:
    app = App(tmp_path / "app", {"big.bin": b"x" * 2 * MIB})
    with pytest.raises(BuildError) as caught:
        app.build(make_builder(disk=MIB))
    assert caught.value.reason == "disk_limit"


def test_full_disk_is_named(tmp_path: Path, make_builder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.confined.Budget.__init__.__defaults__", (1 << 62, 0.0))
    with pytest.raises(BuildError) as caught:
        App(tmp_path / "app", {}).build(make_builder())
    assert caught.value.reason == "disk_full"


# --- confinement ---------------------------------------------------------------------------------------------------
def test_build_sees_no_variable_of_the_platform(
    tmp_path: Path, make_builder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLATFORM_SECRET", "hunter2")
    builder = make_builder()
    ref = app_with(tmp_path, "import json; return json.dumps(dict(os.environ))").build(builder).ref
    seen = json.loads(run_python(builder, ref, "import thing; print(thing.OUT)"))
    assert "PLATFORM_SECRET" not in seen
    assert seen["HOME"] != os.environ["HOME"]
    allowed = set(index_settings(os.environ))
    own = {"PATH", "HOME", "TMPDIR", "LANG", "PWD", "NO_COLOR", "SPACES_BUILD_MARK", "UV", "LC_CTYPE", "VIRTUAL_ENV"}
    assert {name for name in set(seen) - allowed - own if not name.startswith(("UV_", "PYTHON"))} == set()


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that is not below /tmp, which every build has for itself."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def test_sandbox_hides_and_protects(tmp_path: Path, outside: Path) -> None:
    data = outside / "platform-data"
    data.mkdir()
    (data / "secret.db").write_text("hunter2")
    builder = VenvBuilder(tmp_path / "builds", index=index_settings(os.environ), hidden=[data])
    if not builder.sandbox.bwrap:
        pytest.skip("bubblewrap does not work here")
    body = f"""
def attempt(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
return repr([attempt(lambda: open({str(data / "secret.db")!r}).read()),
             attempt(lambda: open({str(outside / "canary")!r}, "w").write("x")),
             attempt(lambda: open("/usr/canary", "w").write("x")),
             len([p for p in os.listdir("/proc") if p.isdigit()]) < 10,
             os.path.exists(os.environ["TMPDIR"] + "/../../artifact"),
             [name for name in os.listdir({str(tmp_path / "builds" / "owners")!r} + "/ada") if name != "python"]])"""
    ref = app_with(tmp_path, body).build(builder).ref
    assert run_python(builder, ref, "import thing; print(thing.OUT)") == (
        "['FileNotFoundError', 'OSError', 'OSError', True, False, []]"
    )
    assert not (outside / "canary").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_run_as_another_user_or_says_why_not() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        builder = VenvBuilder(folder / "builds", index=index_settings(os.environ), run_as=(65534, 65534))
        assert builder.run_as is None
        assert "cannot enter" in builder.warnings[0]
        folder.chmod(0o755)
        builder = VenvBuilder(folder / "builds", index=index_settings(os.environ), run_as=(65534, 65534))
        if builder.run_as is None:
            pytest.skip(builder.warnings[0])
        ref = app_with(folder, "return str(os.getuid())", own_py="").build(builder).ref
        assert run_python(builder, ref, "import thing; print(thing.OUT)") == "65534"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_platform_in_a_private_folder_builds_as_another_user_all_the_same() -> None:
    """Root's own home is where root clones to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "private").mkdir(mode=0o700)
        uv = shutil.copy(find_uv_bin(), folder / "private")

        def builder() -> VenvBuilder:
            return VenvBuilder(folder / "builds", index=index_settings(os.environ), uv=str(uv), run_as=(65534, 65534))

        first = builder()
        if first.run_as is None:
            pytest.skip(first.warnings[0])
        ref = app_with(folder, "return str(os.getuid())", own_py="").build(first).ref
        assert run_python(first, ref, "import thing; print(thing.OUT)") == "65534"
        (copy,) = (folder / "builds" / "programs").iterdir()
        made = copy.stat()
        assert (builder().uv, copy.stat()) == (str(copy), made)
        os.utime(uv, (1, 1))  # another version
        newer = builder()
        assert [str(path) for path in (folder / "builds" / "programs").iterdir()] == [newer.uv] != [str(copy)]


def test_a_home_in_a_private_folder_is_out_of_reach_and_hinders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # commands have a /tmp of their own
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "private").mkdir(mode=0o700)
        (folder / "private" / "home").mkdir(mode=0o755)
        monkeypatch.setenv("HOME", str(folder / "private" / "home"))
        made = VenvBuilder(folder / "builds", index=index_settings(os.environ), run_as=(65534, 65534))
        if made.run_as is None:
            pytest.skip(made.warnings[0])
        ref = app_with(folder, "return str(os.getuid())", own_py="").build(made).ref
        assert run_python(made, ref, "import thing; print(thing.OUT)") == "65534"


# --- small pure parts ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text", ["venv:ada/xyz", "oci:ada/" + "0" * 40, "venv:../" + "0" * 40, "venv:a/b/" + "0" * 40, ""]
)
def test_bad_references(text: str, make_builder: Make) -> None:
    assert not make_builder().exists(text)
    with pytest.raises(ValueError, match="not a reference"):
        Ref.parse(text)


def test_owner_names_never_collide_or_escape() -> None:
    names = ["ada", "Ada", "..", "", "x-1", "a/b", "é", "a" * 200, "x-" + "0" * 40]
    keys = [owner_key(name) for name in names]
    assert len({key.lower() for key in keys}) == len(names)
    assert all("/" not in key and "." not in key and key for key in keys)


def test_index_settings_are_a_list_of_what_may_pass() -> None:
    found = index_settings(
        {"PIP_INDEX_URL": "http://a", "AWS_SECRET": "x", "UV_CACHE_DIR": "/x", "HTTPS_PROXY": "p", "A": ""}
    )
    assert found == {"UV_DEFAULT_INDEX": "http://a", "HTTPS_PROXY": "p"}
    assert index_settings({"PIP_INDEX_URL": "a", "UV_INDEX_URL": "b"}) == {"UV_INDEX_URL": "b"}


def test_progress_reads_uv() -> None:
    progress = Progress()
    lines = [
        "Resolved 57 packages in 1ms",
        "Downloading numpy (16.1MiB)",
        " Downloaded numpy",
        "Installed 57 packages in 2ms",
    ]
    words = [progress.words for line in lines if progress.line(line)]
    assert words == ["0/57", "0/57 downloading numpy", "0/57", "57/57"]
    progress.finished, progress.placed = False, 12
    assert progress.words == "12/57"


def _until(ready: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)
