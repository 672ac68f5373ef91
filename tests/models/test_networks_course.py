"""From packed speech to trained networks: what a step sees, what it changes, and how a course goes on."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.models.mini import course as courses
from vexpress_trt.models.mini import drawing, graphs
from vexpress_trt.models.mini.autoencoder import Autoencoder, autoencoder_loss, example_images, load_autoencoder
from vexpress_trt.models.mini.carry import load_spoken, pack
from vexpress_trt.models.mini.clips import CLIP_FRAMES, plan_clip
from vexpress_trt.models.mini.course import Course, run_course
from vexpress_trt.models.mini.diffusion import (
    Clips,
    Shape,
    denoiser_loss,
    diffused,
    example_windows,
    guides,
    latent_weights,
)
from vexpress_trt.models.mini.graphs import Steps, start_trial, trial_succeeded
from vexpress_trt.models.mini.listening import windows_of
from vexpress_trt.models.mini.measure import eye_box, mouth_box
from vexpress_trt.models.mini.networks import SmallVExpress
from vexpress_trt.models.mini.pool import Pool, pixel_weights
from vexpress_trt.models.mini.sizes import MINI
from vexpress_trt.models.mini.training import averaged_weights, generator, progress_of
from vexpress_trt.runtime.scheduler import alphas_cumprod

FRAMES, CLIPS = 40, 8
CPU = torch.device("cpu")


def recordings() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 2 * FRAMES, MINI.audio_hidden)).astype(np.float16) for _ in range(3)]


@pytest.fixture(scope="module")
def carry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carry")
    rng = np.random.default_rng(1)
    mouths = [rng.uniform(size=(2, FRAMES)).astype(np.float32) for _ in range(3)]
    pack(recordings(), mouths, folder, megabytes=10)
    return folder


@pytest.fixture(scope="module")
def painters(carry, tmp_path_factory):
    painters = drawing.Painters(tmp_path_factory.mktemp("scratch"), carry, CLIPS, workers=2)
    yield painters
    painters.stop()


@pytest.fixture(scope="module")
def pool(painters):
    pool = Pool(painters, CPU, held=2)
    pool.wait_for(CLIPS, 120)
    return pool


@pytest.fixture(scope="module")
def clips(pool, carry):
    torch.manual_seed(0)
    return Clips(pool, Autoencoder().eval(), load_spoken(carry))


def test_packed_rows_are_those_the_encoder_made(carry):
    spoken = load_spoken(carry)
    frames = np.arange(FRAMES)
    for number, versions in enumerate(recordings()):
        for version, rows in enumerate(versions.astype(np.float32)):
            index = spoken.starts[number, version] + 2 * frames[:, None] + np.arange(10)
            np.testing.assert_allclose(
                spoken.rows[index] * spoken.scale, windows_of(rows, frames), atol=spoken.scale.max()
            )


def test_later_recordings_are_left_out_where_there_is_no_room(tmp_path):
    mouths = [np.zeros((2, FRAMES), np.float32)] * 3
    pack(recordings(), mouths, tmp_path, megabytes=0.001)
    starts = load_spoken(tmp_path).starts
    np.testing.assert_array_equal(starts[:, 1], starts[:, 0])


def test_drawn_clips_are_those_that_are_planned(pool, carry):
    number = 5
    clip = plan_clip(number, load_spoken(carry).speech(), CLIP_FRAMES, held_out=False)
    np.testing.assert_array_equal(pool.frames[number, :-1].numpy(), clip.render_frames())
    np.testing.assert_array_equal(pool.frames[number, -1].numpy(), clip.render_portrait())
    expected = guides(clip.track).permute(0, 2, 3, 1)
    np.testing.assert_allclose(pool.guides[number].numpy() / 255, expected.numpy(), atol=1e-6)
    assert pool.heard[number].tolist() == [clip.utterance, clip.start]
    weights = np.ones((128, 128), np.float32)
    weights[eye_box(clip.track[3])] = 2
    weights[mouth_box(clip.track[3])] = 4
    np.testing.assert_array_equal(pixel_weights(pool.boxes[number, 3], 2.0, 4.0).numpy(), weights)


def test_a_painter_that_fails_is_noticed(tmp_path):
    (tmp_path / "spoken.npz").write_bytes(b"damaged")
    painters = drawing.Painters(tmp_path / "scratch", tmp_path, 4, workers=1)
    with pytest.raises(RuntimeError, match="ended with status"):
        Pool(painters, CPU).wait_for(4, 60)


def test_clips_of_other_speech_are_not_taken(carry, tmp_path):
    drawing.Sheets(tmp_path, carry, 4).done[:] = 1
    (tmp_path / "spoken.npz").write_bytes(b"other speech")
    assert drawing.Sheets(tmp_path, carry, 4).ready() == 4
    assert drawing.Sheets(tmp_path, tmp_path, 4).ready() == 0


def test_noise_follows_the_runtimes_schedule():
    random = generator(1, 2)
    clean, noise = (torch.randn(3, 2, 4, 16, 16, generator=random) for _ in range(2))
    alphas = alphas_cumprod(SchedulerConfig())
    steps = [0, 500, 999]
    noisy, target = diffused(clean, noise, torch.tensor(alphas[steps], dtype=torch.float32))
    for index, step in enumerate(steps):
        signal, spread = np.sqrt(alphas[step]), np.sqrt(1 - alphas[step])
        torch.testing.assert_close(noisy[index], float(signal) * clean[index] + float(spread) * noise[index])
        torch.testing.assert_close(target[index], float(signal) * noise[index] - float(spread) * clean[index])
    torch.testing.assert_close(noisy[2], noise[2])  # at the last step nothing is left of the signal


def test_the_mouth_counts_most_and_all_weights_are_one_on_average(pool):
    weights = latent_weights(pool.boxes[:2, :3])
    assert weights.shape == (2, 3, 1, 16, 16)
    assert weights.mean().item() == pytest.approx(1)
    pixels = np.ones((128, 128), np.float32)
    top, bottom, left, right = pool.boxes[1, 2, 1].tolist()
    pixels[top:bottom, left:right] = 5
    cells = torch.from_numpy(pixels.reshape(16, 8, 16, 8).mean(axis=(1, 3)))
    torch.testing.assert_close(weights[1, 2, 0] / weights[1, 2, 0].min(), cells / cells.min())


@pytest.mark.parametrize("ordered", [True, False])
def test_a_window_shows_and_hears_the_same_frames_of_one_clip(clips, pool, carry, ordered):
    spoken, shape = load_spoken(carry), Shape(4, 5, ordered)
    batch = clips.draw(clips.training, shape, generator(3, 4))
    again = clips.draw(clips.training, shape, generator(3, 4))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    noisy, timestep, portrait, audio, guide, keep, reference, loud, target, weights = batch
    assert noisy.shape == target.shape == (4, 5, 4, 16, 16)
    assert weights.shape == (4, 5, 1, 16, 16)
    assert set(keep.unique().tolist()) <= {0.0, 1.0}
    assert (reference >= 0.9).all() and (reference <= 1).all() and (loud >= 1).all() and (loud <= 3).all()
    alpha = torch.tensor(alphas_cumprod(SchedulerConfig())[timestep.long()], dtype=torch.float32).view(-1, 1, 1, 1, 1)
    clean = alpha.sqrt() * noisy - (1 - alpha).sqrt() * target
    seen = set()
    for window in range(4):
        number = next(n for n in range(CLIPS) if torch.equal(clips._latents[n, -1].float(), portrait[window]))
        seen.add(number)
        frames = [
            int((clips._latents[number, :-1].float() - clean[window, slot]).abs().amax(dim=(1, 2, 3)).argmin())
            for slot in range(5)
        ]
        torch.testing.assert_close(clean[window], clips._latents[number, frames].float(), atol=1e-4, rtol=0)
        assert torch.equal(guide[window], pool.guides[number, frames])
        assert len(set(frames)) == 5
        assert not ordered or frames == list(range(frames[0], frames[0] + 5))
        utterance, start = pool.heard[number].tolist()
        candidates = [windows_of(rows, start + np.array(frames)) for rows in recordings()[utterance].astype(np.float32)]
        distance = min(np.abs(rows - audio[window].numpy()).max() for rows in candidates)
        assert distance < spoken.scale.max()
    assert len(seen) == 4
    assert min(seen) >= pool.held


def test_conditions_are_withheld_as_often_as_planned(clips):
    kept = torch.cat([clips.draw(clips.training, Shape(6, 1, False), generator(9, n))[5] for n in range(300)])
    np.testing.assert_allclose(1 - kept.mean(dim=0).numpy(), 1 - 0.9 * np.array([0.95, 0.93, 0.97]), atol=0.03)


def test_losses_take_their_examples():
    torch.manual_seed(0)
    assert torch.isfinite(autoencoder_loss(Autoencoder())(*example_images(2, 0, "cpu"))).all()
    assert torch.isfinite(denoiser_loss(SmallVExpress())(*example_windows(2, 0, "cpu"))).all()


def test_a_step_without_graphs_is_the_plain_gradient():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    numbers = Steps(lambda x: torch.stack([(weight * x).sum(), x.sum()]), [weight], graphs=False)([torch.ones(3)])
    assert numbers.tolist() == [6.0, 3.0]
    assert weight.grad.item() == 3.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_trial_of_graphs_fails_alone(capsys):
    assert not trial_succeeded(start_trial())
    assert "CUDA graphs:" in capsys.readouterr().out


@pytest.fixture(scope="module")
def course(carry, tmp_path_factory) -> Course:
    root = tmp_path_factory.mktemp("course")
    return Course(carry, root / "out", root / "scratch", CPU, seconds=600.0, frames=6, clips=CLIPS, workers=1)


@pytest.fixture(scope="module")
def finished(course) -> Course:
    """A course whose stages end after a few steps, however slow the machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PLAN", "SPATIAL_PLAN", "MOTION_PLAN"):
            patch.setattr(courses, name, replace(getattr(courses, name), steps=4, warm_up=1))
        assert run_course(course)
    return course


