"""Trains the small model stage by stage: `python -m vexpress_trt.models.mini.train STAGE --folder DIR`.

Stages in order: speech, encoder, pack, networks, evaluate, package; `curves` draws what they measured. `networks` are
the autoencoder and the denoiser.
Each goes on where it was stopped; the exit status is 3 while a plan's end has not been reached.
"""

import argparse
import os
from pathlib import Path

import cv2
import torch

_NEEDED = {
    "pack": ("carry",),
    "networks": ("carry", "scratch"),
    "curves": ("target",),
    "package": ("target",),
}
_UNFINISHED = 3  # the exit status of a stage that was stopped before its plan's end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(_STAGES))
    parser.add_argument("--folder", type=Path, required=True, help="where data, weights and curves are kept")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop the encoder's training after this time")
    parser.add_argument("--carry", type=Path, help="the folder that `pack` writes and `networks` reads")
    parser.add_argument("--megabytes", type=float, default=34, help="size of what is packed, about")
    parser.add_argument("--scratch", type=Path, help="where clips are drawn: 2.4 MB each")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=14400, help="time for all networks together")
    parser.add_argument("--frames", type=int, default=24, help="frames in a step of the denoiser; a GPU takes 384")
    parser.add_argument("--clips", type=int, default=2000, help="how many clips are drawn at most")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="that draw clips")
    parser.add_argument("--count", type=int, default=16, help="how many clips are evaluated")
    parser.add_argument("--of", choices=("spatial", "motion"), default="motion", help="the denoiser that is meant")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--denoising", type=int, default=8, help="steps of denoising in an evaluation")
    parser.add_argument(
        "--target", type=Path, help="the folder of the packaged checkpoints, or the picture of the curves"
    )
    parser.add_argument("--curve", type=Path, nargs="+", help="curves to draw, default: the folder's")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for name in _NEEDED.get(arguments.stage, ()):
        if getattr(arguments, name) is None:
            parser.error(f"the stage {arguments.stage} needs --{name}")
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    if _STAGES[arguments.stage](arguments) is False:
        raise SystemExit(_UNFINISHED)


def _speech(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.spoken import write_speech

    write_speech(arguments.folder)


def _encoder(arguments: argparse.Namespace) -> bool:
    from vexpress_trt.models.mini.listening import PLAN, train_listener, write_hearing

    finished = train_listener(arguments.folder, PLAN, arguments.minutes)
    if finished:
        write_hearing(arguments.folder)
    return finished


def _pack(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.carry import pack_runs
    from vexpress_trt.models.mini.listening import HEARING_FOLDER
    from vexpress_trt.models.mini.spoken import TRAINING_FOLDER

    pack_runs(arguments.folder, TRAINING_FOLDER, HEARING_FOLDER, arguments.carry, arguments.megabytes)


def _networks(arguments: argparse.Namespace) -> bool:
    from vexpress_trt.models.mini.course import Course, run_course

    return run_course(
        Course(
            carry=arguments.carry,
            folder=arguments.folder,
            scratch=arguments.scratch,
            device=arguments.device,
            seconds=arguments.seconds,
            frames=arguments.frames,
            clips=arguments.clips,
            workers=arguments.workers,
        )
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.evaluate import evaluate
    from vexpress_trt.models.mini.sampling import Settings

    settings = Settings(steps=arguments.denoising, guidance=arguments.guidance)
    for name, value in evaluate(arguments.folder, arguments.of, arguments.count, settings).items():
        print(f"{name:24} {value:.4g}")


def _curves(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.curves import draw_curves

    draw_curves(arguments.curve or [arguments.folder / "curve.jsonl"], arguments.target)


def _package(arguments: argparse.Namespace) -> None:
    from vexpress_trt.models.mini.package import write_checkpoints

    loaded = write_checkpoints(arguments.folder, arguments.of, arguments.target)
    size = sum(record.size for record in loaded.files.values())
    print(f"{arguments.target}: {len(loaded.files)} files, {size / 1e6:.1f} MB, loads as official checkpoints")


_STAGES = {
    "speech": _speech,
    "encoder": _encoder,
    "pack": _pack,
    "networks": _networks,
    "evaluate": _evaluate,
    "curves": _curves,
    "package": _package,
}

if __name__ == "__main__":
    main()
