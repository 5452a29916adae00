"""Opening a page in headless Chromium: what becomes of it, and what its console says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the PATH to open pages")


class Opened(NamedTuple):
    """A page after its scripts have run.

    Attributes:
        dom: as HTML text.
        console: lines that it wrote, errors among them.
    """

    dom: str
    console: list[str]


def open_page(page: Path, script: str = "", width: int = 1000, screenshot: Path | None = None) -> Opened:
    """Open a page, run a script in it, and return what it has become.

    Args:
        page: the file.
        script: runs after the page's own.
        width: of the window in pixels.
        screenshot: PNG file to write.
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
        "--virtual-time-budget=3000",
        f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={width},1400",
        *([f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]),
        opened.resolve().as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(page.parent)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Opened(done.stdout, re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr))


def result(opened: Opened) -> str:
    """Return the text that a script left in an element called `result`, with entities resolved."""
    from html import unescape

    found = re.search(r'<pre id="result">(.*?)</pre>', opened.dom, re.S)
    assert found, opened
    return unescape(found[1])
