"""The `vexpress` command: arguments in, one call out, errors as sentences.

Nothing heavy is imported before a command has its arguments: `--help` and every argument error answer at once. Flags
are written with underscores, as upstream's; dashes work too.
"""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from vexpress_trt.bench.command import add_commands as add_bench_commands
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.precision import PRECISIONS
from vexpress_trt.engines.signals import run_unwinding
from vexpress_trt.engines.trt.command import add_commands as add_engine_commands
from vexpress_trt.engines.verify_command import add_commands as add_verify_commands
from vexpress_trt.export.hub_sources import PART_NAMES
from vexpress_trt.runtime.presets import DEMO_PRESET, PRESETS
from vexpress_trt.runtime.request import BACKENDS, GenerationRequest
from vexpress_trt.serving.batch_command import add_commands as add_batch_commands
from vexpress_trt.serving.client_command import add_server_flags, write_video_from_server
from vexpress_trt.serving.command import add_commands as add_serving_commands

log = logging.getLogger("vexpress")
_DEMO_FLAGS = "seed device gpu_id dtype backend threads".split()


def main(argv: list[str] | None = None) -> int:
    """Run one command; exit status 0: done, 1: a check failed, 2: refused with a sentence, 128 and the number of a
    signal: stopped by it (130 is Ctrl-C).

    141: the reader of the output went away.
    """
    try:
        try:
            args = _parser().parse_args(_with_underscores(sys.argv[1:] if argv is None else argv))
            with _sentences_on_stderr(args):
                return _run(args)
        except KeyboardInterrupt:
            print("vexpress: interrupted", file=sys.stderr)
            return 130
        finally:
            print(end="", flush=True)  # what is still held back: at exit only the interpreter could tell of a failure
    except OSError as error:
        gone = isinstance(error, BrokenPipeError)
        if not gone and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if not gone:
            with suppress(OSError):  # stderr may lie on the same full disk
                print(f"vexpress: error: the output cannot be written: {error.strerror.lower()}", file=sys.stderr)
        _drop_held_output()
        return 141 if gone else 2


def _run(args: argparse.Namespace) -> int:
    try:
        return run_unwinding(lambda: args.run(args)) or 0
    except UserError as error:
        print(f"vexpress: error: {error}", file=sys.stderr)
        return 2


