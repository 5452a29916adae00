"""The loader as users use it: `for`, `len`, pairs, samplers, and transforms of their own."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import loaders
from loaders import LoaderOptions, build_loader
from loaders.common.errors import UserError
from loaders.order.weighted import cumulative_shares
from loaders.packs import LabelTable
from loaders.transform import transform_facts, transform_name
from loaders.views import presets
from loaders.views.policy import Normalize, RandomErasing, Standardize

VIEW = presets.weak(16)
EVAL = presets.evaluation(16)


def build(pack, views=(VIEW,), batch_size=6, seed=3, **settings):
    return build_loader(
        pack.split("train"), views, batch_size, options=LoaderOptions(seed=seed, num_threads=1), **settings
    )


def rows(batches) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def test_public_names_are_shown() -> None:
    assert {"open_pack", "build_loader", "build_paired_loader", "LoaderOptions"} <= set(dir(loaders))


def test_a_for_loop_runs_one_epoch_after_the_other(photo_pack) -> None:
    with build(photo_pack) as loader:
        assert len(loader) == loader.steps_per_epoch == 4
        passes = [rows(loader) for _ in range(3)]
        assert passes == [rows(loader.epoch(epoch)) for epoch in range(3)]
        loader.next_epoch = 1
        next(iter(loader))  # a pass that is broken off counts too
        assert loader.next_epoch == 2
        assert rows(loader) == passes[2]


def test_pairs(photo_pack) -> None:
    with build(photo_pack) as loader:
        pairs = loader.as_pairs()
        assert len(pairs) == 4
        for (x, y), batch in zip(pairs, loader.epoch(0), strict=True):
            assert torch.equal(x, batch.views[0])
            assert torch.equal(y, batch.labels)
    with build(photo_pack, (EVAL, EVAL), 10, mode="eval") as loader:
        sizes = [(len(x), [len(view) for view in x], len(y)) for x, y in loader.as_pairs().epoch(0)]
        assert sizes == [(2, [10, 10], 10), (2, [10, 10], 10), (2, [4, 4], 4)]


def uneven(pack) -> LabelTable:
    """Return labels of sixteen images of class 0, four of class 1, one of class 2; three have none."""
    return LabelTable.of(np.arange(21), np.repeat([0, 1, 2], [16, 4, 1]), 3)


def test_balanced_epochs_take_classes_equally_often(photo_pack) -> None:
    table = uneven(photo_pack)
    with build(photo_pack, labels=table, sampler="balanced") as loader:
        assert len(loader) == 21 // 6
        batches = [batch for _ in range(6) for batch in loader]
        labels = torch.cat([batch.labels for batch in batches]).bincount()
        assert labels.tolist() == [36, 36, 36]
        first = torch.cat([batch.index for batch in batches])
        assert (first[:27] < 16).sum() == 9
        assert torch.bincount(first, minlength=16)[:16].min() >= 2  # all twice before any a third time
        again = rows(loader.epoch(2, start_step=1))
        assert again == rows(loader.epoch(2))[1:]
        views = [b.views[0][b.labels == 2] for b in loader.epoch(0)]
        assert not torch.equal(views[0][0], views[0][1])  # one image, in two random views
        assert loader.fingerprint["sampler"] == "balanced"


def test_weights_set_how_often_a_row_comes(photo_pack) -> None:
    weights = np.arange(24.0)
    weights[5] = 0
    with build(photo_pack, sampler=weights) as loader:
        for epoch in range(4):
            drawn = torch.cat([batch.index for batch in loader.epoch(epoch)])
            expected = 24 * weights / weights.sum()
            counts = torch.bincount(drawn, minlength=24).numpy()
            assert counts.sum() == 24
            assert (np.abs(counts - expected) < 1).all()
        mean = sum(
            torch.cat([b.index for b in loader.epoch(e)]).bincount(minlength=24).numpy() for e in range(60)
        )
        np.testing.assert_allclose(mean / 60, expected, atol=0.25)
        other = loader.fingerprint["sampler"]
    with build(photo_pack, sampler=[1.0] + [0.0] * 23) as loader:
        batch = next(loader.epoch(0))
        assert set(batch.index.tolist()) == {0}
        assert len({view.numpy().tobytes() for view in batch.views[0]}) > 3  # a new random view each time
        assert loader.fingerprint["sampler"] != other


@pytest.mark.parametrize(
    "weights",
    [torch.arange(24.0, requires_grad=True), torch.arange(24, dtype=torch.bfloat16), torch.arange(24)],
    ids=["trained", "bfloat16", "whole"],
)
def test_weights_may_be_any_tensor_of_numbers(weights) -> None:
    np.testing.assert_array_equal(cumulative_shares(weights, 24), cumulative_shares(np.arange(24.0), 24))


def test_weighted_rows_show_both_sides_in_turns(photo_pack) -> None:
    """Four rows occur two or three times per epoch, the others at most once."""
    weights = np.repeat([3.0, 1.0], [4, 20])
    turned = presets.flipped_in_turns(presets.weak(16, padding=0.0))  # only the mirroring varies
    shown = {row: [] for row in range(24)}
    with build(photo_pack, (turned,), sampler=weights) as loader:
        for epoch in range(12):
            for batch in loader.epoch(epoch):
                for row, view in zip(batch.index.tolist(), batch.views[0], strict=True):
                    shown[row].append(view.numpy().tobytes())
        said = loader.fingerprint["sampler"]
    for row, sides in shown.items():
        assert len(set(sides)) == 2, row
        assert abs(2 * sides.count(sides[0]) - len(sides)) <= len(sides) / 2, row
    assert said.endswith(", sides in turns")
    with build(photo_pack, sampler=weights) as other:  # draws are seeded as in older versions
        assert "sides" not in other.fingerprint["sampler"]
        assert {int(e) // 4 for step in range(4) for e in other.request(5, step).epochs} == {5}


def test_ranks_share_a_sampled_epoch(photo_pack) -> None:
    for sampler in ("balanced", np.arange(1.0, 25.0)):
        whole = rows(build(photo_pack, sampler=sampler).epoch(1))
        parts = []
        for rank in range(2):
            options = LoaderOptions(seed=3, num_threads=1, rank=rank, num_ranks=2)
            loader = build_loader(photo_pack.split("train"), (VIEW,), 6, options=options, sampler=sampler)
            parts.append(rows(loader.epoch(1)))
            loader.close()
        assert [a + b for a, b in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": "equal"}, "expected 'balanced' or a weight per row"),
        ({"sampler": np.ones(3)}, "one weight for each of 24 rows"),
        ({"sampler": -np.ones(24)}, "finite weights of at least 0"),
        ({"sampler": np.zeros(24)}, "one above 0"),
        ({"sampler": [[1.0], [1.0, 2.0]]}, "24 rows of the split, found list that cannot be converted to an"),
        ({"sampler": torch.eye(24).to_sparse()}, "each of 24 rows of the split, found Tensor that cannot be"),
        ({"sampler": "balanced", "mode": "eval"}, "expected mode='train'"),
        ({"batch_transform": lambda views, generator: views}, "found a lambda"),
        ({"batch_transform": 3}, "expected a function of"),
    ],
)
def test_mistakes(photo_pack, settings, said) -> None:
    with pytest.raises(UserError, match=said):
        build(photo_pack, **settings)


def test_a_block_shuffle_takes_no_sampler(photo_pack) -> None:
    options = LoaderOptions(num_threads=1, backend="stream")
    with pytest.raises(UserError, match="sampler: expected a backend that reads rows in any order"):
        build_loader(photo_pack.split("train"), (VIEW,), 6, options=options, sampler="balanced")


def brighter(views, generator):
    """A transform that adds a different random number to each image."""
    device = views[0].device
    shift = torch.rand(len(views[0]), 1, 1, 1, generator=generator, device=device)
    return tuple((view + 0.25 * shift).clamp(0, 1) for view in views)


def nothing(views, generator):
    return views


def half(views, generator):
    return (views[0][:2],)


def test_a_transform_sees_values_before_normalisation(photo_pack) -> None:
    view = VIEW
    with build(photo_pack, (view,)) as plain, build(photo_pack, (view,), batch_transform=nothing) as same:
        for one, other in zip(plain.epoch(0), same.epoch(0), strict=True):
            torch.testing.assert_close(other.views[0], one.views[0], atol=2e-5, rtol=1e-5)
    assert plain.fingerprint != same.fingerprint


def test_standardised_views_stay_so(photo_pack) -> None:
    from dataclasses import replace

    view = replace(VIEW, normalize=Standardize())
    with build(photo_pack, (view,)) as plain, build(photo_pack, (view,), batch_transform=nothing) as same:
        torch.testing.assert_close(
            next(same.epoch(0)).views[0], next(plain.epoch(0)).views[0], atol=2e-4, rtol=1e-3
        )


def test_a_transform_is_a_function_of_seed_epoch_and_step(photo_pack) -> None:
    with build(photo_pack, batch_transform=brighter) as loader:
        whole = [batch.views[0] for batch in loader.epoch(1)]
        resumed = [batch.views[0] for batch in loader.epoch(1, start_step=2)]
        assert all(torch.equal(a, b) for a, b in zip(whole[2:], resumed, strict=True))
        assert loader.fingerprint["batch transform"] == f"{__name__}.brighter on 1 ranks"
    with build(photo_pack, batch_transform=brighter, seed=4) as other:
        assert not torch.equal(next(other.epoch(1)).views[0], whole[0])


def test_a_transform_of_torchvision_fits(photo_pack) -> None:
    transform = v2.Compose([v2.RandomErasing(p=1.0, value=1), v2.RandomGrayscale(p=0.5)])
    state = torch.get_rng_state()
    with build(photo_pack, (VIEW, VIEW), batch_transform=transform) as loader:
        first, second = (next(loader.epoch(0)).views for _ in range(2))
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        white = (1 - torch.tensor(presets.IMAGENET.mean)) / torch.tensor(presets.IMAGENET.std)
        assert all(torch.isclose(view, white[:, None, None], atol=1e-3).all(1).any() for view in first)
        assert "RandomErasing" in loader.fingerprint["batch transform"]


def shifted(views, generator, by, scale=1.0):
    return tuple(view * scale + by for view in views)


def made(by):
    def transform(views, generator):
        return tuple(view + by for view in views)

    return transform


def made_of(held):
    def transform(views, generator):
        return shifted(views, generator, held)

    return transform


def made_to_call(by):
    called = made(by)

    @torch.no_grad()  # wraps the function in an object without a useful repr
    def transform(views, generator):
        return called(views, generator)

    return transform


def made_to_repeat(by):
    def transform(views, generator, times=2):
        return transform(made(by)(views, generator), generator, times - 1) if times else views

    return transform


def weighing(by):
    network = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(network.weight, by)
    return network


@dataclass
class Shifting:
    by: float

    def __call__(self, views, generator):
        return tuple(view + self.by for view in views)


class Silent:
    def __init__(self, by):
        self.by = by

    def __call__(self, views, generator):
        return tuple(view + self.by for view in views)

    def method(self, views, generator):
        return views


@pytest.mark.parametrize(
    "make",
    [
        lambda by: partial(shifted, by=by),
        lambda by: partial(partial(shifted, scale=2.0), by=by),
        lambda by: partial(shifted, by=torch.full((2000, 1), by)[:1000]),
        lambda by: partial(shifted, by=np.full(2000, by)),
        made,
        made_to_call,
        made_to_repeat,
        lambda by: made_of([1.0, by]),
        lambda by: made_of({"by": (by, torch)}),
        lambda by: made_of(np.full(2000, by)),
        lambda by: made_of(np.array([by, None])),
        lambda by: made_of(torch.full((3,), by, dtype=torch.bfloat16)),
        lambda by: made_of(weighing(by)),
        weighing,
        Shifting,
        lambda by: Shifting(torch.arange(2000.0) == 1000 * by),  # repr() omits the middle
        lambda by: Shifting([np.arange(2000.0) == 1000 * by]),
        lambda by: Shifting(by).__call__,
    ],
)
def test_parameters_of_a_transform_stand_in_its_name(make) -> None:
    assert transform_name(make(0.25)) == transform_name(make(0.25))
    assert transform_name(make(0.25)) != transform_name(make(0.5))
    assert " at 0x" not in transform_name(make(0.25))


def test_plain_parameters_are_named_as_they_are_written() -> None:
    """These names are part of the fingerprints of existing runs and must not change."""
    assert transform_name(made((0.5, "a  b"))) == f"{__name__}.made.<locals>.transform with by=(0.5, 'a  b')"
    assert transform_name(Shifting((0.5,))) == f"{__name__}.Shifting Shifting(by=(0.5,))"
    assert transform_name(v2.RandomGrayscale(p=0.5)).endswith("RandomGrayscale RandomGrayscale(p=0.5)")


def test_sets_are_named_in_one_order_in_every_process() -> None:
    """Python orders a set of strings anew in each process, as the ranks of a run and its resume are."""
    letters = frozenset("hgfedcba")
    sorted_text = "frozenset({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    assert transform_name(Shifting(letters)) == f"{__name__}.Shifting Shifting(by={sorted_text})"
    assert transform_name(made(letters)).endswith(f" with by={sorted_text}")
    for value in ({8, 1}, {10}, set(), frozenset(), frozenset({"a"})):  # these were always in one order
        assert transform_name(made(value)).endswith(f" with by={value!r}")


def test_a_gpu_draws_other_numbers_than_the_cpu() -> None:
    """The kind of device counts, not its number; the text for the CPU stays as in older runs."""
    said = [transform_facts(nothing, LoaderOptions(device=d)) for d in ("cpu", "cuda:0", "cuda:1")]
    assert [one["batch_transform"].partition("nothing ")[2] for one in said] == [
        "on 1 ranks", "on 1 ranks of cuda", "on 1 ranks of cuda",
    ]  # fmt: skip


def test_generators_of_other_devices_are_left_alone(photo_pack, monkeypatch) -> None:
    """Otherwise a CPU loader would reseed the GPU per batch, and a network there would repeat its dropout."""
    seeded = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, seeded.append)
    with build(photo_pack, batch_transform=v2.RandomErasing(p=1.0)) as loader:
        views = [batch.views[0] for batch in loader.epoch(0)]
    assert not torch.equal(views[0], views[1])
    assert seeded == []


def test_a_partial_is_applied(photo_pack) -> None:
    with build(photo_pack, batch_transform=partial(shifted, by=0.0)) as loader:
        assert f"{__name__}.shifted with by=0.0" in loader.fingerprint["batch transform"]
        assert len(next(loader.epoch(0)).views[0]) == 6


@pytest.mark.parametrize(
    "transform",
    [
        Silent(1),
        Silent(1).method,
        partial(shifted, by=Silent(1)),
        made_of(Silent(1)),
        torch.no_grad()(made_of(Silent(1))),
        v2.Compose([Silent(1)]),
    ],
)
def test_parameters_that_nothing_tells_are_refused(transform) -> None:
    with pytest.raises(UserError, match="batch_transform: expected parameters that the fingerprint can keep"):
        transform_name(transform)


def test_the_mean_of_a_later_normalisation_is_not_erased_by(photo_pack) -> None:
    own = Normalize((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    view = replace(VIEW, operations=(RandomErasing(p=1.0, fill="mean"),), normalize=own)
    with pytest.raises(UserError, match="batch_transform: expected RandomErasing by ImageNet's mean"):
        build(photo_pack, (view,), batch_transform=nothing)


def test_a_transform_that_loses_images_is_named(photo_pack) -> None:
    with (
        build(photo_pack, batch_transform=half) as loader,
        pytest.raises(UserError, match=r"expected the 1 views of 6 images back, as a tuple, found \[\[2, 3"),
    ):
        next(loader.epoch(0))
    options = LoaderOptions(dtype="uint8", num_threads=1)
    with pytest.raises(UserError, match="expected float views"):
        build_loader(photo_pack.split("train"), (VIEW,), 6, options=options, batch_transform=nothing)
