"""Trains the small model stage by stage: `python -m vexpress_trt.models.mini.train STAGE --folder DIR [--minutes M]`.

Stages in order: speech, vae, encoder, clips, spatial, motion, evaluate, package. Each goes on where it was stopped;
the exit status is 3 while a plan's end has not been reached.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import torch

_UNFINISHED = 3  # the exit status of a stage that was stopped before its plan's end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(_STAGES))
    parser.add_argument("--folder", type=Path, required=True, help="where data, checkpoints and curves are kept")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; the next call goes on")
    parser.add_argument("--steps", type=int, help="length of the plan, where it is not the stage's own")
    parser.add_argument("--count", type=int, default=2000, help="how many clips are made, or evaluated")
    parser.add_argument("--of", choices=("spatial", "motion"), default="motion", help="the denoiser that is meant")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--denoising", type=int, default=8, help="steps of denoising in an evaluation")
    parser.add_argument("--target", type=Path, help="the folder of the packaged checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    if _STAGES[arguments.stage](arguments) is False:
        raise SystemExit(_UNFINISHED)


def _vae(arguments: argparse.Namespace) -> bool:
    from vexpress_trt.models.mini.autoencoder import PLAN, train_autoencoder

    return train_autoencoder(arguments.folder / "vae", _planned(PLAN, arguments), arguments.minutes)


def _speech(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.spoken import write_speech

    write_speech(arguments.folder)


def _encoder(arguments: argparse.Namespace) -> bool:
    from vexpress_trt.models.mini.listening import PLAN, train_listener, write_hearing

    finished = train_listener(arguments.folder, _planned(PLAN, arguments), arguments.minutes)
    if finished:
        write_hearing(arguments.folder)
    return finished


def _clips(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.clips import write_clips

    write_clips(arguments.folder, arguments.count)


def _spatial(arguments: argparse.Namespace) -> bool:
    from vexpress_trt.models.mini.diffusion import SPATIAL_FOLDER, SPATIAL_PLAN, train_denoiser

    return train_denoiser(arguments.folder, SPATIAL_FOLDER, _planned(SPATIAL_PLAN, arguments), arguments.minutes)


def _motion(arguments: argparse.Namespace) -> bool:
    from vexpress_trt.models.mini.diffusion import MOTION_FOLDER, MOTION_PLAN, train_denoiser

    return train_denoiser(arguments.folder, MOTION_FOLDER, _planned(MOTION_PLAN, arguments), arguments.minutes)


def _evaluate(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.evaluate import evaluate
    from vexpress_trt.models.mini.sampling import Settings

    settings = Settings(steps=arguments.denoising, guidance=arguments.guidance)
    for name, value in evaluate(arguments.folder, arguments.of, arguments.count, settings).items():
        print(f"{name:24} {value:.4g}")


def _package(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.package import write_checkpoints

    loaded = write_checkpoints(arguments.folder, arguments.of, arguments.target)
    size = sum(record.size for record in loaded.files.values())
    print(f"{arguments.target}: {len(loaded.files)} files, {size / 1e6:.1f} MB, loads as official checkpoints")


def _planned(plan, arguments: argparse.Namespace):
    return plan if arguments.steps is None else replace(plan, steps=arguments.steps)


_STAGES = {
    "speech": _speech,
    "vae": _vae,
    "encoder": _encoder,
    "clips": _clips,
    "spatial": _spatial,
    "motion": _motion,
    "evaluate": _evaluate,
    "package": _package,
}

if __name__ == "__main__":
    main()
