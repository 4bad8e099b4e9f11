"""The front matter: every key good and bad, quoted and not, and YAML that means harm."""

from __future__ import annotations

import time
from dataclasses import fields

import pytest

from builders.config import KEYS, ConfigError, MissingAppFile, SpaceConfig, read_config

FILES = ["app.py", "README.md", "index.html", "Dockerfile", "src/main.py"]


def read(text: str, sdk: str = "gradio") -> SpaceConfig:
    return read_config(f"---\nsdk: {sdk}\n{text}\n---\n# body\n", FILES)


GOOD = [
    ("title: My app", "title", "My app"),
    ('title: "a: b"', "title", "a: b"),
    ("title: |\n  two\n  lines", "title", "two\nlines"),
    ("title: null", "title", ""),
    ("emoji: 🚀", "emoji", "🚀"),
    ("emoji: 👨‍👩‍👧", "emoji", "👨‍👩‍👧"),
    ("emoji: 🇫🇷", "emoji", "🇫🇷"),
    ("emoji: ❤️", "emoji", "❤️"),
    ("emoji: 👍🏽", "emoji", "👍🏽"),
    ("emoji: 1️⃣", "emoji", "1️⃣"),
    ("colorFrom: red", "color_from", "red"),
    ("colorTo: 'gray'", "color_to", "gray"),
    ('sdk_version: "5.49.1"', "sdk_version", "5.49.1"),
    ("sdk_version: 5.49.1", "sdk_version", "5.49.1"),
    ("sdk_version: 5.0.0b3", "sdk_version", "5.0.0b3"),
    ('python_version: "3.10"', "python_version", "3.10"),
    ("python_version: 3.11.7", "python_version", "3.11.7"),
    ("app_file: src/main.py", "app_file", "src/main.py"),
    ("app_file: ./app.py", "app_file", "app.py"),
    ("base_path: /docs?x=1", "base_path", "/docs?x=1"),
    ("suggested_hardware: t4-small", "suggested_hardware", "t4-small"),
    ("suggested_storage: small", "suggested_storage", "small"),
    ("header: mini", "header", "mini"),
    ("fullWidth: false", "full_width", False),
    ("fullWidth: no", "full_width", False),
    ("short_description: hello", "short_description", "hello"),
    ("models: [a/b, c/d]", "models", ("a/b", "c/d")),
    ("datasets:\n- a/b", "datasets", ("a/b",)),
    ("tags: []", "tags", ()),
    ("thumbnail: https://example.org/a.png", "thumbnail", "https://example.org/a.png"),
    ("pinned: true", "pinned", True),
    ("license: mit", "license", ("mit",)),
    ("license: [mit, apache-2.0]", "license", ("mit", "apache-2.0")),
    ("hf_oauth: true", "hf_oauth", True),
    ("hf_oauth_scopes: [email, jobs]", "hf_oauth_scopes", ("email", "jobs")),
    ("hf_oauth_expiration_minutes: 43200", "hf_oauth_expiration_minutes", 43200),
    ("hf_oauth_authorized_org: acme", "hf_oauth_authorized_org", ("acme",)),
    ("disable_embedding: true", "disable_embedding", True),
    ("startup_duration_timeout: 1h30m", "startup_duration_timeout", 5400),
    ("startup_duration_timeout: 90s", "startup_duration_timeout", 90),
    ("custom_headers:\n  cross-origin-opener-policy: same-origin", "custom_headers",
     {"cross-origin-opener-policy": "same-origin"}),
    ("preload_from_hub: [gpt2, 'a/b x.bin,y.json', 'a/b x.bin " + "0" * 40 + "']", "preload_from_hub",
     ("gpt2", "a/b x.bin,y.json", "a/b x.bin " + "0" * 40)),
    ("duplicated_from: a/b", "duplicated_from", "a/b"),
    ("metaTitle: Meta", "meta_title", "Meta"),
    ("description: Words", "description", "Words"),
    ("title: a\u202eb", "title", "ab"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "value"), GOOD)
def test_good(text: str, name: str, value: object) -> None:
    config = read(text)
    assert getattr(config, name) == value
    assert config.warnings == ()


