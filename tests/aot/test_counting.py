"""What programs do, read from the text of their HLO."""

import jax
import jax.numpy as jnp
import pytest

from show1_jax.aot.counting import Module, collectives, kernel_flops

HLO = """
  %all-reduce.1 = f32[3,64]{1,0} all-reduce(%dot), channel_id=1, replica_groups={{0,1}}
  %ag-start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%p), channel_id=2, dimensions={0}
  %ag-done = bf16[32,4]{1,0} all-gather-done(%ag-start)
  %rs = f32[8,4]{1,0} reduce-scatter(%p), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  %all-to-all.2 = (s32[2]{0}, s32[2]{0}) all-to-all(%a, %b), replica_groups={{0,1}}
  %ar = (f32[1]{0}, f32[2]{0}, f32[3]{0}, f32[4]{0}, f32[5]{0}, /*index=5*/f32[6]{0}) all-reduce(%a)
  ROOT %fusion = f32[3,64]{1,0} fusion(%all-reduce.1), kind=kLoop, calls=%all-gather_computation
"""


def test_collectives_are_counted_once_with_the_bytes_that_a_chip_sends():
    """Of a result, around a ring: of those without groups, between all eight."""
    assert collectives(HLO, 8) == {
        "all-reduce": {"count": 2, "bytes": 2 * 3 * 64 * 4 // 2 + 2 * 21 * 4 * 7 // 8},
        "all-gather": {"count": 1, "bytes": 32 * 4 * 2 * 7 // 8},
        "reduce-scatter": {"count": 1, "bytes": 3 * 8 * 4 * 4},
        "all-to-all": {"count": 1, "bytes": 2 * 2 * 4 // 2},
    }


def test_a_collective_in_pieces_counts_once_and_a_fused_one_as_what_it_is():
    """As TPUs' compiler writes them."""
    groups = "replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a','b'}"
    hlo = "".join(
        f"%fused_{i} (p: f32[4]) -> f32[8] {{\n  %ag.{i} = f32[8]{{0}} all-gather(%p), "
        f'channel_id={channel}, {groups}, frontend_attributes={{chain_id="{chain}"}}\n}}\n'
        for i, (channel, chain) in enumerate([(1, 1), (1, 1), (1, 2), (2, 1), (1, 1)])
    )
    hlo += "%all-reduce-scatter.1 (p: f32[8]) -> f32[1] {\n  %ar.1 = f32[8]{0} all-reduce(%p)\n}\n"
    hlo += "ENTRY %main (p: f32[8]) -> f32[8] {\n  %ar.2 = f32[8]{0} all-reduce(%p)\n}\n"
    assert collectives(hlo, 8) == {
        "all-gather": {"count": 3, "bytes": 3 * 8 * 4 // 2},
        "reduce-scatter": {"count": 1, "bytes": 8 * 4 * 7 // 8},
        "all-reduce": {"count": 1, "bytes": 2 * 8 * 4 * 7 // 8},
    }


def test_a_reduction_that_starts_early_counts_its_results_alone():
    """As GPUs' compiler writes it: what it is given, then what it gives."""
    hlo = (
        "  %rs = ((bf16[64]{0}, f32[8,2]{1,0}), (bf16[8]{0}, f32[1,2]{1,0})) "
        "reduce-scatter-start(%a, %b), channel_id=7, replica_groups=[1,8]<=[8], to_apply=%add\n"
    )
    assert collectives(hlo, 8) == {"reduce-scatter": {"count": 1, "bytes": 7 * (8 * 2 + 2 * 4)}}


def test_what_crosses_slices_is_counted_with_what_hides_it():
    """As TPUs' compiler writes it: a product is computed while the first transfer is under way."""

    def transfer(name, kind):
        return (
            f'is_host_transfer=true, frontend_attributes={{_xla_host_transfer_rendezvous="{name}",'
            f'_xla_megascale_target="{{1,2}}",_xla_megascale_transfer_type="{kind}"}}'
        )

    hlo = "ENTRY %main (p: f32[8]) -> f32[8] {\n"
    for name, kind in (("one", "ALL_REDUCE"), ("two", "ALL_GATHER")):
        about = transfer(name, kind)
        hlo += f"  %send.{name} = (bf16[8,4]{{1,0}}, u32[], token[]) send(%p, %t), {about}\n"
        hlo += f"  %recv.{name} = (bf16[8,4]{{1,0}}, u32[], token[]) recv(%t), {about}\n"
        if name == "one":
            hlo += "  %dot = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}\n"
        hlo += f"  %recv-done.{name} = (bf16[8,4]{{1,0}}, token[]) recv-done(%recv.{name})\n"
    hlo = hlo.replace(
        "{\n", "{\n  %a = f32[8,2]{1,0} parameter(0)\n  %b = f32[2,4]{1,0} parameter(1)\n", 1
    )
    size = 8 * 4 * 2
    assert Module(hlo + "}\n").between_slices(3) == {
        "count": 2, "bytes": round(size * 4 / 3) + size * 2, "overlapped_bytes": round(size * 4 / 3)
    }  # fmt: skip


def test_attention_kernels_are_counted():
    operands = "s8[1,2,2]{2,1,0}, bf16[6,10,768,64]{3,2,1,0}, bf16[6,10,896,64]{3,2,1,0}"
    hlo = "".join(
        f"  %splash_mha_{kind}.1 = (f32[6,384,128]{{2,1,0}}) custom-call(%a, %b, /*index=5*/%c), "
        f'custom_call_target="x", operand_layout_constraints={{{operands}}}, frontend={{1}}\n'
        for kind in ("fwd_segmented_residuals", "dq_no_residuals", "dkv_no_residuals")
    )
    hlo += "  %use = f32[1] get-tuple-element(%splash_mha_fwd_segmented_residuals.1), index=0\n"
    assert kernel_flops(hlo) == (2 + 3 + 4) * 2 * 6 * 10 * 768 * 896 * 64
    assert kernel_flops(HLO) == 0


def test_attention_kernels_of_mapped_clips_are_counted():
    """As the compiler writes them in a training of 12 clips for v5e:16x16."""
    real = (
        "  %splash_mha_fwd_segmented_residuals.14 = (bf16[12,8,10,640,64]{4,3,2,1,0:T(8,128)(2,1)},"
        " f32[12,8,10,640,128]{4,3,2,1,0:T(8,128)}) custom-call(%constant.10185.clone.data_next_ref"
        ", %constant.10187.clone.block_mask_ref, %bitcast.180.q_ref, %fusion.2575.k_ref, "
        "%fusion.2577.v_ref, /*index=5*/%broadcast_in_dim.6344.q_segment_ids_ref, "
        '%broadcast_in_dim.6345.kv_segment_ids_ref), custom_call_target="tpu_custom_call", '
        "operand_layout_constraints={s8[1,1,1]{2,1,0}, s8[1,1,1]{2,1,0}, "
        "bf16[12,8,10,640,64]{4,3,2,1,0}, bf16[12,8,10,768,64]{4,3,2,1,0}, "
        "bf16[12,8,10,768,64]{4,3,2,1,0}, s32[640,128]{1,0}, s32[8,768]{1,0}}, "
        "frontend_attributes={}\n"
    )
    assert kernel_flops(real) == 2 * 2 * 12 * 8 * 10 * 640 * 768 * 64


def text(function, *shapes):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*shapes).compile().as_text()


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_products_and_convolutions_are_counted_from_their_shapes():
    assert Module(text(jnp.matmul, (64, 96), (96, 128))).flops() == 2 * 64 * 96 * 128
    images, kernel = (2, 16, 16, 32), (3, 3, 32, 48)
    once = 2 * 2 * 16 * 16 * 9 * 32 * 48
    assert Module(text(convolved, images, kernel)).flops() == once
    both = jax.grad(lambda x, kernel: jnp.square(convolved(x, kernel)).sum(), argnums=(0, 1))
    assert Module(text(both, images, kernel)).flops() == pytest.approx(3 * once, rel=0.01)


def test_a_loop_is_counted_once_and_what_is_called_each_time():
    def loop(x, w):
        return jax.lax.fori_loop(0, 7, lambda i, x: jnp.tanh(x @ w), x)

    assert Module(text(loop, (64, 64), (64, 64))).flops() == 2 * 64**3
    assert Module(text(lambda x, w: jnp.tanh(x @ w) @ w, (64, 64), (64, 64))).flops() == 4 * 64**3


def test_traffic_is_the_operands_and_results_of_what_is_not_fused():
    hlo = """HloModule a

%inside (p.1: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %n = f32[8,4]{1,0} negate(%p.1)
}

%body (t: (f32[8,4], s32[])) -> (f32[8,4], s32[]) {
  %t = (f32[8,4]{1,0}, s32[]) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%t), index=0
  %i = s32[] get-tuple-element(%t), index=1
  %y = bf16[8,4]{1,0} convert(%x)
  %z = f32[8,4]{1,0} convert(%y)
  ROOT %r = (f32[8,4]{1,0}, s32[]) tuple(%z, %i)
}

ENTRY %main (p.2: f32[8,4]) -> f32[8,4] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  %f = f32[8,4]{1,0} fusion(%p.2), kind=kLoop, calls=%inside
  %c = s32[] constant(0)
  %s = (f32[8,4]{1,0}, s32[]) tuple(%f, %c)
  %w = (f32[8,4]{1,0}, s32[]) while(%s), condition=%cond, body=%body
  ROOT %g = f32[8,4]{1,0} get-tuple-element(%w), index=0
}
"""
    assert Module(hlo).traffic() == 2 * 32 * 4 + 2 * (32 * 4 + 32 * 2)


def test_traffic_of_a_tpu_is_that_of_its_main_memory_with_padding():
    """As its compiler writes them: arrays in S(1), the vector memory, are copied there in parts."""
    hlo = """ENTRY %main (p: bf16[3,320,7]) -> f32[8,128] {
  %p = bf16[3,320,7]{2,1,0:T(8,128)(2,1)} parameter(0)
  %ss = ((bf16[3,320,7]{2,1,0:T(8,128)(2,1)}), bf16[1,320,7]{2,1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:1]}
  %sd = bf16[1,320,7]{2,1,0:T(8,128)(2,1)S(1)} slice-done(%ss)
  %cs = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%v)
  %cd = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%cs)
  %f = f32[8,128]{1,0:T(8,128)S(1)} fusion(%sd, %cd), kind=kLoop, calls=%a
  ROOT %g = f32[8,128]{1,0:T(8,128)} fusion(%f), kind=kLoop, calls=%b
}
"""  # noqa: E501
    assert Module(hlo).traffic() == 320 * 128 * 2 + 2 * 8 * 128 * 4


# As XLA's GPU compiler writes them, shortened.
GPU = """
ENTRY %main (a: bf16[64,32]) -> bf16[64,48] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,48]{1,0} parameter(1)
  %x = bf16[2,40,64,32]{3,2,1,0} parameter(2)
  %k = bf16[48,3,3,32]{3,2,1,0} parameter(3)
  %dy = bf16[2,40,64,48]{3,2,1,0} parameter(4)
  %q = bf16[2,2560,5,64]{3,2,1,0} parameter(5)
  %kv = bf16[2,320,5,64]{3,2,1,0} parameter(6)
  %X = (bf16[2,8]{1,0}, u8[9]{0}) custom-call(OPERANDS), TARGET
}
"""
CONVOLUTION = 2 * 2 * 40 * 64 * 48 * 9 * 32


@pytest.mark.parametrize(
    ("result", "operands", "rest", "flops"),
    [
        (
            "bf16[64,48]",
            "%a, %b",
            'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
            '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            2 * 64 * 32 * 48,
        ),
        (
            "bf16[2,40,64,48]",
            "%x, %k",
            'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"',
            CONVOLUTION,
        ),
        (
            "bf16[2,40,64,32]",
            "%dy, %k",
            'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"',
            CONVOLUTION,
        ),
        (
            "bf16[48,3,3,32]",
            "%x, %dy",
            'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"',
            CONVOLUTION,
        ),
        (
            "bf16[2,5,2560,64]",
            "%q, %kv, %kv",
            'custom_call_target="__cudnn$fmhaSoftmax"',
            2 * 2 * 2 * 5 * 2560 * 320 * 64,
        ),
    ],
)
def test_the_libraries_kernels_of_gpus_are_counted(result, operands, rest, flops):
    hlo = GPU.replace("bf16[2,8]", result).replace("OPERANDS", operands).replace("TARGET", rest)
    assert Module(hlo).flops() == flops
