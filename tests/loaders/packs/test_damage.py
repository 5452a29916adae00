"""Damaged files of every kind give a one-line error or a quarantine entry, never a crash or a hang."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.columns import COLUMN_DTYPES, column_path
from loaders.packs.image import ImagePolicy
from loaders.packs.shards.beton_layout import ALLOCATION, METADATA_START, SAMPLE, read_beton
from loaders.packs.shards.job import _prepare
from loaders.packs.shards.rows import Refusal
from loaders.packs.sources.item import SourceItem
from loaders.packs.sources.spec import open_source
from loaders.packs.sources.tree import TreeListing
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import class_tree, jpeg, pack, write_tar, write_tree

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FILES = class_tree(2, 2) | {"c0/" + "long" * 60 + ".jpg": jpeg(50)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Valid files: a tar of each kind, a zip, a beton, and a pack."""
    folder = tmp_path_factory.mktemp("whole")
    found = {
        "gnu.tar": write_tar(folder / "gnu.tar", FILES, tarfile.GNU_FORMAT),
        "pax.tar": write_tar(folder / "pax.tar", FILES, tarfile.PAX_FORMAT),
        "x.zip": folder / "x.zip",
    }
    with zipfile.ZipFile(found["x.zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    source = f"train={write_tree(folder / 'in', FILES)}"
    found["pack"] = pack(folder / "pack", source).path
    beton = pack(folder / "beton", source, shard_format="ffcv")
    found["x.beton"] = beton.shard_path(0)
    return found


def damaged(data: st.DataObject, original: bytes, places: list[tuple[int, int]]) -> bytes:
    """Change up to four bytes inside `places`, and perhaps cut the end off."""
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(0, 4))):
        first, stop = data.draw(st.sampled_from(places))
        changed[data.draw(st.integers(first, stop - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    return bytes(changed)


def headers_of_tar(original: bytes) -> list[tuple[int, int]]:
    """Return the byte ranges of headers, long names and pax records: all but the images."""
    images = sorted((original.index(image), len(image)) for image in FILES.values())
    stops = [0, *(start + size for start, size in images)]
    return [(stop, start) for stop, (start, _) in zip(stops, images, strict=False)]


@pytest.mark.parametrize("kind", ["gnu.tar", "pax.tar", "x.zip", "x.beton"])
@QUICK
@given(data=st.data())
def test_damaged_sources(tmp_path: Path, whole: dict[str, Path], kind: str, data: st.DataObject) -> None:
    original = whole[kind].read_bytes()
    places = {
        "x.zip": [(0, 200), (len(original) - 400, len(original))],
        "x.beton": [(0, 24), (2000, 2300), (len(original) - 24 * len(FILES), len(original))],
    }.get(kind) or headers_of_tar(original)
    path = tmp_path / kind
    path.write_bytes(damaged(data, original, places))
    messages: list[str] = []
    outcomes = []
    try:
        source = open_source(str(path), tmp_path / "spool")
        outcomes = [_prepare(source, item, ImagePolicy(max_pixels=10_000)) for item in source.items()]
        source.close()
    except UserError as error:
        messages.append(str(error))
    assert all("\n" not in message for message in messages)
    known = set(FILES.values())
    for outcome in outcomes:
        # Only headers were damaged, so an accepted image equals one of the originals byte for byte. In a
        # beton no checksum covers sizes, so zeros from the rest of the page may follow; decoders ignore them.
        found = None if isinstance(outcome.image, Refusal) else outcome.image.data
        assert found is None or (found.rstrip(b"\0") if kind == "x.beton" else found) in known
        assert found is not None or outcome.image.text


def test_a_pax_size_that_leads_backwards_ends(tmp_path: Path, whole: dict[str, Path]) -> None:
    original = whole["pax.tar"].read_bytes()
    for size in (b"-2048", b"99999", b"abcde"):
        record = b"13 size=" + size
        place = original.index(b" path=")
        start = original.rindex(b"\0", 0, place) + 1
        path = tmp_path / "x.tar"
        path.write_bytes(original[:start] + record + original[start + len(record) :])
        with pytest.raises(UserError):
            list(open_source(str(path), tmp_path).items())


def test_a_size_in_base_256_is_blamed_on_its_header(tmp_path: Path, whole: dict[str, Path]) -> None:
    original = bytearray(whole["gnu.tar"].read_bytes())
    first = original.index(b"ustar") - 257  # start of a header
    for size in (-1, -(2**80), 10**18, 2**87):
        field = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
        original[first + 124 : first + 136] = field
        original[first + 148 : first + 156] = b" " * 8
        original[first + 148 : first + 156] = b"%06o\0 " % sum(original[first : first + 512])
        path = tmp_path / "x.tar"
        path.write_bytes(original)
        with pytest.raises(UserError, match=rf"is damaged at byte {first}: a header gives the size {size};"):
            list(open_source(str(path), tmp_path).items())


def test_a_zip_member_that_begins_before_the_file_is_named(tmp_path: Path, whole: dict[str, Path]) -> None:
    changed = bytearray(whole["x.zip"].read_bytes())
    changed[changed.rindex(b"PK\x05\x06") + 16] += 1  # the directory's offset: moves all members by -1
    path = tmp_path / "x.zip"
    path.write_bytes(changed)
    with pytest.raises(UserError, match="a member at byte -1"):
        list(open_source(str(path), tmp_path).items())


@QUICK
@given(data=st.data())
def test_damaged_columns(tmp_path: Path, whole: dict[str, Path], data: st.DataObject) -> None:
    folder = tmp_path / "pack"
    if not folder.exists():
        shutil.copytree(whole["pack"], folder)
    name = data.draw(st.sampled_from(sorted(COLUMN_DTYPES)))
    path = folder / column_path(name)
    original = path.read_bytes()
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    messages: list[str] = []
    try:
        assert verify_pack(folder) != []
        read_everything(open_pack(folder))
    except UserError as error:
        messages.append(str(error))
    finally:
        path.write_bytes(original)
    assert all("\n" not in message for message in messages)


def read_everything(packed: Pack) -> None:
    """Read every row; the content hash detects wrong images."""
    for row in range(len(packed)):
        packed.key(row)
        packed.read(row)


@QUICK
@given(data=st.data())
def test_damaged_label_tables(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.parquet"
    LabelTable.of(np.arange(40), np.arange(40) % 3, 3).write(path)
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    messages: list[str] = []
    try:
        LabelTable.read(path)
    except UserError as error:
        messages.append(str(error))
    assert all("\n" not in message for message in messages)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "a.jpg", "a.png", "b.jpg", ".jpg", "é", "..", "x\\y\tz"]),
                 min_size=1, max_size=3).map("/".join),
        min_size=1, max_size=12,
    ),
    st.integers(1, 4),
)  # fmt: skip
def test_listings_that_do_not_fit_into_memory(names: list[str], entries_at_once: int) -> None:
    listings = [TreeListing("x", None), TreeListing("x", None, entries_at_once)]
    for listing in listings:
        for number, name in enumerate(names):
            listing.add(SourceItem(name, "", None, 100 + number, number))
    in_memory, on_disk = (list(listing.items()) for listing in listings)
    assert in_memory == on_disk
    assert len(in_memory) == len(names)
    good = [item for item in in_memory if not item.problem]
    assert len({item.key for item in good}) == len(good)
    assert {item.position for item in good} == {max(i for i, n in enumerate(names) if n == m) for m in names}


