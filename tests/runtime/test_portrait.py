"""The portrait: every kind of picture to RGB, crops that keep shapes, upstream's squashing, and what is refused."""

import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import portrait
from vexpress_trt.runtime.portrait import crop_to_aspect, load_portrait, upstream_detector_input, upstream_portrait


def picture(width: int = 96, height: int = 80) -> np.ndarray:
    """Smooth colours, different in every corner, uint8 RGB [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = [255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)]
    return np.stack(planes, axis=2).astype(np.uint8)


def saved(tmp_path, image: Image.Image, name: str = "a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_rgb_is_taken_as_it_is(tmp_path):
    rgb = picture()
    result = load_portrait(saved(tmp_path, Image.fromarray(rgb)))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, rgb)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.bmp", "a.tiff", "a.gif"])
def test_other_formats(tmp_path, name):
    rgb = picture()
    options = {"quality": 95} if name in ("a.jpg", "a.webp") else {}
    image = Image.fromarray(rgb).quantize(256) if name == "a.gif" else Image.fromarray(rgb)
    result = load_portrait(saved(tmp_path, image, name, **options)).astype(int)
    assert np.abs(result - rgb).mean() < 8


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LAB"])
def test_other_modes_show_the_same_picture(tmp_path, mode):
    image = Image.fromarray(picture())
    if mode == "P":
        image = image.quantize(256)
    elif mode == "LAB":
        image = Image.fromarray(np.full((80, 96, 3), (200, 0, 0), np.uint8), mode="LAB")
    else:
        image = image.convert(mode)
    result = load_portrait(saved(tmp_path, image, "a.tiff"))
    assert result.shape == (80, 96, 3)
    assert result.std() > 20 or mode == "LAB"
    if mode in ("L", "P", "CMYK"):
        np.testing.assert_allclose(result.astype(int), np.asarray(image.convert("RGB")).astype(int), atol=1)


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpeg_of_other_colours(tmp_path, mode):
    image = Image.fromarray(picture()).convert(mode)
    result = load_portrait(saved(tmp_path, image, "a.jpg", quality=95))
    assert result.shape == (80, 96, 3)
    assert np.abs(result.astype(int) - np.asarray(image.convert("RGB"))).mean() < 4


@pytest.mark.parametrize(("mode", "name"), [("I;16", "a.png"), ("I;16", "a.tiff"), ("I", "a.tiff"), ("F", "a.tiff")])
def test_deep_greyscale_is_scaled_not_clipped(tmp_path, mode, name):
    grey = np.linspace(0, 65535, 80 * 96).reshape(80, 96)
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    result = load_portrait(saved(tmp_path, Image.fromarray(grey.astype(dtype)), name))
    np.testing.assert_allclose(result[:, :, 0], grey / 257, atol=1.5)


def test_transparency_becomes_white(tmp_path):
    rgba = np.dstack([picture(), np.full((80, 96), 255, np.uint8)])
    rgba[:40, :, 3] = 0
    result = load_portrait(saved(tmp_path, Image.fromarray(rgba)))
    assert (result[:40] == 255).all()
    np.testing.assert_array_equal(result[40:], rgba[40:, :, :3])

    palette = Image.fromarray(np.repeat(np.arange(80, dtype=np.uint8)[:, None], 96, axis=1)).convert("P")
    result = load_portrait(saved(tmp_path, palette, "p.png", transparency=7))
    assert (result[7] == 255).all()
    assert (result[8] == 8).all()

    grey = Image.fromarray(np.dstack([np.full((80, 96), 10, np.uint8), np.zeros((80, 96), np.uint8)]))
    assert (load_portrait(saved(tmp_path, grey, "la.png")) == 255).all()


def test_turned_as_exif_says_but_not_for_upstream(tmp_path):
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = 6  # stored lying on its left side
    path = saved(tmp_path, image, "a.png", exif=exif)
    np.testing.assert_array_equal(load_portrait(path), np.rot90(picture(), -1))
    np.testing.assert_array_equal(load_portrait(path, upstream=True), picture())


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, np.fliplr),
        (3, lambda stored: np.rot90(stored, 2)),
        (4, np.flipud),
        (5, lambda stored: stored.transpose(1, 0, 2)),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: np.rot90(stored, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_every_orientation(tmp_path, orientation, upright):
    """EXIF 2.3, tag 274: where the stored picture's first row and column lie in the upright one."""
    image = Image.fromarray(picture())
    exif = image.getexif()
    exif[274] = orientation
    np.testing.assert_array_equal(load_portrait(saved(tmp_path, image, "a.png", exif=exif)), upright(picture()))


def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    path = saved(tmp_path, Image.fromarray(picture()), "a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01")
    assert load_portrait(path).shape == (80, 96, 3)


