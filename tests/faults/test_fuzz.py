"""Damaged and hostile files: every reader either reads them or reports one line, within little memory.

Each example changes a good file in a few places (bytes, cuts, repeats, large numbers), so that it gets past
the first checks. Files that longer searches found have separate tests at the end.
"""

import json
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders import build_loader
from loaders.backends.decoding import Arena, Decoder
from loaders.common.errors import UserError
from loaders.kernels.jpeg.markers import CLEAN, HEIGHT, WIDTH
from loaders.kernels.jpeg.scan import ScanTables, scan_jpegs
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.columns import COLUMN_DTYPES, IndexColumns, open_columns
from loaders.packs.image import ImagePolicy, prepare_image
from loaders.packs.images.jpeg_header import parse_jpeg_header
from loaders.packs.labels.tables import LabelTableWriter
from loaders.packs.manifest import read_manifest
from loaders.packs.shards import beton_layout
from loaders.packs.shards.shard_list import read_shard_records
from loaders.packs.sources.item import MAX_FILE_BYTES, BadImage, UnreadableItem
from loaders.packs.sources.spec import open_source
from loaders.views import presets
from tests.loaders.encoded_rows import encoded_rows
from tests.loaders.packs.inputs import class_tree, encoded, jpeg, pack, pixels, write_tar, write_tree

MOST_BYTES = 32 << 20  # the good files are far smaller
SHORT, LONG = 60, 5000
CORPUS = Path(__file__).parent / "corpus"  # files that `fuzz_readers.py` found, by reader
NUMBERS = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"77777777777",
    b"-1",
    b"9" * 30,
    b"null",
    b"[]",
    b"../",
]


ODD = [
    ("PNG", {}),
    ("GIF", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
]


def edits():
    place = st.floats(0, 1, exclude_max=True)
    return st.lists(
        st.one_of(
            st.tuples(st.just("byte"), place, st.integers(0, 255)),
            st.tuples(st.just("number"), place, st.sampled_from(NUMBERS)),
            st.tuples(st.just("cut"), place, st.none()),
            st.tuples(st.just("drop"), place, st.integers(1, 600)),
            st.tuples(st.just("repeat"), place, st.integers(1, 600)),
        ),
        min_size=1,
        max_size=4,
    )


def edited(data: bytes, changes) -> bytes:
    for kind, place, value in changes:
        at = int(place * len(data))
        if kind == "byte":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif kind == "number":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + value :]
        else:
            data = data[:at] + data[at : at + value] + data[at:]
    return data


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_files(tmp_path_factory.mktemp("fuzz"))


def good_files(folder: Path) -> dict:
    """Write a pack; return the contents of valid files for each reader, and the pack."""
    write_tree(folder / "in", class_tree(2, 4))
    made = pack(folder / "pack", f"train={folder / 'in'}", shard_size_mb=0.01)
    ffcv = pack(folder / "beton", f"train={folder / 'in'}", shard_format="ffcv")
    long_name = "d/" * 60 + "x.jpg"
    tars = [
        write_tar(folder / f"{n}.tar", {long_name: jpeg(0), "c/b.jpg": jpeg(1)}, n).read_bytes()
        for n in range(3)
    ]
    scan_jpegs(np.zeros(0, np.uint8), np.zeros(1, np.int64), ScanTables())  # compile before memory is counted
    picture = Image.fromarray(pixels(0, 24, 32))
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/a.jpg", jpeg(0))
        archive.writestr(zipfile.ZipInfo("c/b.jpg"), jpeg(1))
    return {
        "tar": tars,
        "webdataset": [made.shard_path(0).read_bytes()],
        "zip": [(folder / "x.zip").read_bytes()],
        "beton": [ffcv.shard_path(0).read_bytes()],
        "index": [bytes([number]) + column_data(made, name) for number, name in enumerate(COLUMN_DTYPES)],
        "column": [(made.path / "index" / name).read_bytes() for name in ("size.npy", "content_hash.npy")],
        "manifest": [(made.path / "manifest.json").read_bytes()],
        "labels": [(made.path / "labels" / "true.parquet").read_bytes()],
        "shard list": [(made.path / "shards.jsonl").read_bytes()],
        "jpeg": [jpeg(0)],
        "image": [jpeg(0), *(encoded(picture, kind, **options) for kind, options in ODD)],
        "pack": made,
    }


def read_column(path: Path, pack) -> None:
    for name in (pack.path / "index").iterdir():
        (path.parent / "index").mkdir(exist_ok=True)
        target = path.parent / "index" / name.name
        if not target.exists():
            target.symlink_to(name)
    for name in ("size.npy", "content_hash.npy"):
        target = path.parent / "index" / name
        target.unlink(missing_ok=True)
        target.write_bytes(path.read_bytes())
        open_columns(path.parent, len(pack))


def column_data(pack, name: str) -> bytes:
    return np.ascontiguousarray(getattr(pack.columns, name)).tobytes()


