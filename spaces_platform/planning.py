"""What a Space's head means: its front matter, its plan, or what is wrong with it. A projection of (head, salt)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from builders.config import KEYS, ConfigError, MissingAppFile, SpaceConfig, read_config
from builders.plan import make_plan
from builders.types import BuildError, BuildPlan, EnvironmentPlan, InstallStep, RunPlan, SourceTree
from runtime_images import Catalogue
from spaces_platform.lifecycle import BuildAxis

README = "README.md"


@dataclass(frozen=True, slots=True)
class Planned:
    """Exactly one of `plan` and `problem` is set."""

    plan: BuildPlan | None = None
    problem: BuildAxis | None = None
    reason: str = ""
    message: str = ""
    evidence: tuple[str, ...] = ()
    config: SpaceConfig | None = None
    warnings: tuple[str, ...] = field(default=())


def plan_head(
    tree: SourceTree | None, catalogue: Catalogue, pythons: Sequence[str], *, salt: str = "", containers: bool = False
) -> Planned:
    """Plan a tree; a tree that cannot be planned is an answer, not an error. Pure but for reading the tree."""
    if tree is None:
        return Planned(problem=BuildAxis.EMPTY, reason="no_commit", message="Nothing has been pushed to main yet.")
    paths = [entry.path for entry in tree.entries()]
    readme = tree.read(README).decode("utf-8", "replace") if README in paths else None
    try:
        config = read_config(readme, paths)
    except MissingAppFile as exc:
        return Planned(problem=BuildAxis.EMPTY, reason="missing_app_file", message=str(exc), config=exc.config)
    except ConfigError as exc:
        first = exc.problems[0]
        return Planned(
            problem=BuildAxis.CONFIG_ERROR,
            reason="no_front_matter" if not first.field else "bad_field",
            message=str(exc),
            evidence=tuple(f"README.md:{p.line}: {p.message}" for p in exc.problems),
        )
    try:
        plan = make_plan(tree, config, catalogue, available_pythons=pythons, salt=salt, containers=containers)
    except BuildError as exc:
        return Planned(
            problem=BuildAxis.CONFIG_ERROR,
            reason=exc.reason,
            message=f"{exc.cause} {exc.fix}",
            evidence=exc.evidence,
            config=config,
        )
    if plan.needs_container and plan.sdk != "docker":
        # The machine may have the system packages already; the app says so soon enough if it does not.
        plan = dataclasses.replace(plan, needs_container=(), warnings=(*plan.warnings, *plan.needs_container))
    if plan.needs_container:
        return Planned(
            problem=BuildAxis.CONFIG_ERROR,
            reason="needs_containers",
            message=f"This platform runs apps as processes, and {'; '.join(plan.needs_container)}. "
            "Remove it, or ask the platform's admin for container mode.",
            config=config,
        )
    return Planned(plan=plan, config=config, warnings=(*config.warnings, *plan.warnings))


def card_of(config: SpaceConfig) -> dict[str, Any]:
    """The front matter as the API gives it (`cardData`): the keys that say something, with their typed values."""
    card: dict[str, Any] = {}
    for key in KEYS:
        value = getattr(config, key.attr)
        if value != key.default and value not in ((), {}, ""):
            card[key.name] = list(value) if isinstance(value, tuple) else value
    return {**config.extra, **card}


def plan_to_json(plan: BuildPlan) -> dict[str, Any]:
    return dataclasses.asdict(plan)


def plan_from_json(data: dict[str, Any]) -> BuildPlan:
    environment = data["environment"]
    steps = tuple(
        InstallStep(s["label"], tuple(s["requirements"]), dict(s["files"]), s["kind"]) for s in environment["steps"]
    )
    return BuildPlan(
        id=data["id"],
        tree_id=data["tree_id"],
        sdk=data["sdk"],
        environment=EnvironmentPlan(**{**environment, "steps": steps, "system": tuple(environment.get("system", ()))}),
        run=run_from_json(data["run"]),
        build_command=tuple(data["build_command"]),
        output_dir=data["output_dir"],
        needs_container=tuple(data["needs_container"]),
        warnings=tuple(data["warnings"]),
        salt=data.get("salt", ""),
        preload=tuple(data.get("preload", ())),
    )


def run_from_json(data: dict[str, Any]) -> RunPlan:
    return RunPlan(
        argv=tuple(data["argv"]),
        env=dict(data["env"]),
        app_port=data["app_port"],
        base_path=data["base_path"],
        start_timeout=data["start_timeout"],
    )
