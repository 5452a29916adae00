"""Errors of a store, when connecting or when reading, become one line of the command that uses it."""

from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.packs.stores import upload
from tests.faults.http_store import serve
from tests.loaders.packs.inputs import class_tree, pack, write_tar


class NoCredentialsError(Exception):
    """Named like botocore's error, which is not an OSError."""


class Refusing:
    """A file system all of whose calls raise one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str):
        def call(*args: object, **options: object) -> None:
            raise self.error

        return call


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **options: (Refusing(error), url))


@pytest.mark.parametrize("path", ["images", "x.tar", "shards/*.beton", "list.csv"])
def test_packing_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    refuse(monkeypatch, NoCredentialsError("Unable to locate credentials"))
    source = f"s3://bucket/{path}"
    if path == "list.csv":  # a local list of files in the store
        (tmp_path / "list.csv").write_text("path\ns3://bucket/1.jpg\n")
        source = str(tmp_path / "list.csv")
    with pytest.raises(UserError, match=r"^s3://bucket/\S+: expected credentials for this store, found none"):
        pack(tmp_path / "p", f"train={source}")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("error", [NoCredentialsError("none"), ValueError("odd"), TimeoutError()])
def test_every_error_of_a_store_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    refuse(monkeypatch, error)
    with pytest.raises(UserError, match=r"^s3://bucket/p/manifest\.json"):
        upload.read_remote_manifest("s3://bucket/p")
    with pytest.raises(UserError, match=r"^s3://bucket/x"):
        upload.upload_file(Path(__file__), "s3://bucket/x")


def test_an_error_names_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, ValueError("odd"))
    with pytest.raises(UserError, match=r"^ftp://host/x "):
        upload.remote_size("ftp://me:secret@host/x")


def test_an_answer_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    write_tar(tmp_path / "site" / "x.tar", class_tree(2, 3))
    with serve(tmp_path / "site") as store:
        store.fault_for = lambda path, n: "cut"
        with pytest.raises(UserError, match=rf"{store.url}/x\.tar cannot be fetched .*: check the address"):
            pack(tmp_path / "p", f"train={store.url}/x.tar")
    assert not (tmp_path / "p").exists()
