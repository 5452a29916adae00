"""`make setup` compiles exactly the kernels that packing and the presets' float32 views call first."""

import inspect

import pytest

from loaders.kernels import cache
from loaders.views import presets
from loaders.views.policy import ViewPolicy
from tools.warm_kernels import warm


def test_what_presets_and_packing_call_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    warm()
    capsys.readouterr()
    makers = [
        make
        for make in vars(presets).values()
        if inspect.isfunction(make) and make.__module__ == presets.__name__ and make.__name__[0] != "_"
    ]
    changing = (presets.flipped_in_turns, presets.augmented)  # these change other views
    made = [make() for make in makers if make not in changing]
    views = [view for one in made for view in ((one,) if isinstance(one, ViewPolicy) else one)]
    assert len(views) > len(makers) > 10
    names = {type(one).__name__ for view in views for one in (view.geometry, *view.operations)}
    for name in sorted(names | {"decoding", "views as float32", "shrinking", "copying JPEGs"}):
        with cache.first_use(name):
            pass
    assert capsys.readouterr().err == ""
