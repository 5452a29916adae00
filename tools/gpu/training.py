"""Groups of the GPU suite that train: time lost to rendering or loading, a compiled network, a resume."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loaders.common.cores import available_cores
from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from tools.gpu.shared import Cases, Engine, missing, say, timed

if TYPE_CHECKING:
    from loaders import BackendName
    from loaders.epochs import EpochLoader

End = dict[str, dict[str, torch.Tensor]]
"""Losses, weights and the optimizer's moments after a training: kind -> name -> tensor."""

STALL_STEPS = 50
# ResNet-18, and the networks for whose stall (share of time lost) docs/device.md sets a goal
NETWORKS = (("wrn_28_2", 32), ("resnet18", 96), ("resnet50", 96), ("resnet50", 224))
OTHERS = (("resnet18", 32), ("resnet50", 32), ("wrn_28_2", 96), ("resnet18", 224), ("wrn_28_2", 224))
FEEDS: tuple[BackendName, ...] = ("cpu", "dali", "resident")
OF_THE_LOADERS = ("tyro", "rich", "numba", "accelerate", "timm", "simplejpeg", "PIL")
NUM_IMAGES = 256
OPTIMIZERS = ("paper", "adamw")  # "paper" is LARS; "adamw" takes torch's fused form on a GPU
SAME_BITS = (True, False)  # with deterministic algorithms, and with those of a usual run
STOPPED_AT = 3  # step within the first of two epochs, which have four steps each


def network_of(name: str, device: str) -> torch.nn.Module:
    """Return a network on a device, with channels-last weights."""
    network: torch.nn.Module
    if name == "wrn_28_2":
        from engine.nets.wide_resnet import WideResNet

        network = WideResNet(28, 2)
    else:
        import torchvision

        network = getattr(torchvision.models, name)(num_classes=100)
    return network.to(device).to(memory_format=torch.channels_last)


def step(network: torch.nn.Module, views: torch.Tensor) -> None:
    """Run the forward and backward pass of a batch, and drop the gradients."""
    with torch.autocast(views.device.type, torch.bfloat16):
        loss = network(views).float().square().mean()
    loss.backward()
    for parameter in network.parameters():
        parameter.grad = None


def stall(cases: Cases) -> None:
    """Measure the time that rendering on the device adds: 50 steps on fresh views against 50 on one batch."""
    for name, side in NETWORKS:
        try:
            network = network_of(name, "cuda")
            turns = [Engine(cases, f"barlow_a@{side}") for _ in range(2)]
            for one in turns:
                one.draw()
            ahead: Any = torch.cuda.Stream()

            def fresh(
                turns: list[Engine] = turns, network: torch.nn.Module = network, ahead: Any = ahead
            ) -> None:
                current: Any = torch.cuda.current_stream()
                current.wait_stream(ahead)  # the views of this step, which were drawn during the last step
                ahead.wait_stream(current)  # the last step, whose memory the next views overwrite
                with torch.cuda.stream(ahead):
                    turns[1].draw()
                step(network, turns[0].views)
                turns.reverse()

            alone = timed(partial(step, network, turns[0].views), STALL_STEPS)
            both = timed(fresh, STALL_STEPS)
            found = {"images_per_s": round(turns[0].batch / both), "stall": round(1 - alone / both, 4)}
            say(network=name, side=side, **found)
        except Exception as error:
            say(network=name, side=side, failed=str(error)[:200])


def compiled(cases: Cases) -> None:
    """Time the training steps of a network, eager and compiled."""
    network = network_of("resnet18", "cuda")
    views = torch.randn(256, 3, 96, 96, device="cuda").to(memory_format=torch.channels_last)
    eager = timed(lambda: step(network, views), 20)
    network.compile()
    say(network="resnet18", eager_ms=round(1e3 * eager, 2),
        compiled_ms=round(1e3 * timed(lambda: step(network, views), 20), 2))  # fmt: skip


def packed(side: int, folder: Path) -> Path:
    """Pack `NUM_IMAGES` JPEG files: from SUITE_IMAGES, repeated if too few, or generated, `side` pixels wide.

    Raises:
        UserError: SUITE_IMAGES names a folder without JPEG files.
    """
    from PIL import Image

    from loaders.packs.packer import PackOptions, pack_dataset
    from loaders.packs.sources.spec import SplitSource
    from tools.gpu.cases import images_of

    source, pack = folder / f"images-{side}", folder / f"pack-{side}"
    source.mkdir()
    images = os.environ.get("SUITE_IMAGES")
    if images:
        given = sorted(path for path in Path(images).rglob("*.[jJ][pP]*[gG]") if path.is_file())
        if not given:
            raise UserError(f"SUITE_IMAGES: expected a folder of JPEG files, found none in {images}")
        for number in range(NUM_IMAGES):
            shutil.copyfile(given[number % len(given)], source / f"{number:04d}.jpg")
    else:
        for number, image in enumerate(images_of(NUM_IMAGES, (side, side + 1))):
            Image.fromarray(image).save(source / f"{number:04d}.jpg", quality=90)
    with redirect_stdout(sys.stderr):
        pack_dataset(PackOptions((SplitSource("train", str(source)),), pack, workers=1))
    return pack


