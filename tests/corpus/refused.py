"""Inputs whose labels cannot be determined: a writer for each, its PATH, and the expected error message."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus.writers import (
    CAT,
    DOG,
    beside,
    both,
    parquet,
    saved,
    tarred,
    tree,
)

REFUSED = {
    "several labels": (
        beside("l.jsonl", '{"path": "in/a.jpg", "label": 0}\n{"path": "in/b.jpg", "label": [0, 1]}\n'),
        "l.jsonl",
        r"l.jsonl, row 2: the label is '\[0, 1\]', expected one .*--multi-label",
    ),
    "several labels in a text": (
        beside("l.csv", 'path,label\nin/a.jpg,"[0, 1]"\n'),
        "l.csv",
        r"l.csv, row 1: the label is '\[0, 1\]'",
    ),
    "a fraction": (
        beside("l.csv", "path,label\nin/a.jpg,1\nin/b.jpg,0.5\n"),
        "l.csv",
        r"row 2: the label 0.5 is a fraction",
    ),
    "a fraction in a list beside": (
        beside("l.csv", "path,label\na.jpg,0.5\nb.jpg,1\n"),
        "in#labels=l.csv",
        r"row 1: the label 0.5 is a fraction",
    ),
    "an empty text": (
        beside("l.jsonl", '{"path": "in/a.jpg", "label": ""}\n'),
        "l.jsonl",
        r"row 1: the label is an empty text",
    ),
    "lists in a table": (
        parquet("t.parquet", {"label": [[0], [0, 1]]}),
        "t.parquet",
        r"row 0, column 'label': .*'\[0\]'",
    ),
    "fractions in a table": (
        parquet("t.parquet", {"label": [0.0, 0.25]}),
        "t.parquet",
        r"row 1, .* 0.25 is a fraction",
    ),
    "a fraction in a sample": (
        tarred(**{"1.jpg": CAT, "1.cls": "0.5"}),
        "wds:in.tar",
        r"in.tar/1.cls: the label 0.5",
    ),
    "an empty .cls": (
        tarred(**{"1.jpg": CAT, "1.cls": " "}),
        "wds:in.tar",
        r"in.tar/1.cls: the label is an empty",
    ),
    "fine and coarse": (
        parquet("t.parquet", {"fine_label": [0, 1], "coarse_label": [0, 0]}),
        "t.parquet",
        r"several columns of labels, fine_label, coarse_label: choose one with --label-column",
    ),
    "two columns of bytes": (
        lambda root: pq.write_table(pa.table({"left": [CAT], "right": [DOG]}), root / "t.parquet"),
        "t.parquet",
        r"several columns of bytes, left, right: choose one with --image-column",
    ),
    "a folder of several splits": (
        parquet("in/data/train-0.parquet", {}, also=("in/data/test-0.parquet",)),
        "in",
        r"holds tables of several splits, test, train: name one as .*in#test",
    ),
    "a saved dictionary": (
        both(saved("in/train"), tree(**{"dataset_dict.json": "{}"})),
        "in",
        r"holds the splits train: name one as .*in#train",
    ),
    "a selection": (
        both(saved("in"), tree(**{"state.json": '{"_data_files": [], "_indices_data_files": [{}]}'})),
        "in",
        r"call flatten_indices\(\)",
    ),
    "tables that are no images": (
        tree(**{"a.csv": "x,y\n", "t.parquet": b"no"}),
        "in",
        r"cannot be read as a table",
    ),
    "a folder of broken tables": (
        lambda root: (
            (root / "in").mkdir()
            or pq.write_table(pa.table({"image": [b"x"]}), root / "in" / "train-0.parquet")
        ),
        "in",
        r"none of the 1 files in .*/train-\*.parquet can be packed",
    ),
    "img2dataset, a folder of tars": (
        both(
            tree(**{"00000.tar": b"x", "00000_stats.json": "{}"}),
            lambda root: pq.write_table(pa.table({"url": ["x"]}), root / "in" / "00000.parquet"),
        ),
        "in",
        r"holds no image, but files such as 00000.tar: give these, such as 'wds:.*/in/\*.tar'",
    ),
    "a folder of tars": (tree(**{"x/0.tar": b"x"}), "in", r"give these, such as 'wds:.*/in/x/\*.tar'"),
    "a list without a heading": (
        beside("l.csv", "in/a.jpg,cat\nin/b.jpg,dog\n"),
        "l.csv",
        r"expected a heading",
    ),
    "a column twice": (
        beside("l.csv", "path,label,label\nin/a.jpg,0,1\n"),
        "l.csv",
        r"the column 'label' twice",
    ),
    "two files of one name": (
        both(tree(**{"x/a.jpg": CAT, "y/a.jpg": DOG}), beside("l.csv", "id,breed\na,cat\n")),
        "in#labels=l.csv",
        r"a matches both .*a.jpg and .*a.jpg: give paths",
    ),
}
