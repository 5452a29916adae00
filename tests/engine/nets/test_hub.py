"""The hub is queried once, with a short timeout; without an answer its cache serves, or one line says so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub.constants as settings
import pytest
import timm
import torch
from huggingface_hub import close_session
from torch import nn

from engine.nets.foreign import read_foreign
from engine.nets.hub import why_silent
from loaders.common.errors import UserError
from loaders.common.notice import tell


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    close_session()  # an earlier one has the old environment
    why_silent.cache_clear()
    tell.cache_clear()
    yield
    close_session()
    why_silent.cache_clear()


class Hub(BaseHTTPRequestHandler):
    """A server with one status for the hub itself and one for files; it records the paths requested."""

    status, of_files = 404, 404
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status if self.path == "/" else self.of_files)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    kind = type("OwnHub", (Hub,), {"asked": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(settings, "ENDPOINT", address := f"http://127.0.0.1:{server.server_port}")
    url = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(settings, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_every_status_is_an_answer(status: int, hub: type[Hub]) -> None:
    hub.status = status
    assert [why_silent(), why_silent()] == ["", ""]
    assert hub.asked == ["/"]


@pytest.mark.parametrize(("status", "said"), [(403, "403 Forbidden"), (200, "missing the .* header")])
def test_an_error_after_an_answer_is_quoted(
    status: int, said: str, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.of_files = status
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(settings, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=rf"found none \(asking for the file: .*{said}.*\); try again"
    ) as caught:
        read_foreign(Path("hf:timm/test_resnet.r160_in1k"))
    assert "\n" not in str(caught.value)


def test_offline_mode_is_named(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(settings, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set\); unset it"):
        read_foreign(Path("hf:timm/test_resnet.r160_in1k"))
    assert hub.asked == []
    assert settings.HF_HUB_OFFLINE


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Set the hub to a port on which nothing listens; return the folder that serves as its cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(settings, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(settings, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("source", ["timm:test_resnet.r160_in1k", "hf:timm/test_resnet.r160_in1k"])
def test_an_unreachable_hub_is_asked_once(
    source: str, unreachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)  # between retries
    with pytest.raises(UserError, match=r"it does not answer: ConnectError: .*; check the network") as caught:
        read_foreign(Path(source))
    assert waits == []
    assert "\n" not in str(caught.value)
    assert not settings.HF_HUB_OFFLINE


def test_the_hub_that_keeps_silent_is_left_after_a_while(
    unreachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "HF_HUB_ETAG_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(settings, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert why_silent()


def test_without_the_hub_its_cache_serves(unreachable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10).eval()
    place = unreachable / "models--timm--test_resnet.r160_in1k"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    timm.models.save_for_hf(network, str(place / "snapshots" / ("0" * 40)), safe_serialization=True)
    found = read_foreign(Path("hf:timm/test_resnet.r160_in1k"))
    expected = dict(network.state_dict())
    assert found.tensors.keys() == expected.keys()
    assert "does not answer (ConnectError: " in (said := capsys.readouterr().err)
    assert "taking hf:timm/test_resnet.r160_in1k only from the cache" in said
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.items())


def test_a_name_that_the_hub_does_not_know_is_one_line(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, pretrained: bool) -> nn.Module:
        raise RuntimeError("401 Client Error.\n" + "Repository not found " * 20)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"RuntimeError: 401 .* \.\.\.\); check the name") as caught:
        read_foreign(Path("timm:resnet18.none"))
    assert "\n" not in str(caught.value)
    assert (
        f"start: taking timm:resnet18.none from the hub's cache, or fetching it from {settings.ENDPOINT}"
        in (capsys.readouterr().err)
    )
