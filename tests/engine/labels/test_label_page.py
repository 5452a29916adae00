"""The page to label on: its table goes back into the recipe, and a browser's clicks and keys fill it."""

import json
import re
from pathlib import Path

from engine.labels.label_page import label_page, table_text
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
    # The browser keeps labels for the next time that the page is opened.
    again = open_page(tmp_path / "request.html")
    assert again.dom.count('class="done') == 3
    assert "3 of 4 labelled" in again.dom
