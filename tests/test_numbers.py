"""The whole job computes the original's numbers: the oracle's, and the PyTorch baseline's for other models."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from media import write_wav
from PIL import Image

from vexpress_trt.bench.baseline import Baseline, BaselineInputs, Sampling, normalised
from vexpress_trt.runtime import GenerationRequest
from vexpress_trt.runtime.audio_input import decode_audio
from vexpress_trt.runtime.generation import generate
from vexpress_trt.runtime.keypoints import draw_keypoints, interpolate_track
from vexpress_trt.runtime.median import median_clip
from vexpress_trt.runtime.noise import upstream_noise
from vexpress_trt.runtime.portrait import load_portrait, upstream_portrait
from vexpress_trt.runtime.tracks import save_track
from vexpress_trt.runtime.windows import WindowPlan

# (golden case, steps, guidance, reference weight, audio weight)
ORACLE = [
    ("cfg3p5_3steps", 3, 3.5, 0.95, 3.0),
    ("cfg3p5_5steps", 5, 3.5, 0.95, 3.0),
    ("cfg1_3steps", 3, 1.0, 0.95, 3.0),
    ("cfg2_3steps_w1", 3, 2.0, 1.0, 1.0),
]


def _tensors(request: GenerationRequest) -> dict[str, np.ndarray]:
    for _ in generate(request):
        pass
    return dict(np.load(request.dump_tensors))


@pytest.mark.parametrize(("case", "steps", "guidance", "reference_weight", "audio_weight"), ORACLE)
def test_the_oracles_pipeline(
    golden_bundle: Path,
    shared_dir: Path,
    tmp_path: Path,
    case: str,
    steps: int,
    guidance: float,
    reference_weight: float,
    audio_weight: float,
) -> None:
    shared = np.load(shared_dir / "golden" / "pipeline" / "shared_inputs.npz")
    golden = np.load(shared_dir / "golden" / "pipeline" / f"{case}.npz")
    Image.fromarray(shared["reference_image"]).save(tmp_path / "ref.png")
    write_wav(tmp_path / "aud.wav", shared["waveform"])
    save_track(tmp_path / "kps.pth", shared["kps_sequence_source"])
    tensors = _tensors(
        GenerationRequest(
            tmp_path / "ref.png",
            tmp_path / "aud.wav",
            kps_path=tmp_path / "kps.pth",
            bundle=golden_bundle,
            backend="onnxruntime",
            num_inference_steps=steps,
            guidance_scale=guidance,
            reference_attention_weight=reference_weight,
            audio_attention_weight=audio_weight,
            compat="upstream",
            dump_tensors=tmp_path / "out.npz",
        )
    )
    assert int(tensors["video_length"]) == 28
    assert float(tensors["fps"]) == pytest.approx(27.31707317073171)
    np.testing.assert_allclose(tensors["initial_latents"], shared["initial_latents"], rtol=0, atol=3e-6)
    np.testing.assert_allclose(tensors["final_latents"], golden["final_latents"], rtol=1e-3, atol=3e-4)
    expected = golden["frames_f32_subset"][0].transpose(1, 2, 3, 0)
    np.testing.assert_allclose(tensors["frames"][golden["frames_f32_subset_index"]], expected, rtol=0, atol=1e-4)
    if "frames" in golden:
        np.testing.assert_allclose(
            tensors["frames"], golden["frames"][0].transpose(1, 2, 3, 0).astype(np.float32), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize(
    ("guidance", "seed", "steps", "overlap", "weights"),
    [(1.0, 3, 2, 2, (0.9, 2.0)), (2.5, 7, 3, 4, (1.0, 1.5)), (3.5, 11, 2, 6, (0.95, 3.0))],
)
def test_the_baseline_of_another_model_and_size(
    other_bundle: Path,
    other_checkpoints: Path,
    tmp_path: Path,
    guidance: float,
    seed: int,
    steps: int,
    overlap: int,
    weights: tuple[float, float],
) -> None:
    width, height, window, fps = 104, 72, 8, 25.0
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (150, 90, 3), dtype=np.uint8)).save(tmp_path / "ref.png")
    write_wav(tmp_path / "aud.wav", rng.normal(0, 0.1, 11000).astype(np.float32))  # 17 frames, which do not tile
    track = (rng.normal(0, 3, (30, 3, 2)) + [[[35, 30], [65, 30], [50, 50]]]).astype(np.float32)
    save_track(tmp_path / "kps.pth", track)
    tensors = _tensors(
        GenerationRequest(
            tmp_path / "ref.png",
            tmp_path / "aud.wav",
            kps_path=tmp_path / "kps.pth",
            bundle=other_bundle,
            backend="onnxruntime",
            num_inference_steps=steps,
            guidance_scale=guidance,
            reference_attention_weight=weights[0],
            audio_attention_weight=weights[1],
            context_overlap=overlap,
            seed=seed,
            fps=fps,
            compat="upstream",
            dump_tensors=tmp_path / "out.npz",
        )
    )
    plan = WindowPlan.tiled(11000 / 16000, fps, window, overlap)
    points = interpolate_track(track, plan.frames)
    noise = upstream_noise(seed, 3, plan.frames, (4, height // 8, width // 8))
    inputs = BaselineInputs(
        image=upstream_portrait(load_portrait(tmp_path / "ref.png", upstream=True), width, height),
        waveform=normalised(decode_audio(tmp_path / "aud.wav", upstream=True).waveform.read()),
        guides=np.stack([draw_keypoints(frame, width, height) for frame in points]),
        noise=np.ascontiguousarray(noise),
        windows=[plan.span(number) for number in range(plan.windows)],
    )
    baseline = Baseline(other_checkpoints, guided=guidance > 1.0)
    final = baseline.latents(inputs, Sampling(steps, guidance, *weights))
    latents, images = final.numpy(), baseline.images(final).permute(0, 2, 3, 1).numpy()
    assert plan.windows > 1
    assert int(tensors["video_length"]) == plan.frames
    np.testing.assert_allclose(tensors["final_latents"][0].swapaxes(0, 1), latents, rtol=1e-3, atol=3e-4)
    np.testing.assert_allclose(tensors["frames"], images, rtol=0, atol=2e-3)
    assert (tensors["frames_uint8"] == median_clip((tensors["frames"] * 255).astype(np.uint8))).all()
