"""What a Space says about itself in README.md: every key, in one table.

Owns: the keys of the Spaces configuration reference with their type, default, allowed values and effect (`KEYS`, from
which the documentation is generated), and `read_config`, which turns a README into a typed SpaceConfig or into problems
with a line, what was found and what is allowed. Does not own: YAML and its bounds (`front_matter`), how one value is
read (`config_values`), what is built from it (`plan`). Invariant: pure; all problems are reported together.

Keys and defaults: https://huggingface.co/docs/hub/spaces-config-reference
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from builders import config_values as values
from builders import front_matter


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SDKS = ("gradio", "streamlit", "dash", "static", "docker")
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
OAUTH_SCOPES = _words(
    "openid profile email read-billing read-memberships read-repos gated-repos contribute-repos "
    "write-repos manage-repos read-collections write-collections inference-api read-endpoints "
    "write-endpoints jobs webhooks write-discussions"
)
HARDWARE = _words(
    "cpu-basic cpu-upgrade t4-small t4-medium l4x1 l4x4 l40sx1 l40sx4 l40sx8 a10g-small a10g-large "
    "a10g-largex2 a10g-largex4 a100-large a100x4 a100x8 zero-a10g"
)
TEMPLATE = """---
title: My app
emoji: 🚀
colorFrom: blue
colorTo: indigo
sdk: gradio
app_file: app.py
---
"""
"""What a README without configuration needs at its very top."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the front matter."""

    name: str
    """As written in README.md."""
    type: str
    """A type of `config_values.READERS`."""
    default: Any
    allowed: str
    """For people: what may stand there."""
    effect: str
    choices: tuple[str, ...] = ()
    """Fixed values; others are refused, or with `soft` kept with a warning."""
    soft: bool = False
    limits: tuple[int, int] | None = None
    """Smallest and largest: of a number its value, of a text its length."""
    attribute: str = ""
    """Name in SpaceConfig where it differs from `name`."""

    @property
    def attr(self) -> str:
        return self.attribute or self.name


KEYS: tuple[Key, ...] = (
    Key(
        "title", "text", "", "any text up to 200 characters", "Display title; exported as SPACE_TITLE.", limits=(0, 200)
    ),
    Key("emoji", "emoji", "", "one emoji", "Thumbnail and tab icon."),
    Key("colorFrom", "choice", "", "a colour name", "Thumbnail gradient, start.", COLORS, attribute="color_from"),
    Key("colorTo", "choice", "", "a colour name", "Thumbnail gradient, end.", COLORS, attribute="color_to"),
    Key("sdk", "choice", None, "required", "Chooses how the Space is built and run.", SDKS),
    Key("sdk_version", "version", "", 'a release such as "5.49.1"', "Release of the SDK; newest known one by default."),
    Key(
        "python_version",
        "python",
        "",
        '"3.11" or "3.11.7"',
        "Python that runs the app; the platform's default otherwise.",
    ),
    Key("app_file", "path", "", "a path from the root", "Entry point; by default app.py, index.html, Dockerfile."),
    Key("app_port", "int", 7860, "1024 to 65535", "Port the app serves; sdk: docker only.", limits=(1024, 65535)),
    Key("base_path", "url_path", "/", "starts with /", "First address opened and probed; not for static."),
    Key(
        "app_build_command",
        "text",
        "",
        "a command",
        "Static only: makes the site, e.g. npm run build.",
        limits=(0, 1000),
    ),
    Key("suggested_hardware", "choice", "", "a hardware name", "Preselected when duplicating.", HARDWARE, soft=True),
    Key("suggested_storage", "choice", "", "a size", "Kept, without effect.", ("small", "medium", "large"), soft=True),
    Key("header", "choice", "default", "a style", "mini: the app full screen.", ("mini", "default")),
    Key("fullWidth", "bool", True, "true or false", "Full width or a fixed column.", attribute="full_width"),
    Key("short_description", "text", "", "at most 60 characters", "Text in lists.", limits=(0, 60)),
    Key("models", "list", (), "a list of model ids", "Cross links."),
    Key("datasets", "list", (), "a list of dataset ids", "Cross links."),
    Key("tags", "list", (), "a list of words", "Filters."),
    Key("thumbnail", "url", "", "an http(s) address", "Picture on social cards."),
    Key("pinned", "bool", False, "true or false", "On top of the profile."),
    Key("license", "text_or_list", (), "a licence id, or a list", "Badge."),
    Key("hf_oauth", "bool", False, "true or false", "Sign-in for visitors; adds OAUTH_* variables."),
    Key("hf_oauth_scopes", "choices", (), "a list of scopes", "Extra scopes beside openid profile.", OAUTH_SCOPES),
    Key("hf_oauth_expiration_minutes", "int", 480, "1 to 43200", "Life of a sign-in token.", limits=(1, 43200)),
    Key("hf_oauth_authorized_org", "text_or_list", (), "an organisation, or a list", "Only its members may sign in."),
    Key("disable_embedding", "bool", False, "true or false", "Forbids framing by other sites."),
    Key(
        "startup_duration_timeout",
        "duration",
        1800,
        "30s, 30m, 1h; up to 24h",
        "Longest time from start to first answer.",
    ),
    Key("custom_headers", "headers", {}, "three cross-origin headers", "Added to every response."),
    Key(
        "preload_from_hub",
        "preload",
        (),
        "a list of `repo`, `repo file1,file2` or `repo file1,file2 commit`",
        "Files fetched at build into ~/.cache/huggingface/hub. `spaces/owner/name` is a Space of this platform; models "
        "and `datasets/owner/name` come from the hub that the admin names. Not for static and docker.",
    ),
    Key("duplicated_from", "text", "", "a repo id", "Where this Space was copied from.", limits=(0, 200)),
    Key("metaTitle", "text", "", "any text", "Page meta tag.", limits=(0, 200), attribute="meta_title"),
    Key("description", "text", "", "any text", "Page meta tag.", limits=(0, 2000)),
)
_BY_NAME = {key.name: key for key in KEYS}
_IGNORED = {
    "hardware": "`hardware` in README.md has no effect: choose hardware in the Space's settings "
    "(`suggested_hardware` only preselects it for people who duplicate the Space)."
}


