"""`vexpress bench quality --table`: quality against every setting that trades it for speed, one row for each.

Rows that a result file already holds are not made again, so that the table can be made in pieces.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import numpy as np

from vexpress_trt.bench.machine import describe_machine, machine_line
from vexpress_trt.bench.quality import COLUMNS, chosen_clips, open_small, run_clip, score_cells
from vexpress_trt.bench.quality_score import Score, score
from vexpress_trt.bench.report import command_line, number, read_json, table, write_json
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.selection import available_backends
from vexpress_trt.engines.stamps import file_hashes
from vexpress_trt.models.box.box import SETTINGS
from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.models.mini.measure import mean_psnr
from vexpress_trt.runtime.presets import PRESETS

log = logging.getLogger("vexpress")
EXACT = "exact"
_STEPS = (5, 8, 10, 15)
_INTERVALS = ("0,0.4", "0,0.6", "0.2,0.8", "0.4,1")
_WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class TableSettings:
    """`flags`: fields of the request that every row starts from; `only`: these rows, made anew; `minutes`: begin no
    row after that time."""

    bundle: Path
    flags: dict[str, Any]
    clips: int
    only: tuple[str, ...] = ()
    minutes: float | None = None


@dataclass(frozen=True)
class Row:
    """One setting. `changed`: what differs from the table's own settings. `passes_per_frame`: how often a half of the
    denoiser ran for a frame, which is what a setting costs whatever the machine does besides. `seconds_per_frame` (with
    loading) and `first_frame_seconds` are medians over clips, `psnr_to_exact_db` is to the row "exact" (None: the same
    frames)."""

    name: str
    changed: dict[str, Any]
    backend: str
    dtype: str
    passes_per_frame: float
    seconds_per_frame: float
    first_frame_seconds: float
    psnr_to_exact_db: float | None
    score: Score


@dataclass(frozen=True)
class TableReport:
    """All rows so far, in the table's order; `weights` tells models apart."""

    kind: str
    command: str
    machine: dict[str, object]
    bundle: str
    weights: str
    random_weights: bool
    clips: int
    frames_per_clip: int
    flags: dict[str, Any]
    missing: int
    rows: tuple[Row, ...]

    def as_markdown(self) -> str:
        """A table for a terminal or a README."""
        common = ", ".join(f"{name} {value}" for name, value in self.flags.items())
        head = (
            f"{self.bundle}: {self.clips} held-out clips of {self.frames_per_clip} frames for each row, {common} where "
            f"a row does not say otherwise; {machine_line(self.machine)}; seconds are those of a machine that may have "
            "had other work, passes are exact"
        )
        header = ["setting", "on", "passes/frame", "s/frame", "first frame s", "PSNR to exact", *COLUMNS.values()]
        rows = [
            [
                row.name,
                f"{row.backend} {row.dtype}",
                number(row.passes_per_frame),
                number(row.seconds_per_frame),
                number(row.first_frame_seconds),
                "same" if row.psnr_to_exact_db is None else number(row.psnr_to_exact_db),
                *score_cells(row.score),
            ]
            for row in self.rows
        ]
        left = f"\n\n{self.missing} rows are missing: run the same command again." if self.missing else ""
        return f"{head}\n\n{table(header, rows)}{left}"


def jobs() -> dict[str, dict[str, Any]]:
    """{row: what it changes}; the first is what the others are compared with."""
    rows = {name: _preset(name) for name in PRESETS}
    rows |= {f"ddim, {steps} steps": {"num_inference_steps": steps} for steps in _STEPS}
    rows |= {
        f"dpmpp_2m, {steps} steps": {"solver": "dpmpp_2m", "num_inference_steps": steps} for steps in (*_STEPS, 25)
    }
    rows |= {f"guidance {scale:g}": {"guidance_scale": scale} for scale in (1.0, 1.5, 2.0, 3.5)}
    rows |= {f"guidance in {interval}": {"guidance_interval": interval} for interval in _INTERVALS}
    rows |= {f"dpmpp_2m, 8 steps, guidance in {interval}": _eight(interval) for interval in _INTERVALS[:2]}
    rows |= {"windows of 12": {"context_frames": 12}, "overlap 2": {"context_overlap": 2}}
    rows |= {
        f"weights {portrait:g} and {audio:g}": {
            "reference_attention_weight": portrait,
            "audio_attention_weight": audio,
        }
        for portrait in (0.9, 1.0)
        for audio in (1.0, 2.0, 3.0)
    }
    rows[f"{_WINDOWS_AT_ONCE} windows a call"] = {"window_batch": _WINDOWS_AT_ONCE}
    usable = {status.name for status in available_backends() if status.usable}
    computed = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"), ("torch", "fp32"))
    rows |= {f"{name} {dtype}": {"backend": name, "dtype": dtype} for name, dtype in computed if name in usable}
    return rows


