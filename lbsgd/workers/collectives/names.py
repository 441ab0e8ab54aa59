"""Names the all-reduces there are, and what they can send."""

ALGORITHMS = (
    "psum",
    "ring",
    "halving_doubling",
    "binary_blocks",
    "torus_2d",
    "hierarchical",
)
# Of what crosses a link, beside the gradients' own.
DTYPES = ("bfloat16", "float16")
