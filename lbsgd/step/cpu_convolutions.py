"""Convolves in the forms that XLA for CPUs runs fastest; the sums are those of a plain convolution.

Its kernels want images `[n, ..., c]` and filters `[..., in, out]`, which it transposes to by itself
outside of loops. What it does not see is that

- a 1x1 convolution, and its gradients, are products of matrices;
- the gradient by a kernel is a few products of matrices: of the pixels that an output saw, shifted
  to each place of the kernel, and the gradient by the output. Taken of some images at a time, what
  is shifted stays in a core's cache. XLA convolves with filters as large as an image instead, which
  is up to three times slower for 3x3 kernels;
- the gradient by the input of a convolution with strides has zeros between its pixels: each set of
  its outputs that lie a stride apart is a smaller convolution without zeros.

benchmarks/step.py measures what they give.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Bytes of the images of which the gradient by a kernel is taken at a time: a few of these arrays
# fit a core's cache together.
_BLOCK = 2 * 2**20
# Fewer channels than these give products too narrow to be faster than a convolution.
_NARROW = 8

Pair = tuple[int, int]


def convolve(
    images: Float[Array, "..."], filters: Float[Array, "..."], params: Mapping[str, Any]
) -> Float[Array, "..."]:
    """Convolves as `lax.conv_general_dilated` of these parameters, not in groups."""
    given = params["dimension_numbers"]
    n = images.ndim
    # Those specs name batch, feature, space; of filters out, in, space.
    batch, feature, *space = given.lhs_spec
    images = lax.transpose(images, (batch, *space, feature))
    out, in_, *space = given.rhs_spec
    filters = lax.transpose(filters, (*space, in_, out))
    result = _in_order(images, filters, params)
    batch, feature, *space = given.out_spec
    back = {axis: at for at, axis in enumerate((batch, *space, feature))}
    return lax.transpose(result, [back[axis] for axis in range(n)])


def _in_order(
    images: Float[Array, "n *space c"], filters: Float[Array, "*kernel c out"], params: Any
) -> Float[Array, "n *_ out"]:
    """Convolves what is in order: images `[n, ..., c]` with filters `[..., c, out]`."""
    kernel = filters.shape[:-2]
    if images.ndim == 4 and set(params["window_strides"]) == {1}:
        if _is_by_kernel(images, filters, params):
            return _by_kernel(images, filters, params)
        if max(kernel) > 1 == max(params["rhs_dilation"]) < max(params["lhs_dilation"]):
            return _without_zeros(images, filters, params)
    if max(kernel) == 1:
        return _pixel_by_pixel(images, filters, params)
    return _plain(images, filters, params)


def _plain(
    images: Float[Array, "n *space c"], filters: Float[Array, "*kernel c out"], params: Any
) -> Float[Array, "n *_ out"]:
    """Convolves what is in order by XLA's own convolution."""
    n = images.ndim
    in_order = lax.ConvDimensionNumbers(
        (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *range(1, n - 1))
    )
    # Strides, padding and dilations go by spatial dimension, whose order stays.
    result: jax.Array = lax.conv_general_dilated_p.bind(
        images, filters, **{**params, "dimension_numbers": in_order}
    )
    return result


def _product(a: jax.Array, b: jax.Array, axes: tuple[Any, Any], params: Any) -> jax.Array:
    """Multiplies matrices as precisely as the convolution would."""
    return lax.dot_general(
        a,
        b,
        (axes, ((), ())),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )


def _pixel_by_pixel(
    images: Float[Array, "n *space c"], filters: Float[Array, "*ones c out"], params: Any
) -> Float[Array, "n *_ out"]:
    """Convolves by a kernel of one pixel: multiplies matrices."""
    between, strides = params["lhs_dilation"], params["window_strides"]
    none = (0, 0, 0)
    padding = [none, *((lo, hi, d - 1) for (lo, hi), d in zip(params["padding"], between)), none]
    every = (slice(None), *(slice(None, None, s) for s in strides))
    # What is left out is left out before it is multiplied, and zeros are put between afterwards.
    first = all(p == none for p in padding)
    if first:
        images = images[every]
    matrix = filters.reshape(filters.shape[-2:])
    result = _product(images, matrix, ((images.ndim - 1,), (0,)), params)
    if first:
        return result
    return lax.pad(result, jnp.zeros((), result.dtype), padding)[every]


