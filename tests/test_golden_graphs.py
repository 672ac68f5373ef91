"""The exported FP32 graphs on onnxruntime give the oracle's arrays (golden README, sections 2 and 3)."""

import json
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import load_engine
from vexpress_trt.runtime.waveform import Waveform, WaveformStatistics

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def bundle(golden_bundle: Path) -> Bundle:
    return Bundle.open(golden_bundle)


@pytest.fixture(scope="module")
def modules(golden_dir: Path) -> Path:
    return golden_dir / "modules"


def _run(bundle: Bundle, graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    with load_engine(bundle, graph, backend="onnxruntime", precision="fp32") as engine:
        return {name: array.copy() for name, array in engine.run(**inputs).items()}


def _keys_values(bundle: Bundle, latent: np.ndarray) -> dict[str, np.ndarray]:
    return _run(bundle, "reference", latent=latent)


def test_audio_encoder(bundle: Bundle, modules: Path) -> None:
    golden = np.load(modules / "wav2vec2.npz")
    statistics = WaveformStatistics.of(Waveform([golden["waveform"]]), kernel=10, stride=5)
    whole = {"window_mean": statistics.window_mean, "window_factor": statistics.window_factor}
    hidden = _run(bundle, "audio_encoder", waveform=golden["input_values"], **whole)["hidden"]
    np.testing.assert_allclose(hidden, golden["last_hidden_state"], **TOLERANCE)


def test_audio_projection(bundle: Bundle, modules: Path) -> None:
    golden = np.load(modules / "audio_projection.npz")
    tokens = _run(bundle, "audio_projection", windows=golden["in_windows"])["tokens"]
    np.testing.assert_allclose(tokens, golden["out"], **TOLERANCE)


def test_kps_guider(bundle: Bundle, modules: Path) -> None:
    golden = np.load(modules / "v_kps_guider.npz")
    rgb = np.ascontiguousarray(golden["in_rgb"][0].swapaxes(0, 1), np.float32)
    feature = _run(bundle, "kps_guider", rgb=rgb)["feature"]
    np.testing.assert_allclose(feature, golden["out"][0].swapaxes(0, 1), **TOLERANCE)


def test_vae(bundle: Bundle, modules: Path) -> None:
    golden = np.load(modules / "vae.npz")
    latent = _run(bundle, "vae_encoder", image=golden["enc_image"])["latent"]
    image = _run(bundle, "vae_decoder", latents=golden["dec_latent"])["image"]
    np.testing.assert_allclose(latent, golden["enc_mean"], **TOLERANCE)
    np.testing.assert_allclose(image, golden["dec_image"], **TOLERANCE)


def test_reference_keys_and_values_are_projections_of_the_oracles_bank(
    bundle: Bundle, modules: Path, golden_dir: Path
) -> None:
    torch = pytest.importorskip("torch")
    golden = np.load(modules / "reference_net.npz")
    order = {entry["reader"]: entry["index"] for entry in json.loads((modules / "bank_order.json").read_text())}
    path = golden_dir / "model_ckpts" / "v-express" / "denoising_unet.bin"
    weights = torch.load(path, weights_only=True)
    found = _keys_values(bundle, golden["in_latents"])
    down_mid_up = sorted(order, key=lambda name: (("down", "mid", "up").index(name.split("_")[0]), name))
    assert len(found) == 2 * len(down_mid_up) == 32
    for number, name in enumerate(down_mid_up):
        bank = golden[f"bank_{order[name]:02d}"]
        for kind, letter in (("key", "k"), ("value", "v")):
            projection = weights[f"{name}.attn1_5.to_{letter}.weight"].float().numpy()
            expected = (bank[0] @ projection.T).reshape(bank.shape[1], 8, -1).swapaxes(0, 1)[None]
            np.testing.assert_allclose(found[f"{kind}_{number:02d}"], expected, **TOLERANCE)


@pytest.mark.parametrize(("output", "weights"), [("out_w1_1", (1.0, 1.0)), ("out_w095_3", (0.95, 3.0))])
def test_denoiser_under_guidance(bundle: Bundle, modules: Path, output: str, weights: tuple[float, float]) -> None:
    golden = np.load(modules / "denoising_unet_cfg.npz")
    keys_values = _keys_values(bundle, np.load(modules / "reference_net.npz")["in_latents"])
    expected = golden[output].swapaxes(1, 2)  # [half, F, 4, h, w]
    with load_engine(bundle, "denoiser_guided", backend="onnxruntime", precision="fp32") as engine:
        engine.bind(
            **keys_values,
            timestep=np.array([golden["timestep"]], np.float32),
            tokens=golden["audio_tokens"].reshape(2, 12, 5, -1)[1:],
            kps_feature=np.ascontiguousarray(golden["kps_features"][1:].swapaxes(1, 2), np.float32),
            reference_weight=np.array([weights[0]], np.float32),
            audio_weight=np.array([weights[1]], np.float32),
        )
        # The oracle's halves start from latents that differ on purpose; ours share them, so each is run on its own.
        for half in (0, 1):
            latents = np.ascontiguousarray(golden["latents"][half : half + 1].swapaxes(1, 2))
            prediction = engine.run(latents=latents)["prediction"][0, half]
            np.testing.assert_allclose(prediction, expected[half], **TOLERANCE)


def test_denoiser_without_guidance_on_a_size_that_eight_does_not_divide(bundle: Bundle, modules: Path) -> None:
    golden = np.load(modules / "denoising_unet_nocfg_oddsize.npz")
    prediction = _run(
        bundle,
        "denoiser_single",
        **_keys_values(bundle, golden["ref_latents"]),
        latents=np.ascontiguousarray(golden["latents"].swapaxes(1, 2)),
        timestep=np.array([golden["timestep"]], np.float32),
        tokens=golden["audio_tokens"][None],
        kps_feature=np.ascontiguousarray(golden["kps_features"].swapaxes(1, 2), np.float32),
        reference_weight=np.array([0.95], np.float32),
        audio_weight=np.array([3.0], np.float32),
    )["prediction"]
    np.testing.assert_allclose(prediction[0, 0], golden["out"][0].swapaxes(0, 1), **TOLERANCE)


def test_no_graph_materialises_attention_scores(golden_bundle: Path) -> None:
    import onnx

    for path in sorted(golden_bundle.rglob("*.onnx")):
        kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert "Softmax" not in kinds, path.name
        assert "Attention" in kinds or path.stem == "kps_guider", path.name
