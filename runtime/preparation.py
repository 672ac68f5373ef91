"""A request seen whole before any network runs: its inputs read and checked, its engines chosen, its cost known."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from vexpress_trt.engines.audio_geometry import AudioGeometry
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.call_sizes import WHOLE_AUDIO_SECONDS, ClipSizes
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.memory import available_memory
from vexpress_trt.engines.selection import EngineChoice, choose_engines
from vexpress_trt.runtime import advice
from vexpress_trt.runtime.clip import Clip, prepare_clip
from vexpress_trt.runtime.estimate import estimate_bytes, estimate_seconds
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.scheduler import Scheduler, make_scheduler
from vexpress_trt.runtime.speech import CONTEXT_SECONDS, PART_SECONDS
from vexpress_trt.runtime.windows import live_windows

if TYPE_CHECKING:
    from vexpress_trt.runtime.cuda.budget import GpuNeed

log = logging.getLogger("vexpress")
ROOMY = 0.4  # of the free memory: a clip that needs less may have its denoiser loaded beside the reference net


class Preparation:
    """What a clip is made of and how. Raises UserError for everything that its inputs can be refused for.

    `roomy`: whether engines may be loaded ahead of their stage; `gpu_need`: what the clip takes of the GPU, where that
    has a limit.
    """

    def __init__(self, request: GenerationRequest) -> None:
        request.validate()
        if request.bundle is None:
            raise UserError("--bundle is missing: name a bundle, or make one with `vexpress export`.")
        self.request = request
        self.bundle = Bundle.open(request.bundle)
        self._check_model()
        self.choice = self._choose(self._sizes)
        self.clip: Clip = prepare_clip(request, self.bundle.manifest.model)
        self._check_speech()
        if self.choice.planned:
            self.choice = self._choose(replace(self._sizes, samples=self._longest_call))
        self.gpu_need = self._within_budget()
        self.roomy = self._is_roomy()

    @property
    def frugal(self) -> bool:
        """Whether engines may be in memory in their own stage only: a limit is counted for one stage."""
        return self.request.save_gpu_memory or self.gpu_need is not None

    @property
    def hearing(self) -> AudioGeometry:
        return AudioGeometry.of(self.bundle.manifest.networks["wav2vec2"])

    @property
    def scheduler(self) -> Scheduler:
        return make_scheduler(self.bundle.manifest.scheduler, self.request.num_inference_steps, self.request.solver)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        model, clip = self.bundle.manifest.model, self.clip
        return model.latent_channels, clip.height // self.factor, clip.width // self.factor

    @property
    def factor(self) -> int:
        """Pixels per latent pixel."""
        return self.bundle.manifest.model.vae_scale_factor

    @property
    def denoiser_graphs(self) -> list[str]:
        """The graph of every step."""
        request = self.request
        return [f"denoiser_{'guided' if request.guided(s) else 'single'}" for s in range(request.num_inference_steps)]

    @property
    def live_windows(self) -> int:
        return live_windows(self.clip.plan, self.request.num_inference_steps, self.request.window_batch)

    @property
    def _sizes(self) -> ClipSizes:
        """What is known of the clip before its inputs are opened."""
        request, model = self.request, self.bundle.manifest.model
        return ClipSizes(
            frozenset(self.denoiser_graphs),
            height=(request.image_height or model.image_height) // self.factor,
            width=(request.image_width or model.image_width) // self.factor,
            window=request.context_frames or model.context_frames,
            window_batch=request.window_batch,
        )

    def _choose(self, clip: ClipSizes) -> EngineChoice:
        request = self.request
        chosen = {"backend": request.backend, "dtype": request.dtype, "device": request.device}
        return choose_engines(self.bundle, gpu_id=request.gpu_id, clip=clip, **chosen)

    def _is_roomy(self) -> bool:
        """Whether memory is plenty; logs when it will be short, the run long or a GPU not used."""
        request, clip, choice = self.request, self.clip, self.choice
        size = {
            "frames": clip.plan.window,
            "halves": 2 if "denoiser_guided" in self.denoiser_graphs else 1,
            "latent_pixels": clip.width * clip.height // self.factor**2,
        }
        needed = estimate_bytes(
            self.bundle,
            choice.precision,
            denoisers=len(set(self.denoiser_graphs)),
            save_gpu_memory=request.save_gpu_memory,
            **size,
        )
        gpu = choice.gpu
        available = available_memory() if gpu is None else gpu_status().devices[gpu].memory
        calls = {"windows": clip.plan.windows, "steps": request.num_inference_steps}
        seconds = estimate_seconds(self.bundle, choice.precision, choice.dtype, **calls, **size)
        lines = (
            advice.short_memory(needed, available, save_gpu_memory=request.save_gpu_memory),
            advice.long_run(seconds) if gpu is None else None,  # the estimate knows processors only
            advice.unused_gpu(request.gpu_id, request.device) if gpu is None else None,
        )
        for line in filter(None, lines):
            log.warning(line)
        return not self.frugal and needed < ROOMY * available

    def _within_budget(self) -> "GpuNeed | None":
        """What the clip takes of the GPU, where that has a limit. Raises UserError where it needs more."""
        request, budget = self.request, self.request.gpu_memory_bytes
        if budget is None:
            return None
        if self.choice.gpu is None:
            log.warning("--gpu_memory has no effect: this clip runs on the CPU")
            return None
        from vexpress_trt.runtime.cuda.budget import require_budget

        return require_budget(
            budget,
            self.bundle,
            self.choice,
            denoisers=self.denoiser_graphs,
            plan=self.clip.plan,
            scheduler=self.scheduler,
            shape=self.latent_shape,
            live_windows=self.live_windows,
            window_batch=request.window_batch,
            save_gpu_memory=request.save_gpu_memory,
            samples=self._part_samples,
        )

    @property
    def _part_samples(self) -> int:
        """The audio encoder's samples in one call beside the loop; 0 where it has heard all before."""
        rate, samples = self.bundle.manifest.model.audio_sample_rate, len(self.clip.audio.waveform)
        in_parts = not self.request.upstream and samples > WHOLE_AUDIO_SECONDS * rate
        return round((PART_SECONDS + 2 * CONTEXT_SECONDS) * rate) if in_parts else 0

    @property
    def _longest_call(self) -> int:
        """Samples that the audio encoder hears at once."""
        states = self.hearing.states(len(self.clip.audio.waveform))
        return self._part_samples or self.hearing.samples(0, states)[1]

    def _check_model(self) -> None:
        """What the request asks for and this model cannot do."""
        request, model = self.request, self.bundle.manifest.model
        rows = 2 * (2 * request.num_pad_audio_frames + 1)
        if rows != model.audio_window_rows:
            pad = (model.audio_window_rows // 2 - 1) // 2
            raise UserError(
                f"--num_pad_audio_frames {request.num_pad_audio_frames}: this bundle takes {pad}; leave it out."
            )
        if (request.context_frames or 0) > model.max_context_frames:
            raise UserError(
                f"--context_frames {request.context_frames}: this bundle's motion modules count to "
                f"{model.max_context_frames}."
            )

    def _check_speech(self) -> None:
        """Speech of which the audio encoder hears nothing."""
        samples = len(self.clip.audio.waveform)
        if not self.hearing.states(samples):
            rate = self.bundle.manifest.model.audio_sample_rate
            raise UserError(
                f"{self.request.audio_path} lasts {1000 * samples / rate:.0f} ms, the audio encoder needs "
                f"{1000 * self.hearing.reach / rate:.0f} ms: give longer speech."
            )
