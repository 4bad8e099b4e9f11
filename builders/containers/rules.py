"""What a Dockerfile of a Space may do, and the Dockerfile that is built instead of it.

Owns: `check`, which refuses what would reach beyond the Space, and rewrites the rest: caches of its own, the platform's
certificates, nothing of the file's first lines. Does not own: reading (`parse`), pulling images (`builder`). Invariant:
pure. What is built is written anew from what was read, one instruction a line, so that BuildKit cannot see anything
in it that was not looked at here.

Why each: cache mounts can reach host files (CVE-2024-23651) and poison other builds; frontends run with the client's
session; the engine itself fetches ADD and FROM, from within its own network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from builders.containers.parse import Dockerfile, Instruction, Unreadable, parse, replaced
from builders.dockerfile import SCOPE
from builders.types import BuildError

MAX_STAGES = 32
RESERVED = re.compile(r"SPACES_\w+|BUILDKIT_\w+|SOURCE_DATE_EPOCH|(?:HTTP|HTTPS|FTP|NO|ALL)_PROXY", re.I)
"""Build arguments that are not the owner's to set: BuildKit takes orders by some of them, even a frontend to run."""
DEFAULT_SOURCES = "docker.io,ghcr.io,quay.io,gcr.io,nvcr.io,mcr.microsoft.com,public.ecr.aws,registry.gitlab.com"
PLATFORM_IMAGES = re.compile(r"spaces/(?:runtime-[a-z0-9-]+|base)(?::[\w.-]+)?")
"""What of the engine's own images may be built upon."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_STAGE = re.compile(r"[a-z][a-z0-9_.-]{0,99}", re.I)
_IMAGE = re.compile(
    r"(?P<path>[a-z0-9][a-z0-9._/-]*(?::\d+(?=/))?[a-z0-9._/-]*?)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_SYNTAX = re.compile(r"docker/dockerfile:1(?:\.\d+){0,2}(?:-labs)?|docker/dockerfile:(?:latest|labs)")
_BUILTIN_ARGS = frozenset(
    f"{side}{part}" for side in ("TARGET", "BUILD") for part in ("PLATFORM", "OS", "ARCH", "VARIANT")
)
_FLAGS = {
    "RUN": {"mount", "network", "security"},
    "COPY": {"from", "chown", "chmod", "link"},
    "ADD": {"chown", "chmod"},
}
_MOUNT_KEYS = {
    "bind": {"type", "target", "dst", "destination", "source", "src", "from", "rw", "readwrite", "ro", "readonly"},
    "cache": {"type", "target", "dst", "destination", "id", "sharing", "mode", "uid", "gid", "ro", "readonly"},
    "tmpfs": {"type", "target", "dst", "destination", "size"},
    "secret": {"type", "target", "dst", "destination", "id", "required", "mode", "uid", "gid"},
}


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the platform gives a build."""

    scope: str
    """Names this Space's caches; not to be guessed."""
    variables: Mapping[str, str]
    secrets: frozenset[str]
    """Their names."""
    sources: frozenset[str]
    """Registries that images may come from."""
    mounts: tuple[str, ...] = ()
    """`--mount=…` options added to every RUN: the platform's certificates."""
    arguments: Mapping[str, str] | None = None
    """Build arguments set in every stage: where tools find the certificates."""
    platform: str = "linux/amd64"


@dataclass(frozen=True, slots=True)
class Checked:
    """A Dockerfile that may be built."""

    text: str
    images: tuple[str, ...] = ()
    """What it is built upon, with tag: the builder sees to it that the engine has them."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Build arguments to give: the variables that it declares."""
    lines: tuple[int, ...] = ()
    """For each line of `text` the line of the original."""
    warnings: tuple[str, ...] = ()


def check(text: str, allowed: Allowed) -> Checked:
    """Raises BuildError with line number, cause and fix."""
    try:
        return _Check(parse(text), allowed).done()
    except Unreadable as error:
        where = f"Dockerfile line {error.line}: " if error.line else ""
        shown = text.split("\n")[error.line - 1 : error.line] if error.line else []
        raise BuildError(
            "dockerfile_refused", f"{where}{error.message}", error.fix, [line[:300] for line in shown if line.strip()]
        ) from error


