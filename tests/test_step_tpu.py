# ruff: noqa: E501  (lines of XLA, as long as it writes them)
"""Compares what is read from the text of a scheduled program with counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scheduled_hlo import all_reduces, convolutions, moved_bytes, overlap

# As the compiler of TPUs writes it, shortened. Of the gradients, in the order of the schedule:
#   [16,8] and [4]   528 bytes   early: convolutions of the backward pass follow; nothing beside it
#   [32,8]          1024 bytes   early, in pieces within the convolution %fusion.3
#   [8,8]            256 bytes   early; nothing but %c is between its start and its end
#   [3,8]             96 bytes   early; %fusion.4, the last convolution, is beside it
#   [2,8]             64 bytes   late; the multiplication %fusion.5 is beside it
#   [5]               20 bytes   late, for %fusion.6 is of the backward pass, and no convolution
SCHEDULE = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[16,8]{1,0})->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%forward (p: f32[16,8]) -> f32[16,8] {
  %p = f32[16,8]{1,0} parameter(0)
  ROOT %conv.1 = f32[16,8]{1,0} convolution(%p, %p), dim_labels=bf_io->bf, metadata={op_name="jit(train_step)/jvp(forward)/conv1/conv_general_dilated"}
}

%inner (p.1: f32[16,8]) -> f32[16,8] {
  %p.1 = f32[16,8]{1,0} parameter(0)
  ROOT %conv.2 = f32[16,8]{1,0} convolution(%p.1, %p.1), metadata={op_name="jit(train_step)/transpose(jvp(forward))/conv2/conv_general_dilated"}
}

%outer (p.2: f32[16,8]) -> f32[16,8] {
  %p.2 = f32[16,8]{1,0} parameter(0)
  ROOT %fusion.0 = f32[16,8]{1,0} fusion(%p.2), kind=kOutput, calls=%inner
}

%piece (p.3: f32[32,8]) -> f32[32,8] {
  %p.3 = f32[32,8]{1,0} parameter(0)
  ROOT %all-reduce.7 = f32[32,8]{1,0} all-reduce(%p.3), to_apply=%add
}

%pieces_and_convolution (p.4: f32[32,8]) -> (f32[16,8], f32[32,8]) {
  %p.4 = f32[32,8]{1,0} parameter(0)
  %conv.3 = f32[16,8]{1,0} convolution(%p.4, %p.4), metadata={op_name="jit(train_step)/transpose(jvp(forward))/conv1/conv_general_dilated"}
  %all-reduce.8 = f32[32,8]{1,0} all-reduce(%p.4), to_apply=%add
  ROOT %both = (f32[16,8]{1,0}, f32[32,8]{1,0}) tuple(%conv.3, %all-reduce.8)
}

%multiply (p.5: f32[16,8]) -> f32[16,8] {
  %p.5 = f32[16,8]{1,0} parameter(0)
  ROOT %product = f32[16,8]{1,0} multiply(%p.5, %p.5), metadata={op_name="jit(train_step)/transpose(jvp(forward))/conv1/mul"}
}

ENTRY %main.9_spmd (x: f32[16,8], g: f32[32,8]) -> (f32[5], /*index=1*/f32[2,8]) {
  %x = f32[16,8]{1,0:T(8,128)} parameter(0), metadata={op_name="batch[\\'image\\']"}
  %g = f32[32,8]{1,0:T(8,128)S(1)} parameter(1)
  %c = f32[]{:T(128)} constant(0)
  %fusion.1 = f32[16,8]{1,0:T(8,128)} fusion(%x), kind=kOutput, calls=%forward
  %fusion.2 = f32[16,8]{1,0:T(8,128)} fusion(%x), kind=kOutput, calls=%outer
  %all-reduce.1 = (f32[16,8]{1,0:T(8,128)}, /*index=1*/f32[4]{0:T(128)}) all-reduce(%fusion.2, %c), to_apply=%add, frontend_attributes={async_collective_name="all-reduce-start.1"}
  %async-collective-start.3 = (f32[32,8]{1,0:T(8,128)S(1)}, f32[32,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) fusion(%g), kind=kCustom, calls=%piece
  %get-tuple-element.1 = f32[32,8]{1,0:T(8,128)S(1)} get-tuple-element(%async-collective-start.3), index=1
  %fusion.3 = (f32[16,8]{1,0:T(8,128)}, f32[32,8]{1,0:T(8,128)S(1)}) fusion(%get-tuple-element.1), kind=kOutput, calls=%pieces_and_convolution
  %get-tuple-element.2 = f32[32,8]{1,0:T(8,128)S(1)} get-tuple-element(%fusion.3), index=1
  %async-collective-done.3 = f32[32,8]{1,0:T(8,128)S(1)} fusion(%get-tuple-element.2), kind=kCustom, calls=%piece
  %all-reduce-start.4 = (f32[8,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}) all-reduce-start(%x), to_apply=%add
  %copy.1 = f32[]{:T(128)} copy(%c)
  %all-reduce-done.4 = f32[8,8]{1,0:T(8,128)} all-reduce-done(%all-reduce-start.4)
  %async-start.5 = ((f32[3,8]{1,0}), f32[3,8]{1,0:T(8,128)}, u32[]) async-start(%x), calls=%piece
  %fusion.4 = f32[16,8]{1,0:T(8,128)} fusion(%x), kind=kOutput, calls=%outer
  %async-done.5 = f32[3,8]{1,0:T(8,128)} async-done(%async-start.5)
  %all-reduce-start.6 = f32[2,8]{1,0:T(8,128)} all-reduce-start(%x), to_apply=%add
  %fusion.5 = f32[16,8]{1,0:T(8,128)} fusion(%fusion.4), kind=kLoop, calls=%multiply, metadata={op_name="jit(train_step)/optimizer/mul"}
  %all-reduce-done.6 = f32[2,8]{1,0:T(8,128)} all-reduce-done(%all-reduce-start.6)
  %all-reduce.2 = f32[5]{0:T(128)} all-reduce(%c), to_apply=%add
  %fusion.6 = f32[16,8]{1,0:T(8,128)} fusion(%fusion.4), kind=kLoop, calls=%multiply, metadata={op_name="jit(train_step)/transpose(jvp(forward))/mul"}
  ROOT %tuple.1 = (f32[5]{0:T(128)}, f32[2,8]{1,0:T(8,128)}) tuple(%all-reduce.2, %all-reduce-done.6)
}
"""


