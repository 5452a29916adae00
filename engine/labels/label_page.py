"""A page for labelling images (one HTML file that works offline), and a CSV table of labels to fill in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path

from engine.report.page import jpeg_uri
from engine.report.theme import CSS
from loaders.common.errors import UserError, brief
from loaders.common.files import csv_text

SHOWN_PX = 160
_KEYS = "123456789abcdefghijklmnopqrstuvwyz"  # keys of the first classes; x removes a label, 0 goes back
_STYLE = """
main{max-width:none;padding-top:1rem}
#bar{position:sticky;top:0;z-index:2;background:var(--paper);border-bottom:1px solid var(--rule);
  padding:.6rem 0;display:flex;flex-wrap:wrap;gap:.4rem;align-items:center}
button,input{font:inherit;font-size:.92rem;background:var(--card);color:var(--ink);
  border:1px solid var(--rule);border-radius:.4rem;padding:.25rem .6rem}
button{cursor:pointer}button.on{border-color:var(--accent);color:var(--accent)}
button kbd{color:var(--muted);font-size:.8rem;margin-right:.35rem}
#save{background:var(--accent);color:var(--paper)}
#images{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.7rem;margin-top:1rem}
#images figure{margin:0;background:var(--card);border:2px solid var(--rule);border-radius:.5rem;
  padding:.4rem;content-visibility:auto;contain-intrinsic-size:auto 13rem;cursor:pointer}
#images figure.at{border-color:var(--second)}
#images figure.done b{color:var(--accent)}
#images img{width:100%;height:9rem;object-fit:contain;image-rendering:auto;display:block}
#images b,#images small{display:block;overflow-wrap:anywhere;font-size:.82rem;min-height:1.2em}
#images small{color:var(--muted)}
"""
# The page also keeps labels in the browser's local storage, if the browser allows that for a file, so that
# closing a tab by mistake loses nothing. The option `filled` of recipes/active.py reads the saved table.
_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const classes = data.classes.slice(), labels = data.rows.map(() => "");
const figures = [...document.querySelectorAll("#images figure")];
const store = {
  get() { try { return JSON.parse(localStorage.getItem(data.name) || "null"); } catch { return null; } },
  set() { try { localStorage.setItem(data.name, JSON.stringify({classes, labels})); } catch {} },
};
let at = 0;
function show(i) {
  const figure = figures[i];
  figure.querySelector("b").textContent = labels[i];
  figure.classList.toggle("done", labels[i] !== "");
}
function count() {
  const done = labels.filter(Boolean).length;
  document.getElementById("count").textContent = `${done} of ${labels.length} labelled`;
}
function go(i) {
  figures[at].classList.remove("at");
  at = Math.max(0, Math.min(figures.length - 1, i));
  figures[at].classList.add("at");
  figures[at].scrollIntoView({block: "nearest"});
}
function give(name) {
  labels[at] = name;
  show(at); count(); store.set();
  if (name) go(at + 1);
}
function button(name, i) {
  const made = document.createElement("button");
  if (i < data.keys.length) {
    const key = document.createElement("kbd");
    key.textContent = data.keys[i];
    made.append(key);
  }
  made.append(name);
  made.onclick = () => give(name);
  document.getElementById("classes").append(made);
}
function add(name) {
  if (!name || classes.includes(name)) return;
  classes.push(name);
  button(name, classes.length - 1);
}
function table() {
  const cell = text => /[",\\n\\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : String(text);
  const lines = [data.columns, ...data.rows.map((row, i) => [...row, labels[i]])];
  return lines.map(line => line.map(cell).join(",") + "\\n").join("");
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], {type: "text/csv"}));
  link.download = data.file;
  link.click();
}
data.classes.forEach(button);
const kept = store.get();
if (kept && kept.labels.length === labels.length) {
  kept.classes.forEach(add);
  kept.labels.forEach((name, i) => { labels[i] = name; show(i); });
}
figures.forEach((figure, i) => { figure.onclick = () => go(i); });
document.getElementById("add").onsubmit = event => {
  event.preventDefault();
  const input = document.getElementById("new");
  add(input.value.trim());
  store.set();  // not in add, which restores the kept classes one by one before their labels
  input.value = "";
  input.blur();
};
document.getElementById("save").onclick = save;
document.addEventListener("keydown", event => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key, place = data.keys.indexOf(key);
  if (key === "ArrowRight") go(at + 1);
  else if (key === "ArrowLeft" || key === "0") go(at - 1);
  else if (key === "x" || key === "Delete") give("");
  else if (place >= 0 && place < classes.length) give(classes[place]);
  else return;
  event.preventDefault();
});
go(labels.findIndex(name => !name)); count();
"""


def label_page(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    classes: Sequence[str],
    picture: Callable[[int], bytes],
) -> str:
    """Return a page on which a click or a key gives an image its class, and a button saves the table.

    Args:
        name: name of the request. The browser stores labels under this name and a hash of the rows and keys.
        columns: names of the table's columns, the label last.
        rows: for each image the cells of the table except the label, as texts: first the row of the pack,
            then the key, and last a guessed class or "".
        classes: classes to choose from; the user can add others on the page.
        picture: returns the JPEG file of the image at a position in `rows`.
    """
    images = sha256(json.dumps([row[:2] for row in rows]).encode()).hexdigest()
    data = {
        "name": f"{name} {images}",
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "classes": list(classes),
        "keys": _KEYS,
        "file": "request.csv",
    }
    # "<" is escaped, so that no class name can close the script element.
    text = json.dumps(data).replace("<", "\\u003c")
    figures = "".join(
        f'<figure><img src="{jpeg_uri(picture(place))}" alt="{escape(row[1])}" loading="lazy"><b></b>'
        f"<small>{escape(row[1])}{escape(f' · {row[-1]}?') if row[-1] else ''}</small></figure>"
        for place, row in enumerate(rows)
    )
    title = escape(f"Label {len(rows):,} images")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{CSS}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1><p>Choose the class of the framed image by its button or key; arrows move, x "
        "takes a label away. Save the table and give it to --filled.</p>\n"
        '<div id="bar"><span id="classes"></span><form id="add"><input id="new" size="12" '
        'placeholder="new class" aria-label="new class"></form>'
        '<span id="count"></span><button id="save">Save table</button></div>\n'
        f'<div id="images">{figures}</div>\n</main>\n'
        f'<script type="application/json" id="data">{text}</script>\n<script>{_SCRIPT}</script>\n'
        "</body>\n</html>\n"
    )


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as CSV with an empty column of labels, for filling in without the page."""
    return csv_text(columns, ([*row, ""] for row in rows))


def refuse_filled(path: Path) -> None:
    """Refuse to overwrite a request that holds labels.

    Without a column "label", every row counts as labelled, since the labels may be in another column.

    Raises:
        UserError: the table holds labels, or cannot be read.
    """
    if not path.is_file():
        return
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            filled = sum(bool((line.get("label", "?") or "").strip()) for line in csv.DictReader(file))
    except csv.Error as error:
        raise UserError(
            f"{path}: expected an empty request, found another file ({brief(error)}); move it"
        ) from None
    if filled:
        raise UserError(
            f"{path}: expected no labels where a request is written, found {filled:,}; make a table of them "
            f"with recipes/active.py --filled {path}, or ask with another --out"
        )
