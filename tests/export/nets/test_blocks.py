"""Building blocks: what the goldens of whole networks do not show."""

import pytest
import torch

from vexpress_trt.export.nets.blocks import TimeEmbedding, Upsampler


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str)
def test_angles_of_the_time_embedding_keep_their_precision(dtype, tolerance):
    torch.manual_seed(0)
    embedding = TimeEmbedding(32, 128).requires_grad_(False)
    timestep = torch.tensor([999.0, 961.0, 37.0])
    exact = embedding(timestep)
    torch.testing.assert_close(embedding.to(dtype)(timestep).float(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(5, 7), (6, 7), (6, 8), (1, 2)])
def test_upsampling_is_doubling_and_cropping(size):
    torch.manual_seed(0)
    upsampler = Upsampler(4).requires_grad_(False)
    hidden = torch.randn(2, 4, (size[0] + 1) // 2, (size[1] + 1) // 2)
    doubled = hidden.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[..., : size[0], : size[1]]
    torch.testing.assert_close(upsampler(hidden, size), upsampler.conv(doubled))
