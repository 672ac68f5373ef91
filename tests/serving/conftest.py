"""One real server for all tests that need one, and clips for it."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from served import Served, served

from vexpress_trt.engines.errors import UserError
from vexpress_trt.models.box.box import shipped_bundle
from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.runtime.request import GenerationRequest

TOKEN = "a token of the tests"


@pytest.fixture(scope="session")
def serve_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's own Python environment: VEXPRESS_SERVE_ENVIRONMENT, or one made for this run."""
    from vexpress_trt.serving.environment import prepare

    given = os.environ.get("VEXPRESS_SERVE_ENVIRONMENT")
    try:
        return prepare(Path(given) if given else tmp_path_factory.mktemp("triton") / "environment", print).root
    except UserError as problem:
        pytest.skip(f"no Triton here: {problem}")


@pytest.fixture(scope="session")
def server(serve_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`vexpress serve` with the model in the box, one worker, one place in the queue and a token."""
    pytest.importorskip("grpc", reason="needs the client extra")
    flags = ("--backend=onnxruntime", "--threads=1", "--queue=1", "--max_seconds=5", "--portrait_cache=off")
    with served(serve_environment, tmp_path_factory.mktemp("serve"), *flags, token=TOKEN) as running:
        yield running


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> GenerationRequest:
    """What a client sends for 44 frames and 25 steps: more work than any test waits for."""
    return clip_request(HeldOutClip(0), tmp_path_factory.mktemp("clip"), portrait_cache=None)


@pytest.fixture(scope="session")
def short_clip(long_clip: GenerationRequest) -> GenerationRequest:
    """The same speech at one frame per second: two frames, in one call of the denoiser."""
    return replace(long_clip, fps=1.0, num_inference_steps=1, guidance_scale=1.0, context_overlap=0)


@pytest.fixture(scope="session")
def local(short_clip: GenerationRequest) -> GenerationRequest:
    """`short_clip` as this process makes it with the server's own settings."""
    return replace(short_clip, bundle=shipped_bundle(), backend="onnxruntime", threads=1, portrait_cache="off")
