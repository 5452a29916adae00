"""Dataset layouts that users have: a writer for each, and the expected class of each image."""

from __future__ import annotations

import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq

from loaders.packs.sources.table_columns import ColumnOptions
from tests.corpus.writers import (
    CAT,
    DOG,
    E_ACUTE,
    LABELLED,
    LAST,
    NUMBERED,
    OTHER,
    UNLABELLED,
    Layout,
    beside,
    both,
    class_label,
    parquet,
    saved,
    tarred,
    tree,
    zipped,
)

CAPTIONED = {"0001.txt": "a small thing", "0001.json": '{"caption": "a small thing", "url": "http://x/1"}'}
SHARD = {
    "00000/000001.jpg": CAT,
    "00000/000001.txt": "a thing",
    "00001/000002.jpg": DOG,
    "00001/000002.json": "{}",
}
LAYOUTS = {
    "classes": Layout(tree(**{"cat/1.jpg": CAT, "dog/1.jpg": DOG}), LABELLED),
    "flat": Layout(tree(**{"1.jpg": CAT, "2.jpg": DOG}), UNLABELLED),
    "tiny imagenet": Layout(
        tree(
            **{"cat/images/1.JPEG": CAT, "dog/images/1.JPEG": DOG, "dog/dog_boxes.txt": "1.JPEG\t0\t0\t3\t3"}
        ),
        LABELLED,
    ),
    "tiny imagenet, val": Layout(
        tree(
            **{
                "images/a.JPEG": CAT,
                "images/b.JPEG": DOG,
                "val_annotations.txt": "a.JPEG\tcat\t0\t0\t3\t3\nb.JPEG\tdog\t0\t0\t3\t3\n",
            }
        ),
        LABELLED,
        said="val_annotations.txt",
    ),
    "images without classes": Layout(tree(**{"images/1.jpg": CAT, "images/2.jpg": DOG}), UNLABELLED),
    "image as one of the classes": Layout(
        tree(**{"image/1.jpg": CAT, "text/1.jpg": DOG}), {CAT: "image", DOG: "text"}
    ),
    "hidden folders": Layout(
        tree(
            **{
                "cat/1.jpg": CAT,
                "dog/1.jpg": DOG,
                ".ipynb_checkpoints/1-checkpoint.jpg": OTHER,
                "dog/.ipynb_checkpoints/1.jpg": LAST,
                "@eaDir/1.jpg": LAST,
                "cat/._1.jpg": b"\0\5\x16\7",
            }
        ),
        LABELLED,
    ),
    "img2dataset, folders": Layout(tree(**SHARD), UNLABELLED, said="taken for shards, not for classes"),
    "img2dataset, tars": Layout(
        tarred(**{"0001.jpg": CAT, **CAPTIONED, "0002.jpg": DOG, "0002.txt": "dog"}),
        UNLABELLED,
        "wds:in.tar",
        said="maybe labels: .txt",
    ),
    "webdataset, captions asked for": Layout(
        tarred(**{"1.jpg": CAT, "1.txt": "cat\n", "2.jpg": DOG, "2.txt": "dog"}),
        LABELLED,
        "wds:in.tar",
        columns=ColumnOptions(label_column="txt"),
    ),
    "webdataset, .cls beside captions": Layout(
        tarred(**{"1.jpg": CAT, "1.cls": "0", "1.txt": "a cat", "2.jpg": DOG, "2.cls": "1"}),
        NUMBERED,
        "wds:in.tar",
    ),
    "webdataset, a field of .json": Layout(
        tarred(**{"1.jpg": CAT, "1.json": '{"label": "cat"}', "2.jpg": DOG, "2.json": '{"label": "dog"}'}),
        LABELLED,
        "wds:in.tar",
    ),
    "webdataset, another field": Layout(
        tarred(**{"1.jpg": CAT, "1.json": '{"animal": "cat"}', "2.jpg": DOG, "2.json": '{"animal": "dog"}'}),
        LABELLED,
        "wds:in.tar",
        columns=ColumnOptions(label_column="animal"),
    ),
    "webdataset, a field nobody asked for": Layout(
        tarred(**{"1.jpg": CAT, "1.json": '{"animal": "cat"}', "2.jpg": DOG, "2.json": '{"animal": "dog"}'}),
        UNLABELLED,
        "wds:in.tar",
        said=".json animal",
    ),
    "webdataset, read as a tar": Layout(
        tarred(**{"1.jpg": CAT, "1.cls": "0", "2.jpg": DOG, "2.cls": "1"}),
        UNLABELLED,
        "in.tar",
        said="put wds: in front",
    ),
    "zip of windows": Layout(
        zipped({"pets\\": b"", "pets\\cat\\1.jpg": CAT, "pets\\dog\\1.jpg": DOG}), LABELLED, "in.zip"
    ),
    "zip of macos": Layout(
        zipped(
            {
                "pets/cat/1.jpg": CAT,
                "__MACOSX/pets/cat/._1.jpg": b"\0\5\x16\7",
                "pets/dog/1.jpg": DOG,
                "__MACOSX/._pets": b"\0\5\x16\7",
                "pets/.DS_Store": b"\0\0\0\1Bud1",
            }
        ),
        LABELLED,
        "in.zip",
    ),
    "zip of macos, no classes": Layout(
        zipped({"pets/1.jpg": CAT, "pets/2.jpg": DOG, "__MACOSX/pets/._1.jpg": b"\0\5\x16\7"}),
        UNLABELLED,
        "in.zip",
    ),
    "zip of macos, other letters": Layout(
        zipped({"\u043a\u043e\u0448\u043a\u0430/1.jpg": CAT, "dog/1.jpg": DOG}, flag_utf8=False),
        {CAT: "\u043a\u043e\u0448\u043a\u0430", DOG: "dog"},
        "in.zip",
    ),
    "zip in a code page": Layout(
        lambda root: (
            zipped({"Kaf\u00e9/1.jpg": CAT, "dog/1.jpg": DOG})(root),
            (root / "in.zip").write_bytes(
                (root / "in.zip")
                .read_bytes()
                .replace("Kaf\u00e9".encode(), b"Kaf\x82x")
                .replace(b"\0\0\x08", b"\0\0\0")
            ),
        ),
        {CAT: "Kaf\u00e9x", DOG: "dog"},
        "in.zip",
        said="unknown code page",
    ),
    "accents as a mac writes them": Layout(
        tree(
            **{
                f"{unicodedata.normalize('NFD', E_ACUTE)}/1.jpg": CAT,
                f"{E_ACUTE}/2.jpg": OTHER,
                "dog/1.jpg": DOG,
            }
        ),
        {CAT: E_ACUTE, OTHER: E_ACUTE, DOG: "dog"},
        said="comes from more than one folder",
    ),
    "folder of splits": Layout(
        tree(**{"train/cat/1.jpg": CAT, "train/dog/1.jpg": DOG, "val/cat/2.jpg": OTHER}),
        {**LABELLED, OTHER: "cat"},
        said="class cat comes from more than one folder, such as train/cat and val/cat",
    ),
    "yolo": Layout(
        tree(**{"images/train/1.jpg": CAT, "images/val/1.jpg": DOG}),
        {CAT: "train", DOG: "val"},
        said="have the names of splits (train, val)",
    ),
    "numbers as names": Layout(
        tree(**{"1/1.jpg": CAT, "2/1.jpg": DOG}), {CAT: "1", DOG: "2"}, said="the class '1' is label 0"
    ),
    "numbers that are their own": Layout(tree(**{"0/1.jpg": CAT, "1/1.jpg": DOG}), NUMBERED),
    "imagenet val with a list": Layout(
        beside("val.txt", "a.jpg cat\nb.jpg dog\n"), LABELLED, "in#labels=val.txt"
    ),
    "imagenet val with numbers": Layout(beside("truth.txt", "0\n1\n"), NUMBERED, "in#labels=truth.txt"),
    "a list in a .txt": Layout(beside("train.txt", "in/a.jpg 0\nin/b.jpg 1\n"), NUMBERED, "train.txt"),
    "paths in a .txt": Layout(beside("train.txt", "in/a.jpg\nin/b.jpg\n"), UNLABELLED, "train.txt"),
    "kaggle, id and breed": Layout(
        beside("labels.csv", "id,breed\na,cat\nb,dog\n"), LABELLED, "in#labels=labels.csv"
    ),
    "kaggle, another column": Layout(
        beside("labels.csv", "Image,points,Species\na,3,cat\nb,4,dog\n"),
        LABELLED,
        "in#labels=labels.csv",
        columns=ColumnOptions(label_column="species"),
    ),
    "kaggle, list not given": Layout(
        beside("in.csv", "id,breed\na,cat\nb,dog\n"), UNLABELLED, said="in.csv beside it is not used"
    ),
    "a list inside, not given": Layout(
        tree(**{"a.jpg": CAT, "b.jpg": DOG, "labels.csv": "id,breed\na,cat\nb,dog\n"}),
        UNLABELLED,
        said="not used: labels.csv",
    ),
    "imagefolder, metadata.csv": Layout(
        tree(**{"a.jpg": CAT, "b.jpg": DOG, "metadata.csv": "file_name,label\na.jpg,cat\nb.jpg,dog\n"}),
        LABELLED,
        said="column 'label'",
    ),
    "imagefolder, metadata.jsonl": Layout(
        tree(
            **{
                "x/a.jpg": CAT,
                "x/b.jpg": DOG,
                "metadata.jsonl": '{"file_name": "x/a.jpg", "label": 0}\n'
                '{"file_name": "x/b.jpg", "label": 1}\n',
            }
        ),
        NUMBERED,
        said="column 'label'",
    ),
    "imagefolder, metadata.parquet": Layout(
        both(
            tree(**{"a.jpg": CAT, "b.jpg": DOG}),
            lambda root: pq.write_table(
                pa.table({"file_name": ["a.jpg", "b.jpg"], "kind": [1, 0]}).replace_schema_metadata(
                    {"huggingface": json.dumps({"info": {"features": {"kind": class_label("dog", "cat")}}})}
                ),
                root / "in" / "metadata.parquet",
            ),
        ),
        LABELLED,
        said="column 'kind'",
    ),
    "imagefolder, labels under another name": Layout(
        tree(**{"a.jpg": CAT, "b.jpg": DOG, "metadata.csv": "file_name,breed\na.jpg,cat\nb.jpg,dog\n"}),
        LABELLED,
        said="column 'breed'",
        columns=ColumnOptions(label_column="breed"),
    ),
    "imagefolder, labels nobody asked for": Layout(
        tree(**{"a.jpg": CAT, "b.jpg": DOG, "metadata.csv": "file_name,breed\na.jpg,cat\nb.jpg,dog\n"}),
        UNLABELLED,
        said="--label-column 'breed'",
    ),
    "imagefolder, captions": Layout(
        tree(**{"a.jpg": CAT, "b.jpg": DOG, "metadata.csv": "file_name,text\na.jpg,one\nb.jpg,two\n"}),
        UNLABELLED,
        said="no column of it looks like labels",
    ),
    "hub, a folder of parquet files": Layout(
        parquet(
            "in/data/train-00000-of-00001.parquet", {"label": [1, 0]}, {"label": class_label("dog", "cat")}
        ),
        LABELLED,
    ),
    "hub, one of its splits": Layout(
        parquet(
            "in/data/train-00000-of-00001-0123456789abcdef.parquet",
            {"label": [1, 0]},
            {"label": class_label("dog", "cat")},
            also=("in/data/test-00000-of-00001.parquet",),
        ),
        LABELLED,
        "in#train",
    ),
    "hub, converted to parquet": Layout(
        parquet("in/default/train/0000.parquet", {"label": [0, 1]}, also=("in/default/test/0000.parquet",)),
        NUMBERED,
        "in#test",
    ),
    "save_to_disk": Layout(saved("in"), LABELLED),
    "save_to_disk, one of its splits": Layout(
        both(
            saved("in/train"),
            saved("in/test"),
            tree(**{"dataset_dict.json": '{"splits": ["train", "test"]}'}),
        ),
        LABELLED,
        "in#train",
    ),
    "arrow of the cache": Layout(saved("in"), LABELLED, "in/data-00000-of-00001.arrow"),
    "parquet, labels": Layout(parquet("in.parquet", {"labels": [0, 1]}), NUMBERED, "in.parquet"),
    "parquet, classes under another name": Layout(
        parquet(
            "in.parquet",
            {"kind": [1, 0], "size": [3, 4]},
            {"kind": class_label("dog", "cat")},
        ),
        LABELLED,
        "in.parquet",
    ),
    "parquet, fine and coarse": Layout(
        parquet("in.parquet", {"fine_label": [0, 1], "coarse_label": [0, 0]}),
        NUMBERED,
        "in.parquet",
        said="coarse_label",
        columns=ColumnOptions(label_column="fine_label"),
    ),
    "parquet, a column nobody asked for": Layout(
        parquet("in.parquet", {"breed": ["cat", "dog"]}),
        UNLABELLED,
        "in.parquet",
        said="--label-column 'breed'",
    ),
    "parquet, two classes of one name": Layout(
        parquet("in.parquet", {"label": [0, 1]}, {"label": class_label("crane", "crane", "dog")}),
        {CAT: "crane (0)", DOG: "crane (1)"},
        "in.parquet",
    ),
    "parquet, a column of images chosen": Layout(
        parquet("in.parquet", {"mask": [DOG, CAT], "label": [0, 1]}),
        {DOG: "0", CAT: "1"},
        "in.parquet",
        said="not used: image",
        columns=ColumnOptions(image_column="Mask"),
    ),
    "jsonl, some without a label": Layout(
        beside("list.jsonl", '{"path": "in/a.jpg"}\n{"path": "in/b.jpg", "label": "dog"}\n'),
        {CAT: None, DOG: "dog"},
        "list.jsonl",
        said="1 empty labels",
    ),
    "labels that count from 1": Layout(
        beside("list.csv", "path,label\nin/a.jpg,1\nin/b.jpg,2\n"),
        {CAT: "1", DOG: "2"},
        "list.csv",
        said="no image has the label 0",
    ),
    "classes of files without suffixes": Layout(
        tree(**{"cat/1": CAT, "dog/1": DOG}), UNLABELLED, said="without a suffix do not make a folder a class"
    ),
    "webdataset of macos": Layout(
        tarred(
            **{"._1.jpg": b"\0\5\x16\7", "1.jpg": CAT, "._1.cls": b"\0\5\x16\7", "1.cls": "0", "2.jpg": DOG}
        ),
        {CAT: "0", DOG: None},
        "wds:in.tar",
    ),
    "names that differ in case": Layout(
        beside("list.csv", "path,label\nin/a.jpg,cat\nin/b.jpg,Cat\n"),
        {CAT: "cat", DOG: "Cat"},
        "list.csv",
        said="'Cat' and 'cat' differ only in case or blanks",
    ),
    "csv of excel": Layout(
        beside("list.csv", '\ufeffPath; Label \r\nin/a.jpg; cat \r\n"in/b.jpg";"dog"\r\n;\r\n'),
        LABELLED,
        "list.csv",
    ),
    "csv of excel with its mark": Layout(
        beside("list.csv", "sep=;\r\npath;label\r\nin/a.jpg;cat\r\nin/b.jpg;dog\r\n"), LABELLED, "list.csv"
    ),
    "unicode text of excel": Layout(
        beside("list.csv", "path\tlabel\r\nin/a.jpg\tcat\r\nin/b.jpg\tdog\r\n".encode("utf-16")),
        LABELLED,
        "list.csv",
    ),
    "csv with paths of windows": Layout(
        beside("list.csv", "path,label\nin\\a.jpg,cat\nin\\b.jpg,dog\n"), LABELLED, "list.csv"
    ),
    "csv without suffixes": Layout(
        beside("list.csv", "image_id,label\nin/a,cat\nin/b,dog\n"), LABELLED, "list.csv"
    ),
    "csv, a name for the path and the label": Layout(
        beside("list.csv", "where,what,label\nin/a.jpg,cat,1\nin/b.jpg,dog,2\n"),
        LABELLED,
        "list.csv",
        said="not used, but maybe labels: label",
        columns=ColumnOptions("where", "what"),
    ),
    "csv, a column nobody asked for": Layout(
        beside("list.csv", "path,breed\nin/a.jpg,cat\nin/b.jpg,dog\n"),
        UNLABELLED,
        "list.csv",
        said="--label-column 'breed'",
    ),
    "csv with an empty label": Layout(
        beside("list.csv", "path,label\nin/a.jpg,cat\nin/b.jpg, \n"),
        {CAT: "cat", DOG: None},
        "list.csv",
        said="1 empty labels, the first at",
    ),
}
