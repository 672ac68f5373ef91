"""`vexpress batch`: flags, and one call. Nothing heavy is imported before it runs."""

import argparse
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest

if TYPE_CHECKING:
    from vexpress_trt.serving.batch_jobs import Job
    from vexpress_trt.serving.batch_pool import Pool

log = logging.getLogger("vexpress")
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
AddRequestFlag = Callable[[argparse.ArgumentParser, Any], None]
_NO_DEFAULTS = "output_path gpu_id dump_tensors".split()
_DEFAULTS = [spec for spec in fields(GenerationRequest) if spec.name not in _NO_DEFAULTS]


def add_commands(add: AddCommand, add_request_flag: AddRequestFlag) -> None:
    """Add the command; `add(name, run, summary)` makes its parser, `add_request_flag(parser, field)` one flag."""
    parser = add("batch", _batch, "many clips: on this machine's devices, or on a Ray cluster")
    parser.add_argument("jobs", type=Path, metavar="JOBS.jsonl", help="one JSON object of the request's fields a line")
    parser.add_argument("--results", type=Path, metavar="JSONL", help="default: JOBS.results.jsonl beside JOBS.jsonl")
    parser.add_argument("--workers", type=int, metavar="N", help="clips at a time (default: one per GPU, or one)")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster; `local` starts one here")
    parser.add_argument("--cpus_per_actor", type=int, metavar="N", help="with --ray: CPUs of each worker")
    parser.add_argument("--retries", type=int, default=1, metavar="N", help="after a failure (default 1)")
    parser.add_argument("--again", action="store_true", help="make what is done already once more")
    parser.add_argument("--json", action="store_true", help="print the closing figures as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    group = parser.add_argument_group("for jobs that do not say otherwise")
    for spec in _DEFAULTS:
        add_request_flag(group, spec)


def _batch(args: argparse.Namespace) -> int:
    for name, low in (("workers", 1), ("cpus_per_actor", 1), ("retries", 0)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name} {value}: must be at least {low}.")
    if args.cpus_per_actor is not None and args.ray is None:
        raise UserError("--cpus_per_actor shares out a cluster: give its address with --ray.")

    from vexpress_trt.runtime.progress import Reporter
    from vexpress_trt.serving.batch import run_batch
    from vexpress_trt.serving.batch_jobs import read_jobs

    # A flag that has its usual value changes nothing, given or not.
    flags = {spec.name: value for spec in _DEFAULTS if (value := getattr(args, spec.name)) != spec.default}
    jobs = read_jobs(args.jobs, flags)
    results = args.results or args.jobs.with_name(f"{args.jobs.stem}.results.jsonl")
    if results.absolute() == args.jobs.absolute():
        raise UserError(f"--results {results}: that is the file of the jobs; name another one.")
    place = os.path.realpath(results)
    if (job := next((job for job in jobs if os.path.realpath(job.output) == place), None)) is not None:
        raise UserError(f"--results {results}: the video of line {job.line} goes there; name another file.")
    _announce_box(jobs)
    with Reporter(quiet=args.quiet) as reporter:
        report = run_batch(
            jobs, _pool(args, jobs), results, retries=args.retries, again=args.again, on_progress=reporter
        )
    print(json.dumps(report.as_dict(), indent=2) if args.json else report.as_text())
    return 1 if report.failures else 0


def _pool(args: argparse.Namespace, jobs: "Sequence[Job]") -> "Pool":
    from vexpress_trt.serving.batch_worker import clip_runner

    gpus_wanted = any(job.request.device != "cpu" for job in jobs)
    if args.ray is not None:
        try:
            from vexpress_trt.serving.batch_ray import RayPool
        except ImportError as problem:
            raise UserError(
                f"--ray needs Ray ({problem}): python -m pip install 'vexpress-trt[ray]', on every machine"
            ) from None
        return RayPool(args.ray, clip_runner, size=args.workers, cpus_per_actor=args.cpus_per_actor, gpus=gpus_wanted)

    from vexpress_trt.engines.cpu import usable_cores
    from vexpress_trt.engines.gpu import gpu_status
    from vexpress_trt.serving.batch_pool import LocalPool

    gpus = len(gpu_status().devices) if gpus_wanted else 0
    size = min(len(jobs), args.workers or gpus or 1)
    return LocalPool(size, clip_runner, threads=max(1, usable_cores() // size), gpus=gpus)


def _announce_box(jobs: "Sequence[Job]") -> None:
    from vexpress_trt.models.box.box import is_shipped, taken_for_want_of_another

    job = next((job for job in jobs if job.request.bundle is None), None)
    if job is not None and not is_shipped():
        raise UserError(f"line {job.line} has no bundle: name one there or with --bundle.")
    if job is not None:
        log.warning(f"line {job.line} has no bundle: {taken_for_want_of_another()}")
