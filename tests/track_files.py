"""What the tests of track files share: a track, its refusal, and the zip that torch writes around a pickle."""

import io
import zipfile

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.tracks import load_track

POINTS = (np.arange(7 * 6).reshape(7, 3, 2) * 7.3 + 1.1).astype(np.float32)


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        load_track(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def zip_of(pickle_bytes: bytes, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", b"3\n")
        for name, data in entries.items():
            archive.writestr("archive/" + name.replace("__", "/"), data)
    return buffer.getvalue()