@dataclass(frozen=True, slots=True)
class SpaceConfig:
    """The front matter, typed, with defaults filled in. Field for field the rows of `KEYS`."""

    sdk: str
    title: str = ""
    emoji: str = ""
    color_from: str = ""
    color_to: str = ""
    sdk_version: str = ""
    python_version: str = ""
    app_file: str = ""
    app_port: int = 7860
    base_path: str = "/"
    app_build_command: str = ""
    suggested_hardware: str = ""
    suggested_storage: str = ""
    header: str = "default"
    full_width: bool = True
    short_description: str = ""
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    thumbnail: str = ""
    pinned: bool = False
    license: tuple[str, ...] = ()
    hf_oauth: bool = False
    hf_oauth_scopes: tuple[str, ...] = ()
    hf_oauth_expiration_minutes: int = 480
    hf_oauth_authorized_org: tuple[str, ...] = ()
    disable_embedding: bool = False
    startup_duration_timeout: int = 1800
    """Seconds."""
    custom_headers: Mapping[str, str] = field(default_factory=dict)
    preload_from_hub: tuple[str, ...] = ()
    duplicated_from: str = ""
    meta_title: str = ""
    description: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Keys this platform does not know, as text; kept for clients, without effect."""
    warnings: tuple[str, ...] = ()
    """What was put right or has no effect, for the owner to read."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in README.md."""

    line: int
    """Line of README.md, from 1."""
    column: int
    field: str
    """The key, or empty where the block as a whole is wrong."""
    found: str
    allowed: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"README.md line {self.line}: {self.message} {self.fix}".rstrip()


