"""A README as HTML that is safe on the platform's own host, where its visitors are signed in.

markdown-it renders, then nh3 (an HTML5 parser with an allow-list, https://nh3.readthedocs.io) keeps what is listed here
and nothing else. Invariant: the result has no script, style, frame, form, event attribute or URL scheme other than
http, https and mailto, and loads nothing from other hosts.
"""

from __future__ import annotations

import functools
import re
from urllib.parse import quote, unquote, urlsplit

import nh3
from markdown_it import MarkdownIt

from spaces_platform.web.words import BIDI

MAX_CHARS = 48_000
"""Longest README that is rendered; more is cut. The costliest input of this length takes about half a second."""
MAX_NESTING = 20

TAGS = frozenset(
    "a abbr b blockquote br caption center code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i "  # noqa: SIM905
    "img ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr tt u ul "
    "var".split()
)
ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title", "width", "height"},
    "td": {"align", "colspan", "rowspan"},
    "th": {"align", "colspan", "rowspan", "scope"},
    "p": {"align"},
    "div": {"align"},
    "h1": {"align"},
    "h2": {"align"},
    "h3": {"align"},
    "ol": {"start"},
    "details": {"open"},
}
DROPPED = frozenset({"script", "style", "iframe", "object", "embed", "template", "noscript", "svg", "math", "title"})
"""Removed together with what is in them."""
IMAGE_NAMES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".avif", ".svg")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_markdown = MarkdownIt("commonmark", {"html": True, "maxNesting": MAX_NESTING}).enable(["table", "strikethrough"])


@functools.lru_cache(maxsize=64)
def render(text: str, *, files: str, blobs: str) -> str:
    """HTML of a README. `files`: where relative images are (ends in `/`); `blobs`: where relative links lead."""
    body = _FRONT_MATTER.sub("", text[:MAX_CHARS], count=1)
    html = _markdown.render(BIDI.sub("", body))

    def place(tag: str, attribute: str, value: str) -> str | None:
        if tag == "img" and attribute == "src":
            return _image(value, files)
        if tag == "a" and attribute == "href":
            return _link(value, blobs)
        return value

    return nh3.clean(
        html,
        tags=set(TAGS),
        clean_content_tags=set(DROPPED),
        attributes=ATTRIBUTES,
        attribute_filter=place,
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer",
        strip_comments=True,
    )


def _image(value: str, files: str) -> str | None:
    """Only images of the repository itself: one from elsewhere would tell its host who reads this page."""
    path = _inside(value)
    if path is None or not path.lower().endswith(IMAGE_NAMES):
        return None
    return files + quote(path)


def _link(value: str, blobs: str) -> str | None:
    if value.startswith("#"):
        return value
    path = _inside(value)
    if path is not None:
        return blobs + quote(path)
    scheme = urlsplit(value).scheme.lower()
    return value if scheme in ("http", "https", "mailto") else None


def _inside(value: str) -> str | None:
    """The path of a relative reference that stays in the repository, else None."""
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return None
    if parts.scheme or parts.netloc or "\\" in value or value.startswith("/"):
        return None
    path = unquote(parts.path)
    steps = [step for step in path.split("/") if step not in ("", ".")]
    if not steps or ".." in steps or any(ord(c) < 32 for c in path):
        return None
    return "/".join(steps)