class _Check:
    def __init__(self, file: Dockerfile, allowed: Allowed) -> None:
        self.file, self.allowed = file, allowed
        self.stages: list[str] = []
        self.images: dict[str, None] = {}
        self.globals: dict[str, str] = {}
        self.unclear: set[str] = set()
        """Build arguments whose default cannot be read with certainty."""
        self.given: dict[str, str] = {}
        self.out: list[tuple[str, int]] = []
        self.warnings: list[str] = []
        self.handlers: Mapping[str, Callable[[Instruction], None]] = {
            "FROM": self._from, "ARG": self._arg, "RUN": self._run, "COPY": self._copy, "ADD": self._add,
            "ONBUILD": self._onbuild, "VOLUME": self._dropped, "HEALTHCHECK": self._dropped, "ENV": self._env,
        }  # fmt: skip

    def done(self) -> Checked:
        self._directives()
        for instruction in self.file.instructions:
            if not self.stages and instruction.name not in ("FROM", "ARG"):
                raise Unreadable(
                    instruction.line, f"{instruction.name} stands before FROM.", "Begin with the image to build upon."
                )
            self.handlers.get(instruction.name, self._keep)(instruction)
        if not self.stages:
            raise Unreadable(0, "The Dockerfile has no FROM.", "Begin with the image to build upon.")
        text = "".join(f"{line}\n" for line, _ in self.out)
        lines = tuple(number for _, number in self.out)
        return Checked(text, tuple(self.images), dict(self.given), lines, tuple(self.warnings))

    def _directives(self) -> None:
        syntax = self.file.directives.get("syntax")
        if syntax is not None and not _SYNTAX.fullmatch(syntax):
            raise Unreadable(1, f"`# syntax={syntax[:80]}` would run another image as the builder.", "Remove the line.")
        if syntax is not None:
            self.warnings.append("Dockerfile: `# syntax=` has no effect; the engine's own builder is used.")
        if self.file.escape != "\\":
            self._emit("# escape=`", 1)
        self._emit("# Written anew from the Dockerfile of this Space.", 1)

    def _emit(self, line: str, number: int) -> None:
        self.out.append((line, number))

    def _keep(self, instruction: Instruction) -> None:
        self._emit(" ".join((instruction.name, *instruction.flags, instruction.text)), instruction.line)

    def _dropped(self, instruction: Instruction) -> None:
        why = {
            "VOLUME": "the disk of an app is temporary; what must stay goes to /data",
            "HEALTHCHECK": "the platform probes the app itself",
        }[instruction.name]
        self.warnings.append(f"Dockerfile line {instruction.line}: {instruction.name} has no effect: {why}.")

    def _onbuild(self, instruction: Instruction) -> None:
        raise Unreadable(instruction.line, "ONBUILD would act in builds of others.", "Remove the line.")

    def _env(self, instruction: Instruction) -> None:
        self._unreserved(instruction)
        self._keep(instruction)

    def _unreserved(self, instruction: Instruction) -> None:
        if re.search(r"\bSPACES_(?:SCOPE|CA)\b", instruction.text, re.I):
            raise Unreadable(instruction.line, f"{SCOPE} is the platform's own.", "Use another name for the variable.")

    # --- FROM and ARG ----------------------------------------------------------------------------------------------
    def _from(self, instruction: Instruction) -> None:
        words = instruction.words()
        name = ""
        if len(words) == 3 and words[1].upper() == "AS":
            name = words[2].lower()
        elif len(words) != 1:
            raise Unreadable(instruction.line, "FROM takes an image, and may end with `AS name`.", "Correct the line.")
        if name and not _STAGE.fullmatch(name):
            raise Unreadable(instruction.line, f"`{name[:40]}` cannot name a stage.", "Use letters, digits and `-`.")
        self._platform(instruction)
        used = next((one for one in self.unclear if re.search(rf"\$\{{?{one}\b", words[0])), None)
        if used is not None:
            raise Unreadable(
                instruction.line, f"The default of {used} is too complicated to name an image.", "Write it plainly."
            )
        image = replaced(words[0], {**self.globals, **self._builtin()}, instruction.line)
        if image.lower() not in self.stages and image != "scratch":
            image = self._image(image, instruction.line)
        if len(self.stages) == MAX_STAGES:
            raise Unreadable(instruction.line, f"There are more than {MAX_STAGES} stages.", "Join some of them.")
        self.stages.append(name or str(len(self.stages)))
        self._emit(f"FROM {image}{f' AS {name}' if name else ''}", instruction.line)
        for key, value in {SCOPE: self.allowed.scope, **(self.allowed.arguments or {})}.items():
            self._emit(f"ARG {key}={value}", instruction.line)

    def _platform(self, instruction: Instruction) -> None:
        for flag in instruction.flags:
            name, _, value = flag.removeprefix("--").partition("=")
            value = replaced(value, self._builtin(), instruction.line)
            if name != "platform" or value not in (self.allowed.platform, self.allowed.platform.partition("/")[0]):
                raise Unreadable(
                    instruction.line, f"`{flag[:80]}` asks for another machine than {self.allowed.platform}.",
                    "Remove the option.",
                )  # fmt: skip

    def _builtin(self) -> dict[str, str]:
        os, _, arch = self.allowed.platform.partition("/")
        values = {"PLATFORM": self.allowed.platform, "OS": os, "ARCH": arch, "VARIANT": ""}
        return {f"{side}{part}": value for side in ("TARGET", "BUILD") for part, value in values.items()}

    def _image(self, image: str, line: int) -> str:
        """An image's full name, if it may be built upon."""
        match = _IMAGE.fullmatch(image)
        if match is None or re.fullmatch(r"[0-9a-f]{64}", match["path"]):
            raise Unreadable(line, f"`{image[:80]}` is not the name of an image.", "Write it like `python:3.12-slim`.")
        first, slash, _ = match["path"].partition("/")
        has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
        if not has_registry and first in ("spaces", "spaces-app", "spaces-hub"):
            if not PLATFORM_IMAGES.fullmatch(image):
                raise Unreadable(line, f"`{image}` is not an image for Spaces to build upon.", "Choose another image.")
        elif (first if has_registry else "docker.io") not in self.allowed.sources:
            registry = first if has_registry else "docker.io"
            known = ", ".join(sorted(self.allowed.sources)) or "none"
            raise Unreadable(line, f"Images may not come from {registry}.", f"Choose one of these registries: {known}.")
        full = image if match["tag"] or match["digest"] else f"{image}:latest"
        self.images[full] = None
        return full

    def _arg(self, instruction: Instruction) -> None:
        self._unreserved(instruction)
        for word in instruction.text.split():
            name, _, default = word.partition("=")
            if not _NAME.fullmatch(name):
                if "=" in instruction.text.split()[0]:
                    break  # a default in quotes that has spaces: one argument, by the rules of BuildKit
                raise Unreadable(instruction.line, f"`{name[:40]}` cannot name a build argument.", "Rename it.")
            if name in self.allowed.variables and not RESERVED.fullmatch(name):
                self.given[name] = self.allowed.variables[name]
            if not self.stages and name not in _BUILTIN_ARGS:
                self._global(name, default, instruction.line)
        self._keep(instruction)

    def _global(self, name: str, default: str, line: int) -> None:
        """A build argument before the first FROM, which images may be named by."""
        try:
            self.globals[name] = self.given.get(name, replaced(_unquoted(default), self.globals, line))
            self.unclear.discard(name)
        except Unreadable:
            self.unclear.add(name)

    # --- RUN, COPY, ADD --------------------------------------------------------------------------------------------
    def _run(self, instruction: Instruction) -> None:
        flags = list(self.allowed.mounts)
        for name, value, flag in self._flags(instruction):
            if name == "mount":
                flags.append(f"--mount={self._mount(value, instruction)}")
            elif name == "network" and value in ("default", "none"):
                flags.append(flag)
            elif name == "network":
                raise Unreadable(
                    instruction.line,
                    f"`{flag}` would leave the network that builds are fenced in.",
                    "Remove the option.",
                )
            else:
                raise Unreadable(
                    instruction.line, f"`{flag}` asks for rights that no build gets.", "Remove the option."
                )
        self._emit(" ".join(("RUN", *flags, instruction.text)), instruction.line)

    def _flags(self, instruction: Instruction) -> list[tuple[str, str, str]]:
        found = []
        for flag in instruction.flags:
            name, _, value = flag.removeprefix("--").partition("=")
            if name not in _FLAGS[instruction.name]:
                raise Unreadable(
                    instruction.line, f"{instruction.name} has no option `--{name[:40]}` here.", "Remove the option."
                )
            found.append((name, value, flag))
        return found

    def _mount(self, value: str, instruction: Instruction) -> str:
        options: dict[str, str] = {}
        for part in value.split(","):
            key, _, text = part.partition("=")
            if key.lower() in options:
                raise Unreadable(instruction.line, f"The mount option `{key[:40]}` stands there twice.", "Keep one.")
            options[key.lower()] = text
        kind = options.get("type", "bind")
        if kind not in _MOUNT_KEYS:
            fix = "Mount secrets with type=secret." if kind == "ssh" else "Use type bind, cache, tmpfs or secret."
            raise Unreadable(instruction.line, f"Mounts of type `{kind[:40]}` are not possible.", fix)
        strange = sorted(set(options) - _MOUNT_KEYS[kind])
        if strange:
            raise Unreadable(
                instruction.line, f"A {kind} mount may not have `{strange[0][:40]}`.", "Remove that part of the option."
            )
        if kind == "secret":
            self._secret(options, instruction.line)
        elif kind == "cache":
            self._cache(options, instruction.line)
        elif kind == "bind" and options.get("from"):
            options["from"] = self._source(options["from"], instruction.line)
        return ",".join(f"{key}={text}" if text else key for key, text in options.items())

    def _secret(self, options: Mapping[str, str], line: int) -> None:
        target = options.get("target") or options.get("dst") or options.get("destination") or ""
        name = options.get("id") or target.rpartition("/")[2]
        if not _NAME.fullmatch(name):
            raise Unreadable(line, f"`{name[:40]}` cannot name a secret.", "Use the name from the Space's settings.")
        if name not in self.allowed.secrets:
            if options.get("required") in ("true", "1", ""):
                raise Unreadable(line, f"The secret {name} is not set.", "Add it in the Space's settings.")
            self.warnings.append(f"Dockerfile line {line}: the secret {name} is not set; its file is not there.")

    def _cache(self, options: dict[str, str], line: int) -> None:
        """A cache of this Space's own, whatever the file calls it."""
        target = options.get("target") or options.get("dst") or options.get("destination") or ""
        name = options.get("id") or target
        if not target or "$" in name or not re.fullmatch(r"[\w./@:-]{1,200}", name):
            raise Unreadable(line, f"The cache `{name[:60]}` has no plain target or id.", "Write target=/root/.cache.")
        options["id"] = f"{self.allowed.scope}-{name.strip('/').replace('/', '-')}"

    def _copy(self, instruction: Instruction) -> None:
        kept = []
        for name, value, flag in self._flags(instruction):
            if name == "from":
                kept.append(f"--from={self._source(value, instruction.line)}")
            elif name != "link":  # only about caching, and not known to older engines
                kept.append(flag)
        self._emit(" ".join(("COPY", *kept, instruction.text)), instruction.line)

    def _source(self, name: str, line: int) -> str:
        """A stage, or an image that may be built upon."""
        if "$" in name:
            raise Unreadable(line, f"`from={name[:60]}` is not plain.", "Name the stage or the image itself.")
        if name.lower() in self.stages:
            return name.lower()
        if name.isdigit() and int(name) < len(self.stages):
            return name
        return self._image(name, line)

    def _add(self, instruction: Instruction) -> None:
        self._flags(instruction)
        for word in instruction.words()[:-1]:
            # Quotes, escapes and variables are worked out by BuildKit afterwards: `http:"//"host` is an address too.
            if "://" in word or word.startswith("git@") or set(word) & set("$\"'\\`"):
                raise Unreadable(
                    instruction.line, "ADD may not fetch addresses: the engine itself would, from within its network.",
                    "Fetch it with RUN curl, or COPY a file of the repository.",
                )  # fmt: skip
        self._keep(instruction)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def line_of(checked: Checked, stage: str, at: int) -> int:
    """The line of the owner's file that BuildKit calls `[stage at/…]`; 0 where that cannot be said."""
    names: list[str] = []
    count = 0
    for text, number in zip(checked.text.splitlines(), checked.lines, strict=True):
        name = text.split(" ", 1)[0]
        if name == "FROM":
            words = text.split()
            names.append(words[3] if len(words) > 3 else f"stage-{len(names)}")
            count = 0
        if name not in ("FROM", "RUN", "COPY", "ADD", "WORKDIR"):
            continue
        count += 1
        if count == at and names and stage in ("", names[-1]):
            return number
    return 0
