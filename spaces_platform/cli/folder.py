"""What kind of app a folder holds, and the front matter a README needs. Decisions are pure; one function writes.

Owns: guessing the SDK and the app file from names and imports, and the block that is put at the top of README.md. Does
not own: checking front matter (`builders`, on the platform's side). Invariant: a README's own text is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SDKS = ("gradio", "streamlit", "dash", "static", "docker")
_APP_FILES = ("app.py", "streamlit_app.py", "main.py", "demo.py", "Home.py")
_IMPORT = re.compile(r"^\s*(?:import|from)\s+(gradio|streamlit|dash)\b", re.MULTILINE)
_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@dataclass(frozen=True, slots=True)
class Guess:
    sdk: str
    app_file: str
    why: str


def guess(names: Iterable[str], read: Callable[[str], str]) -> Guess | None:
    """The SDK of a folder by its top-level file names and their imports; None where nothing tells."""
    files = set(names)
    if "Dockerfile" in files:
        return Guess("docker", "", "there is a Dockerfile")
    scripts = [name for name in _APP_FILES if name in files]
    scripts += sorted(name for name in files if name.endswith(".py") and name not in scripts)
    for name in scripts:
        found = _IMPORT.search(read(name))
        if found:
            return Guess(found[1], name, f"{name} imports {found[1]}")
    if "index.html" in files:
        return Guess("static", "index.html", "there is an index.html")
    return None


def has_front_matter(readme: str) -> bool:
    return readme.lstrip("\ufeff").startswith("---")


def front_matter(title: str, guess: Guess) -> str:
    """The block for a README. Pure."""
    safe = re.sub(r"[^\w .-]", " ", title).strip() or "App"
    lines = ["---", f"title: {safe}" if _is_plain(safe) else f"title: {safe!r}", f"sdk: {guess.sdk}"]
    if guess.sdk != "docker":
        lines.append(f"app_file: {guess.app_file}")
    colour = _COLOURS[sum(map(ord, safe)) % len(_COLOURS)]
    return "\n".join([*lines, f"colorFrom: {colour}", "---", "", ""])


def _is_plain(text: str) -> bool:
    """Whether YAML takes it for text without quotes."""
    return text[0].isalpha() and text.lower() not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def guess_folder(folder: Path) -> Guess | None:
    """`guess` for a folder on disk."""

    def read(name: str) -> str:
        with (folder / name).open(encoding="utf-8", errors="replace") as file:
            return file.read(200_000)

    return guess((entry.name for entry in folder.iterdir() if entry.is_file()), read)


def read_readme(folder: Path) -> str:
    path = folder / "README.md"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def add_front_matter(folder: Path, block: str) -> None:
    """Put the block above what README.md says."""
    (folder / "README.md").write_text(block + (read_readme(folder) or f"# {folder.name}\n"), encoding="utf-8")
