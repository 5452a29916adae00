"""The Hugging Face hub: if it does not answer within seconds, weights are read from its cache only."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.constants as settings
import huggingface_hub.utils.logging as hub_logging
from huggingface_hub import get_session
from huggingface_hub.errors import LocalEntryNotFoundError

from loaders.common.errors import UserError, brief
from loaders.common.notice import tell


@functools.cache
def why_silent() -> str:
    """Return why the hub does not answer a request; "" if it gives any answer.

    The hub's own functions would try six times, which takes half a minute for each of several files. Here,
    the hub's own client, which knows HF_ENDPOINT and proxies, sends one request, in a thread, since the DNS
    look-up has no time limit.
    """
    limit = float(settings.HF_HUB_ETAG_TIMEOUT)
    said: list[str] = []

    def ask() -> None:
        try:
            get_session().head(settings.ENDPOINT, timeout=limit)
            said.append("")
        except Exception as error:  # raised by whichever HTTP library the hub's client uses
            said.append(f"{type(error).__name__}: {brief(error)}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(limit)
    return said[0] if said else f"nothing within {limit:g} s"


@contextmanager
def from_hub(source: str) -> Iterator[None]:
    """Let a library fetch weights within the block; if the hub does not answer, only its cache is read.

    Args:
        source: the weights as the user named them, for messages.

    Raises:
        UserError: the weights are neither on the hub nor in its cache, or cannot be loaded.
    """
    level, offline = hub_logging.get_verbosity(), settings.HF_HUB_OFFLINE
    silent = "" if offline else why_silent()
    if silent:
        tell(f"start: {settings.ENDPOINT} does not answer ({silent}); taking {source} only from the cache")
    elif not offline:
        tell(f"start: taking {source} from the hub's cache, or fetching it from {settings.ENDPOINT}")
    hub_logging.set_verbosity_error()
    settings.HF_HUB_OFFLINE = offline or bool(silent)
    try:
        yield
    except LocalEntryNotFoundError as error:
        if offline:
            why, remedy = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set", "unset it"
        elif silent:
            why, remedy = f"it does not answer: {silent}", "check the network, HF_ENDPOINT and the proxy"
        else:
            why, remedy = f"asking for the file: {brief(error.__cause__ or error)}", "try again later"
        raise UserError(
            f"start: expected weights of {source} in the hub's cache ({settings.HF_HUB_CACHE}) or from "
            f"{settings.ENDPOINT}, found none ({why}); {remedy}, copy the cache of a machine that has them "
            "(HF_HOME), or give the path of a weights file"
        ) from error
    except Exception as error:  # raised by the hub, its HTTP library, safetensors, pickle or timm
        raise UserError(
            f"start: expected weights of {source} from the hub or its cache, found none "
            f"({type(error).__name__}: {brief(error)}); check the name, or fetch them elsewhere and give "
            "their path"
        ) from error
    finally:
        hub_logging.set_verbosity(level)
        settings.HF_HUB_OFFLINE = offline