def test_smaller_than_the_output_warns(tmp_path, caplog):
    path = saved(tmp_path, Image.fromarray(picture()))
    with caplog.at_level(logging.WARNING, "vexpress"):
        load_portrait(path, minimum=(96, 80))
        assert not caplog.records
        load_portrait(path, minimum=(96, 88))
    assert "96x80 pixels, fewer than the output's 96x88" in caplog.text


def test_first_picture_of_an_animation_with_a_warning(tmp_path, caplog):
    first, second = Image.fromarray(picture()), Image.fromarray(255 - picture())
    path = saved(tmp_path, first, "a.png", save_all=True, append_images=[second])
    with caplog.at_level(logging.WARNING, "vexpress"):
        np.testing.assert_array_equal(load_portrait(path), picture())
    assert "is an animation" in caplog.text


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        load_portrait(path)
    sentence = str(error.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_missing_empty_corrupt_and_wrong_files(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.png")
    assert "does not exist" in refusal(tmp_path / ("x" * 300 + ".png"))
    assert "not a file" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "is empty" in refusal(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "not a picture" in refusal(tmp_path / "text.png")
    whole = saved(tmp_path, Image.fromarray(picture(400, 400)), "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refusal(tmp_path / "half.jpg")


def test_damage_anywhere_ends_in_a_picture_or_in_a_sentence(tmp_path):
    """Every kind of file with a few bytes changed or its end cut off."""
    random = np.random.default_rng(0)
    kinds = [("a.png", "RGBA"), ("a.jpg", "CMYK"), ("a.gif", "P"), ("a.tiff", "RGB"), ("a.webp", "RGB"), ("a.bmp", "P")]
    refused = 0
    for name, mode in kinds:
        path = saved(tmp_path, Image.fromarray(picture()).convert(mode), name)
        whole = path.read_bytes()
        for _ in range(15):
            content = bytearray(whole)
            for place in random.integers(0, min(300, len(whole)), random.integers(1, 6)):
                content[place] = random.integers(0, 256)
            path.write_bytes(content[: random.integers(1, 2 * len(content))])
            try:
                assert load_portrait(path).shape[2] == 3
            except UserError as sentence:
                refused += 1
                assert str(path) in str(sentence)
    assert 0 < refused < 90


def test_formats_that_run_programs_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    assert "not a picture" in refusal(tmp_path / "a.png")


def test_below_64_pixels_is_refused(tmp_path):
    assert load_portrait(saved(tmp_path, Image.fromarray(picture(64, 64)))).shape == (64, 64, 3)
    assert "96x63 pixels, fewer than 64" in refusal(saved(tmp_path, Image.fromarray(picture(96, 63))))


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_a_small_file_of_huge_size_is_refused_unpacked(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    assert "pixels" in refusal(tmp_path / "bomb.png")


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(portrait, "MAX_FILE_BYTES", 1000)
    assert "over the limit" in refusal(saved(tmp_path, Image.fromarray(picture())))


@pytest.mark.parametrize(
    ("size", "target", "part"),
    [
        ((100, 100), (50, 50), (0, 0, 100, 100)),
        ((200, 100), (64, 64), (50, 0, 100, 100)),
        ((100, 200), (64, 64), (0, 50, 100, 100)),
        ((200, 100), (64, 128), (75, 0, 50, 100)),
        ((64, 64), (128, 256), (16, 0, 32, 64)),
    ],
)
def test_centre_crop_keeps_the_shape(size, target, part):
    cropped, kept = crop_to_aspect(picture(*size), *target)
    assert cropped.shape == (target[1], target[0], 3)
    assert kept == pytest.approx(part)
    assert kept[2] / kept[3] == pytest.approx(target[0] / target[1])


def test_crop_follows_the_face_and_stays_inside():
    image = picture(300, 100)
    assert crop_to_aspect(image, 64, 64, np.array([200.0, 50.0]))[1] == pytest.approx((150, 0, 100, 100))
    assert crop_to_aspect(image, 64, 64, np.array([5.0, 50.0]))[1] == pytest.approx((0, 0, 100, 100))
    assert crop_to_aspect(image, 64, 64, np.array([299.0, 50.0]))[1] == pytest.approx((200, 0, 100, 100))
    _, (left, top, _, height) = crop_to_aspect(picture(100, 300), 64, 64, np.array([50.0, 150.0]))
    assert left == 0
    assert top + portrait.FACE_HEIGHT * height == pytest.approx(150)


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (150, 150)])
@pytest.mark.parametrize("target", [(64, 64), (128, 64), (64, 128)])
def test_a_face_anywhere_lies_in_its_crop(size, target):
    for x in np.linspace(0.05, 0.95, 7) * size[0]:
        for y in np.linspace(0.05, 0.95, 7) * size[1]:
            _, (left, top, width, height) = crop_to_aspect(picture(*size), *target, np.array([x, y]))
            assert left <= x <= left + width
            assert top <= y <= top + height
            assert left >= 0
            assert top >= 0
            assert left + width <= size[0] + 1e-6
            assert top + height <= size[1] + 1e-6


def test_what_is_shown_is_the_part_that_is_named():
    image = picture(320, 200)
    cropped, (left, top, width, height) = crop_to_aspect(image, 100, 100, np.array([250.0, 100.0]))
    assert (left, top, width, height) == pytest.approx((120, 0, 200, 200))
    expected = Image.fromarray(image[:, 120:]).resize((100, 100), Image.Resampling.LANCZOS)
    assert np.abs(cropped.astype(int) - np.asarray(expected)).max() <= 1


def test_a_circle_stays_a_circle():
    y, x = np.mgrid[0:200, 0:320]
    disc = ((x - 180) ** 2 + (y - 100) ** 2 < 60**2)[:, :, None] * np.full(3, 255, np.uint8)
    cropped, _ = crop_to_aspect(disc.astype(np.uint8), 128, 96, np.array([180.0, 100.0]))
    rows, columns = np.nonzero(cropped[:, :, 0] > 127)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)
    assert np.ptp(rows) + 1 == pytest.approx(120 * 96 / 200, abs=1)


@pytest.mark.parametrize(("x", "y"), [(215, 65), (150, 105), (80, 150)])
@pytest.mark.parametrize("target", [(128, 64), (64, 128), (96, 96)])
def test_a_point_moves_with_the_crop(x, y, target):
    """What is at (x, y) in the picture is at ((x - left) / width, (y - top) / height) of the crop."""
    image = np.zeros((200, 300, 3), np.uint8)
    image[y - 5 : y + 5, x - 5 : x + 5] = 255
    cropped, (left, top, width, height) = crop_to_aspect(image, *target, np.array([x, y]))
    row, column = np.argwhere(cropped[:, :, 0] > 127).mean(axis=0) + 0.5
    assert (x - left) / width * target[0] == pytest.approx(column, abs=0.5)
    assert (y - top) / height * target[1] == pytest.approx(row, abs=0.5)


def test_any_sizes_fit_in_spite_of_rounding():
    random = np.random.default_rng(0)
    cases = [(81, 200, 35, 8), *(random.integers([64, 64, 1, 1], [104, 104, 40, 40], (300, 4)))]
    assert 280 * (81 / 280) > 81  # what rounding does to the first case
    for width, height, columns, rows in cases:
        image = np.zeros((height, width, 3), np.uint8)
        for centre in (None, random.uniform(-10, 110, 2)):
            assert crop_to_aspect(image, 8 * columns, 8 * rows, centre)[0].shape == (8 * rows, 8 * columns, 3)


def test_shrinking_does_not_alias():
    """Stripes of one pixel become grey, not wider stripes."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = crop_to_aspect(stripes, 48, 48)[0][4:-4, 4:-4]
    assert np.abs(inner.astype(int) - 127).max() < 12


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 48), (40, 104)])
def test_upstream_portrait_equals_diffusers(width, height):
    """Pillow's resize to (height, width), then the image processor of diffusers."""
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor(
        vae_scale_factor=8, do_convert_rgb=True
    )
    image = picture(200, 150)
    squashed = Image.fromarray(image).resize((height, width))
    expected = processor.preprocess(squashed, height=height, width=width).numpy()
    result = upstream_portrait(image, width, height)
    assert result.shape == (1, 3, height, width)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 48)])
def test_upstream_portrait_swaps_width_and_height(width, height):
    """What the original does step by step: squashed to (height, width), then to the size it should have had."""
    image = picture(200, 150)
    squashed = Image.fromarray(image).resize((height, width), Image.Resampling.BICUBIC)
    if width != height:
        squashed = squashed.resize((width, height), Image.Resampling.LANCZOS)
    expected = np.asarray(squashed, np.float64).transpose(2, 0, 1)[None] / 127.5 - 1
    np.testing.assert_allclose(upstream_portrait(image, width, height), expected, rtol=0, atol=1e-6)


def test_upstream_portrait_covers_the_range():
    image = np.zeros((80, 80, 3), np.uint8)
    image[:, 40:] = 255
    result = upstream_portrait(image, 64, 32)
    assert result.shape == (1, 3, 32, 64)
    assert (result.min(), result.max()) == (-1.0, 1.0)


def test_upstream_detector_input_is_squashed():
    result = upstream_detector_input(picture(200, 100), 64, 64)
    assert result.shape == (64, 64, 3)
    assert result[:, :, 0].max() > 240
    assert result[:, :, 1].max() > 240  # both ends are still there