WARNED = [
    ("python_version: 3.10", "python_version", "3.10", "line 3"),
    ("python_version: 3.1", "python_version", "3.10", '"3.10"'),
    ("sdk_version: 5.0", "sdk_version", "5.0", '"5.0"'),
    ("title: 2048", "title", "2048", "quotes"),
    ("title: yes", "title", "yes", "quotes"),
    ("title: 2024-01-01", "title", "2024-01-01", "quotes"),
    ('hf_oauth_expiration_minutes: "60"', "hf_oauth_expiration_minutes", 60, "leave the quotes out"),
    ('pinned: "true"', "pinned", True, "leave the quotes out"),
    ("tags: one", "tags", ("one",), "list of one"),
    ("suggested_hardware: h200", "suggested_hardware", "h200", "not known"),
    ("app_port: 8000", "app_port", 8000, "docker"),
    ("app_build_command: make", "app_build_command", "make", "static"),
    ("hardware: t4-small", "extra", {"hardware": "t4-small"}, "settings"),
    ("app_fil: x.py", "extra", {"app_fil": "x.py"}, "app_file"),
]


@pytest.mark.parametrize(("text", "name", "value", "words"), WARNED)
def test_put_right_with_a_warning(text: str, name: str, value: object, words: str) -> None:
    config = read(text)
    assert getattr(config, name) == value
    assert len(config.warnings) == 1
    assert words in config.warnings[0]
    assert "README.md line 3" in config.warnings[0]


def test_unknown_keys_are_kept_without_noise() -> None:
    config = read("my_own: {a: 1, b: [x, y]}\nother: 0x10")
    assert config.extra == {"my_own": "a: 1, b: x, y", "other": "0x10"}
    assert config.warnings == ()


BAD = [
    ("title: " + "x" * 201, "title"),
    ("title: [a]", "title"),
    ("emoji: ab", "emoji"),
    ("emoji: 🚀🚀", "emoji"),
    ("emoji: 7", "emoji"),
    ("colorFrom: orange", "colorFrom"),
    ("colorTo: Red", "colorTo"),
    ("sdk_version: '>=5'", "sdk_version"),
    ("sdk_version: latest", "sdk_version"),
    ("python_version: 2.7", "python_version"),
    ('python_version: "3.1"', "python_version"),
    ("python_version: three", "python_version"),
    ("app_file: ../app.py", "app_file"),
    ("app_file: /etc/passwd", "app_file"),
    ("app_file: a/../../b.py", "app_file"),
    ("app_file: .git/config", "app_file"),
    ("app_file: -c", "app_file"),
    ('app_file: "a\\nb.py"', "app_file"),
    ("app_port: 80", "app_port"),
    ("app_port: 70000", "app_port"),
    ("app_port: http", "app_port"),
    ("app_port: 0x1f90", "app_port"),
    ("base_path: docs", "base_path"),
    ("base_path: //evil.example", "base_path"),
    ("base_path: /a/../b", "base_path"),
    ("header: big", "header"),
    ("fullWidth: maybe", "fullWidth"),
    ("short_description: " + "x" * 61, "short_description"),
    ("models: [[a]]", "models"),
    ("thumbnail: javascript:alert(1)", "thumbnail"),
    ("pinned: 1", "pinned"),
    ("license: {a: b}", "license"),
    ("hf_oauth_scopes: [root]", "hf_oauth_scopes"),
    ("hf_oauth_expiration_minutes: 50000", "hf_oauth_expiration_minutes"),
    ("startup_duration_timeout: 30", "startup_duration_timeout"),
    ("startup_duration_timeout: 48h", "startup_duration_timeout"),
    ("custom_headers: {x-frame-options: deny}", "custom_headers"),
    ("custom_headers: {cross-origin-opener-policy: any}", "custom_headers"),
    ("custom_headers: [a]", "custom_headers"),
    ("preload_from_hub: ['a/b x y z']", "preload_from_hub"),
]


