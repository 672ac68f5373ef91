"""A clip's loop with features and decoding on a GpuDevice, against the CPU's device with the same engines: the same
bits in every order that the streams' work may run in."""

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from denoiser_inputs import denoiser_inputs
from fake_driver.stand_in import StandIn, array_at

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig, TensorSpec
from vexpress_trt.runtime.cuda import denoise
from vexpress_trt.runtime.cuda.gpu import GpuBuffer
from vexpress_trt.runtime.cuda.host_device import HostDevice
from vexpress_trt.runtime.cuda.kernels import Kernels
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import make_scheduler
from vexpress_trt.runtime.windows import WindowPlan, batches, live_windows

SHAPE = (4, 2, 3)
WAITS = "cuStreamSynchronize cuCtxSynchronize cuEventSynchronize cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuMemsetD8_v2".split()


class Computing(DeviceEngine):
    """A graph computed by a function of arrays, as work of the stand-in's stream or, without one, at once."""

    cancelled = False

    def __init__(
        self, stand_in: StandIn | None, gpu: int, name: str, inputs: tuple[TensorSpec, ...], output: TensorSpec,
        function: Callable[..., np.ndarray],
    ) -> None:  # fmt: skip
        self.spec = SimpleNamespace(name=name, inputs=inputs, outputs=(output,))
        self._stand_in, self._gpu, self._function = stand_in, gpu, function

    def bind_buffers(self, **buffers: GpuBuffer | np.ndarray) -> None:
        self._arrays = {
            name: array_at(buffer.pointer, buffer.shape, buffer.dtype) if isinstance(buffer, GpuBuffer) else buffer
            for name, buffer in buffers.items()
        }

    def enqueue(self, stream: int) -> None:
        if self._stand_in is None:
            self._compute()
            return
        with driver(self._gpu).current():
            self._stand_in.enqueue(stream, self._compute)

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        if self._stand_in is None:
            return body
        with driver(self._gpu).current():
            return driver(self._gpu).capture(stream, body)

    def _compute(self) -> None:
        given = dict(self._arrays)
        result = given.pop(self.spec.outputs[0].name)
        result[...] = self._function(**given)


def predicted(
    halves: int, latents: np.ndarray, timestep: np.ndarray, tokens: np.ndarray, kps_feature: np.ndarray
) -> np.ndarray:
    """Other for every frame, window, step and half."""
    known = tokens.mean(axis=(2, 3)) + kps_feature.mean(axis=(2, 3, 4)) + (timestep / np.float32(999))[:, None]
    mixed = latents + np.roll(latents, 1, axis=1) * np.float32(0.3) + known[..., None, None, None]
    return np.stack([np.sin(mixed * np.float32(1.7 - half)) for half in range(halves)], axis=1)


def pooled(rgb: np.ndarray) -> np.ndarray:
    return rgb[:, :2, ::8, ::8] - rgb[:, 1:, 3::8, 3::8] * np.float32(0.3)


def enlarged(latents: np.ndarray) -> np.ndarray:
    image = np.repeat(np.repeat(latents[:, :3] * np.float32(0.2), 8, axis=2), 8, axis=3)
    return image + np.linspace(-0.5, 0.5, image[0].size, dtype=np.float32).reshape(image[0].shape)


def frames_of(
    stand_in: StandIn | None, *, gpu: int = 0, batch: int = 1, solver: str = "ddim", windows: int = 9, steps: int = 4,
    decoded: bool = True, spoil: Callable[[np.ndarray], np.ndarray] = lambda image: image,
) -> np.ndarray:  # fmt: skip
    """The frames of a clip whose steps alternate between both denoisers, uint8 [L, 16, 24, 3]; if not `decoded`, its
    latents, float32 [L, 4, 2, 3]."""
    plan = WindowPlan(6, 2, windows)
    denoisers = [
        Computing(
            stand_in, gpu, f"denoiser of {halves}", denoiser_inputs(),
            TensorSpec("prediction", "float32", ("B", halves, "F", 4, "h", "w")),
            lambda halves=halves, **given: predicted(halves, **given),
        )
        for halves in (1, 2)
    ]  # fmt: skip
    guider = Computing(
        stand_in, gpu, "kps_guider", (TensorSpec("rgb", "float32", ("N", 3, "8*h", "8*w")),),
        TensorSpec("feature", "float32", ("N", 2, "h", "w")), pooled,
    )  # fmt: skip
    decoder = Computing(
        stand_in, gpu, "vae_decoder", (TensorSpec("latents", "float32", ("N", 4, "h", "w")),),
        TensorSpec("image", "float32", ("N", 3, "8*h", "8*w")), lambda latents: spoil(enlarged(latents)),
    )  # fmt: skip

    def window(start: int, tokens: np.ndarray) -> None:
        tokens[...] = np.sin(np.arange(start, start + len(tokens)))[:, None, None]

    results = denoise.denoise_on_gpu(
        gpu, lambda step: denoisers[step % 2], batches(plan, steps, batch), plan=plan,
        scheduler=make_scheduler(SchedulerConfig(), steps, solver), noise=lambda frame: frame_noise(7, frame, SHAPE),
        speech=SimpleNamespace(window=window), guider=guider,
        points=np.random.default_rng(1).uniform(0, 24, (plan.frames, 3, 2)), shape=SHAPE, guidance_scale=2.5,
        live_windows=live_windows(plan, steps, batch), window_batch=batch, decoder=decoder if decoded else None,
        length=plan.frames - 1, scaling=0.18215,
    )  # fmt: skip
    frames = [frame for _, final in results for frame in final]
    assert [number for number, _ in frames] == list(range(plan.frames - decoded))
    return np.stack([image for _, image in frames])


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    def of(**settings: object) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(denoise, "GpuDevice", lambda gpu: HostDevice())
            return frames_of(None, **settings)

    return of


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_frames_are_those_of_the_cpu(
    batch: int, solver: str, stand_in: StandIn, expected: Callable[..., np.ndarray], order: int
) -> None:
    settings = {"batch": batch, "solver": solver, "gpu": order % 2}
    np.testing.assert_array_equal(frames_of(stand_in, **settings), expected(**settings))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_latents_are_those_of_the_cpu(steps: int, stand_in: StandIn, expected: Callable[..., np.ndarray]) -> None:
    settings = {"decoded": False, "steps": steps, "windows": 20}
    np.testing.assert_array_equal(frames_of(stand_in, **settings), expected(**settings))


