"""The first commit of a new Space, as the Hub makes it: README.md with front matter, .gitattributes. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

import runtime_images
from spaces_platform.api.schemas import CreateIn
from spaces_platform.errors import Invalid

GIT_ATTRIBUTES = b"* text=auto\n"
"""No LFS patterns: a file of one would be refused as long as the platform keeps no LFS objects."""
EMOJI = {"gradio": "🚀", "streamlit": "📊", "dash": "📈", "static": "📄", "docker": "🐳"}
APP_FILE = {"gradio": "app.py", "streamlit": "app.py", "dash": "app.py", "static": "index.html"}
INDEX = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width">
    <title>{title}</title>
    <link rel="stylesheet" href="style.css">
  </head>
  <body>
    <h1>{title}</h1>
    <p>Edit <code>index.html</code> and push to change this page.</p>
  </body>
</html>
"""
STYLE = "body { font-family: system-ui, sans-serif; margin: 3rem auto; max-width: 40rem; padding: 0 1rem; }\n"


def first_files(body: CreateIn) -> Mapping[str, bytes]:
    """Files of the first commit; none where the caller will push a history of their own. Raises Invalid."""
    if not body.init:
        return {}
    sdk = body.sdk or ""
    files = {"README.md": readme(body.name, sdk, body.short_description), ".gitattributes": GIT_ATTRIBUTES}
    if sdk == "static":
        files |= {"index.html": INDEX.format(title=body.name).encode(), "style.css": STYLE.encode()}
    for file in body.files:
        files[file.path] = _content(file.path, file.content, file.encoding)
    return files


def readme(name: str, sdk: str, description: str | None) -> bytes:
    rows = {
        "title": json.dumps(name.replace("-", " ").replace("_", " "), ensure_ascii=False),
        "emoji": EMOJI.get(sdk, "🚀"),
        "colorFrom": "blue",
        "colorTo": "indigo",
        "sdk": sdk,
    }
    known = runtime_images.load().sdks.get(sdk)
    if known is not None and known.version:
        rows["sdk_version"] = json.dumps(known.version)
    if sdk in APP_FILE:
        rows["app_file"] = APP_FILE[sdk]
    if description:
        rows["short_description"] = json.dumps(description[:60], ensure_ascii=False)
    return ("---\n" + "".join(f"{key}: {value}\n" for key, value in rows.items()) + "---\n").encode()


def _content(path: str, content: str, encoding: str) -> bytes:
    if encoding != "base64":
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise Invalid(f"The content of {path[:200]} is not base64.") from error
