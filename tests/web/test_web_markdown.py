"""T20: whatever a README, a title or a file name says, nothing active reaches the page. Checked by a second parser."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from spaces_platform.web import markdown, words
from tests.web.world import World

FILES, BLOBS = "/spaces/ada/hello/resolve/abc/", "/spaces/ada/hello/blob/main/"

CORPUS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<img src=x onerror=alert(1)>",
    "<img src=`javascript:alert(1)`>",
    '<img src="a.png" onload="alert(1)" style="background:url(javascript:alert(1))">',
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<svg><foreignObject><iframe srcdoc='<script>alert(1)</script>'></iframe></foreignObject></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<math href='javascript:alert(1)'>x</math>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<object data='data:text/html,<script>alert(1)</script>'></object><embed src=x.swf>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='java\tscript:alert(1)'>x</a>",
    "<a href='&#106;avascript:alert(1)'>x</a>",
    "<a href=' javascript:alert(1)'>x</a>",
    "<a href='\x01javascript:alert(1)'>x</a>",
    "<a href='data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=='>x</a>",
    "<a href='vbscript:msgbox(1)'>x</a>",
    "<a href='//evil.example/x'>x</a>",
    "<a href='\\\\evil.example\\x'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](data:text/html,<script>alert(1)</script>)",
    "![x](javascript:alert(1))",
    '![x](x.png "onerror=alert(1)")',
    '![x" onerror="alert(1)](x.png)',
    "![track](https://evil.example/pixel.png)",
    "![up](../../../../settings/tokens)",
    "![up](%2e%2e/%2e%2e/x.png)",
    "<javascript:alert(1)>",
    "<form action='/spaces/ada/hello/settings/delete' method=post><input name=confirm><button>x</button></form>",
    "<button formaction=javascript:alert(1)>x</button>",
    "<input onfocus=alert(1) autofocus>",
    "<details open ontoggle=alert(1)>x</details>",
    "<video><source onerror=alert(1)></video><audio src=x onerror=alert(1)>",
    "<body onload=alert(1)>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example/x.css';body{display:none}</style>",
    "<p style='position:fixed;inset:0'>x</p>",
    "<a id=main name=main class=flash data-events=/evil>clobber</a><img name=getElementById>",
    "<form id=document><input name=cookie></form>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<title><img src=x onerror=alert(1)></title><textarea><img src=x onerror=alert(1)></textarea>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "<xmp><img src=x onerror=alert(1)></xmp><plaintext>",
    "```html\n<script>alert(1)</script>\n```",
    "`<img src=x onerror=alert(1)>`",
    "<table background=javascript:alert(1)><td background='//evil.example/x'>",
    "<a href='x' target=_blank rel=opener>x</a>",
    "user\u202etxt.exe",
    "---\ntitle: <script>alert(1)</script>\n---\n# ok",
    "<marquee onstart=alert(1)><keygen autofocus onfocus=alert(1)>",
]


class Finder(HTMLParser):
    """Collects whatever is active or reaches elsewhere."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in markdown.TAGS:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            text = (value or "").strip().lower()
            if name.startswith("on") or name in (
                "style",
                "id",
                "name",
                "class",
                "srcdoc",
                "formaction",
                "action",
                "target",
            ):
                self.found.append(f"{tag} {name}")
            if name == "src" and not text.startswith(FILES.lower()):
                self.found.append(f"{tag} src {text}")
            if name == "href" and not text.startswith("#"):
                parts = urlsplit(text)
                inside = not parts.scheme and not parts.netloc and text.startswith(BLOBS.lower())
                if not inside and parts.scheme not in ("http", "https", "mailto"):
                    self.found.append(f"{tag} href {text}")
                if ".." in text:
                    self.found.append(f"{tag} href {text}")

    def handle_comment(self, data: str) -> None:
        self.found.append(f"comment {data}")


def active(html: str) -> list[str]:
    finder = Finder()
    finder.feed(html)
    finder.close()
    return finder.found