def _preset(name: str) -> dict[str, Any]:
    """All that a preset sets but for what depends on how a model was trained, which is the table's as in every row."""
    return {"preset": name} | {key: value for key, value in asdict(PRESETS[name]).items() if key not in SETTINGS}


def _eight(interval: str) -> dict[str, Any]:
    return {"solver": "dpmpp_2m", "num_inference_steps": 8, "guidance_interval": interval}


def make_table(settings: TableSettings, path: Path) -> TableReport:
    """Make the rows that `path` lacks, writing it after each. Raises UserError for unusable settings or results."""
    wanted = jobs()
    unknown = [name for name in settings.only if name not in wanted]
    if unknown:
        raise UserError(f"--only {'; '.join(unknown)}: choose from {'; '.join(wanted)}")
    bundle = open_small(settings.bundle)
    clips = chosen_clips(settings.clips)
    identity = _identity(bundle)
    rows = {name: row for name, row in _earlier(path, settings, identity).items() if name not in settings.only}
    began = monotonic()

    def report() -> TableReport:
        return TableReport(
            kind="quality_table",
            command=command_line(),
            machine=describe_machine(),
            bundle=bundle.root.name,
            weights=identity,
            random_weights=bundle.manifest.random_weights,
            clips=settings.clips,
            frames_per_clip=len(clips[0].track),
            flags=settings.flags,
            missing=len(wanted) - len(rows),
            rows=tuple(rows[name] for name in wanted if name in rows),
        )

    exact: list[np.ndarray] = []
    for name in wanted:
        if name in rows or (settings.only and name not in settings.only):
            continue
        if settings.minutes is not None and monotonic() - began > 60 * settings.minutes:
            break
        if not exact:
            first = _made(settings, clips, EXACT, wanted[EXACT], exact)
            if EXACT not in rows:
                rows[EXACT] = first
                write_json(report(), path)
            if name == EXACT:
                continue
        rows[name] = _made(settings, clips, name, wanted[name], exact)
        write_json(report(), path)
    return report()


def _made(
    settings: TableSettings,
    clips: Sequence[HeldOutClip],
    name: str,
    changed: dict[str, Any],
    exact: list[np.ndarray],
) -> Row:
    """Generate one row's clips; the row "exact" leaves its frames in `exact`."""
    flags = {"bundle": settings.bundle, **settings.flags, **changed}
    with tempfile.TemporaryDirectory(prefix="vexpress-quality-") as folder:
        requests = [clip_request(clip, Path(folder), **flags) for clip in clips]
        outputs, summaries = zip(*map(run_clip, requests), strict=True)
    if not exact:
        exact.extend(outputs)
    pairs = list(zip(outputs, exact, strict=True))
    same = all(np.array_equal(*pair) for pair in pairs)
    steps = range(requests[0].num_inference_steps)
    passes = sum(1 + requests[0].guided(step) for step in steps) * summaries[0].windows * summaries[0].context_frames
    row = Row(
        name=name,
        changed=changed,
        backend=summaries[0].backend,
        dtype=summaries[0].dtype,
        passes_per_frame=passes / summaries[0].frames,
        seconds_per_frame=median(summary.total_seconds / summary.frames for summary in summaries),
        first_frame_seconds=median(summary.time_to_first_frame for summary in summaries),
        psnr_to_exact_db=None if same else float(np.mean([mean_psnr(*pair) for pair in pairs])),
        score=score(clips, outputs),
    )
    log.info(f"{name}: mouth r {row.score.mouth_correlation:.3f}, PSNR {row.score.psnr_db:.2f} dB")
    return row


def _identity(bundle: Bundle) -> str:
    """A name for the denoiser's weights."""
    files = sorted(bundle.manifest.files)
    hashes = file_hashes(bundle.root, files)
    return hashes[next(file for file in files if file.endswith("denoiser.data"))][:16]


def _earlier(path: Path, settings: TableSettings, identity: str) -> dict[str, Row]:
    """The rows of an earlier run into the same file. Raises UserError where it was of another model or settings."""
    if not path.exists():
        return {}
    document = read_json(path)
    same = {"kind": "quality_table", "weights": identity, "clips": settings.clips, "flags": settings.flags}
    other = [name for name, value in same.items() if document.get(name) != value]
    if other:
        raise UserError(f"{path} holds a table with other {', '.join(other)}: name another file, or remove it")
    return {row["name"]: _row(row) for row in document["rows"] if jobs().get(row["name"]) == row["changed"]}


def _row(document: dict[str, Any]) -> Row:
    found = {spec.name: document[spec.name] for spec in fields(Row)}
    return Row(**{**found, "score": Score(**document["score"])})
