"""Folders and lists of images on the web, on servers that state the sizes of files and on others."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, pack, write_tree

FILES = class_tree(2, 6) | {"c0/empty.jpg": b"", "c1/big.jpg": jpeg(3, 200, 300)}


class Site(SimpleHTTPRequestHandler):
    """A server that lists folders as pages of links, without sizes."""

    says_sizes = True

    def log_message(self, *args: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if self.says_sizes or keyword != "Content-Length":
            super().send_header(keyword, value)


class Unsized(Site):
    """A server that ends an answer by closing the connection, as some do."""

    says_sizes = False


@pytest.fixture(params=[Site, Unsized])
def site(request, tmp_path: Path) -> Iterator[str]:
    """Serve the folder `in`; yield its address."""
    write_tree(tmp_path / "in", FILES)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=tmp_path))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/in"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("options", [{}, {"max_side": 100}])
def test_a_folder_of_the_web_is_packed_as_one_of_the_disk(tmp_path: Path, site: str, options) -> None:
    near = pack(tmp_path / "near", f"train={tmp_path / 'in'}", **options)
    far = pack(tmp_path / "far", f"train={site}", **options)
    assert far.manifest.num_quarantined == near.manifest.num_quarantined == 1
    assert folder_hashes(far.path / "shards") == folder_hashes(near.path / "shards")
    assert far.classes == near.classes


def test_a_folder_of_the_web_is_divided_as_one_of_the_disk(tmp_path: Path, site: str) -> None:
    near = pack(tmp_path / "near", f"a,b={tmp_path / 'in'}:0.5,0.5")
    far = pack(tmp_path / "far", f"a,b={site}:0.5,0.5")
    assert folder_hashes(far.path / "shards") == folder_hashes(near.path / "shards")


def test_a_list_of_addresses(tmp_path: Path, site: str) -> None:
    lines = [f"{site}/{name},{name[:2]}\n" for name in FILES]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(lines))
    packed = pack(tmp_path / "p", f"train={tmp_path / 'list.csv'}")
    assert sorted(map(packed.read, range(len(packed)))) == sorted(filter(None, FILES.values()))
