"""Checkpoints with random weights."""

import gzip
import json
import math
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import sha256_file
from vexpress_trt.export import checkpoints as official
from vexpress_trt.export.checkpoints import load_checkpoints
from vexpress_trt.export.command import run_export
from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.library import AudioEncoder, VaeDecoder, VaeEncoder
from vexpress_trt.export.nets.reference import Reference
from vexpress_trt.export.random_model import FULL, MID, TINY
from vexpress_trt.export.random_weights import random_shapes, write_random_checkpoints

FRAMES, SIZE, STEPS, SCALING = 4, 16, 25, 0.18215
FP16_MAX = 65504.0

# Keys and parameters of the official model (golden README, section 5); position tables are not parameters.
OFFICIAL_COUNTS = {
    official.REFERENCE_NET: (684, 859_520_324),
    official.DENOISING_UNET: (798, 909_120_004),
    official.MOTION_MODULE: (588, 453_209_280),
    official.KPS_GUIDER: (16, 1_086_480),
    official.AUDIO_PROJECTION: (52, 29_524_224),
    official.VAE_WEIGHTS[0]: (248, 83_653_863),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "tiny"
    write_random_checkpoints(folder, "tiny", seed=3)
    return load_checkpoints(folder)


class Model:
    """All networks in float32, and the largest activation any of their layers has shown."""

    def __init__(self, loaded):
        self.peak, sizes = 0.0, loaded.networks
        parts = {name: {k: v.float() for k, v in getattr(loaded, name).items()} for name in _PARTS}
        self.encoder = VaeEncoder.from_state_dict(loaded.vae_config, loaded.vae)
        self.decoder = VaeDecoder.from_state_dict(loaded.vae_config, loaded.vae)
        self.audio = AudioEncoder.from_state_dict(loaded.wav2vec2_config, loaded.wav2vec2)
        self.projection = AudioProjection.from_state_dict(sizes.projection, parts["audio_projection"])
        self.guider = KpsGuider.from_state_dict(sizes.guider, parts["v_kps_guider"])
        self.reference = Reference.from_state_dicts(sizes.unet, parts["reference_net"], parts["denoising_unet"])
        self.denoiser = Denoiser.from_state_dict(sizes.unet, sizes.motion, parts["denoising_unet"], guided=True)
        for network in vars(self).values():
            for layer in network.modules() if isinstance(network, torch.nn.Module) else ():
                layer.register_forward_hook(self._watch)

    def _watch(self, _layer, _inputs, output):
        if isinstance(output, torch.Tensor):
            self.peak = max(self.peak, output.abs().max().item())

    def conditions(self):
        """Tokens, key-point feature, keys and values of a made-up clip and portrait."""
        generator = torch.Generator().manual_seed(0)
        ramp = torch.linspace(-1, 1, 8 * SIZE)
        portrait = torch.stack([ramp[None] + ramp[:, None], ramp[None] - ramp[:, None], ramp[None] * ramp[:, None]])
        hidden = self.audio(torch.randn(1, 16000, generator=generator))[0]
        rows = self.projection.pos_emb.weight.shape[0]
        rgb = torch.zeros(FRAMES, 3, 8 * SIZE, 8 * SIZE)
        for frame in range(FRAMES):
            rgb[frame, 0, 40 + frame : 48 + frame, 30:70] = 0.6
            rgb[frame, 2, 60 + frame : 68 + frame, 30:70] = 1.0
        tokens = self.projection(torch.stack([hidden[5 * i : 5 * i + rows] for i in range(FRAMES)]))
        return tokens, self.guider(rgb), self.reference(self.encoder(portrait[None].clamp(-1, 1)) * SCALING)

    def predict(self, latents, timestep, tokens, feature, keys_values):
        """[2, F, 4, h, w]: unconditional, conditional."""
        time, one = torch.tensor([float(timestep)]), torch.ones(1)
        return self.denoiser(latents[None], time, tokens[None], feature[None], keys_values, one, one)[0]


_PARTS = ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection")


@pytest.fixture(scope="module")
def model(tiny, one_thread):
    with torch.no_grad():
        yield Model(tiny)


def noise():
    return torch.randn(FRAMES, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def sample(model):
    """The final latents after 25 DDIM steps on v-predictions with guidance 3.5 (golden README, section 4)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    roots = torch.cumprod(1 - betas, 0).sqrt()
    alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    times = [round(1000 - step * 1000 / STEPS) - 1 for step in range(STEPS)]
    latents, conditions = noise(), model.conditions()
    for time, following in zip(times, [*times[1:], None], strict=True):
        without, with_conditions = model.predict(latents, time, *conditions)
        velocity = without + 3.5 * (with_conditions - without)
        alpha, next_alpha = alphas[time].item(), 1.0 if following is None else alphas[following].item()
        clean = alpha**0.5 * latents - (1 - alpha) ** 0.5 * velocity
        residue = alpha**0.5 * velocity + (1 - alpha) ** 0.5 * latents
        latents = next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * residue
    return latents


def test_activations_stay_far_from_the_limits_of_fp16_over_a_whole_generation(model):
    latents = sample(model)
    model.decoder(latents / SCALING)
    assert 0.7 < latents.std() < 3
    assert 1 < model.peak < FP16_MAX / 100


def test_decoded_frames_are_coloured_noise_around_medium_grey(model):
    frames = model.decoder(noise() / SCALING) / 2 + 0.5
    assert abs(frames.mean() - 0.5) < 0.1 and 0.12 < frames.std() < 0.3
    assert all(0.1 < deviation < 0.35 for deviation in frames.std(dim=(0, 2, 3)))
    red, green = frames[:, 0].flatten(), frames[:, 1].flatten()
    assert abs(torch.corrcoef(torch.stack([red, green]))[0, 1]) < 0.95  # not grey


def test_every_condition_has_influence(model):
    latents, (tokens, feature, keys_values) = noise(), model.conditions()
    full = model.predict(latents, 500, tokens, feature, keys_values)[1]
    undrawn = model.guider(torch.zeros(FRAMES, 3, 8 * SIZE, 8 * SIZE))
    others = {
        "drawing": model.predict(latents, 500, tokens, undrawn, keys_values)[1],
        "audio": model.predict(latents, 500, tokens * 0, feature, keys_values)[1],
        "order of the audio": model.predict(latents, 500, tokens.flip(0), feature, keys_values)[1],
        "key points": model.predict(latents, 500, tokens, feature * 0, keys_values)[1],
        "portrait": model.predict(latents, 500, tokens, feature, [part * 0 for part in keys_values])[1],
        "time": model.predict(latents, 900, tokens, feature, keys_values)[1],
        "order of the frames": model.predict(latents.flip(0), 500, tokens.flip(0), feature.flip(0), keys_values)[
            1
        ].flip(0),
    }
    assert 0.3 < full.std() < 2
    for name, other in others.items():
        assert (other - full).std() > 5e-3 * full.std(), name


def test_half_precision_computes_the_same(tiny, model):
    latents, (tokens, feature, keys_values) = noise(), model.conditions()
    sizes = tiny.networks
    halved = Denoiser.from_state_dict(
        sizes.unet, sizes.motion, {name: tensor.half() for name, tensor in tiny.denoising_unet.items()}, guided=True
    )
    time, one = torch.tensor([500.0]), torch.ones(1)
    half = halved(
        latents[None], time, tokens[None].half(), feature[None].half(), [t.half() for t in keys_values], one, one
    )[0]
    expected = model.predict(latents, 500, tokens, feature, keys_values)
    assert (half - expected).abs().max() < 0.02 * expected.std()


def test_no_weight_is_zero_or_repeated(tiny):
    for part in ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection", "vae", "wav2vec2"):
        tensors = {name: tensor for name, tensor in getattr(tiny, part).items() if not name.endswith(".pe")}
        assert all(torch.isfinite(tensor).all() and tensor.float().abs().mean() > 1e-3 for tensor in tensors.values())
        firsts = [tuple(tensor.flatten()[:3].tolist()) for tensor in tensors.values()]
        assert len(set(firsts)) == len(firsts)


def test_weights_depend_on_the_seed_and_on_nothing_else(tmp_path):
    small = replace(TINY, block_out_channels=(32, 32), layers_per_block=1, audio_layers=1, vae_channels=(16, 16))
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        write_random_checkpoints(tmp_path / name, small, seed)
    for entry in official.LAYOUT:
        one, same, other = (sha256_file(tmp_path / name / entry[0]) for name in ("one", "same", "other"))
        assert one == same
        assert (one != other) == (not entry[0].endswith(".json"))


def test_files_have_the_official_types(tiny):
    for part in ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection"):
        assert {tensor.dtype for tensor in getattr(tiny, part).values()} == {torch.float16}
    assert {tensor.dtype for part in (tiny.vae, tiny.wav2vec2) for tensor in part.values()} == {torch.float32}
    assert tiny.random_weights
    mark = json.loads((tiny.folder / official.RANDOM_MARK).read_text())
    assert mark["seed"] == 3 and mark["model"]["cross_attention_dim"] == 48


def test_tiny_has_the_sizes_of_the_golden_checkpoints(tiny, shared_dir):
    golden = load_checkpoints(shared_dir / "golden" / "model_ckpts")
    assert tiny.networks == golden.networks
    for part in ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection", "vae", "wav2vec2"):
        one, other = getattr(tiny, part), getattr(golden, part)
        assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in other.items()}


def test_full_has_the_official_number_of_keys_and_parameters():
    for file, (keys, parameters) in OFFICIAL_COUNTS.items():
        shapes = random_shapes(FULL)[file]
        counted = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(".pe"))
        assert (len(shapes), counted) == (keys, parameters), file


def test_full_has_exactly_the_official_keys_and_shapes(shared_dir):
    with gzip.open(shared_dir / "golden" / "state_dict_shapes.json.gz") as file:
        listed = json.load(file)
    names = dict(zip(("vae", "wav2vec2"), (official.VAE_WEIGHTS[0], official.AUDIO_WEIGHTS[0]), strict=True))
    shapes = random_shapes(FULL)
    for part, expected in listed.items():
        ours = {name: list(shape) for name, shape in shapes[names.get(part, f"v-express/{part}.bin")].items()}
        if part == "wav2vec2":  # the file is the speech recogniser's: prefix, head, names of its time
            ours = {
                name.removeprefix("wav2vec2.")
                .replace("weight_g", "parametrizations.weight.original0")
                .replace("weight_v", "parametrizations.weight.original1"): shape
                for name, shape in ours.items()
                if not name.startswith("lm_head.")
            }
        assert ours == expected, part


def test_the_middle_size_has_the_promised_widths():
    sizes = MID.networks()
    assert sizes.unet.block_out_channels == (128, 256, 512, 512) and sizes.unet.cross_attention_dim == 768


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="mine is not empty"):
        write_random_checkpoints(tmp_path / "mine", "tiny")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_unknown_size_and_a_small_disk_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no random model 'huge'; choose from tiny, mid, half, full"):
        write_random_checkpoints(tmp_path / "x", "huge")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(UserError, match=r"needs 5\.\d GB, its disk has 1\.0 GB free"):
        write_random_checkpoints(tmp_path / "x", "full")
    assert list(tmp_path.iterdir()) == []


def test_impossible_sizes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="30 channels"):
        write_random_checkpoints(tmp_path / "x", replace(TINY, block_out_channels=(30, 64)))
    assert list(tmp_path.iterdir()) == []


def test_an_exports_own_go_at_its_end_or_after_a_kill_with_the_next(tmp_path, monkeypatch):
    (tmp_path / ".vexpress-export.01234567.tmp").mkdir()
    (tmp_path / ".vexpress-export.01234567.tmp.lock").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupted(folder, *_):
        assert folder.is_relative_to(tmp_path)
        folder.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("vexpress_trt.export.random_weights.write_random_checkpoints", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_export(tmp_path / "x.bundle", random="tiny")
    assert list(tmp_path.iterdir()) == []