def test_clips_of_two_threads_on_two_gpus_do_not_meet(stand_in: StandIn, expected: Callable[..., np.ndarray]) -> None:
    with ThreadPoolExecutor(2) as threads:
        clips = list(threads.map(lambda gpu: frames_of(stand_in, gpu=gpu, batch=1 + gpu), (0, 1)))
    for gpu, frames in enumerate(clips):
        np.testing.assert_array_equal(frames, expected(gpu=gpu, batch=1 + gpu))


def test_tables_in_short_pieces_give_the_same(
    stand_in: StandIn, expected: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vexpress_trt.runtime.cuda.buffers.PIECE", 8)
    np.testing.assert_array_equal(frames_of(stand_in, windows=15), expected(windows=15))


def test_the_host_waits_for_nothing_while_a_clip_runs_and_copies_pinned_memory_alone(stand_in: StandIn) -> None:
    counted = [*WAITS, "pageable copies", "cuLaunchKernel"]
    amounts = []
    for windows in (5, 15):
        before = [stand_in.count(what) for what in counted]
        frames_of(stand_in, windows=windows)
        amounts.append([stand_in.count(what) - then for what, then in zip(counted, before, strict=True)])
    (*waits, kernels), (*waits_of_more, kernels_of_more) = amounts
    assert waits == waits_of_more and kernels < kernels_of_more


def test_a_clip_begins_and_ends_without_waiting_for_others(stand_in: StandIn) -> None:
    """Waiting for the whole context is forbidden, too, while any of its streams is being captured."""
    before = stand_in.count("cuCtxSynchronize")
    frames_of(stand_in)
    assert stand_in.count("cuCtxSynchronize") == before


def test_an_image_that_is_not_finite_is_told_and_nothing_is_left(stand_in: StandIn) -> None:
    images = iter(range(-1, 1000))  # the first run warms the decoder up

    def spoil(image: np.ndarray) -> np.ndarray:
        return image * np.float32(np.nan if next(images) == 7 else 1)

    with pytest.raises(UserError, match="vae_decoder produced non-finite values .*image of frame 7"):
        frames_of(stand_in, spoil=spoil)


def test_an_exception_that_is_kept_keeps_no_captured_work(stand_in: StandIn) -> None:
    with pytest.raises(UserError, match="non-finite") as told:
        frames_of(stand_in, spoil=lambda image: image * np.float32(np.nan))
    assert not [line for line in stand_in.report()[1] if "graph" in line], told


def test_a_fault_of_the_gpu_is_told_as_it_was_met_and_nothing_is_left(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on every call answers with it, those that free something as well."""
    ignored: list[object] = []  # what finalizers raised
    monkeypatch.setattr(sys, "unraisablehook", lambda about: ignored.append(about.exc_value))
    median = Kernels.median

    def faulty(kernels: Kernels, *pointers: int) -> None:
        *frames, height, width, stream = pointers
        median(kernels, *frames, 10_000 * height, width, stream)

    with monkeypatch.context() as patch:
        patch.setattr(Kernels, "median", faulty)
        with pytest.raises(UserError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS from cu(?!\w*(Destroy|Free|Unload))") as told:
            frames_of(stand_in)
    assert str(told.value).endswith("this process cannot use the GPU any more, start it again")
    del told  # its frames refer to captured work
    gc.collect()
    assert not ignored
    assert stand_in.report()[0] == ["cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS while it ran"]
    stand_in.recover()


def test_the_next_clip_takes_streams_and_kernels_of_the_last(stand_in: StandIn) -> None:
    counted = ("cuStreamCreate", "cuModuleLoadData")
    frames_of(stand_in)
    made = list(map(stand_in.count, counted))
    frames_of(stand_in)
    assert list(map(stand_in.count, counted)) == made


def test_where_memory_is_short_torch_gives_back_what_it_does_not_use(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, expected: Callable[..., np.ndarray]
) -> None:
    with driver(0).current():
        held = [driver(0).mem_alloc(1 << 20)]

    def empty_cache() -> None:
        with driver(0).current():
            driver(0).mem_free(held.pop())

    cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=empty_cache)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    stand_in.limit_memory((1 << 20) + 10_000)
    np.testing.assert_array_equal(frames_of(stand_in), expected())
    stand_in.limit_memory(8 << 30)
    assert not held
    cuda.is_initialized = lambda: False  # nothing is asked of a torch that has no part in the clip
    frames_of(stand_in)


@pytest.mark.parametrize("torch_says", [None, "CUDA error: an illegal memory access", "captures_underway.empty()"])
def test_too_little_memory_is_a_sentence_and_nothing_is_left(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, torch_says: str | None
) -> None:
    def empty_cache() -> None:
        if torch_says:
            raise RuntimeError(torch_says)

    cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=empty_cache)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    stand_in.limit_memory(10_000)
    with pytest.raises(UserError, match="the GPU has no room for"):
        frames_of(stand_in)
    stand_in.limit_memory(8 << 30)
