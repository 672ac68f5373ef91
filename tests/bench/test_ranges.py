"""Largest values of a real run: every tensor of every graph that ran, the same in one pass and in many."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs media input")
pytest.importorskip("diffusers", reason="needs the export extra")

from media import write_wav  # noqa: E402
from PIL import Image  # noqa: E402

from vexpress_trt import cli  # noqa: E402
from vexpress_trt.bench.ranges import GraphRanges, measure_ranges  # noqa: E402
from vexpress_trt.bench.report import read_json  # noqa: E402
from vexpress_trt.engines.bundle import Bundle  # noqa: E402
from vexpress_trt.engines.intermediates import Probe  # noqa: E402
from vexpress_trt.runtime import GenerationRequest  # noqa: E402


@pytest.fixture
def request_of_a_short_clip(other_bundle: Path, tmp_path: Path) -> GenerationRequest:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (72, 104, 3), dtype=np.uint8)).save(tmp_path / "ref.png")
    write_wav(tmp_path / "aud.wav", random.normal(0, 0.1, 3200).astype(np.float32))
    return GenerationRequest(
        tmp_path / "ref.png", tmp_path / "aud.wav", bundle=other_bundle, crop="center", num_inference_steps=1,
        fps=25.0, guidance_scale=1.0, threads=1, retarget_strategy="no_retarget", kps_path=_track(tmp_path),
    )  # fmt: skip


def test_every_tensor_of_every_graph_that_ran_is_looked_at(request_of_a_short_clip: GenerationRequest) -> None:
    report = measure_ranges(request_of_a_short_clip)
    graphs = {graph.graph: graph for graph in report.graphs}
    assert set(graphs) == {
        "audio_encoder", "audio_projection", "kps_guider", "vae_encoder", "reference", "denoiser_single", "vae_decoder",
    }  # fmt: skip
    assert report.random_weights and report.denoiser_calls == 1
    assert graphs["vae_decoder"].calls == report.frames and graphs["denoiser_single"].calls == 1
    bundle = Bundle.open(request_of_a_short_clip.bundle)
    for name, graph in graphs.items():
        assert graph.tensors == len(Probe(bundle, bundle.graph(name, "fp32")).tensors)
        values = [tensor.max_abs for tensor in graph.largest]
        assert values == sorted(values, reverse=True) and 0 < len(values) <= 40 and np.isfinite(values).all()
        assert values[0] == max(graph.by_operator.values())
        assert graph.above_fp16 <= graph.above_near and graph.norms_above_256 <= graph.norms


def test_many_passes_see_what_one_does(request_of_a_short_clip: GenerationRequest) -> None:
    one, many = (measure_ranges(request_of_a_short_clip, room=room).graphs for room in (1 << 30, 1 << 24))
    for graph, other in zip(one, many, strict=True):
        same, again = asdict(graph), asdict(other)
        np.testing.assert_allclose(_values(graph), _values(other), rtol=1e-4)
        for varying in ("largest", "by_operator", "norm_input"):
            del same[varying], again[varying]
        assert same == again


def test_the_command_prints_a_table_and_writes_the_file(request_of_a_short_clip, tmp_path: Path, capsys) -> None:
    request, target = request_of_a_short_clip, tmp_path / "ranges.json"
    flags = {name: getattr(request, name) for name in "reference_image_path audio_path kps_path fps".split()}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--num_inference_steps", "1", "--guidance_scale", "1", "--threads", "1", "--json", str(target)]
    assert cli.main(["bench", "ranges", str(request.bundle), *words]) == 0
    assert "| denoiser_single | 1 |" in capsys.readouterr().out
    assert read_json(target)["kind"] == "ranges"


def _values(graph: GraphRanges) -> list[float]:
    return [tensor.max_abs for tensor in graph.largest]


def _track(folder: Path) -> Path:
    from vexpress_trt.runtime.tracks import save_track

    points = np.array([[40, 40], [70, 40], [55, 60]], np.float32)
    save_track(folder / "kps.npy", np.repeat(points[None], 10, axis=0), (104, 72), 25.0)
    return folder / "kps.npy"
