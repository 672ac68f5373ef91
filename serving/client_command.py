"""`vexpress generate --server URL`: frames of a server, encoded here as if they had been made here."""

import argparse
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vexpress_trt.runtime.progress import ProgressCallback
    from vexpress_trt.runtime.request import GenerationRequest
    from vexpress_trt.runtime.summary import Summary

TOKEN_VARIABLE = "VEXPRESS_TOKEN"


def add_server_flags(command: argparse.ArgumentParser) -> None:
    """The flags by which `generate` uses a server."""
    command.add_argument(
        "--server", metavar="URL", help="let this server generate: HOST:PORT of `vexpress serve` (gRPC)"
    )
    command.add_argument(
        "--token", help=f"the server's token (default: {TOKEN_VARIABLE}, which other users of the machine cannot read)"
    )


def write_video_from_server(
    request: "GenerationRequest", url: str, token: str | None, *, on_progress: "ProgressCallback"
) -> "Summary":
    """Let a server generate a clip into `request.output_path`, as `runtime.write_video` would.

    Frames are encoded here, with the sound of the local file. Times of the summary are the server's except "encode"
    and the total. Raises UserError, also where the server refuses, fails or is not there.
    """
    from vexpress_trt.runtime.progress import ProgressEvent
    from vexpress_trt.runtime.summary import Stopwatch
    from vexpress_trt.runtime.video_output import VideoWriter, check_output_path, choose_encoder, standard_output
    from vexpress_trt.serving.client import Client

    target = standard_output() if str(request.output_path) == "-" else Path(request.output_path)
    if isinstance(target, Path):
        check_output_path(target)
    watch = Stopwatch()
    on_progress(ProgressEvent("server", 0))
    with Client(url, token or os.environ.get(TOKEN_VARIABLE)) as client:
        generation = client.generate(request)
        clip = generation.info
        encoder = choose_encoder(request.encoder, clip.width, clip.height)
        sound = {"audio_path": request.audio_path, "frames": clip.frames}
        with (
            VideoWriter(target, clip.width, clip.height, clip.fps, encoder=encoder, **sound) as writer,
            closing(iter(generation)) as frames,
        ):
            for frame in frames:
                with watch.stage("encode"):
                    writer.write(frame.image)
                done = frame.index + 1
                on_progress(ProgressEvent("frames", done, clip.frames, "", done, clip.frames))
    summary = generation.summary
    return replace(
        summary,
        output_path=str(request.output_path),
        encoder=encoder,
        stage_seconds=summary.stage_seconds | watch.seconds,
        total_seconds=watch.elapsed,
    )
