"""What the trained model is worth on identities, texts and voices that it has never met."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from vexpress_trt.models.mini.autoencoder import Autoencoder, load_autoencoder, to_frames, to_tensor
from vexpress_trt.models.mini.clips import CLIP_FRAMES, Clip, plan_clip
from vexpress_trt.models.mini.diffusion import MOTION_FOLDER, guides
from vexpress_trt.models.mini.listening import Listener, load_listener, rows_of, windows_of
from vexpress_trt.models.mini.measure import (
    correlation,
    flicker,
    mean_keypoint_error,
    mean_mouth_psnr,
    mean_psnr,
    mouth_openings,
)
from vexpress_trt.models.mini.networks import SmallVExpress
from vexpress_trt.models.mini.records import read_all
from vexpress_trt.models.mini.sampling import Settings, generate
from vexpress_trt.models.mini.spoken import HELD_OUT_FOLDER, samples_of
from vexpress_trt.models.mini.training import averaged_weights

_SHOWN = 8  # frames of each clip on the contact sheet


@dataclass(frozen=True)
class Case:
    """A held-out clip with what is drawn (frames uint8 [T, 128, 128, 3]) and what the networks are given."""

    clip: Clip
    truth: np.ndarray
    portrait: np.ndarray
    portrait_latent: torch.Tensor
    audio: torch.Tensor
    guide: torch.Tensor

    def openings(self, frames: np.ndarray) -> np.ndarray:
        """How far the mouth is open in each of `frames`, [T]."""
        return mouth_openings(frames, self.clip.track)

    def psnr(self, frames: np.ndarray) -> tuple[float, float]:
        """Mean PSNR to the truth in dB of whole frames and of the mouth's box."""
        return mean_psnr(frames, self.truth), mean_mouth_psnr(frames, self.truth, self.clip.track)

    def misplaced(self, frames: np.ndarray) -> float:
        """Mean distance of eyes and nose from their key points, as a share of the face's width."""
        return mean_keypoint_error(frames, self.clip.track, self.portrait, self.clip.portrait_keypoints)


def evaluate(folder: Path, stage: str, count: int, settings: Settings) -> dict[str, float]:
    """Generates `count` held-out clips under several conditions; writes numbers and a contact sheet to the folder."""
    autoencoder, listener, model = load_autoencoder(folder / "vae"), load_listener(folder), SmallVExpress()
    model.load_state_dict(averaged_weights(folder / stage))
    model.denoising_unet.moving = stage == MOTION_FOLDER
    model.eval().requires_grad_(False)
    cases = _cases(folder, count, autoencoder, listener)

    def generated(
        case: Case, audio: torch.Tensor | None = None, portrait: torch.Tensor | None = None, keep=(1.0, 1.0, 1.0)
    ):
        given = case.portrait_latent if portrait is None else portrait
        return generate(model, autoencoder, given, case.audio if audio is None else audio, case.guide, settings, keep)

    others = cases[1:] + cases[:1]
    plain = [generated(case) for case in cases]
    silent = [generated(case, keep=(1.0, 0.0, 1.0)) for case in cases]
    dubbed = [generated(case, audio=other.audio) for case, other in zip(cases, others, strict=True)]
    wrong = [generated(case, portrait=other.portrait_latent) for case, other in zip(cases, others, strict=True)]
    repeated = [np.repeat(case.portrait[None], CLIP_FRAMES, axis=0) for case in cases]
    coded = [_coded(autoencoder, case.truth) for case in cases]

    numbers = {"clips": count, **asdict(settings)}
    for name, clips in (("", plain), ("silent_", silent), ("dubbed_", dubbed), ("coded_", coded)):
        numbers |= {f"{name}{key}": value for key, value in _mouth(cases, clips).items()}
    for name, clips in (("", plain), ("repeated_", repeated), ("wrong_portrait_", wrong), ("coded_", coded)):
        whole, mouth = np.mean([case.psnr(frames) for case, frames in zip(cases, clips, strict=True)], axis=0)
        numbers |= {f"{name}psnr": float(whole), f"{name}psnr_mouth": float(mouth)}
    for name, clips in (("", plain), ("truth_", [case.truth for case in cases])):
        numbers[f"{name}flicker"] = float(np.mean([flicker(frames) for frames in clips]))
        numbers[f"{name}misplaced"] = float(np.mean([case.misplaced(f) for case, f in zip(cases, clips, strict=True)]))
    if model.denoising_unet.moving:
        model.denoising_unet.moving = False
        numbers["still_flicker"] = float(np.mean([flicker(generated(case)) for case in cases]))
    _write_sheet(folder / stage / "sheet.png", cases, plain)
    with open(folder / stage / "evaluation.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(numbers) + "\n")
    return numbers


def _cases(folder: Path, count: int, autoencoder: Autoencoder, listener: Listener) -> list[Case]:
    speech = read_all(folder / HELD_OUT_FOLDER)
    return [
        _case(plan_clip(i, speech, CLIP_FRAMES, held_out=True), speech, autoencoder, listener) for i in range(count)
    ]


def _case(clip: Clip, speech: list[dict[str, np.ndarray]], autoencoder: Autoencoder, listener: Listener) -> Case:
    heard = speech[clip.utterance]
    rows = rows_of(listener, samples_of(heard), len(heard["opening"]))
    portrait = clip.render_portrait()
    with torch.no_grad():
        latent = autoencoder.encode(to_tensor(portrait[None]))[0]
    audio = torch.from_numpy(windows_of(rows, clip.start + np.arange(CLIP_FRAMES)))
    return Case(clip, clip.render_frames(), portrait, latent, audio, guides(clip.track))


def _coded(autoencoder: Autoencoder, frames: np.ndarray) -> np.ndarray:
    """What the autoencoder alone makes of the truth: no generated clip can be expected to be better."""
    with torch.no_grad():
        parts = to_tensor(frames).split(8)
        return np.concatenate([to_frames(autoencoder.decode(autoencoder.encode(part))) for part in parts])


def _mouth(cases: list[Case], clips: list[np.ndarray]) -> dict[str, float]:
    """Correlation of the mouth's opening with the truth's, over all frames and as the clips' mean, and the best lag."""
    true = [case.openings(case.truth) for case in cases]
    seen = [case.openings(frames) for case, frames in zip(cases, clips, strict=True)]
    single = [correlation(*pair) for pair in zip(true, seen, strict=True)]
    lags = range(-3, 4)
    shifted = [
        np.mean(
            [correlation(t[3 : len(t) - 3], s[3 + lag : len(s) - 3 + lag]) for t, s in zip(true, seen, strict=True)]
        )
        for lag in lags
    ]
    return {
        "mouth": correlation(np.concatenate(true), np.concatenate(seen)),
        "mouth_clips": float(np.mean(single)),
        "mouth_worst": min(single),
        "lag": int(lags[int(np.argmax(shifted))]),
    }


def _write_sheet(path: Path, cases: list[Case], clips: list[np.ndarray]) -> None:
    """For each clip a row: the portrait, then some frames of the truth above what was generated."""
    shown = np.linspace(0, CLIP_FRAMES - 1, _SHOWN).astype(int)
    rows = []
    for case, frames in zip(cases, clips, strict=True):
        rows.append(np.hstack([case.portrait, *case.truth[shown]]))
        rows.append(np.hstack([np.zeros_like(case.portrait), *frames[shown]]))
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])
