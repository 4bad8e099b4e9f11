"""What a build will do, decided before anything is done.

Owns: `make_plan`, a pure function of (source tree, configuration, catalogue) to a BuildPlan, and the two content ids:
the dependency environment's (Python, requirement files, SDK) and the whole plan's (environment, tree, start command).
Does not own: doing it (`venv`). Invariant: equal inputs give equal ids on every machine; a push that changes neither
requirements, Python nor SDK keeps its environment id.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from packaging.version import InvalidVersion, Version

from builders import requirements_files as rf
from builders.config import SpaceConfig, entry_file
from builders.types import BuildError, BuildPlan, EnvironmentPlan, InstallStep, RunPlan, SourceTree
from runtime_images import Catalogue, Sdk

FORMAT = 1
"""Enters every id; raised when the same plan would be carried out differently."""
PLATFORM_PYTHON = "{PLATFORM_PYTHON}"
"""In argv: the interpreter the platform itself runs on."""

MAX_SYSTEM_PACKAGES = 200
_DEBIAN_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}(?::[a-z0-9]{1,20})?(?:=[A-Za-z0-9.+:~-]{1,100})?")
"""https://www.debian.org/doc/debian-policy/ch-controlfields.html#source, with apt's `:arch` and `=version`."""

NO_PRELOAD = "preload_from_hub has no effect with sdk: static and sdk: docker; a Dockerfile fetches files in a RUN."
_NO_ENVIRONMENT = EnvironmentPlan(id="", python="")
_COMMON_ENV: Mapping[str, str] = {"PYTHONUNBUFFERED": "1"}


def make_plan(
    source: SourceTree,
    config: SpaceConfig,
    catalogue: Catalogue,
    *,
    available_pythons: Sequence[str] = (),
    salt: str = "",
    containers: bool = False,
) -> BuildPlan:
    """The plan for one commit.

    `available_pythons` are the `3.x` or `3.x.y` versions at hand; `salt` enters both ids, so that a factory rebuild
    shares nothing with earlier builds; `containers` tells that images are built, which may have system packages and
    Dockerfiles of their own. Raises BuildError where a requirement file cannot be read as text or TOML.
    """
    paths = {entry.path for entry in source.entries()}
    warnings: list[str] = []
    if config.sdk == "docker":
        return _sealed(_docker(source, config, containers), salt)
    entry = entry_file(config, sorted(paths))
    system = _system_packages(source, containers) if "packages.txt" in paths else ()
    if config.sdk == "static":
        plan = _static(source, config, entry, paths, "python3" if containers else PLATFORM_PYTHON)
        warnings += [NO_PRELOAD] if config.preload_from_hub else []
    else:
        environment = _environment(source, config, catalogue, available_pythons, paths, warnings)
        plan = BuildPlan("", source.id, config.sdk, environment, _RUN[config.sdk](config, entry))
        plan = replace(plan, preload=config.preload_from_hub)
    if system and containers:
        plan = replace(plan, environment=replace(plan.environment, system=system))
    elif system:
        reason = (
            f"packages.txt asks for system packages ({', '.join(system[:5])}), which only a container build installs"
        )
        plan = replace(plan, needs_container=(reason,))
    return _sealed(replace(plan, warnings=(*config.warnings, *warnings)), salt)


def _sealed(plan: BuildPlan, salt: str) -> BuildPlan:
    """The plan with its two ids."""
    environment = plan.environment
    if environment.python:
        tree = plan.tree_id if environment.needs_tree else ""
        content = asdict(replace(environment, id=""))
        if not environment.system:
            del content["system"]  # ids from before there were system packages stay what they were
        environment = replace(environment, id=_id("environment", content, tree, salt))
    body = [environment.id, plan.tree_id, plan.sdk, asdict(plan.run), plan.build_command, plan.output_dir, salt]
    if environment.system and not environment.python:
        body.append(environment.system)
    if plan.preload:
        body.append({"preload": plan.preload})
    return replace(plan, environment=environment, id=_id("plan", *body), salt=salt)


