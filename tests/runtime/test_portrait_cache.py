"""Portraits are remembered by content, bundle and engine; the folder is bounded, shared and may be damaged."""

import os
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.manifest import FileRecord
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.runtime.portrait_cache import PortraitCache

CHOICE = EngineChoice("onnxruntime", "as asked", "fp32", "fp32")


@pytest.fixture(scope="module")
def bundle(other_bundle: Path) -> Bundle:
    return Bundle.open(other_bundle)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, 72, 104)).astype(np.float32)


def _arrays(bundle: Bundle, dtype: type = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        tensor.name: random.normal(size=[evaluate(size, {"h": 9, "w": 13}) for size in tensor.shape]).astype(dtype)
        for tensor in bundle.graph("reference", "fp32").outputs
    }


class Asked:
    """Remembers which portraits had to be computed."""

    def __init__(self, bundle: Bundle, cache: PortraitCache) -> None:
        self.bundle, self.cache = bundle, cache
        self.made = 0

    def __call__(self, image: np.ndarray, choice: EngineChoice = CHOICE, bundle: Bundle | None = None, **kind):
        def make() -> dict[str, np.ndarray]:
            self.made += 1
            return _arrays(self.bundle, **kind)

        return self.cache.get_or_make(image, bundle or self.bundle, choice, make)


def test_a_second_time_nothing_is_computed(bundle: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    ask = Asked(bundle, PortraitCache(tmp_path / "cache"))
    first, known = ask(image)
    assert not known
    again, known = Asked(bundle, PortraitCache(tmp_path / "cache"))(image)
    assert known and ask.made == 1
    assert first.keys() == again.keys()
    assert all((first[name] == again[name]).all() and again[name].dtype == np.float32 for name in first)


def test_another_picture_bundle_engine_or_type_is_computed_anew(
    bundle: Bundle, image: np.ndarray, tmp_path: Path
) -> None:
    ask = Asked(bundle, PortraitCache(tmp_path))
    ask(image)
    ask(np.nextafter(image, np.float32(2)))
    ask(image, replace(CHOICE, backend="openvino"))
    ask(image, replace(CHOICE, dtype="bf16"))
    files = {name: FileRecord("0" * 64, record.size) for name, record in bundle.manifest.files.items()}
    ask(image, bundle=replace(bundle, manifest=replace(bundle.manifest, files=files)))
    assert ask.made == 5
    assert ask(image, replace(CHOICE, precision="fp32"))[1] is not None and ask.made == 5


def test_bfloat16_survives(bundle: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    spec = bundle.graph("reference", "fp32")
    outputs = tuple(replace(tensor, dtype="bfloat16") for tensor in spec.outputs)
    graphs = tuple(replace(g, outputs=outputs) if g.name == "reference" else g for g in bundle.manifest.graphs)
    ask = Asked(replace(bundle, manifest=replace(bundle.manifest, graphs=graphs)), PortraitCache(tmp_path))
    first, _ = ask(image, dtype=ml_dtypes.bfloat16)
    again, known = ask(image, dtype=ml_dtypes.bfloat16)
    assert known and all((first[name] == again[name]).all() for name in first)
    assert {array.dtype.name for array in again.values()} == {"bfloat16"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "another file", "another model's"])
def test_a_damaged_file_is_computed_anew_and_replaced(
    bundle: Bundle, image: np.ndarray, tmp_path: Path, damage: str
) -> None:
    ask = Asked(bundle, PortraitCache(tmp_path))
    first, _ = ask(image)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif damage == "another file":
        path.write_text("portrait")
    else:
        np.savez(path, **{name: array[:, :, :1] for name, array in first.items()})
    again, known = ask(image)
    assert not known and ask.made == 2
    assert all((first[name] == again[name]).all() for name in first)
    assert ask(image)[1]


def test_the_folder_is_bounded_and_keeps_what_was_used_last(bundle: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    size = sum(array.nbytes for array in _arrays(bundle).values())
    ask = Asked(bundle, PortraitCache(tmp_path, max_bytes=int(3.5 * size)))
    portraits = [image * np.float32(0.5) ** number for number in range(4)]
    for number, portrait in enumerate(portraits[:3]):
        ask(portrait)
        for path in tmp_path.iterdir():  # file times are coarse: what is there now is older than what comes
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - (number + 1) * 10**9))
    assert ask(portraits[0])[1]
    ask(portraits[3])
    assert len(list(tmp_path.iterdir())) == 3
    made = ask.made
    assert [ask(portrait)[1] for portrait in (portraits[0], portraits[2], portraits[3])] == [True] * 3
    assert not ask(portraits[1])[1] and ask.made == made + 1


def test_a_portrait_larger_than_the_bound_is_kept_alone(bundle: Bundle, image: np.ndarray, tmp_path: Path) -> None:
    ask = Asked(bundle, PortraitCache(tmp_path, max_bytes=1))
    ask(image)
    ask(image * np.float32(0.5))
    assert len(list(tmp_path.iterdir())) == 1
    assert ask(image * np.float32(0.5))[1]


def test_a_folder_that_cannot_be_written_costs_a_warning(
    bundle: Bundle, image: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    ask = Asked(bundle, PortraitCache(tmp_path / "file" / "cache"))
    with caplog.at_level("INFO", "vexpress"):
        assert ask(image)[0].keys() == _arrays(bundle).keys()
    (record,) = caplog.records
    assert "the portrait is not remembered" in record.message


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Bundle, image: np.ndarray) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Asked(bundle, PortraitCache.of("off"))(image)
    assert list(tmp_path.iterdir()) == []
    Asked(bundle, PortraitCache.of(None))(image)
    Asked(bundle, PortraitCache.of(str(tmp_path / "own")))(image)
    assert len(list((tmp_path / "vexpress" / "portraits").iterdir())) == len(list((tmp_path / "own").iterdir())) == 1