def _drop_held_output() -> None:
    """Have what nobody takes written nowhere, or the interpreter complains of it at exit, with a status of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _generate(args: argparse.Namespace) -> int:
    request = GenerationRequest(**{spec.name: getattr(args, spec.name) for spec in fields(GenerationRequest)})
    request.validate()
    if request.output_path is None:
        raise UserError("--output_path is missing: name the MP4 to write.")
    if args.server is None and args.token is not None:
        raise UserError("--token is for a server: name it with --server.")
    if args.server is None and request.bundle is None:
        request = replace(request, bundle=_shipped_bundle())

    from vexpress_trt.runtime.progress import Reporter

    with Reporter(quiet=args.quiet) as reporter:
        if args.server is not None:
            summary = write_video_from_server(request, args.server, args.token, on_progress=reporter)
        else:
            from vexpress_trt.runtime.generation import write_video

            summary = write_video(request, on_progress=reporter)
    # A streamed video has standard output to itself.
    where = sys.stderr if str(request.output_path) == "-" else sys.stdout
    print(json.dumps(summary.as_dict(), indent=2) if args.json else summary.as_text(), file=where)
    return 0


def _shipped_bundle() -> Path:
    from vexpress_trt.models.box.box import is_shipped, shipped_bundle, taken_for_want_of_another

    if not is_shipped():
        raise UserError("--bundle is missing: name a bundle, or make one with `vexpress export`.")
    log.warning(f"no --bundle is given: {taken_for_want_of_another()}")
    return shipped_bundle()


def _demo(args: argparse.Namespace) -> int:
    if args.output_path.suffix.lower() != ".mp4":
        raise UserError(f"--output_path {args.output_path}: let the name end in .mp4; a .png is put beside it.")

    from vexpress_trt.models.box.demo import run_demo
    from vexpress_trt.runtime.progress import Reporter

    given = {name: getattr(args, name) for name in ("bundle", "preset", *_DEMO_FLAGS)}
    with Reporter(quiet=args.quiet) as reporter:
        result = run_demo(args.output_path, on_progress=reporter, **given)
    print(json.dumps(result.as_dict(), indent=2) if args.json else result.as_text())
    return 0


def _export(args: argparse.Namespace) -> int:
    from vexpress_trt.export.command import run_export

    if args.checkpoints is None and args.random is None:
        raise UserError("give --checkpoints DIR (official weights), or --random tiny|mid|half|full")
    run_export(
        args.bundle,
        checkpoints=args.checkpoints,
        random=args.random,
        random_seed=args.random_seed,
        precisions=tuple(args.precision),
        image_width=args.image_width,
        image_height=args.image_height,
        context_frames=args.context_frames,
        plain=args.plain,
        force=args.force,
        report=args.report,
    )
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from vexpress_trt.export.fetch import fetch

    fetch(args.checkpoints, parts=args.parts, endpoint=args.endpoint, assume_yes=args.yes, replace=args.replace)
    return 0


def _extract(args: argparse.Namespace) -> int:
    from vexpress_trt.runtime.extract import extract
    from vexpress_trt.runtime.progress import Reporter

    with Reporter(quiet=args.quiet) as reporter:
        result = extract(
            args.video_path,
            args.kps_sequence_save_path,
            args.audio_save_path,
            detector=args.detector,
            face_model_dir=args.face_model_dir,
            on_progress=reporter.counter("key points"),
        )
    print(json.dumps(result.as_dict(), indent=2) if args.json else result.as_text())
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from vexpress_trt.engines.doctor import doctor, format_checks

    checks = doctor()
    print(json.dumps([check.as_dict() for check in checks], indent=2) if args.json else format_checks(checks))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from vexpress_trt.engines.bundle import Bundle
    from vexpress_trt.engines.inspect import describe_bundle, format_description

    description = describe_bundle(Bundle.open(args.bundle, verify=True))
    print(json.dumps(description, indent=2) if args.json else format_description(description))
    return 0


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vexpress-trt {version('vexpress-trt')}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Refuses in one sentence, as everything else does: the usage of `generate` alone fills a screen."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """Here, and not in the parser of all commands: the one whose flags are asked about knows its own --help."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"there is no {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vexpress: error: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vexpress",
        description="Talking-head video from one portrait and speech: an optimized runtime for V-Express.",
        epilog="Start with `vexpress doctor`. Each command has its own --help.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _command(commands, "generate", _generate, "portrait + speech (+ key points) -> MP4")
    for spec in fields(GenerationRequest):
        _add_request_flag(command, spec)
    add_server_flags(command)
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    command.add_argument("--quiet", action="store_true", help="no progress")

    command = _command(commands, "demo", _demo, "a talking face by the model in the box, with nothing else needed")
    command.add_argument(
        "--output_path",
        type=Path,
        default=Path("demo.mp4"),
        metavar="MP4",
        help="the video (default demo.mp4); a PNG of its frames is put beside it",
    )
    command.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=DEMO_PRESET,
        help=f"sets steps, solver, guidance and overlap (default {DEMO_PRESET})",
    )
    command.add_argument("--bundle", type=Path, metavar="DIR", help="another model than the one in the box")
    _add_some_request_flags(command, _DEMO_FLAGS)
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    command.add_argument("--quiet", action="store_true", help="no progress")

    command = _command(commands, "extract", _extract, "video -> key-point track and audio")
    command.add_argument(
        "--video_path", type=Path, required=True, metavar="VIDEO", help="video with one face to follow"
    )
    command.add_argument("--kps_sequence_save_path", type=Path, required=True, metavar="TRACK", help=".pth or .npy")
    command.add_argument(
        "--audio_save_path", type=Path, metavar="AUDIO", help="also save the sound here: .wav, .flac, .mp3 or .m4a"
    )
    _add_some_request_flags(command, ("detector", "face_model_dir"))
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--quiet", action="store_true", help="no progress")

    command = _command(
        commands, "export", _export, "checkpoints -> bundle of typed ONNX graphs (needs the export extra)"
    )
    command.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of the official checkpoints")
    command.add_argument(
        "--random",
        choices=("tiny", "mid", "half", "full"),
        help="make random ones of this size first, in --checkpoints if given",
    )
    command.add_argument("--random_seed", type=int, default=0, metavar="N", help="seed of --random (default 0)")
    command.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle to write")
    command.add_argument(
        "--precision",
        type=_precisions,
        default=("fp32", "fp16"),
        metavar="LIST",
        help="of the graphs (default fp32,fp16)",
    )
    for name, default, what in (
        ("image_width", 512, "usual output width, a multiple of 8"),
        ("image_height", 512, "usual output height, a multiple of 8"),
        ("context_frames", 24, "usual frames per window, up to 32"),
    ):
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")
    command.add_argument("--plain", action="store_true", help="without the exact savings: a baseline to compare with")
    command.add_argument("--force", action="store_true", help="replace an existing bundle")
    command.add_argument("--report", type=Path, metavar="JSON", help="write time, peak memory and sizes here")

    add_engine_commands(lambda *about: _command(commands, *about))
    add_verify_commands(lambda *about: _command(commands, *about), BACKENDS)
    add_serving_commands(lambda *about: _command(commands, *about), _add_request_flag)
    add_batch_commands(lambda *about: _command(commands, *about), _add_request_flag)

    command = _command(
        commands, "fetch", _fetch, "download the official weights (needs the export extra and a network)"
    )
    command.add_argument("--checkpoints", type=Path, required=True, metavar="DIR", help="folder to fill")
    command.add_argument("--parts", nargs="+", metavar="PART", help=f"only these of {', '.join(PART_NAMES)}")
    command.add_argument("--endpoint", metavar="URL", help="another model hub")
    command.add_argument("--replace", action="store_true", help="overwrite files in the way that were not fetched")
    command.add_argument("--yes", action="store_true", help="accept sizes and licences without asking")

    command = commands.add_parser("bench", help="measure a bundle on this machine", allow_abbrev=False)
    add_bench_commands(command, _add_request_flag)

    command = _command(commands, "doctor", _doctor, "what works on this machine, and what is missing")
    command.add_argument("--json", action="store_true", help="print as JSON")

    command = _command(commands, "inspect", _inspect, "what is in a bundle")
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _add_some_request_flags(command: argparse.ArgumentParser, names: Iterable[str]) -> None:
    for spec in fields(GenerationRequest):
        if spec.name in names:
            _add_request_flag(command, spec)


