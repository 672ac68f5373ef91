"""The fused denoiser: the numbers of the original and of `Denoiser`, the same weights, and few passes over memory."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vexpress_trt.bench.gpu_check.networks import MINI, arguments, denoiser, denoiser_spec, random_inputs, randomised
from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.fused import operations
from vexpress_trt.export.nets.fused.denoiser import FusedDenoiser
from vexpress_trt.export.nets.fused.hidden import as_rows
from vexpress_trt.export.random_model import TINY

WEIGHTS = {"out_w1_1": (1.0, 1.0), "out_w095_3": (0.95, 3.0)}
OPERATIONS = (
    "add_rows", "group_norm", "add_group_norm", "layer_norm", "add_layer_norm", "gated_gelu", "temporal_attention"
)  # fmt: skip


@pytest.fixture(scope="module")
def build(configs, denoiser_weights):
    """guided -> the denoiser of the tiny golden model."""
    return lambda guided: Denoiser.from_state_dict(configs.unet, configs.motion, denoiser_weights, guided=guided)


def scalars(*values):
    return [torch.tensor([value]) for value in values]


def random_call(model, guided, sizes, weights=(0.95, 3.0)):
    """A denoiser with random weights and arguments for it, all windows at other timesteps."""
    networks = model.networks()
    spec = denoiser_spec(networks, guided=guided, precision="fp32")
    given = random_inputs(spec, sizes, device="cpu")
    given["timestep"] = torch.tensor([961.0, 41.0])[: sizes["B"]]
    given["reference_weight"], given["audio_weight"] = scalars(*weights)
    module = randomised(lambda: denoiser(networks, guided=guided), device="cpu", dtype=torch.float32)
    return module, arguments(spec, given)


class Watched(TorchDispatchMode):
    """The operations that are called, and outside of them what torch copies, (function, shape), and samples up."""

    def __init__(self):
        super().__init__()
        self.calls, self.copies, self.upsampled, self._depth = Counter(), [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if not self._depth and name in ("cat", "stack", "clone", "copy_", "_to_copy", "index"):
            self.copies.append((name, tuple(result.shape)))
        if name == "upsample_nearest2d":
            self.upsampled.append(result)
        return result

    def operation(self, name):
        plain = getattr(operations, name)

        def called(*given, **named):
            self.calls[name] += not self._depth
            self._depth += 1
            try:
                return plain(*given, **named)
            finally:
                self._depth -= 1

        return called


@pytest.fixture
def watched(monkeypatch):
    watched = Watched()
    for name in OPERATIONS:
        monkeypatch.setattr(operations, name, watched.operation(name))
    return watched


@pytest.mark.parametrize("name", WEIGHTS)
def test_guided_prediction_equals_the_original(build, reference, golden, assert_golden, name):
    arrays, fused = golden("denoising_unet_cfg"), FusedDenoiser(build(True))
    keys_values = reference(golden("reference_net")["in_latents"])
    tokens, feature = arrays["audio_tokens"].unflatten(0, (2, 1, -1))[1], arrays["kps_features"].transpose(1, 2)[1:]
    for half in (0, 1):  # the golden halves have latents of their own
        latents = arrays["latents"].transpose(1, 2)[half : half + 1]
        timestep = arrays["timestep"].reshape(1)
        prediction = fused(latents, timestep, tokens, feature, keys_values, *scalars(*WEIGHTS[name]))
        assert prediction.shape == (1, 2, 12, 4, 16, 16) and prediction.dtype == torch.float32
        assert_golden(prediction[0, half].transpose(0, 1), arrays[name][half])


def test_single_prediction_at_an_odd_size_equals_the_original(build, assert_golden_at_odd_size):
    assert_golden_at_odd_size(FusedDenoiser(build(False)))


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "single"])
@pytest.mark.parametrize("weights", [(0.95, 3.0), (1.0, 1.0), (0.5, 0.0)], ids=str)
@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (MINI, {"B": 2, "F": 3, "h": 8, "w": 6}),
        (MINI, {"B": 1, "F": 1, "h": 7, "w": 9}),
        (TINY, {"B": 2, "F": 2, "h": 13, "w": 10}),
    ],
    ids=["two windows", "one frame of an odd size", "four levels"],
)
def test_it_equals_the_denoiser(model, sizes, guided, weights):
    module, given = random_call(model, guided, sizes, weights)
    expected = module(*given)
    prediction = FusedDenoiser(module)(*given)
    torch.testing.assert_close(prediction, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "single"])
def test_half_precision_is_as_close_to_fp32_as_the_denoisers(guided, dtype):
    sizes = {"B": 1, "F": 3, "h": 16, "w": 16}
    (module, given), (same, _) = (random_call(TINY, guided, sizes) for _ in range(2))
    exact = module(*given)
    given[4] = [tensor.to(dtype) for tensor in given[4]]

    def decibels(rough):
        return float(10 * torch.log10(exact.square().mean() / (rough - exact).square().mean()))

    plain = decibels(module.to(dtype)(*given))
    for fused in (FusedDenoiser(module), FusedDenoiser(same).to(dtype)):
        prediction = fused(*given)
        assert prediction.dtype == torch.float32
        assert decibels(prediction) > plain - 0.5


def test_no_weight_is_held_twice_and_the_denoiser_goes_on_working():
    module, given = random_call(MINI, True, {"B": 1, "F": 2, "h": 8, "w": 8})
    expected, alone = module(*given), _bytes_of(module)
    fused = FusedDenoiser(module)
    assert _bytes_of(fused, module) < 1.01 * alone  # folded biases
    torch.testing.assert_close(module(*given), expected, rtol=1e-4, atol=2e-5)


def test_a_call_copies_no_hidden_states(watched):
    module, given = random_call(TINY, True, {"B": 1, "F": 3, "h": 24, "w": 20})
    fused = FusedDenoiser(module)
    with torch.no_grad(), watched:
        fused(*given)
    small = {(3, 4, 24, 20), (1, 2, 3, 4, 24, 20)}  # latents and prediction
    assert not [shape for _, shape in watched.copies if len(shape) > 2 and shape not in small]
    assert len(watched.upsampled) == 3
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in watched.upsampled)


def test_an_addition_waits_for_the_norm_that_reads_its_sum(watched):
    module, given = random_call(TINY, True, {"B": 1, "F": 1, "h": 8, "w": 8})
    with watched:
        FusedDenoiser(module)(*given)
    blocks = [*module.down_blocks, module.mid_block, *module.up_blocks]
    samplers = len(module.down_blocks) - 1
    # Of its own it is made only before a sampler's convolution.
    assert watched.calls["add_rows"] == 2 * samplers
    additions = sum(len(kind) for block in blocks for kind in (block.resnets, block.attentions, block.motion_modules))
    # Behind an up-sampler the norm joins a skip connection to a sum that is there already.
    assert watched.calls["add_rows"] + watched.calls["add_group_norm"] == additions + samplers


def test_images_that_do_not_lie_channels_last_are_no_rows():
    images = torch.randn(2, 3, 4, 5)
    rows = as_rows(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(rows, images.flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="do not lie channels last"):
        as_rows(images)


def _bytes_of(*modules: nn.Module) -> int:
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