def fed(cases: Cases, device: str = "cuda", networks: Any = NETWORKS, batch: int = 256) -> None:
    """Measure the time that loaders add to training: 50 steps on fresh batches against 50 on one batch."""
    if missing(*OF_THE_LOADERS):
        say(skipped=missing(*OF_THE_LOADERS))
        return
    say(images=os.environ.get("SUITE_IMAGES") or "drawn")
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: cases.speed(f"barlow_a@{side}")[2] for _, side in networks}
        packs = {side: packed(of_images, Path(folder)) for side, of_images in sides.items()}
        for feed in FEEDS:
            if feed == "dali" and missing("nvidia.dali"):
                say(feed=feed, skipped=missing("nvidia.dali"))
                continue
            for name, side in networks:
                about = {"feed": feed, "network": name, "side": side}
                try:
                    with loader_of(packs[side], feed, side, batch, device) as loader:
                        say(**about, **stall_of(loader, network_of(name, device), device))
                except Exception as error:
                    say(**about, failed=str(error)[:200])


def loader_of(pack: Path, feed: BackendName, side: int, batch: int, device: str) -> EpochLoader:
    """Build a backend's loader of one Barlow view.

    The split is repeated until all steps fit into one epoch: when an epoch begins, no batch is ready.
    """
    from loaders import LoaderOptions, build_loader
    from loaders.packs import Split, open_pack
    from loaders.views import presets

    split = open_pack(pack).split("train")
    times = -(-batch * (STALL_STEPS + 10) // len(split))
    options = LoaderOptions(
        backend=feed, num_threads=available_cores(), device=device, dtype="bfloat16", channels_last=True
    )
    repeated = Split(split.pack, split.name, split.row_ranges * times)
    return build_loader(repeated, (presets.barlow_a(side),), batch, options=options)


def stall_of(loader: EpochLoader, network: torch.nn.Module, device: str) -> dict[str, float]:
    """Return the images per second on a loader's batches, and the share of time spent waiting for them.

    When the clock starts, the loader has a few batches ready: three of 50 with the usual options.
    """
    batches = loader.epoch(0)
    held = next(batches).views[0]
    alone = timed(partial(step, network, held), STALL_STEPS, device)

    def fresh() -> None:
        step(network, next(batches).views[0])

    both = timed(fresh, STALL_STEPS, device)
    return {"images_per_s": round(loader.batch_size / both), "stall": round(1 - alone / both, 4)}


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """In the block, let torch use deterministic algorithms where it has any; usual ones if not `wanted`."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def trained(optimizer: str, pack: Path, out: Path, stops: tuple[int | None, ...]) -> End:
    """Train Barlow Twins in one or more runs, each resuming the one before; return the final state.

    `stops` has the step at which each run stops; None lets a run go on to the end.
    """
    from safetensors.torch import load_file

    from engine.train.checkpoint import list_checkpoints
    from engine.train.run import run
    from loaders.pretraining import PretrainingLoaders
    from loaders.views import presets

    barlow, views = import_module("recipes.barlow"), (presets.barlow_a(32), presets.barlow_b(32))
    for stop in stops:
        config = barlow.Config(
            pack=pack, split="train", out=out, backbone="tiny_resnet", projector=(128, 128), resolution=32,
            epochs=2, batch_size=NUM_IMAGES // 4, warmup_epochs=0.5, optimizer=optimizer, max_steps=stop,
            resume=out.exists(), log_every=1, trackers=(), progress=False,
        )  # fmt: skip

        def recipe(config: Any = config) -> Any:
            made = barlow.BarlowTwins(config)
            # Dropout uses the device's random numbers, so the state that a checkpoint keeps of them matters.
            made.projector = torch.nn.Sequential(torch.nn.Dropout(0.1), made.projector)
            return made

        with redirect_stdout(sys.stderr):
            run(config, recipe, PretrainingLoaders(config, views))
    newest = list_checkpoints(out / "checkpoints")[-1]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {
        "losses": {"": torch.tensor([parse_json(line)["loss"] for line in lines])},
        "weights": load_file(newest / "model.safetensors"),
        "moments": load_file(newest / "optimizer.safetensors"),
    }


def apart(one: End, other: End) -> dict[str, float]:
    """Return the largest absolute difference of two trainings in each kind of state; NaN if it has a NaN."""
    return {
        kind: float(
            torch.stack([(one[kind][n] - other[kind][n]).abs().max().double() for n in one[kind]]).max()
        )
        for kind in one
    }


def resume(_: Cases) -> None:
    """Compare a resumed training, and a repeated one, with a training that ran without a stop."""
    if missing(*OF_THE_LOADERS):
        say(skipped=missing(*OF_THE_LOADERS))
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    with tempfile.TemporaryDirectory() as folder:
        pack = packed(32, Path(folder))
        for optimizer in OPTIMIZERS:
            for same_bits in SAME_BITS:
                ways = {"whole": (None,), "repeated": (None,), "resumed": (STOPPED_AT, None)}
                with deterministic(same_bits):
                    ends = {
                        way: trained(optimizer, pack, Path(folder, f"{optimizer}-{same_bits}-{way}"), stops)
                        for way, stops in ways.items()
                    }
                whole = ends.pop("whole")
                found = {way: apart(whole, end) for way, end in ends.items()}
                about = {"optimizer": optimizer, "deterministic": same_bits}
                say(**about, steps=len(whole["losses"][""]), apart=found)
