"""The key-point guider against the original."""

from vexpress_trt.export.nets.guider import KpsGuider


def test_feature_equals_the_original(configs, weights, golden, assert_golden):
    arrays = golden("v_kps_guider")
    guider = KpsGuider.from_state_dict(configs.guider, weights["v_kps_guider"])
    feature = guider(arrays["in_rgb"][0].transpose(0, 1))
    assert_golden(feature.transpose(0, 1)[None], arrays["out"])