def read_index(path: Path, pack) -> None:
    """Replace the column that the first byte selects by the file's values, and read every row."""
    data = path.read_bytes()
    name = list(COLUMN_DTYPES)[data[0] % len(COLUMN_DTYPES)] if data else "size"
    found = {field: getattr(pack.columns, field) for field in COLUMN_DTYPES}
    whole = found[name]
    values = data[1 : 1 + whole.nbytes].ljust(whole.nbytes, b"\0")
    found[name] = np.frombuffer(values, whole.dtype).reshape(whole.shape)
    changed = Pack(pack.path, pack.manifest, IndexColumns(**found))
    problems = []
    for row in range(len(changed)):
        try:
            changed.key(row)
            changed.view(row)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(problems[0])


def read_source(path: Path, pack) -> None:
    """List a source and read everything in it."""
    prefix = "wds:" if path.name == "wds.tar" else ""
    source = open_source(f"{prefix}{path}", path.parent)
    problems = []
    try:
        for item in source.items():
            if item.problem is None and item.size_bytes <= MAX_FILE_BYTES:
                try:
                    source.read(item)
                except UnreadableItem as error:
                    problems.append(str(error))
    finally:
        source.close()
    if problems:
        raise UserError(problems[0])


def read_image(path: Path, pack) -> None:
    """Prepare and decode an image as a loader does; if the compiled scan accepts it, that must be right."""
    data = path.read_bytes()
    policy = ImagePolicy(max_pixels=1 << 20)
    starts, tables = np.array([0, len(data)]), ScanTables()
    for _ in range(2):  # the scan of a small file builds tables only the second time
        facts = scan_jpegs(np.frombuffer(data, np.uint8), starts, tables)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of EXIF data that it cannot read
            image = prepare_image(data, policy)
    except BadImage as error:
        problem = str(error)
        if facts[CLEAN] and "pixels, over the limit" not in problem:
            raise AssertionError("the compiled scan takes it for clean") from error
        raise UserError(problem) from None
    assert not facts[CLEAN] or (image.height, image.width) == (facts[HEIGHT], facts[WIDTH])
    rows = encoded_rows((image.data, image.height, image.width))
    out, decoder = np.empty(int(rows.pixel_bytes[0]), np.uint8), Decoder()
    assert decoder.decode(rows, 0, np.zeros(1, np.int64), out) == 1, decoder.reason(rows, 0)


def read_header(path: Path, pack) -> None:
    try:
        parse_jpeg_header(path.read_bytes())
    except ValueError as error:
        raise UserError(str(error)) from None


READERS = {
    "tar": read_source,
    "webdataset": read_source,
    "zip": read_source,
    "beton": read_source,
    "index": read_index,
    "column": read_column,
    "manifest": lambda path, pack: read_manifest(path.parent),
    "labels": lambda path, pack: LabelTable.read(path),
    "shard list": lambda path, pack: read_shard_records(path.parent),
    "jpeg": read_header,
    "image": read_image,
}
FILE_NAMES = {
    "manifest": "manifest.json",
    "shard list": "shards.jsonl",
    "tar": "x.tar",
    "webdataset": "wds.tar",
    "zip": "x.zip",
    "beton": "x.beton",
}


def check_reader(reader: str, good, folder: Path, data: bytes) -> None:
    path = folder / FILE_NAMES.get(reader, "file")
    path.write_bytes(data)
    tracemalloc.start()
    try:
        READERS[reader](path, good["pack"])
    except UserError as error:
        num_lines = len(str(error).splitlines())
    else:
        num_lines = 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert num_lines == 1
    assert peak < MOST_BYTES, f"{reader}: {peak} bytes for a file of {len(data)}"


def fuzz(reader: str, good, folder: Path, num_examples: int) -> None:
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=num_examples == SHORT,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, len(good[reader]) - 1), edits())
    def search(which: int, changes) -> None:
        check_reader(reader, good, folder, edited(good[reader][which], changes))

    search()


@pytest.mark.parametrize("reader", list(READERS))
def test_a_damaged_file_is_refused_or_read(good, tmp_path, reader):
    fuzz(reader, good, tmp_path, SHORT)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("reader", list(READERS))
def test_a_damaged_file_is_refused_or_read_long(good, tmp_path, reader):
    fuzz(reader, good, tmp_path, LONG)


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_what_a_coverage_guided_search_found(good, tmp_path, path):
    check_reader(path.parent.name, good, tmp_path, path.read_bytes())


def test_the_good_files_are_read(good, tmp_path):
    """Otherwise the tests above could pass because no file gets past the first checks."""
    for reader in READERS:
        for number, data in enumerate(good[reader]):
            if reader == "column" and number:
                continue
            path = tmp_path / FILE_NAMES.get(reader, "file")
            path.write_bytes(data)
            if reader == "column":
                with pytest.raises(UserError, match=r"content_hash\.npy"):  # both columns get the same bytes
                    READERS[reader](path, good["pack"])
            else:
                READERS[reader](path, good["pack"])
    assert len(open_columns(good["pack"].path, len(good["pack"])).size) == 8


def changed_manifest(good, tmp_path, change) -> Path:
    raw = json.loads(good["manifest"][0])
    change(raw)
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    return tmp_path


