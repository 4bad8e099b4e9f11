"""`python -m builders PATH`: plan and build an app from a shell, without a platform.

Owns: arguments and printing. Does not own: anything that decides or builds. Invariant: `--dry-run` changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import runtime_images
from builders.config import ConfigError, MissingAppFile, read_config
from builders.local_tree import LocalTree
from builders.plan import make_plan
from builders.types import BuildError, BuildPlan, Phase
from builders.uv import index_settings
from builders.venv import VenvBuilder


class ConsoleLog:
    """A build log on standard error, so that standard output holds the result only."""

    def line(self, text: str) -> None:
        print(f"    {text}", file=sys.stderr)

    def phase(self, phase: Phase, text: str = "") -> None:
        print(f"==> {phase} {text}".rstrip(), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m builders", description="Plan and build an app folder.")
    parser.add_argument("path", type=Path, help="the folder with README.md")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--into", type=Path, default=Path.home() / ".spaces" / "builds", help="where builds are kept")
    parser.add_argument("--salt", default="", help="any text; another one builds everything anew")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except (ConfigError, MissingAppFile) as error:
        print(error, file=sys.stderr)
    except BuildError as error:
        print(f"{error.cause}\n{error.fix}", file=sys.stderr)
        print("".join(f"  | {line}\n" for line in error.evidence), end="", file=sys.stderr)
    return 1


def _run(args: argparse.Namespace) -> int:
    tree = LocalTree(args.path)
    paths = [entry.path for entry in tree.entries()]
    readme = tree.read("README.md").decode("utf-8", "replace") if "README.md" in paths else None
    config = read_config(readme, paths)
    catalogue = runtime_images.load()
    if args.dry_run:
        _print(make_plan(tree, config, catalogue, available_pythons=catalogue.pythons, salt=args.salt), args.json)
        return 0
    builder = VenvBuilder(args.into, index=index_settings(os.environ))
    plan = make_plan(tree, config, catalogue, available_pythons=builder.available_pythons, salt=args.salt)
    artifact = builder.build(plan, tree, owner="local", log=ConsoleLog(), cancelled=lambda: False)
    local = builder.resolve(artifact.ref)
    result = {
        "ref": artifact.ref,
        "app_dir": str(local.app_dir),
        "environment_dir": str(local.environment_dir or ""),
        "argv": plan.run.argv,
        "env": dict(plan.run.env),
        "reused_environment": artifact.reused_environment,
        "lock": artifact.lock.splitlines(),
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{artifact.ref}\ncd {local.app_dir}\n{' '.join(plan.run.argv)}")
    return 0


def _print(plan: BuildPlan, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(plan), indent=2, default=dict))
        return
    print(f"plan         {plan.id}\ntree         {plan.tree_id}\nsdk          {plan.sdk}")
    if plan.environment.id:
        print(f"environment  {plan.environment.id}, Python {plan.environment.python}")
    for step in plan.environment.steps:
        print(f"  install    {step.label}: {' '.join([*step.files, *step.requirements])}")
    if plan.build_command:
        print(f"build        {plan.build_command[-1]}  (keeps {plan.output_dir or 'everything'})")
    print(f"run          {' '.join(plan.run.argv)}")
    for name, value in sorted(plan.run.env.items()):
        print(f"  env        {name}={value}")
    for reason in plan.needs_container:
        print(f"needs a container: {reason}")
    for warning in plan.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    sys.exit(main())