def _id(kind: str, *content: object) -> str:
    text = json.dumps([kind, FORMAT, *content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


# --- environment ---------------------------------------------------------------------------------------------------
def _environment(
    source: SourceTree,
    config: SpaceConfig,
    catalogue: Catalogue,
    available: Sequence[str],
    paths: set[str],
    warnings: list[str],
) -> EnvironmentPlan:
    sdk = catalogue.sdks[config.sdk]

    def read(path: str) -> str | None:
        return _read(source, path) if path in paths else None

    steps: list[InstallStep] = []
    first = rf.collect("pre-requirements.txt", read)
    if first.texts:
        steps.append(InstallStep("pre-requirements.txt", files=first.texts))
    files, project, label, kind = _declared(read)
    version = _sdk_version(sdk, config, files, project, warnings)
    packages = _sdk_packages(sdk, version)
    label = " and ".join(part for part in (label, f"{sdk.name} {version}".strip()) if part)
    if project or packages or files.texts:
        steps.append(InstallStep(label, (*project, *packages), files.texts, kind))
    warnings += first.warnings + files.warnings
    needs_tree = first.needs_tree or files.needs_tree
    python = _python(config, catalogue, available, warnings)
    return EnvironmentPlan("", python, tuple(steps), needs_tree)


def _declared(read: rf.Read) -> tuple[rf.Files, tuple[str, ...], str, str]:
    """What the app asks for: requirement files, requirement lines, the label and the kind of the step."""
    files = rf.collect("requirements.txt", read)
    if files.texts:
        return files, (), "requirements.txt", "requirements"
    pyproject = read("pyproject.toml")
    if pyproject is None:
        return files, (), "", "requirements"
    lock = read("uv.lock")
    try:
        dependencies, _ = rf.project_dependencies(pyproject)
    except ValueError as error:
        raise BuildError(
            "bad_pyproject", f"pyproject.toml cannot be read: {error}.", "Correct the file, or use requirements.txt."
        ) from error
    if lock is not None and dependencies:
        return rf.Files({"pyproject.toml": pyproject, "uv.lock": lock}), (), "uv.lock", "project"
    return files, dependencies, "pyproject.toml" if dependencies else "", "requirements"


def _sdk_version(sdk: Sdk, config: SpaceConfig, files: rf.Files, project: tuple[str, ...], warnings: list[str]) -> str:
    """The release to install: README.md decides, then the app's own pin (the result is then empty), then the catalogue.

    Spaces install the README's version after requirements.txt, so that it wins; here the app's pin is lifted and both
    go into one resolution, so that a conflict with any other requirement is still found and named.
    """
    pins = files.pins(sdk.name)
    if not config.sdk_version:
        own = rf.Files({"pyproject.toml": "".join(f"{line}\n" for line in project)})
        pinned = [pin for _, pin in [*pins, *own.pins(sdk.name)] if pin.url or len(pin.specifier)]
        return "" if pinned or "uv.lock" in files.texts else sdk.version
    for path, pin in pins:
        if not rf.agrees(pin, config.sdk_version):
            warnings.append(
                f"{path} asks for {pin}, README.md for {sdk.name} {config.sdk_version}: README.md wins. "
                f"Remove {sdk.name} from {path}."
            )
            files.release(sdk.name)
    return config.sdk_version


def _sdk_packages(sdk: Sdk, version: str) -> tuple[str, ...]:
    pin = f"=={version}" if version else ""
    packages = [package.replace("{version}", pin) for package in sdk.packages]
    for rule in sdk.compat:
        if version and _older(version, rule.below):
            packages += rule.add
    return tuple(packages)


def _older(version: str, than: str) -> bool:
    try:
        return Version(version) < Version(than)
    except InvalidVersion:
        return False


def _python(config: SpaceConfig, catalogue: Catalogue, available: Sequence[str], warnings: list[str]) -> str:
    """`3.x`, or `3.x.y` where exactly that was asked for and is at hand."""
    minors = {_minor(version) for version in available}
    asked = config.python_version
    if not asked:
        usable = [version for version in catalogue.pythons if version in minors]
        default = catalogue.python_default
        return default if default in minors or not usable else usable[-1]
    if asked in available:
        return asked
    if _minor(asked) in minors:
        if asked != _minor(asked):
            warnings.append(f"Python {asked} is not at hand; using another {_minor(asked)} release.")
        return _minor(asked)
    if available:
        at_hand = ", ".join(sorted(minors, key=Version))
        warnings.append(f"Python {asked} is not installed on this machine (at hand: {at_hand}); trying to get it.")
    return asked


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


# --- start commands ------------------------------------------------------------------------------------------------
def _gradio(config: SpaceConfig, entry: str) -> RunPlan:
    return RunPlan(
        ("python", entry),
        {
            **_COMMON_ENV,
            "GRADIO_SERVER_NAME": "0.0.0.0",
            "GRADIO_SERVER_PORT": "{PORT}",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_NUM_PORTS": "1",
            "SYSTEM": "spaces",
            "PORT": "{PORT}",
        },
        7860,
        config.base_path,
        config.startup_duration_timeout,
    )


def _streamlit(config: SpaceConfig, entry: str) -> RunPlan:
    options = {
        "port": "{PORT}",
        "address": "0.0.0.0",
        "headless": "true",
        "enableXsrfProtection": "false",
        "enableCORS": "false",
        "fileWatcherType": "none",
    }
    flags = (f"--server.{name}={value}" for name, value in options.items())
    return RunPlan(
        ("streamlit", "run", entry, *flags, "--browser.gatherUsageStats=false"),
        {**_COMMON_ENV, "PORT": "{PORT}"},
        8501,
        config.base_path,
        config.startup_duration_timeout,
    )


def _dash(config: SpaceConfig, entry: str) -> RunPlan:
    """Dash.run() takes host, port and debug from HOST, PORT and DASH_DEBUG where the call names none."""
    env = {**_COMMON_ENV, "HOST": "0.0.0.0", "PORT": "{PORT}", "DASH_DEBUG": "false", "DASH_HOT_RELOAD": "false"}
    return RunPlan(("python", entry), env, 7860, config.base_path, config.startup_duration_timeout)


_RUN = {"gradio": _gradio, "streamlit": _streamlit, "dash": _dash}


def _static(source: SourceTree, config: SpaceConfig, entry: str, paths: set[str], python: str) -> BuildPlan:
    command: tuple[str, ...] = ()
    output, index = "", entry
    if config.app_build_command:
        output, index = posixpath.split(config.app_file or "dist/index.html")
        install = ""
        if "package.json" in paths:
            locked = "package-lock.json" in paths or "npm-shrinkwrap.json" in paths
            install = f"npm {'ci' if locked else 'install'} --no-audit --no-fund && "
        command = ("sh", "-c", f"{install}{config.app_build_command}")
    serve = (python, "-P", "-m", "runtime_images.static.server", ".", "--port", "{PORT}", "--index", index)
    run = RunPlan(serve, {}, 7860, "/", config.startup_duration_timeout)
    return BuildPlan("", source.id, "static", _NO_ENVIRONMENT, run, command, output)


def _system_packages(source: SourceTree, checked: bool) -> tuple[str, ...]:
    """The lines of packages.txt. `checked`: raises BuildError for one that apt could take for anything but a name."""
    lines = (line.partition("#")[0].strip() for line in _read(source, "packages.txt").splitlines())
    names = tuple(dict.fromkeys(name for line in lines for name in line.split()))
    wrong = next((name for name in names if not _DEBIAN_NAME.fullmatch(name)), None) if checked else None
    if wrong is not None:
        raise BuildError(
            "bad_system_package",
            f"`{wrong[:100]}` in packages.txt is not the name of a Debian package.",
            "Write one package name per line, like `ffmpeg`; options of apt are not possible.",
            [wrong[:200]],
        )
    if checked and len(names) > MAX_SYSTEM_PACKAGES:
        raise BuildError(
            "bad_system_package",
            f"packages.txt names {len(names)} packages; {MAX_SYSTEM_PACKAGES} are possible.",
            "Keep only what the app needs.",
        )
    return names


def _docker(source: SourceTree, config: SpaceConfig, containers: bool) -> BuildPlan:
    run = RunPlan((), {"PORT": "{PORT}"}, config.app_port, config.base_path, config.startup_duration_timeout)
    reason = "`sdk: docker` needs a container engine; this platform runs apps as processes"
    needs = () if containers else (reason,)
    warnings = (*config.warnings, *([NO_PRELOAD] if config.preload_from_hub else []))
    return BuildPlan("", source.id, "docker", _NO_ENVIRONMENT, run, needs_container=needs, warnings=warnings)


def _read(source: SourceTree, path: str) -> str:
    data = source.read(path, rf.MAX_SIZE * 4)
    if len(data) >= rf.MAX_SIZE * 4:
        raise BuildError("requirements_too_large", f"{path} is larger than 1 MB.", "Keep only what the app needs.")
    for encoding in ("utf-8-sig", "utf-16") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise BuildError("requirements_encoding", f"{path} is not UTF-8 text.", "Save it as UTF-8.", [shlex.quote(path)])