def test_the_overlap_is_that_of_the_schedule():
    assert overlap(SCHEDULE) == {
        "all_reduces": 6,
        "all_reduced_bytes": 528 + 1024 + 256 + 96 + 64 + 20,
        "early_bytes": 528 + 1024 + 256 + 96,
        "asynchronous_bytes": 1024 + 96 + 64,
    }


def test_all_reduces_are_in_the_order_of_their_start():
    found = all_reduces(SCHEDULE)
    assert [x.bytes for x in found] == [528, 1024, 256, 96, 64, 20]
    # Lines of the entry computation, counted from 0.
    lines = [(5, 5), (6, 10), (11, 13), (14, 16), (17, 19), (20, 20)]
    assert [(x.start, x.done) for x in found] == lines


def test_convolutions_are_found_within_what_calls_them():
    assert convolutions(SCHEDULE, "transpose(jvp") == [4, 8, 15]
    assert convolutions(SCHEDULE, "/jvp(") == [3]


# Of HBM, in bytes: read and written.
MOVED = """\
HloModule jit_step, is_scheduled=true

%any (p: bf16[8,16]) -> f32[4,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %r = f32[4,16]{1,0} convert(%p)
}

ENTRY %main (x: bf16[8,16], y: f32[4,16]) -> f32[4,16] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[4,16]{1,0:T(8,128)} parameter(1)
  %bitcast.1 = bf16[128]{0:T(128)} bitcast(%x)
  %copy-start.1 = (bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[8,16]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done.1 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[4,16]{1,0:T(8,128)}), f32[2,16]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%y), slice={[0:2], [0:16]}
  %slice-done.1 = f32[2,16]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %custom-call.1 = f32[2,16]{1,0:T(8,128)S(1)} custom-call(%slice-done.1), custom_call_target="ConcatBitcast"
  %fusion.1 = f32[4,16]{1,0:T(8,128)S(1)} fusion(%copy-done.1, %y), kind=kLoop, calls=%any
  %fusion.2 = (f32[4,16]{1,0:T(8,128)}, pred[64]{0:T(128)}, f32[4,16]{1,0:T(8,128)}) fusion(%y, %fusion.1), kind=kLoop, output_to_operand_aliasing={{2}: (0, {})}, calls=%any
  %get-tuple-element.1 = f32[4,16]{1,0:T(8,128)} get-tuple-element(%fusion.2), index=0
  ROOT %all-reduce.1 = f32[4,16]{1,0:T(8,128)} all-reduce(%get-tuple-element.1), to_apply=%any
}
"""


def test_bytes_are_those_of_arrays_in_the_large_memory():
    copied, sliced = 256, 128  # what is read; both are written elsewhere
    first = 256  # %y; its other operand and its result lie elsewhere
    second = 256 + 64  # a float32 and a byte array; the third is the operand itself
    assert moved_bytes(MOVED) == copied + sliced + first + second + 2 * 256


def test_a_program_that_is_not_scheduled_is_an_error():
    with pytest.raises(ValueError, match="not scheduled"):
        overlap(SCHEDULE.replace(", is_scheduled=true", ""))


def test_what_xla_writes_is_read():
    """Compiles for a CPU, whose programs are scheduled too."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    whole = PartitionSpec()

    def gradient_of(x):
        return jax.lax.psum(jax.grad(lambda x: jnp.sum(jnp.sin(x["a"]) @ x["b"]))(x), "d")

    step = jax.shard_map(gradient_of, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    shapes = {"a": (3, 5), "b": (5, 7)}
    given = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    text = jax.jit(step).lower(given).compile().as_text()
    found = all_reduces(text)
    assert sum(x.bytes for x in found) == 4 * (3 * 5 + 5 * 7)
    assert moved_bytes(text) >= 3 * 4 * (3 * 5 + 5 * 7)