def _is_by_kernel(images: jax.Array, filters: jax.Array, params: Any) -> bool:
    """Tells the gradient by a kernel from other convolutions: its filter is the larger image."""
    if max(params["lhs_dilation"]) > 1 or min(images.shape[0], filters.shape[-1]) < _NARROW:
        return False
    rows, columns = _kernel_size(images, filters, params)
    if min(rows, columns) <= 0 or rows * columns >= filters.shape[0] * filters.shape[1]:
        return False
    # Where the kernel is larger than all images, to add up its parts costs more than it saves.
    kernel = rows * columns * images.shape[0] * filters.shape[-1]
    return rows == columns == 1 or kernel < images.size + filters.size


def _kernel_size(images: jax.Array, filters: jax.Array, params: Any) -> Pair:
    rows, columns = (
        lo + size + hi - (taps - 1) * dilation
        for (lo, hi), size, taps, dilation in zip(
            params["padding"], images.shape[1:3], filters.shape[:2], params["rhs_dilation"]
        )
    )
    return rows, columns


def _by_kernel(
    images: Float[Array, "c h w n"], filters: Float[Array, "oh ow n out"], params: Any
) -> Float[Array, "c kh kw out"]:
    """Computes the gradient by a kernel, of what the convolution saw and what it is to give.

    Args:
      images: its input, the channels first and the examples last.
      filters: the gradient by its output.
      params: the dilation is the stride that it had.
    """
    x, dy = lax.transpose(images, (3, 1, 2, 0)), lax.transpose(filters, (2, 0, 1, 3))
    size = _kernel_size(images, filters, params)
    # Sums of products of 16 bits are taken in 32.
    exact = x.dtype if x.dtype.itemsize > 2 else jnp.dtype(jnp.float32)
    wide = {**params, "preferred_element_type": exact}

    def of_block(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _kernel_gradient(*block, size, wide), None

    count = _images_of_block(x, dy)
    blocks = [a.reshape(-1, count, *a.shape[1:]) for a in (x, dy)]
    start = jnp.zeros((*size, x.shape[-1], dy.shape[-1]), exact)
    result = lax.scan(of_block, start, (blocks[0], blocks[1]))[0]
    given = params["preferred_element_type"] or images.dtype
    return lax.transpose(result, (2, 0, 1, 3)).astype(given)


def _images_of_block(x: Float[Array, "n h w c"], dy: Float[Array, "n oh ow out"]) -> int:
    """Counts the images of a block: it divides all of them, and is a block or less, or one image.

    There are two blocks at least, and so a loop: outside of one, XLA fuses what makes x into the
    transposition that the product wants, and so reads all of that column by column. Where images
    are smaller than a matrix of their channels, that costs less than to add up matrices.
    """
    if x.size + dy.size < x.shape[-1] * dy.shape[-1]:
        return len(x)
    most = max(1, min(_BLOCK // (x[0].size * x.dtype.itemsize), len(x) // 2))
    return next(count for count in range(most, 0, -1) if len(x) % count == 0)


def _kernel_gradient(
    x: Float[Array, "n h w c"], dy: Float[Array, "n oh ow out"], size: Pair, params: Any
) -> Float[Array, "kh kw c out"]:
    """Sums x at each place of the kernel times dy, over examples and outputs.

    Rows are shifted in x, columns in dy, which then has those of all columns of the kernel side by
    side: so the products are few and wide. With a stride s, the columns of x of each remainder
    modulo s are taken by themselves.
    """
    (above, below), (left, _) = params["padding"]
    down, right = params["rhs_dilation"]
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), (above, below, 0), (0, 0, 0), (0, 0, 0)])
    found: dict[Pair, jax.Array] = {}
    for phase in range(right):
        columns = [j for j in range(size[1]) if (j - left) % right == phase]
        if not columns:
            continue
        part = x[:, :, phase::right]
        shifts = [(j - left) // right for j in columns]
        side_by_side = jnp.concatenate(
            [_shifted(dy, shift, part.shape[2]) for shift in shifts], axis=-1
        )
        for i in range(size[0]):
            rows = part[:, i : i + (dy.shape[1] - 1) * down + 1 : down]
            sums = _over_batch(rows, side_by_side, params)
            each = jnp.split(sums, len(columns), axis=-1)
            found.update({(i, j): value for j, value in zip(columns, each)})
    places = itertools.product(range(size[0]), range(size[1]))
    kernels = jnp.stack([found[place] for place in places])
    return kernels.reshape(*size, *kernels.shape[1:])


def _over_batch(
    x: Float[Array, "n h w a"], y: Float[Array, "n h w b"], params: Any
) -> Float[Array, "a b"]:
    """Computes x^T y, summed over all pixels."""
    # XLA transposes what stands first: let that be the narrower.
    swap = x.shape[-1] > y.shape[-1]
    found = _product(*((y, x) if swap else (x, y)), ((0, 1, 2), (0, 1, 2)), params)
    return found.T if swap else found


def _shifted(dy: Float[Array, "n oh ow out"], shift: int, width: int) -> Float[Array, "n oh w out"]:
    """Moves columns to the right by `shift`, and gives the first `width`."""
    padding = [(0, 0, 0), (0, 0, 0), (shift, width - dy.shape[2] - shift, 0), (0, 0, 0)]
    return lax.pad(dy, jnp.zeros((), dy.dtype), padding)


def _without_zeros(
    images: Float[Array, "n h w c"], filters: Float[Array, "kh kw c out"], params: Any
) -> Float[Array, "n oh ow out"]:
    """Convolves images that have zeros between their pixels, without multiplying these.

    The outputs at u * s + a, for each a below the stride s, see every s-th place of the kernel.
    """
    apart, taps = params["lhs_dilation"], filters.shape[:2]
    # Of each dimension: the outputs, and by phase a the places of the kernel and the padding.
    outputs = [
        lo + (size - 1) * s + 1 + hi - k + 1
        for (lo, hi), size, s, k in zip(params["padding"], images.shape[1:3], apart, taps)
    ]
    counts = [-(-size // s) for size, s in zip(outputs, apart)]

    def phase(dimension: int, a: int) -> tuple[slice, Pair]:
        lo, s = params["padding"][dimension][0], apart[dimension]
        first = (lo - a) % s
        places = len(range(first, taps[dimension], s))
        before = (lo - a - first) // s
        after = counts[dimension] - images.shape[1 + dimension] - before + places - 1
        return slice(first, None, s), (before, after)

    rows = []
    for a in range(apart[0]):
        down, vertical = phase(0, a)
        row = []
        for b in range(apart[1]):
            across, horizontal = phase(1, b)
            kernel = filters[down, across]
            if 0 in kernel.shape[:2]:
                shape = (len(images), *counts, filters.shape[-1])
                row.append(jnp.zeros(shape, params["preferred_element_type"] or images.dtype))
                continue
            sparse = {"padding": (vertical, horizontal), "lhs_dilation": (1, 1)}
            row.append(_in_order(images, kernel, {**params, **sparse}))
        rows.append(jnp.stack(row, axis=3))
    whole = jnp.stack(rows, axis=2)  # [n, u, a, v, b, out]
    n, u, s, v, t, out = whole.shape
    return whole.reshape(n, u * s, v * t, out)[:, : outputs[0], : outputs[1]]
