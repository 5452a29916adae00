"""The labelling page: clicks and keys in a browser fill its table, and the recipe reads the table back."""

import json
import re
from pathlib import Path

import pytest

from engine.labels.label_page import label_page, refuse_filled, table_text
from loaders.common.errors import UserError
from tests.browser import needs_browser, open_page, result
from tests.loaders.packs.inputs import jpeg

COLUMNS = ("row", "key", "cluster", "margin", "guess", "label")
ROWS = [(str(row), f"all/c,{row}", "-1", "", "cat" if row else "") for row in range(4)]
HOSTILE = '</script><b>"x"&'


def page(name: str = "test") -> str:
    return label_page(name, COLUMNS, ROWS, ["cat", HOSTILE], lambda i: jpeg(i))


def test_no_name_leaves_its_place() -> None:
    text = page()
    assert text.count("</script>") == 2
    assert "http" not in text.replace("http-equiv", "")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["classes"] == ["cat", HOSTILE]
    assert table_text(COLUMNS, ROWS).splitlines()[1] == '0,"all/c,0",-1,,,'


def storage_key(rows: list[tuple[str, ...]]) -> str:
    text = label_page("test", COLUMNS, rows, ["cat"], lambda i: jpeg(i))
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["name"]


def test_the_browser_keeps_labels_for_these_images_in_this_order() -> None:
    first, *others = ROWS
    assert storage_key(ROWS) == storage_key([(*first[:3], "0.5", "dog"), *others]), "the same images"
    last = ("9", "all/c,9", *ROWS[-1][2:])
    keys = [storage_key(rows) for rows in (ROWS, [*ROWS[:-1], last], [first, *reversed(others)])]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("row,key,label\n1,a,cat\n2,b,\n", "found 1; make a table"),
        ("row;key;label\n1;a;cat\n", "found 1; make a table"),  # some spreadsheets save semicolons
        ("row,key,label\n1,a," + "x" * 200_000, "found another file .field larger"),
    ],
)
def test_a_request_with_labels_is_not_written_over(text: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "request.csv"
    refuse_filled(path)
    path.write_text(table_text(COLUMNS, ROWS))
    refuse_filled(path)
    path.write_text(text)
    with pytest.raises(UserError, match=found):
        refuse_filled(path)


DRIVER = """
const pressed = key => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
document.querySelectorAll("#classes button")[1].click();      // image 0: the hostile name
pressed("1");                                                  // image 1: cat
document.getElementById("new").value = "yak, large";
document.getElementById("add").requestSubmit();
pressed("3");                                                  // image 2: the new class
pressed("1"); pressed("ArrowLeft"); pressed("ArrowRight");     // image 3: cat, and ...
document.querySelectorAll("#images figure")[3].click();
pressed("x");                                                  // ... no more
let saved = null;
URL.createObjectURL = blob => { saved = blob; return "about:blank#"; };
HTMLAnchorElement.prototype.click = () => {};
document.getElementById("save").click();
saved.text().then(text => {
  const made = document.createElement("pre");
  made.id = "result";
  made.textContent = text + document.getElementById("count").textContent;
  document.body.append(made);
});
"""


@needs_browser
def test_clicks_and_keys_fill_the_table(tmp_path: Path) -> None:
    (tmp_path / "request.html").write_text(page())
    opened = open_page(tmp_path / "request.html", DRIVER)
    assert opened.console == []
    quoted = HOSTILE.replace('"', '""')
    assert result(opened).splitlines() == [
        "row,key,cluster,margin,guess,label",
        f'0,"all/c,0",-1,,,"{quoted}"',
        '1,"all/c,1",-1,,cat,cat',
        '2,"all/c,2",-1,,cat,"yak, large"',
        '3,"all/c,3",-1,,cat,',
        "3 of 4 labelled",
    ]
    for _ in range(2):  # the browser remembers labels when the page is opened again
        again = open_page(tmp_path / "request.html")
        assert again.dom.count('class="done') == 3
        assert "3 of 4 labelled" in again.dom
        assert "yak, large" in again.dom
