"""Shared fixtures: where golden data lies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from exported import export_once

from vexpress_trt.engines.signals import STOPPING  # before onnxruntime: the package keeps that from reporting

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own: nothing is read from or left in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command that a signal ends in this process leaves signals ignored, and later tests' processes inherit that."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one thread: small networks mostly make threads wait for one another."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the oracle's golden data and real samples, beside the checkout; tests skip where it is absent."""
    path = Path(os.environ.get("VEXPRESS_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no shared/ folder beside the checkout (set VEXPRESS_SHARED to use another)")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Golden arrays that are committed with the tests."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory, golden_dir: Path) -> Path:
    """The golden checkpoints exported in FP32: 128x128, 12 frames per window. Takes a minute or two."""
    target = tmp_path_factory.mktemp("golden") / "golden.bundle"
    return export_once(golden_dir / "model_ckpts", target, width=128, height=128, frames=12)


@pytest.fixture(scope="session")
def other_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random checkpoints of another shape: two levels, one layer per block, other widths and heads."""
    pytest.importorskip("torch")
    from vexpress_trt.export.random_model import RandomModel
    from vexpress_trt.export.random_weights import write_random_checkpoints

    model = RandomModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=40,
        projection_dim=48,
        projection_depth=2,
        projection_heads=2,
        vae_channels=(16, 16, 32, 32),
        vae_layers=1,
        vae_groups=8,
        audio_channels=24,
        audio_hidden=48,
        audio_layers=3,
        audio_heads=4,
        audio_feed_forward=64,
    )
    folder = tmp_path_factory.mktemp("other") / "model_ckpts"
    write_random_checkpoints(folder, model, seed=5)
    return folder


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, other_checkpoints: Path) -> Path:
    """`other_checkpoints` exported in FP32: 104x72 (13x9 latents), 8 frames per window."""
    return export_once(
        other_checkpoints, tmp_path_factory.mktemp("other") / "other.bundle", width=104, height=72, frames=8
    )