class ConfigError(Exception):
    """README.md does not configure a Space. Holds every problem, in the order of their lines."""

    def __init__(self, problems: Sequence[ConfigProblem], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems, self.warnings = tuple(problems), tuple(warnings)


class MissingAppFile(Exception):
    """The configuration is fine, but the file it starts with is not in the repository."""

    def __init__(self, path: str, near: Sequence[str], config: SpaceConfig) -> None:
        self.path, self.near, self.config = path, tuple(near), config
        hint = f" Did you mean {' or '.join(f'`{name}`' for name in self.near)}? Set app_file." if near else ""
        super().__init__(f"`{path}` is not in the repository.{hint or ' Add it, or set app_file to the file that is.'}")


def read_config(readme_text: str | None, paths: Sequence[str]) -> SpaceConfig:
    """The configuration of a Space.

    `readme_text` is README.md, or None where there is none; `paths` are all files of the tree.
    Raises ConfigError with all problems, or MissingAppFile where only the entry point is absent.
    """
    try:
        block = front_matter.parse(readme_text or "")
    except front_matter.Missing as error:
        raise ConfigError([_missing(error.line, readme_text is None)]) from error
    except front_matter.FrontMatterError as error:
        problem = ConfigProblem(error.line, error.column, "", error.found, "", error.message, error.fix)
        raise ConfigError([problem]) from error
    config = _typed(block)
    entry = _entry(config, paths)
    if entry and entry not in paths:
        raise MissingAppFile(entry, _near(entry, config, paths), config)
    return config


def entry_file(config: SpaceConfig, paths: Sequence[str]) -> str:
    """The file the app starts with: `app_file`, or the default of the SDK. May be absent from `paths`."""
    if config.sdk == "docker":
        return "Dockerfile"
    if config.app_file:
        return config.app_file
    if config.sdk == "static":
        return "index.html"
    if config.sdk == "streamlit" and "app.py" not in paths and "streamlit_app.py" in paths:
        return "streamlit_app.py"
    return "app.py"


def _entry(config: SpaceConfig, paths: Sequence[str]) -> str:
    built = config.sdk == "static" and config.app_build_command
    return "" if built else entry_file(config, paths)


def _near(entry: str, config: SpaceConfig, paths: Sequence[str]) -> list[str]:
    """Files the owner may have meant: close in name, or of the right kind near the root."""
    suffix = {"static": ".html", "docker": "Dockerfile"}.get(config.sdk, ".py")
    near = difflib.get_close_matches(entry, paths, n=3, cutoff=0.7)
    if not near:
        near = sorted((p for p in paths if p.endswith(suffix)), key=lambda p: (p.count("/"), p))[:3]
    return near


def _missing(line: int, no_readme: bool) -> ConfigProblem:
    what = "there is no README.md" if no_readme else "README.md does not begin with a `---` block"
    return ConfigProblem(
        line,
        1,
        "sdk",
        "",
        ", ".join(SDKS),
        f"Missing configuration in README: {what}.",
        f"Put this at the very top of README.md and choose an sdk ({', '.join(SDKS)}):\n{TEMPLATE}",
    )


def _typed(block: front_matter.Fields) -> SpaceConfig:
    problems: list[ConfigProblem] = []
    warnings: list[str] = []
    found: dict[str, Any] = {}
    extra: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}
    for name, value in block.fields:
        places[name.text] = (value.line, value.column)
        key = _BY_NAME.get(name.text)
        if key is None:
            extra[name.text] = values.as_text(value)
            warnings.extend(_about_unknown(name))
            continue
        if isinstance(value, front_matter.Scalar) and value.kind == "null" and not value.quoted:
            continue
        try:
            found[key.attr] = values.read(key, value, warnings.append)
        except values.Refused as refused:
            problems.append(
                ConfigProblem(
                    refused.line or value.line,
                    refused.column or value.column,
                    key.name,
                    refused.found,
                    refused.allowed,
                    refused.message,
                    refused.fix,
                )
            )
    if "sdk" not in found and not any(problem.field == "sdk" for problem in problems):
        problems.append(_no_sdk(block))
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line, problem.column)), warnings)
    config = SpaceConfig(**found, extra=extra, warnings=())
    _across(config, places, warnings)
    return SpaceConfig(**found, extra=extra, warnings=tuple(warnings))


def _no_sdk(block: front_matter.Fields) -> ConfigProblem:
    return ConfigProblem(
        max(block.line - 1, 1),
        1,
        "sdk",
        "",
        ", ".join(SDKS),
        "Missing configuration in README: `sdk` is not set.",
        f"Add one of these lines to the block: {', '.join(f'`sdk: {sdk}`' for sdk in SDKS)}.",
    )


def _about_unknown(name: front_matter.Scalar) -> list[str]:
    if name.text in _IGNORED:
        return [f"README.md line {name.line}: {_IGNORED[name.text]}"]
    close = difflib.get_close_matches(name.text, list(_BY_NAME), n=1, cutoff=0.8)
    return [f"README.md line {name.line}: unknown key `{name.text}`; did you mean `{close[0]}`?"] if close else []


def _across(config: SpaceConfig, places: Mapping[str, tuple[int, int]], warnings: list[str]) -> None:
    """Rules between two keys."""
    if config.sdk == "static" and config.base_path != "/":
        line, column = places["base_path"]
        raise ConfigError(
            [
                ConfigProblem(
                    line,
                    column,
                    "base_path",
                    config.base_path,
                    "/",
                    "`base_path` does not go with `sdk: static`.",
                    "Remove it, or set app_file to the page to open first.",
                )
            ],
            warnings,
        )
    only = {"app_port": "docker", "app_build_command": "static"}
    for name, sdk in only.items():
        if name in places and config.sdk != sdk and not (name == "app_port" and config.app_port == 7860):
            warnings.append(
                f"README.md line {places[name][0]}: `{name}` has an effect with `sdk: {sdk}` only; ignored."
                + (" The port is told to the app in PORT." if name == "app_port" else "")
            )
