"""What the tests share: quiet threads, a cache of their own, small data sets on disk."""

import os
from pathlib import Path

import pytest
import torch
from helpers import SMALL

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory):
    """Two threads at most, one in each of several workers, and header caches outside the user's own."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))
    patch = pytest.MonkeyPatch()
    patch.setenv("RETINANET_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A few generated scenes with train, val and test splits."""
    from retinanet.data.scenes import write_scenes

    return write_scenes(
        tmp_path_factory.mktemp("scenes"),
        {"train": 6, "val": 3, "test": 3},
        size=(96, 128),
        seed=5,
        across=(16, 64),
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the repository, where there are any."""
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture(scope="session")
def trained(scenes, tmp_path_factory) -> Path:
    """The folder of a very short run on the generated scenes."""
    import retinanet

    out = tmp_path_factory.mktemp("run") / "scenes"
    return retinanet.train(scenes, "tiny", out=out, **SMALL, budget="6it", validations=2, log_every=2)


@pytest.fixture
def undrawn():
    """The plots of a run are empty files: to draw them takes longer than the run, and tests/view does it."""
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def save(figure, path, **settings):
        path.touch() if path.suffix == ".png" else draw(figure, path, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield
