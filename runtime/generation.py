"""Generation: portrait, speech and key points in, frames out as they become final."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from vexpress_trt.engines.memory import peak_memory_mib
from vexpress_trt.runtime.audio_features import AudioFeatures
from vexpress_trt.runtime.clip_calls import clip_calls
from vexpress_trt.runtime.engine_loader import EngineLoader
from vexpress_trt.runtime.engine_pool import EnginePool
from vexpress_trt.runtime.frame import Frame
from vexpress_trt.runtime.median import filtered
from vexpress_trt.runtime.noise import frame_noise, upstream_noise
from vexpress_trt.runtime.pipeline import Pipeline
from vexpress_trt.runtime.portrait_cache import PortraitCache
from vexpress_trt.runtime.preparation import Preparation
from vexpress_trt.runtime.progress import ProgressCallback, ProgressEvent
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.speech import Speech
from vexpress_trt.runtime.stages import decode, encode_portrait
from vexpress_trt.runtime.summary import Stopwatch, Summary
from vexpress_trt.runtime.tensors import TensorDump
from vexpress_trt.runtime.video_output import VideoWriter, choose_encoder, encode, output_target
from vexpress_trt.runtime.workspace import Workspace

if TYPE_CHECKING:
    from vexpress_trt.runtime.cuda.memory_watch import MemoryWatch

IMAGES_AHEAD, FRAMES_AHEAD = 4, 8  # decoded and finished frames that may wait; uint8 is a quarter of float32


class Generation:
    """A clip being generated: iterate once for its frames, then read `summary`.

    Everything the inputs can be refused for has been checked when this exists; the networks run while it is iterated,
    on threads of their own, a bounded number of frames ahead. `on_progress` is called on these threads. Closing the
    iterator, or leaving a loop over it, stops them and frees engines and temporary files. Engines come from `engines`
    where they are kept there, and go back when a stage is done.
    """

    def __init__(
        self,
        request: GenerationRequest,
        on_progress: ProgressCallback | None = None,
        engines: EnginePool | None = None,
    ) -> None:
        self.watch = Stopwatch()
        self._report = on_progress or (lambda event: None)
        with self.watch.stage("inputs"):
            self._prepared = Preparation(request)
        self._pool, self._idle = (None, engines) if self._prepared.frugal else (engines, None)
        self.request, self.clip = request, self._prepared.clip
        self._bundle, self._choice = self._prepared.bundle, self._prepared.choice
        self._calls = self._calls_before_first = 0
        self._first_frame_after: float | None = None
        self._portrait_cached = False
        self._memory: MemoryWatch | None = None
        self._summary: Summary | None = None
        self._begun = False

    @property
    def summary(self) -> Summary:
        """The closing figures. Raises RuntimeError before the last frame was taken."""
        if self._summary is None:
            raise RuntimeError("the summary exists when all frames were taken")
        return self._summary

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order. Raises RuntimeError the second time: the summary counts one run."""
        if self._begun:
            raise RuntimeError("a generation is iterated once: call generate again")
        self._begun = True
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        request, clip = self.request, self.clip
        dump = TensorDump(request.dump_tensors, clip.length, clip.fps)
        workspace = Workspace(on_disk=request.save_gpu_memory)
        with (
            self._loader() as engines,
            self._limited(),
            Pipeline(cancel=engines.cancel) as pipeline,
        ):
            for index, image in enumerate(self._images(engines, workspace, dump, pipeline)):
                if index == 0:
                    self._first_frame_after = self.watch.elapsed
                dump.frame(image)
                yield Frame(index, index / clip.fps, image)
        dump.write()
        self._summary = self._summarise()

    def _images(
        self, engines: EngineLoader, workspace: Workspace, dump: TensorDump, pipeline: Pipeline
    ) -> Iterator[np.ndarray]:
        """The finished frames, uint8 [H, W, 3] in order, made on threads."""
        window, on_gpu = self.clip.plan.window, not self._choice.on_cpu
        there = on_gpu and self.request.dump_tensors is None  # what is dumped has to come to the host
        if there and not self.request.save_gpu_memory:
            frames = self._latents(engines, workspace, dump, decoded=True)
            return (image for _, image in pipeline.behind(frames, ahead=window, kind="denoise"))
        latents = workspace.spool(self._latents(engines, workspace, dump), self.clip.length)
        if on_gpu:  # on a CPU, two engines at a time only take cores from one another
            latents = pipeline.behind(latents, ahead=window, kind="denoise")
        if there:
            frames = self._decoded_on_gpu(engines, latents)
            return pipeline.behind(frames, ahead=FRAMES_AHEAD, kind="decode")
        images = dump.images(decode(engines, latents, self.watch))
        images = pipeline.behind(images, ahead=IMAGES_AHEAD, kind="decode")
        return pipeline.behind(filtered(quantised(images)), ahead=FRAMES_AHEAD, kind="finish")

    def _decoded_on_gpu(self, engines: EngineLoader, latents: Iterator[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
        """Frames of latents that were spooled; the decoder is loaded when the first one is there."""
        from vexpress_trt.runtime.cuda.denoise import decode_on_gpu

        first = next(latents)
        scaling = self._bundle.manifest.model.latent_scaling
        with engines.use("vae_decoder") as decoder:
            frames = decode_on_gpu(
                self._choice.gpu,
                decoder,
                chain([first], latents),
                length=self.clip.length,
                scaling=scaling,
                look=self._look,
            )
            with closing(frames):
                yield from self.watch.timed("decode", frames)

    def _portrait(self, engines: EngineLoader) -> dict[str, np.ndarray]:
        """Keys and values of the portrait."""
        self._report(ProgressEvent("portrait", 0))
        cache, image = PortraitCache.of(self.request.portrait_cache), self.clip.image
        with self.watch.stage("portrait"):
            keys_values, self._portrait_cached = cache.get_or_make(
                image, self._bundle, self._choice, lambda: encode_portrait(engines, image)
            )
        return keys_values

    def _speech(self, engines: EngineLoader, workspace: Workspace) -> Speech:
        """The audio tokens of every frame."""
        clip, request = self.clip, self.request
        self._report(ProgressEvent("speech", 0))
        pad = request.num_pad_audio_frames
        rate = self._bundle.manifest.model.audio_sample_rate / self._prepared.hearing.step

        def features(states: int) -> AudioFeatures:
            if request.upstream:
                return AudioFeatures.stretched(states, clip.length, pad)
            return AudioFeatures.timed(states, clip.audio.duration, clip.fps, rate, pad)

        return Speech(
            engines,
            clip.audio.waveform,
            features,
            frames=clip.plan.frames,
            fps=clip.fps,
            live_frames=clip.plan.live_frames(self._prepared.live_windows),
            whole=request.upstream,
            watch=self.watch,
            allocate=workspace.allocate,
        )

    def _prefetch(self, engines: EngineLoader) -> None:
        """Begin to load what the loop needs, where there is memory for it beside the portrait's and speech's."""
        if not self._prepared.roomy:
            return
        _, h, w = self._prepared.latent_shape
        sizes = {"B": self.request.window_batch, "F": self.clip.plan.window, "h": h, "w": w}
        graphs = list(dict.fromkeys(self._prepared.denoiser_graphs))
        for graph in graphs if self._choice.on_cpu else graphs[:1]:
            engines.prefetch(graph, **sizes)

    def _noise(self, workspace: Workspace) -> Callable[[int], np.ndarray]:
        """What gives a frame's initial latent [4, h, w]."""
        request, shape = self.request, self._prepared.latent_shape
        if not request.upstream:
            return partial(frame_noise, request.seed, shape=shape)
        layers = self._bundle.manifest.model.audio_encoder_layers
        return workspace.keep(upstream_noise(request.seed, layers, self.clip.plan.frames, shape)).__getitem__

    def _latents(
        self, engines: EngineLoader, workspace: Workspace, dump: TensorDump, *, decoded: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(frame, final latent [4, h, w]) in frame order, each as soon as it is final; or `decoded` on the GPU and
        filtered, uint8 [H, W, 3]."""
        self._prefetch(engines)
        keys_values = self._portrait(engines)
        speech = self._speech(engines, workspace)
        noise = dump.noise(self._noise(workspace))
        steps, length = self.request.num_inference_steps, self.clip.length
        inputs = {"keys_values": keys_values, "speech": speech, "noise": noise}
        with ExitStack() as stack:
            calls = clip_calls(self._prepared, engines, stack, **inputs, decoded=decoded, look=self._look)
            final = 0
            for done, frames in self.watch.timed("denoise", calls):
                if done:
                    self._calls += len(done)
                    self._report_call(*done[-1], steps, final)
                for frame, latent in frames:
                    if frame < length:
                        if frame == 0:
                            self._calls_before_first = self._calls
                        final += 1
                        yield frame, dump.latent(latent)

    def _report_call(self, window: int, step: int, steps: int, final: int) -> None:
        detail = f"window {window + 1}/{self.clip.plan.windows} step {step + 1}/{steps}"
        total = self.clip.plan.windows * steps
        self._report(ProgressEvent("denoise", self._calls, total, detail, final, self.clip.length))

    def _loader(self) -> EngineLoader:
        """What loads the clip's engines, each within its share of `gpu_memory`."""
        if self._idle is not None:
            self._idle.clear()
        shares, need, budget = None, self._prepared.gpu_need, self.request.gpu_memory_bytes
        if self._choice.gpu is not None:
            from vexpress_trt.runtime.cuda.memory_watch import MemoryWatch
            from vexpress_trt.runtime.cuda.shares import Shares

            self._memory = MemoryWatch(self._choice.gpu, budget)
            shares = None if need is None else Shares(budget, need)
        limits = {"shares": shares, "look": self._look}
        return EngineLoader(
            self._bundle, self._choice, self.watch, threads=self.request.threads, pool=self._pool, **limits
        )

    def _look(self) -> None:
        """Notes how much of the GPU's memory is taken now."""
        if self._memory is not None:
            self._memory.look()

    def _limited(self) -> AbstractContextManager[None]:
        """Keeps torch on a GPU within `gpu_memory`."""
        if self._prepared.gpu_need is None:
            return nullcontext()
        from vexpress_trt.runtime.cuda.budget import limited

        return limited(self._choice, self.request.gpu_memory_bytes, self._prepared.gpu_need)

    def _summarise(self) -> Summary:
        request, clip, choice, watch = self.request, self.clip, self._choice, self.watch
        peak = self._memory and self._memory.peak
        return Summary(
            output_path=None,
            frames=clip.length,
            width=clip.width,
            height=clip.height,
            fps=clip.fps,
            duration_seconds=clip.length / clip.fps,
            strategy=request.strategy,
            backend=choice.backend,
            backend_reason=choice.reason,
            precision=choice.precision,
            dtype=choice.dtype,
            seed=request.seed,
            num_inference_steps=request.num_inference_steps,
            solver=request.solver,
            guidance_scale=request.guidance_scale,
            guided_steps=sum(map(request.guided, range(request.num_inference_steps))),
            context_frames=clip.plan.window,
            context_overlap=clip.plan.overlap,
            windows=clip.plan.windows,
            window_batch=request.window_batch,
            portrait_cached=self._portrait_cached,
            denoiser_calls=self._calls,
            denoiser_calls_before_first_frame=self._calls_before_first,
            stage_seconds={name: round(seconds, 4) for name, seconds in watch.seconds.items()},
            time_to_first_frame=self._first_frame_after or 0.0,
            total_seconds=watch.elapsed,
            frames_per_second=clip.length / watch.elapsed,
            peak_memory_mib=peak_memory_mib(),
            peak_gpu_memory_mib=peak and round(peak / 2**20, 1),
            random_weights=self._bundle.manifest.random_weights,
        )


def generate(
    request: GenerationRequest, *, on_progress: ProgressCallback | None = None, engines: EnginePool | None = None
) -> Generation:
    """Generate a clip lazily: iterate over the result for frames. With `engines`, those stay loaded for the next clip.

    Raises UserError at once for a request or inputs that cannot be used, and while iterating when a network's result is
    not finite.
    """
    return Generation(request, on_progress, engines)


def write_video(
    request: GenerationRequest, *, on_progress: ProgressCallback | None = None, engines: EnginePool | None = None
) -> Summary:
    """Generate a clip into `request.output_path` (MP4, H.264 and AAC); nothing is left there unless it succeeds.

    The path "-" stands for standard output, which gets a fragmented MP4 as frames become final. Raises BrokenPipeError
    when its reader goes away.
    """
    assert request.output_path is not None, "write_video needs an output_path"
    target = output_target(request.output_path)
    generation = generate(request, on_progress=on_progress, engines=engines)
    clip = generation.clip
    encoder = choose_encoder(request.encoder, clip.width, clip.height)
    sound = {"audio_path": request.audio_path, "frames": clip.length}
    writer = VideoWriter(target, clip.width, clip.height, clip.fps, encoder=encoder, **sound)
    encode(generation, writer, generation.watch)
    written = {"output_path": str(request.output_path), "encoder": encoder}
    return replace(generation.summary, **written, total_seconds=generation.watch.elapsed)


def quantised(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """float32 images in [0, 1] as uint8, truncated as upstream does."""
    for image in images:
        yield (image * np.float32(255.0)).astype(np.uint8)