@pytest.mark.parametrize("max_rows", [None, 8])
def test_a_label_table_that_claims_many_rows_is_refused_before_it_is_read(tmp_path, max_rows, monkeypatch):
    """Equal values take almost no space in a parquet file, so a few kilobytes can claim gigabytes."""
    zeros, path = np.zeros(1 << 20, np.int64), tmp_path / "labels.parquet"
    with path.open("wb") as file, LabelTableWriter(file, 3) as writer:
        for _ in range(4):
            writer.append(
                zeros, zeros, zeros.astype(np.float32), np.full(1 << 20, "x", object), zeros.astype(np.int32)
            )
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(pyarrow.parquet, "read_table", lambda *args, **options: pytest.fail("it was read"))
    with pytest.raises(UserError, match="at most 8 rows" if max_rows else "claim to hold 4194304 rows"):
        LabelTable.read(path, max_rows)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../b", "..", "", "a\\..\\..\\b\0", "index/../../x"]
)
def test_names_in_a_manifest_cannot_leave_the_pack(good, tmp_path, name):
    def change(raw):
        raw["files"][0]["path"] = name

    with pytest.raises(UserError, match="damaged"):
        read_manifest(changed_manifest(good, tmp_path, change))


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/b.tar", "..", ".", ""])
def test_names_in_a_shard_list_cannot_leave_the_folder(tmp_path, name):
    line = {"num_images": 1, "files": [{"path": name, "size_bytes": 1, "sha256": "0" * 64}]}
    (tmp_path / "shards.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match="outside the folder of shards"):
        read_shard_records(tmp_path)


def test_a_column_of_objects_is_not_unpickled(good, tmp_path):
    class Boom:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    np.save(tmp_path / "file", np.array([Boom()], object), allow_pickle=True)
    (tmp_path / "file").write_bytes((tmp_path / "file.npy").read_bytes())
    with pytest.raises(UserError, match="damaged"):
        read_column(tmp_path / "file", good["pack"])
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "changes",
    [
        [("repeat", 0.0, 8)],  # a header that claims 1.2 GB was read
        [("repeat", 0.0, 20)],  # a malformed header broke the parser
        [("drop", 0.5, 1), ("repeat", 0.609375, 31)],  # another header was parsed as Python 2's
    ],
)
def test_column_headers_that_a_long_search_found(good, tmp_path, changes):
    data = edited(good["column"][0], changes)
    check_reader("column", good, tmp_path, data)
    with pytest.raises(UserError, match="damaged"):
        read_column(tmp_path / "file", good["pack"])


def test_an_image_of_a_beton_whose_end_wraps_around_is_refused(good, tmp_path):
    """The sum of its offset and its size overflows 64 bits, so that it looks small."""
    data = bytearray(good["beton"][0])
    sample = np.frombuffer(data, beton_layout.SAMPLE, 1, beton_layout.METADATA_START)
    table = int(np.frombuffer(data, beton_layout.HEADER, 1)["alloc_table_ptr"][0])
    allocation = np.frombuffer(data, beton_layout.ALLOCATION, 1, table)
    sample["image"]["data_ptr"], allocation["ptr"], allocation["size"] = 2**64 - 8, 2**64 - 8, 64
    (tmp_path / "x.beton").write_bytes(data)
    with pytest.raises(UserError, match="outside the allocated pages"):
        read_source(tmp_path / "x.beton", good["pack"])


def test_a_row_that_claims_more_pixels_than_its_bytes_can_hold_takes_no_memory(tmp_path, monkeypatch):
    write_tree(tmp_path / "in", class_tree(1, 8))
    made = pack(tmp_path / "pack", f"train={tmp_path / 'in'}")
    for name in ("height", "width"):
        column = np.load(made.path / "index" / f"{name}.npy")
        column[[2, 3]] = 60_000, 2**32 - 1
        np.save(made.path / "index" / f"{name}.npy", column)
    wanted = []
    reserve = Arena.reserve
    monkeypatch.setattr(
        Arena, "reserve", lambda arena, size: (wanted.append(size), reserve(arena, min(size, 1 << 20)))
    )
    with build_loader(open_pack(made.path).split("train"), (presets.crop_flip(16),), 4) as loader:
        assert len(list(loader.epoch(0))) == 2
        assert sorted(loader.bad_rows) == [2, 3]
    assert 0 <= min(wanted) <= max(wanted) < 1 << 20


def test_a_row_that_points_outside_its_shard_is_refused(tmp_path):
    write_tree(tmp_path / "in", class_tree(1, 4))
    made = pack(tmp_path / "pack", f"train={tmp_path / 'in'}")
    for name, value in (("offset", 2**63 + 5), ("size", 2**32 - 1)):
        column = np.load(made.path / "index" / f"{name}.npy")
        changed = column.copy()
        changed[2] = value
        np.save(made.path / "index" / f"{name}.npy", changed)
        with pytest.raises(UserError, match="row 2"):
            open_pack(made.path).view(2)
        np.save(made.path / "index" / f"{name}.npy", column)
