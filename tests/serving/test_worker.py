"""What a worker says to strangers."""

import pytest

from vexpress_trt.serving.worker import without_paths

JOB = {"files": {"reference_image_path": "/tmp/job/portrait", "audio_path": "/tmp/job/audio.wav"}}


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("/tmp/job/portrait has no face", "the portrait has no face"),
        ("the audio /tmp/job/audio.wav is empty", "the audio is empty"),
        ("needs its models, and /srv/.models/l does not", "needs its models, and (a path of the server's) does not"),
        ("build with `vexpress build /srv/m.bundle --x`", "build with `vexpress build (a path of the server's) --x`"),
        ("--kps_size 0/0: frames/s, 30/1 or and/or", "--kps_size 0/0: frames/s, 30/1 or and/or"),
    ],
)
def test_inputs_are_named_and_no_path_is_told(sentence: str, told: str) -> None:
    assert without_paths(sentence, JOB) == told


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("/home/my user/our model.bundle has it in fp16 only", "(a path of the server's) has it in fp16 only"),
        ("'/home/my user/our model.bundle/onnx/x': gone", "'(a path of the server's)': gone"),
        ("C at /b and 1/b of /b/c", "C at (a path of the server's) and 1/b of (a path of the server's)"),
    ],
)
def test_no_part_of_a_folder_of_the_servers_is_told(sentence: str, told: str) -> None:
    assert without_paths(sentence, JOB, ["/home/my user/our model.bundle", "/b"]) == told
