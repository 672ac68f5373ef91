"""Where a head is: the three V-Kps points, the head's own coordinates, and how heads move while they talk."""

from dataclasses import dataclass

import numpy as np

SIZE = 128  # pixels, both ways
NOSE_LENGTH = 0.68  # from the eye line to the tip of the nose, in eye distances, of a head that looks straight ahead
_REST = np.array([64.0, 55.0])  # between the eyes, in pixels
_EYES = 24.5  # their distance in pixels, as in an upper-body portrait crop


@dataclass(frozen=True)
class HeadFrame:
    """Coordinates of a head: eye distances right and down from between its eyes.

    `turn` is how far the nose is from where it is when the head looks straight ahead, in these coordinates.
    """

    origin: np.ndarray  # [2], pixels
    unit: float  # the eyes' distance, pixels
    right: np.ndarray  # [2], unit length
    turn: np.ndarray  # [2], eye distances

    @property
    def down(self) -> np.ndarray:
        return np.array([-self.right[1], self.right[0]])

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of the head in pixels."""
        return self.origin + self.unit * (points[..., :1] * self.right + points[..., 1:] * self.down)


def head_frame(keypoints: np.ndarray) -> HeadFrame:
    """The coordinates that key points [3, 2] (eye on image left, eye on image right, nose; pixels) stand for."""
    left, right, nose = np.asarray(keypoints, np.float64)
    eyes = right - left
    unit = float(np.hypot(*eyes))
    if unit < 1:
        raise ValueError(f"the eyes are {unit:.2f} pixels apart; a head needs at least 1")
    across = eyes / unit
    origin = (left + right) / 2
    offset = (nose - origin) / unit
    local = np.array([offset @ across, offset @ [-across[1], across[0]]])
    return HeadFrame(origin, unit, across, local - [0.0, NOSE_LENGTH])


def keypoints_of(frame: HeadFrame) -> np.ndarray:
    """The inverse of `head_frame`: float32 [3, 2]."""
    nose = np.array([0.0, NOSE_LENGTH]) + frame.turn
    return frame.to_image(np.stack([[-0.5, 0.0], [0.5, 0.0], nose])).astype(np.float32)


def head_path(seed: int, frames: int, fps: float) -> np.ndarray:
    """Key points [frames, 3, 2] float32 in pixels of a head that moves smoothly while talking."""
    rng = np.random.default_rng([seed, 0x9A])
    lively = rng.uniform(0.6, 1.3)
    base = _REST + rng.uniform(-1, 1, 2) * [5.0, 3.0]
    unit = _EYES * rng.uniform(0.92, 1.08)
    sway = np.stack([_wander(rng, frames, fps) for _ in range(6)], axis=1) * lively
    x, y, roll, near, yaw, pitch = (sway * [6.0, 3.2, 0.1, 0.035, 0.11, 0.06]).T
    # A head that leans to one side also moves there.
    centres = base + np.stack([x + 14 * roll, y], axis=1)
    return np.stack(
        [
            keypoints_of(
                HeadFrame(
                    centres[i],
                    unit * float(np.exp(near[i])),
                    np.array([np.cos(roll[i]), np.sin(roll[i])]),
                    np.array([yaw[i], pitch[i]]),
                )
            )
            for i in range(frames)
        ]
    )


def blink_path(seed: int, frames: int, fps: float) -> np.ndarray:
    """Lids of each frame, float32 [frames] from 0 (open) to 1 (shut): a blink of about 0.25 s every few seconds."""
    rng = np.random.default_rng([seed, 0xB1])
    times = np.arange(frames) / fps
    lids = np.zeros(frames)
    moment = rng.uniform(0.0, 3.0)
    while moment < times[-1] + 0.3:
        lids = np.maximum(lids, 1.15 * np.exp(-(((times - moment) / 0.075) ** 2)))
        moment += rng.uniform(1.6, 4.5)
    return np.clip(lids, 0, 1).astype(np.float32)


def _wander(rng: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """A smooth random curve [frames] of about unit deviation, with periods of 1.2 to 6 seconds."""
    times = np.arange(frames) / fps
    periods, phases = rng.uniform(1.2, 6.0, 5), rng.uniform(0, 2 * np.pi, 5)
    weights = rng.uniform(0.5, 1.0, 5) * np.sqrt(periods)
    waves = weights[:, None] * np.sin(2 * np.pi * times / periods[:, None] + phases[:, None])
    return waves.sum(axis=0) / np.sqrt((weights**2).sum() / 2)
