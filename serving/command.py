"""`vexpress serve` and `vexpress export-triton`: flags, and one call each. Nothing heavy is imported before that."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving import protocol
from vexpress_trt.serving.limits import Limits

log = logging.getLogger("vexpress")
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
RUNTIME_FLAGS = "backend dtype device gpu_memory threads portrait_cache face_model_dir".split()


def add_commands(add: AddCommand, add_request_flag: Callable[[argparse.ArgumentParser, Any], None]) -> None:
    """Add both commands; `add(name, run, summary)` makes the parser of one."""
    parser = add("serve", _serve, "a Triton server that streams frames and answers with MP4s")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="what to serve (default: the model in the box)")
    _add_shared_flags(parser, add_request_flag)
    parser.add_argument(
        "--held",
        type=int,
        default=Limits.held,
        metavar="MIB",
        help=f"of answers in Triton above which it is busy, 0: never (default {Limits.held})",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    for name, port in (("grpc", protocol.GRPC_PORT), ("http", protocol.HTTP_PORT), ("metrics", protocol.METRICS_PORT)):
        parser.add_argument(f"--{name}_port", type=int, default=port, metavar="N", help=f"default {port}")
    parser.add_argument("--token", help=f"that requests must bring; better given as {protocol.TOKEN_VARIABLE}")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="Triton's own (default: in the user's cache)")
    parser.add_argument("--setup_only", action="store_true", help="only set up that environment")
    parser.add_argument("--verbose", action="store_true", help="Triton's own messages as well")

    parser = add("export-triton", _export_triton, "a Triton model repository that serves a bundle")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("repository", type=Path, metavar="REPO", help="the folder to write")
    _add_shared_flags(parser, add_request_flag)
    parser.add_argument("--copy", action="store_true", help="copy the bundle into the repository")
    parser.add_argument("--python", default=sys.executable, help="the workers' interpreter (default: this one)")
    parser.add_argument("--engines", action="store_true", help="also one model per graph, for onnxruntime and TensorRT")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")


def _add_shared_flags(
    parser: argparse.ArgumentParser, add_request_flag: Callable[[argparse.ArgumentParser, Any], None]
) -> None:
    for spec in fields(GenerationRequest):
        if spec.name in RUNTIME_FLAGS:
            add_request_flag(parser, spec)
    parser.add_argument(
        "--gpu_ids", type=_numbers, default=(0,), metavar="N,N", help="GPUs, one worker each in turn (default 0)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="clips at a time (default: one for each GPU)")
    parser.add_argument("--queue", type=int, metavar="N", help="requests that may wait (default: 4 for each worker)")
    for name, metavar, what in (
        ("timeout", "S", "seconds for a request, waiting included"),
        ("max_seconds", "S", "longest speech"),
        ("max_pixels", "N", "of a frame"),
        ("clip_memory", "MIB", "of all frames of a streamed clip"),
        ("drain", "S", "seconds for what is running at the end"),
        ("worker_memory", "MIB", "a larger worker is replaced, 0: never"),
    ):
        default = getattr(Limits, name)
        text = f"{what} (default {default:.0f})"
        parser.add_argument(f"--{name}", type=type(default), default=default, metavar=metavar, help=text)


def _serve(args: argparse.Namespace) -> int:
    from vexpress_trt.serving.environment import default_folder, prepare
    from vexpress_trt.serving.server import Address, serve

    limits = _limits(args, args.held)
    token = args.token or os.environ.get(protocol.TOKEN_VARIABLE)
    workers = () if args.setup_only else _serving_workers(args)
    if not (token or args.setup_only or args.host in _LOOPBACK):
        log.warning(f"--host {args.host} without a token: whoever reaches it may use it; set {protocol.TOKEN_VARIABLE}")
    environment = prepare(args.environment or default_folder(), _say)
    if args.setup_only:
        _say(f"Triton is in {environment.root}")
        return 0
    return serve(
        environment,
        sys.executable,
        workers,
        limits,
        Address(args.host, args.grpc_port, args.http_port, args.metrics_port),
        token,
        _say,
        verbose=args.verbose,
    )


def _serving_workers(args: argparse.Namespace) -> tuple[dict[str, Any], ...]:
    """What `_workers` gives for the bundle that is served. Raises UserError where it is not there or cannot run here:
    Triton would add lines of its own to that sentence."""
    from vexpress_trt.engines.bundle import Bundle
    from vexpress_trt.engines.selection import WISHES, choose_engines
    from vexpress_trt.models.box.box import shipped_bundle, taken_for_want_of_another

    bundle = Bundle.open(args.bundle or shipped_bundle())
    workers = _workers(args, bundle.root)
    if args.bundle is None:
        log.warning(f"no --bundle is given: {taken_for_want_of_another()}")
    for worker in workers:
        choose_engines(bundle, **{name: worker[name] for name in WISHES if name in worker})
    return workers


def _export_triton(args: argparse.Namespace) -> int:
    from vexpress_trt.serving.export_repository import export_repository

    limits = _limits(args, held=0)
    export_repository(
        args.bundle,
        args.repository,
        python=args.python,
        workers=_workers(args, args.bundle),
        limits=limits,
        copy=args.copy,
        engines=args.engines,
        force=args.force,
    )
    print(f"wrote {args.repository}")
    return 0


def _limits(args: argparse.Namespace, held: int) -> Limits:
    for name in ("timeout", "max_seconds", "max_pixels", "clip_memory"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name} {getattr(args, name)}: must be above 0.")
    names = "queue timeout max_seconds max_pixels clip_memory drain worker_memory".split()
    for name in ("queue", "drain", "worker_memory"):
        if getattr(args, name) is not None and not getattr(args, name) >= 0:
            raise UserError(f"--{name} {getattr(args, name)}: must not be negative.")
    return Limits(**{name: getattr(args, name) for name in names}, held=held)


def _workers(args: argparse.Namespace, bundle: Path) -> tuple[dict[str, Any], ...]:
    """For each worker the request's fields that are the server's own. Raises UserError for values of no use."""
    from vexpress_trt.engines.cpu import usable_cores

    count = len(args.gpu_ids) if args.workers is None else args.workers
    if not 1 <= count <= 64:
        raise UserError(f"--workers {count}: must be from 1 to 64.")
    given = {name: getattr(args, name) for name in RUNTIME_FLAGS if getattr(args, name) is not None}
    GenerationRequest(Path("portrait"), Path("audio"), **given).validate()
    if args.face_model_dir is not None:
        given["face_model_dir"] = str(args.face_model_dir.absolute())
    if args.portrait_cache not in (None, "off"):  # Triton and its workers run in a folder of their own
        given["portrait_cache"] = str(Path(args.portrait_cache).absolute())
    given.setdefault("threads", max(1, usable_cores() // count))
    return tuple(
        {**given, "bundle": str(bundle.absolute()), "gpu_id": args.gpu_ids[number % len(args.gpu_ids)]}
        for number in range(count)
    )


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers such as 0,1")
    return tuple(int(part) for part in parts)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # Ctrl-C ended the reader of our messages too: draining goes on
        print(f"vexpress serve: {line}", file=sys.stderr, flush=True)
