"""Names what the trees of gradients and parameters may hold."""

import jax
import numpy as np

# Transforms work in anyone's training loop, which may keep its parameters on the host.
Leaf = jax.Array | np.ndarray
