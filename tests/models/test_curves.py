"""The picture of a training's curves."""

import json
from pathlib import Path

import cv2
import pytest

from vexpress_trt.models.mini.curves import _begun, _of, draw_curves


def _curve(path: Path, steps: range) -> Path:
    lines = [
        {"stage": stage, "step": step, **numbers}
        for stage, measured in (("vae", "psnr"), ("spatial", "test"), ("motion", "test"))
        for step in steps
        for numbers in ({"loss": 1 / (1 + step)}, {measured: float(step)})
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_all_stages_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "curves.png"
    draw_curves([_curve(tmp_path / "a", range(0, 40, 10)), _curve(tmp_path / "b", range(30, 60, 10))], target)
    picture = cv2.imread(str(target))
    assert picture.std() > 5


def test_a_run_that_goes_on_is_shown_from_where_the_one_before_ended() -> None:
    runs = [[{"stage": "vae", "step": step, "loss": 1.0} for step in steps] for steps in ((0, 20, 40), (40, 60))]
    assert _begun(runs, "vae") == [0, 40]
    assert _of(runs[1], "vae", "loss", 40) == ([60], [1.0])
