"""Motion modules: positions within the window, pixels independent of each other."""

import torch

from vexpress_trt.export.nets.motion import MotionModule, PositionTable


def test_position_table_is_the_checkpoints(weights):
    for key, table in weights["motion_module"].items():
        if key.endswith("pos_encoder.pe"):
            made = PositionTable(table.shape[2], table.shape[1]).pe
            torch.testing.assert_close(made, table, rtol=0, atol=1e-3)  # stored as float16 or float32


def motion_module(configs):
    torch.manual_seed(0)
    return MotionModule(32, configs.motion).eval().requires_grad_(False)


def test_windows_do_not_mix(configs):
    module, hidden = motion_module(configs), torch.randn(6, 32, 2, 3)
    together = module(hidden, 3)
    torch.testing.assert_close(together, torch.cat([module(hidden[:3], 3), module(hidden[3:], 3)]))


def test_order_of_frames_matters(configs):
    module, hidden = motion_module(configs), torch.randn(3, 32, 2, 3)
    assert not torch.allclose(module(hidden.flip(0), 3).flip(0), module(hidden, 3), atol=1e-3)


def test_one_pixel_only_reaches_others_through_group_norm(configs):
    module, hidden = motion_module(configs), torch.randn(3, 32, 2, 3)
    module.temporal_transformer.norm = torch.nn.Identity()
    changed = hidden.clone()
    changed[1, :, 0, 2] += 1.0
    difference = (module(changed, 3) - module(hidden, 3)).abs().amax(dim=1) > 1e-6
    assert difference[:, 0, 2].all() and difference.sum() == 3
