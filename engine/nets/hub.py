"""The Hugging Face hub: whether it answers, so that an unreachable one costs seconds and its cache serves."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.constants as settings
import huggingface_hub.utils.logging as hub_logging
from huggingface_hub import get_session
from huggingface_hub.errors import LocalEntryNotFoundError

from loaders.common.errors import UserError, brief
from loaders.common.notice import tell

_ANSWER_WITHIN_S = 5.0  # by default; HF_HUB_ETAG_TIMEOUT, the hub's own limit for questions, replaces it


@functools.cache
def hub_answers() -> bool:
    """Ask the hub once, by its own client, which knows HF_ENDPOINT and proxies.

    The hub's own functions ask six times for each of several files, half a minute each. A thread asks here,
    since the look-up of a name has no time limit.
    """
    if settings.is_offline_mode():
        return False
    limit = settings.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else _ANSWER_WITHIN_S
    answers: list[bool] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(settings.ENDPOINT, timeout=limit).status_code < 500)
        except Exception:  # of whichever HTTP library the hub uses
            answers.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(limit)
    return answers == [True]


@contextmanager
def from_hub(source: str) -> Iterator[None]:
    """Let a library fetch weights inside; where the hub does not answer, its cache alone is read.

    Args:
        source: the weights as the user named them.

    Raises:
        UserError: they are in neither, or cannot be built.
    """
    level, offline, answers = hub_logging.get_verbosity(), settings.HF_HUB_OFFLINE, hub_answers()
    if answers:
        tell(f"start: taking {source} from the hub's cache, or fetching it from {settings.ENDPOINT}")
    hub_logging.set_verbosity_error()
    settings.HF_HUB_OFFLINE = not answers
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"start: expected weights of {source} in the hub's cache ({settings.HF_HUB_CACHE}) or from "
            f"{settings.ENDPOINT}, found none in the cache and no answer from there; connect to a network, "
            "copy the cache of a machine that has them (HF_HOME), or give the path of a weights file"
        ) from error
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise UserError(
            f"start: expected weights of {source} from the hub or its cache, found none "
            f"({type(error).__name__}: {brief(error)}); check the name, or fetch them elsewhere and give "
            "their path"
        ) from error
    finally:
        hub_logging.set_verbosity(level)
        settings.HF_HUB_OFFLINE = offline
