"""What a kernel does, which the GPU check knows by its name, and the time of a call by kind."""

import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check.kernel_times import OURS, by_kind, kind_of


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<...>>", "attention"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", "attention"),
        ("temporal_attention", "attention over frames, ours"),
        ("void (anonymous namespace)::softmax_warp_forward<...>", "other"),
        ("add_rows", "norms and element-wise, ours"),
        ("layer_norm", "norms and element-wise, ours"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::Half, float, false>", "norms"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::Half>", "norms"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize256x128x64_cudnn", "convolutions"),
        ("nvjet_sm90_hsh_168x128_64x5_1x2_h_bz_coopA_bias_TNN", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, __half>", "matrix products"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copies and changes of layout"),
        ("Memcpy DtoD (Device -> Device)", "copies and changes of layout"),
        ("void cudnn::ops::nchwToNhwcKernel<__half, __half>", "copies and changes of layout"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::Half>>", "element-wise"),
        ("triton_poi_fused_add_mul_3", "made by torch.compile"),
    ],
)
def test_what_a_kernel_does_is_known_by_its_name(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_our_kernels_are_known_by_their_names() -> None:
    pytest.importorskip("triton", reason="needs Triton, which there is for Linux")
    from vexpress_trt.export.nets.fused import programs

    named = {name for name, program in vars(programs).items() if hasattr(program, "fn") and not name.startswith("_")}
    assert named == OURS | {"temporal_attention"}


def test_the_time_of_a_call_is_told_by_kind_with_the_rate_of_what_is_counted() -> None:
    kernels = [("nvjet_a", 20.0, 5), ("add_rows", 10.0, 7), ("nvjet_b", 10.0, 5)]
    found = by_kind(kernels, {"products": 30_000_000_000_000, "convolutions": 0, "attention": 0})
    assert found == {
        "matrix products": {"ms": 30.0, "launches": 10, "share": 0.75, "tflops": pytest.approx(1000.0)},
        "norms and element-wise, ours": {"ms": 10.0, "launches": 7, "share": 0.25},
    }
    assert list(found)[0] == "matrix products"