@pytest.mark.parametrize("text", CORPUS)
def test_nothing_active_is_left(text: str) -> None:
    for nested in (text, f"# t\n\n{text}\n", f"- {text}", f"> {text}", f"| a |\n|---|\n| {text} |\n", f"**{text}**"):
        html = markdown.render(nested, files=FILES, blobs=BLOBS)
        assert active(html) == []
        assert "\u202e" not in html


def test_the_second_parser_sees_what_is_active() -> None:
    from markdown_it import MarkdownIt

    raw = MarkdownIt("commonmark", {"html": True})
    seen = [text for text in CORPUS if active(raw.render(text))]
    assert len(seen) > len(CORPUS) // 2


def test_what_people_write_stays() -> None:
    text = (
        "---\ntitle: T\n---\n# Head\n\n**bold** [app](app.py) [out](https://example.org) ![pic](img/a%20b.png)\n\n"
        "| a |\n|---|\n| 1 |\n"
    )
    html = markdown.render(text, files=FILES, blobs=BLOBS)
    assert "title: T" not in html
    assert "<h1>Head</h1>" in html
    assert "<strong>bold</strong>" in html
    assert f'href="{BLOBS}app.py"' in html
    assert 'href="https://example.org" rel="nofollow noopener noreferrer"' in html
    assert f'src="{FILES}img/a%20b.png"' in html
    assert "<td>1</td>" in html


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000, "![" * 50_000, "> " * 20_000 + "x", "- " * 20_000 + "x", "*a " * 50_000,
        "<div>" * 30_000, "`" * 50_000,
        "[a](" * 30_000, "|" * 60_000, "x\n" * 2_000_000, "\ufffd\x00\x01" * 50_000, "&" * 100_000, "<!--" * 40_000,
        "---\n" + "a: &a [*a]\n" * 10_000, "[a]: b\n" * 20_000 + "[a]",
    ],
)  # fmt: skip
def test_hostile_sizes_are_bounded_in_time(text: str) -> None:
    began = time.process_time()
    html = markdown.render(text, files=FILES, blobs=BLOBS)
    assert time.process_time() - began < 6.0  # under 1 on an idle machine; without the bounds, minutes
    assert active(html) == []


HOSTILE = [
    '<script>alert(1)</script>"',
    "'\"><img src=x onerror=alert(1)>",
    "{{ 123457*8 }}{% raw %}",
    "a\u202egnp.exe",
    "x" * 5000,
]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        self.bad += [f"{tag} {name}" for name, _ in attrs if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("text", HOSTILE)
def test_metadata_is_only_ever_text(world: World, text: str) -> None:
    files = {"README.md": f"# {text}".encode(), f"{text[:40].replace('/', '-')}.py": text.encode()}
    space = world.space(
        "hello", files, title=text, short_description=text, emoji=text, message=f"{text}. {text}", evidence=[text],
        reason=text[:50], stage="BUILD_ERROR", card={"colorFrom": text, "colorTo": text, "base_path": "//evil.example"},
    )  # fmt: skip
    world.build(space, text, status="FAILED", message=text)
    world.change(space, routed=world.deployment(space, text, status="READY", live=True).id)
    name = next(f for f in files if f.endswith(".py"))
    browser = world.browser("ada")
    space_pages = ("", "/live", "/tree/main", "/logs", f"/blob/main/{name}", "/commits/main")
    for path in ("/", f"/?q={text[:80]}", *(f"/spaces/ada/hello{page}" for page in space_pages)):
        page = browser.get(path)
        assert page.status_code == 200, path
        tags = Tags()
        tags.feed(page.text)
        assert tags.bad == []
        assert all(set(s) == {"src", "defer"} and str(s["src"]).startswith("/static/") for s in tags.scripts)
        assert "987656" not in page.text
        assert "\u202e" not in page.text
        assert "//evil.example" not in page.text
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


def test_source_shows_direction_changing_characters() -> None:
    assert words.code_text("if x:\u202e # safe") == "if x:⟦U+202E⟧ # safe"
    assert words.log_text("\x1b[31mred\x1b[0m\r50%\r100%\x07") == "100%"
    assert words.clean("a\u202eb\nc\x00" + "d" * 300, 10) == "ab c ddddd…"[:9] + "…"