def test_a_beton_whose_tables_contradict_each_other_is_refused(
    tmp_path: Path, whole: dict[str, Path]
) -> None:
    original = whole["x.beton"].read_bytes()
    count = len(FILES)
    table = np.frombuffer(original, ALLOCATION, count, len(original) - count * ALLOCATION.itemsize)
    first, second = METADATA_START, METADATA_START + SAMPLE.itemsize

    def with_table(**columns: list[int]) -> bytes:
        changed = table.copy()
        for name, values in columns.items():
            changed[name][: len(values)] = values
        return original[: -changed.nbytes] + changed.tobytes()

    swapped = table["ptr"][[1, 0]].tolist()
    damaged = {
        # The first sample points at the second's image, which would get a wrong label; the first's is lost.
        "samples and allocated images differ": [
            original[:first] + original[second : second + 16] + original[first + 16 :],
            with_table(ptr=swapped),
            with_table(sample_id=[1, 0]),
            with_table(sample_id=[1, 1]),
        ],
        "two images overlap": [with_table(size=[int(table["size"][0]) + 1])],
        "5 samples, 4 images": [original[: -ALLOCATION.itemsize]],
        "4 samples, 5 images": [original[:8] + bytes([count - 1]) + original[9:]],
        "an image lies outside": [with_table(size=[int(table["size"][0]), 2**63])],
    }
    path = tmp_path / "x.beton"
    for message, contents in damaged.items():
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"is a damaged beton: {message}"):
                read_beton(path)
    path.write_bytes(original)
    assert read_beton(path).sizes.tolist() == table["size"].tolist()