def test_every_stage_changes_what_it_trains_and_nothing_else(finished):
    torch.manual_seed(1)
    untrained = Autoencoder().state_dict()["vae.decoder.conv_in.weight"]
    trained = load_autoencoder(finished.folder / "vae").state_dict()["vae.decoder.conv_in.weight"]
    assert (trained - untrained).abs().max() > 1e-4
    torch.manual_seed(4)
    first = SmallVExpress().state_dict()
    spatial, motion = (averaged_weights(finished.folder / stage) for stage in ("spatial", "motion"))
    moving = [name for name in first if "motion_modules" in name and name.endswith("proj_out.weight")]
    assert moving
    for name in moving:
        assert spatial[name].abs().max() == 0
        assert motion[name].abs().max() > 0
    for part in ("reference_net.", "denoising_unet.", "v_kps_guider.", "audio_projection."):
        changes = [
            (spatial[name] - tensor.half()).abs().max().item()
            for name, tensor in first.items()
            if name.startswith(part) and "motion_modules" not in name and tensor.is_floating_point()
        ]
        assert max(changes) > 1e-4, part


def test_a_course_leaves_few_and_small_files(finished):
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    assert len(files) <= 6
    assert max(path.stat().st_size for path in files) <= 16e6
    assert all(progress_of(finished.folder / stage)[1] == 1 for stage in ("vae", "spatial", "motion"))


def test_a_finished_course_trains_nothing_more(finished):
    before = {stage: progress_of(finished.folder / stage) for stage in ("vae", "spatial", "motion")}
    assert run_course(replace(finished, seconds=5.0))
    assert {stage: progress_of(finished.folder / stage) for stage in before} == before


def test_a_course_fails_where_a_stage_fails(course, tmp_path):
    with pytest.raises((RuntimeError, FileNotFoundError)):
        run_course(replace(course, carry=tmp_path, folder=tmp_path / "out", scratch=tmp_path / "scratch"))


def test_a_course_that_cannot_hold_its_clips_leaves_no_process(course, tmp_path, monkeypatch):
    def full(*_arguments: object) -> None:
        raise MemoryError

    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as trial:
        monkeypatch.setattr(graphs, "start_trial", lambda: trial)
        monkeypatch.setattr(courses, "Pool", full)
        with pytest.raises(MemoryError):
            run_course(replace(course, device=torch.device("cuda"), folder=tmp_path / "out", scratch=tmp_path / "new"))
        assert trial.wait(10) != 0
