"""The runtime under the oldest major versions that it supports: NumPy 1.26 and OpenCV 4, beside what else is installed.

The packages are put before this environment's own on the path; nothing is installed into it.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.runtime import GenerationRequest, generate

OLDER = ("numpy==1.26.4", "opencv-python-headless==4.10.0.84")
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
import cv2, numpy as np
from vexpress_trt.runtime import GenerationRequest, generate
print(np.__version__, cv2.__version__)
portrait, audio, kps, bundle, target = map(Path, sys.argv[1:])
request = GenerationRequest(
    portrait, audio, kps_path=kps, bundle=bundle, backend="onnxruntime", threads=1, portrait_cache="off", fps=1.0,
    num_inference_steps=1, guidance_scale=1.0, context_overlap=0, retarget_strategy="naive_retarget",
)
np.save(target, np.stack([frame.image for frame in generate(request)]))
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with these packages."""
    if sys.version_info >= (3, 13):
        pytest.skip("NumPy 1.26 has no wheel for this Python")
    folder = tmp_path_factory.mktemp("older")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", folder]
    if subprocess.run([*pip, *OLDER], capture_output=True, check=False).returncode:
        pytest.skip("pip cannot fetch the older packages here")
    return folder


def test_frames_are_the_same_under_numpy_1_and_opencv_4(older: Path, local: GenerationRequest, tmp_path: Path) -> None:
    request = replace(local, retarget_strategy="naive_retarget", detector="mtcnn")
    target = tmp_path / "frames.npy"
    paths = (request.reference_image_path, request.audio_path, request.kps_path, request.bundle, target)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(older)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name.partition("==")[2].removesuffix(".84") for name in OLDER]
    expected = np.stack([frame.image for frame in generate(request)])
    assert np.abs(np.load(target).astype(int) - expected).max() <= 1
