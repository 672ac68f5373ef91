"""`vexpress generate --server URL`: frames of a server, encoded here as if they had been made here."""

import argparse
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from vexpress_trt.serving.protocol import TOKEN_VARIABLE

if TYPE_CHECKING:
    from vexpress_trt.runtime.frame import Frame
    from vexpress_trt.runtime.progress import ProgressCallback
    from vexpress_trt.runtime.request import GenerationRequest
    from vexpress_trt.runtime.summary import Summary
    from vexpress_trt.serving.client import ClientGeneration


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
    from vexpress_trt.runtime.video_output import VideoWriter, choose_encoder, encode, output_target
    from vexpress_trt.serving.client import Client

    target = output_target(request.output_path)
    watch = Stopwatch()
    on_progress(ProgressEvent("server", 0))
    with Client(url, token or os.environ.get(TOKEN_VARIABLE)) as client:
        generation = client.generate(request)
        clip = generation.info
        encoder = choose_encoder(request.encoder, clip.width, clip.height)
        sound = {"audio_path": request.audio_path, "frames": clip.frames}
        writer = VideoWriter(target, clip.width, clip.height, clip.fps, encoder=encoder, **sound)
        encode(_reported(generation, on_progress), writer, watch)
    summary = generation.summary
    return replace(
        summary,
        output_path=str(request.output_path),
        encoder=encoder,
        stage_seconds=summary.stage_seconds | watch.seconds,
        total_seconds=watch.elapsed,
    )


def _reported(generation: "ClientGeneration", on_progress: "ProgressCallback") -> "Iterator[Frame]":
    from vexpress_trt.runtime.progress import ProgressEvent

    total = generation.info.frames
    with closing(iter(generation)) as frames:
        for done, frame in enumerate(frames, 1):
            on_progress(ProgressEvent("frames", done, total, "", done, total))
            yield frame