def _add_request_flag(command: argparse.ArgumentParser, spec: Any) -> None:
    """One flag per field of the request: the dataclass is the single source of names, defaults and help."""
    meta = spec.metadata
    if isinstance(spec.default, bool):
        command.add_argument(f"--{spec.name}", action="store_true", help=meta["help"])
        return
    text = meta["help"] if spec.default is None else f"{meta['help']} (default {spec.default})"
    command.add_argument(
        f"--{spec.name}",
        type=meta["kind"] or str,
        choices=meta["choices"],
        default=spec.default,
        metavar=meta["metavar"] or {int: "N", float: "X"}.get(meta["kind"]),
        help=text,
    )


def _precisions(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not chosen or any(part not in PRECISIONS for part in chosen):
        raise argparse.ArgumentTypeError(f"{text!r}: a comma-separated list of {', '.join(PRECISIONS)}")
    return chosen


def _with_underscores(argv: list[str]) -> list[str]:
    """`--audio-path` means `--audio_path`; values are left alone."""

    def convert(word: str) -> str:
        flag, equals, value = word.partition("=")
        return flag[:2] + flag[2:].replace("-", "_") + equals + value if word.startswith("--") else word

    return [convert(word) for word in argv]


@contextmanager
def _sentences_on_stderr(args: argparse.Namespace) -> Iterator[None]:
    """Advice and warnings go to stderr, one line each, while a command runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Sentence())
    logger = logging.getLogger("vexpress")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if getattr(args, "quiet", False) else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Sentence(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()


if __name__ == "__main__":
    sys.exit(main())
