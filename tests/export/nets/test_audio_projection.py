"""The audio projection against the original."""

from vexpress_trt.export.nets.audio_projection import AudioProjection


def test_tokens_equal_the_original(configs, weights, golden, assert_golden):
    arrays = golden("audio_projection")
    projection = AudioProjection.from_state_dict(configs.projection, weights["audio_projection"])
    assert_golden(projection(arrays["in_windows"]), arrays["out"])
