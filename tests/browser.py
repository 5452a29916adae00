"""Open pages in headless Chromium, and return their DOM and what their scripts wrote to the console."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the PATH to open pages")


class Opened(NamedTuple):
    """A page after its scripts have run.

    Attributes:
        dom: the DOM as HTML text.
        console: lines that the page wrote to the console, including errors.
    """

    dom: str
    console: list[str]


class Frames(NamedTuple):
    """The results of one function in many pages.

    Attributes:
        found: result by page name and width, such as "vae 390"; the error's text if the function failed.
        console: lines that any page wrote to the console.
    """

    found: dict[str, Any]
    console: list[str]


def open_page(
    page: Path,
    script: str = "",
    width: int = 1000,
    screenshot: Path | None = None,
    wait_ms: int = 3000,
    patience_s: int = 60,
) -> Opened:
    """Open a page, run a script in it, and return the page as it is afterwards.

    Args:
        script: JavaScript to run after the page's own scripts.
        width: width of the window in pixels.
        screenshot: PNG file to write.
        wait_ms: longest virtual time for the page's timers.
        patience_s: longest real time for the browser.
    """
    assert BROWSER is not None
    opened = page
    if script:
        opened = page.with_name(f"driven-{page.name}")
        text = page.read_text("utf-8")
        opened.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--virtual-time-budget={wait_ms}",
        f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={width},1400",
        *([f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]),
        opened.resolve().as_uri(),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=patience_s,
        env={**os.environ, "HOME": str(page.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Opened(done.stdout, re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr))


FRAMED = """
window.addEventListener("load", () => {
  const report = found => window.parent.postMessage(JSON.stringify(found), "*");
  try { report([location.hash, (() => {%s})()]); } catch (error) { report([location.hash, String(error)]); }
});
"""
COLLECTOR = """
const found = {}, shown = document.createElement("pre");
shown.id = "result";
document.body.append(shown);
window.addEventListener("message", event => {
  const [name, value] = JSON.parse(event.data);
  found[decodeURIComponent(name.slice(1))] = value;
  shown.textContent = JSON.stringify(found);
});
"""


def open_pages(pages: Mapping[str, Path], function: str, widths: Sequence[int], folder: Path) -> Frames:
    """Open many pages in one browser, each in a frame for each width, and call a function in each.

    Args:
        pages: files by name; the files stay unchanged.
        function: body of a JavaScript function that runs when a page has loaded; its result must be JSON.
        widths: widths of the frames in pixels, such as a phone's.
        folder: folder for temporary copies of the pages.
    """
    frames = ""
    for number, (name, page) in enumerate(pages.items()):
        copy = folder / f"page-{number}.html"
        script = f"<script>{FRAMED % function}</script></body>"
        copy.write_text(page.read_text("utf-8").replace("</body>", script), "utf-8")
        for width in widths:
            frames += (
                f'<iframe src="{copy.name}#{quote(f"{name} {width}")}" width="{width}" height="900"></iframe>'
            )
    overview = folder / "pages.html"
    overview.write_text(f"<!doctype html><body><script>{COLLECTOR}</script>{frames}</body>", "utf-8")
    opened = open_page(overview, wait_ms=10_000, patience_s=200)
    return Frames(json.loads(result(opened)), opened.console)


def result(opened: Opened) -> str:
    """Return the text that a script wrote into the element `result`, with HTML entities resolved."""
    from html import unescape

    found = re.search(r'<pre id="result">(.*?)</pre>', opened.dom, re.S)
    assert found, opened
    return unescape(found[1])