@pytest.mark.parametrize(("text", "name"), BAD)
def test_bad(text: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    [problem] = caught.value.problems
    assert (problem.field, problem.line) == (name, 3)
    assert problem.message
    assert problem.fix
    assert problem.allowed


def test_every_key_has_a_good_and_most_a_bad_case() -> None:
    names = {key.name for key in KEYS} - {"sdk", "app_port", "app_build_command"}
    assert {text.split(":")[0] for text, *_ in GOOD} >= names
    anything = {"title", "description", "metaTitle", "duplicated_from", "datasets", "tags", "hf_oauth", "colorTo"}
    soft = {"suggested_hardware", "suggested_storage", "hf_oauth_authorized_org", "disable_embedding"}
    assert {text.split(":")[0] for text, _ in BAD} >= names - anything - soft


def test_table_and_class_agree() -> None:
    own = {field.name: field for field in fields(SpaceConfig)}
    assert set(own) - {"extra", "warnings"} == {key.attr for key in KEYS}
    config = SpaceConfig(sdk="gradio")
    for key in KEYS:
        if key.name != "sdk":
            assert getattr(config, key.attr) == key.default, key.name
        assert key.effect
        assert key.allowed


def test_all_problems_at_once_in_order() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config("---\ncolorFrom: orange\nemoji: x\nsdk: grado\n---\n", FILES)
    assert [(p.field, p.line, p.column) for p in caught.value.problems] == [
        ("colorFrom", 2, 12), ("emoji", 3, 8), ("sdk", 4, 6),
    ]  # fmt: skip
    assert "`gradio`" in caught.value.problems[2].fix


@pytest.mark.parametrize(
    "readme", [None, "", "# Title\n", "text\n---\nsdk: gradio\n---\n", "--- \n---\n", "---\n---\n"]
)
def test_missing_configuration(readme: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(readme, FILES)
    assert "Missing configuration in README" in caught.value.problems[0].message
    assert "sdk: gradio" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    "readme",
    [
        "\ufeff---\nsdk: gradio\n---\n",
        "---\r\nsdk: gradio\r\n---\r\n# x\r\n",
        "\n\n---\nsdk: gradio\n---",
        "---   \nsdk: gradio\n---   \nsdk: static\n",
        "---\n# a comment\nsdk: gradio # here\n---\n---\nmore: yes\n---\n",
    ],
)
def test_fences(readme: str) -> None:
    assert read_config(readme, FILES).sdk == "gradio"


def test_crlf_keeps_lines_and_values() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config("---\r\nsdk: gradio\r\ntitle: x\r\ncolorTo: no\r\n---\r\n", FILES)
    assert caught.value.problems[0].line == 4
    assert caught.value.problems[0].found == "no"


NESTED = "a: " + "[" * 6 + "]" * 6
HOSTILE = [
    ("a: &x 1\nb: *x", 3, "alias"),
    ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", 3, "anchors"),
    ("a: !!python/object/apply:os.system ['id']", 3, "tags"),
    ("a: !x 1", 3, "tags"),
    ("<<: {a: 1}", 3, "merge"),
    ("title: a\ntitle: b", 4, "twice"),
    (NESTED, 3, "deeper"),
    ("a: " + "{b: " * 6 + "1" + "}" * 6, 3, "deeper"),
    ("[a]: 1", 3, "key"),
    ("title: a: b", 3, "Not valid YAML"),
    ("title:\tx\n\ty: 1", 4, "Not valid YAML"),
    ("- a", 3, "Not valid YAML"),
    ("title: 'open", 3, "Not valid YAML"),
    ("a: \x01", 2, "Not valid YAML"),
    ("x: |\n" + "  y\n" * 5000, 1, "16 KiB"),
    ("é: " + "é" * 9000, 2, "16 KiB"),
]


@pytest.mark.parametrize(("text", "line", "words"), HOSTILE)
def test_hostile_yaml(text: str, line: int, words: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read(text)
    [problem] = caught.value.problems
    assert words in problem.message
    assert problem.line == line
    assert problem.fix
    assert time.process_time() - began < 1


def test_deep_nesting_does_not_recurse() -> None:
    with pytest.raises(ConfigError, match="deeper"):
        read("a: " + "[" * 8000)


def test_unclosed_block_names_its_opening() -> None:
    with pytest.raises(ConfigError, match="not closed"):
        read_config("---\nsdk: gradio\n", FILES)


def test_static_refuses_base_path() -> None:
    with pytest.raises(ConfigError, match="does not go with"):
        read("base_path: /x", sdk="static")


@pytest.mark.parametrize(
    ("front", "paths", "missing", "near"),
    [
        ("sdk: gradio", ["main.py", "README.md"], "app.py", ("main.py",)),
        ("sdk: gradio\napp_file: aap.py", ["app.py"], "aap.py", ("app.py",)),
        ("sdk: static", ["public/index.html"], "index.html", ("public/index.html",)),
        ("sdk: docker", ["README.md"], "Dockerfile", ()),
        ("sdk: docker", ["docker/Dockerfile"], "Dockerfile", ("docker/Dockerfile",)),
        ("sdk: streamlit", ["x.txt"], "app.py", ()),
    ],
)
def test_missing_app_file(front: str, paths: list[str], missing: str, near: tuple[str, ...]) -> None:
    with pytest.raises(MissingAppFile) as caught:
        read_config(f"---\n{front}\n---\n", paths)
    assert (caught.value.path, caught.value.near) == (missing, near)
    assert missing in str(caught.value)


def test_entry_files_that_are_found() -> None:
    assert read_config("---\nsdk: streamlit\n---\n", ["streamlit_app.py"]).sdk == "streamlit"
    built = "---\nsdk: static\napp_build_command: npm run build\napp_file: dist/index.html\n---\n"
    assert read_config(built, ["package.json"]).app_file == "dist/index.html"
