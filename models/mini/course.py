"""The stages `vae`, `clips`, `spatial` and `motion` one after the other, within a given time, from packed speech."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vexpress_trt.models.mini import graphs
from vexpress_trt.models.mini.autoencoder import PLAN, load_autoencoder, train_autoencoder
from vexpress_trt.models.mini.carry import load_spoken
from vexpress_trt.models.mini.diffusion import (
    MOTION_FOLDER,
    MOTION_PLAN,
    SPATIAL_FOLDER,
    SPATIAL_PLAN,
    Clips,
    train_denoiser,
)
from vexpress_trt.models.mini.drawing import Painters
from vexpress_trt.models.mini.pool import Pool
from vexpress_trt.models.mini.training import progress_of

VAE_FOLDER = "vae"
_SHARES = {VAE_FOLDER: 0.28, SPATIAL_FOLDER: 0.37, MOTION_FOLDER: 0.35}
_FRAMES_PER_IMAGE = 3  # the autoencoder sees so many times fewer images in a step than the denoiser latents
_FIRST_CLIPS = 200  # with which the autoencoder begins
_SECONDS_PER_CLIP = 0.02  # that `clips` is given for each that is still missing, at most


@dataclass(frozen=True)
class Course:
    """Where from and to, on what, for how long: `frames` a step of the denoiser, `clips` drawn by `workers`."""

    carry: Path
    folder: Path
    scratch: Path
    device: torch.device
    seconds: float
    frames: int
    clips: int
    workers: int


def run_course(course: Course) -> bool:
    """Goes on where the folder's weights are; says whether all plans were done. Raises what a stage raises."""
    deadline = time.monotonic() + course.seconds
    folder, cuda = course.folder, course.device.type == "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    if cuda:
        torch.backends.cudnn.benchmark = True
    painters, trial = Painters(course.scratch, course.carry, course.clips, course.workers), None
    try:
        trial = graphs.start_trial() if cuda else None
        pool = Pool(painters, course.device)
        captured = trial is not None and graphs.trial_succeeded(trial)
        pool.wait_for(_FIRST_CLIPS, 120)
        images = max(1, course.frames // _FRAMES_PER_IMAGE)
        seconds = _seconds_of(folder, VAE_FOLDER, deadline)
        if not train_autoencoder(folder / VAE_FOLDER, pool, PLAN, images, seconds, graphs=captured):
            return False
        missing = max(0, course.clips - pool.count)
        pool.wait_for(course.clips // 2, min(_SECONDS_PER_CLIP * missing, 0.1 * course.seconds))
    finally:
        painters.stop()
        if trial is not None:
            trial.kill()
    begun = time.monotonic()
    clips = Clips(pool, load_autoencoder(folder / VAE_FOLDER).to(course.device), load_spoken(course.carry))
    print(f"clips: {pool.count} as latents after {time.monotonic() - begun:.1f} s", flush=True)
    del pool  # its frames are needed no longer
    for stage, plan in ((SPATIAL_FOLDER, SPATIAL_PLAN), (MOTION_FOLDER, MOTION_PLAN)):
        seconds = _seconds_of(folder, stage, deadline)
        if not train_denoiser(folder, stage, clips, plan, course.frames, seconds, graphs=captured):
            return False
    return True


def _seconds_of(folder: Path, stage: str, deadline: float) -> float:
    """The stage's part of the time that is left, in proportion to what is still to be done in it and those after it."""
    names = list(_SHARES)
    left = {name: _SHARES[name] * (1 - progress_of(folder / name)[1]) for name in names[names.index(stage) :]}
    return max(1.0, (deadline - time.monotonic()) * left[stage] / max(sum(left.values()), 1e-9))
