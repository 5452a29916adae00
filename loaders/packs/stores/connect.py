"""Access to remote stores through fsspec, for packing and for reading: URLs, connections, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from loaders.common.errors import MissingBackendError, UserError, brief

_EXTRAS = {"s3": ".[s3]", "s3a": ".[s3]", "http": "fsspec[http]", "https": "fsspec[http]"}
# Errors of botocore, on which s3fs is built, that mean missing credentials: trying again is no use.
_WITHOUT_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}
_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+://")
# The command line turns paths into pathlib.Path, which reduces the two slashes of a URL to one.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def is_remote(path: str) -> bool:
    """Tell whether a path begins with a protocol, such as "s3://"."""
    return _PROTOCOL.match(path) is not None


def as_url(path: str) -> str | None:
    """Return the URL that `path` stands for; None for a local path."""
    match = _URL.fullmatch(path)
    if match is None:
        return None
    slashes = ":///" if match[1] == "file" else "://"
    return f"{match[1]}{slashes}{match[2].rstrip('/')}"


def without_password(url: str) -> str:
    """Return a URL without user name and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", url)


def connect(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it.

    Args:
        url: URL of a folder or a file, such as "s3://bucket/packs/mine".
        options: options of the fsspec file system, such as endpoint and credentials.

    Raises:
        MissingBackendError: the protocol needs a package that is not installed.
        UserError: fsspec does not know the protocol, or refuses the address.
    """
    import fsspec

    shown, scheme = without_password(url), url.split(":")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url, **(options or {}))
    except ImportError as error:
        raise MissingBackendError(
            f"{shown}: expected a package that reads {scheme}://, found none ({error}); pip install "
            f"'{_EXTRAS.get(scheme, f'fsspec[{scheme}]')}'"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{shown}: expected a store that fsspec knows ({error}); check the URL") from None
    return fs, path


@contextmanager
def store_errors(
    url: str,
    what: str = "cannot be reached",
    remedy: str = "check the address",
    let: type[Exception] = UserError,
) -> Iterator[None]:
    """Turn any error of a store into a one-line `UserError`; every file system has its own exceptions.

    Args:
        let: exceptions that pass unchanged, since the caller handles them.

    Raises:
        UserError: any other exception was raised inside.
    """
    try:
        yield
    except (UserError, let):
        raise
    except Exception as error:
        refuse_without_credentials(url, error)
        reason = brief(f"{type(error).__name__}: {error}".rstrip(": "))
        raise UserError(f"{without_password(url)} {what} ({reason}): {remedy}") from None


def refuse_without_credentials(url: str, error: Exception) -> None:
    """Raise `UserError` if an error means that this machine has no credentials for a store."""
    if type(error).__name__ in _WITHOUT_CREDENTIALS:
        raise UserError(
            f"{without_password(url)}: expected credentials for this store, found none ({error}); give them "
            "in the variables or files that the store's own tools read"
        ) from None
