"""A network that computes what is not finite, where the first number that it draws is positive."""

import jax.numpy as jnp
from flax import linen as nn

from lbsgd.models.normalization import BatchNorm
from lbsgd.models.roles import Role, with_role


class Fragile(nn.Module):
    num_classes: int
    param_dtype: type = jnp.float32
    breaks: bool = False

    @nn.compact
    def __call__(self, x, train):
        types = {"dtype": self.param_dtype, "param_dtype": self.param_dtype}
        luck = self.param("luck", with_role(Role.BIAS, nn.initializers.normal()), (1,), jnp.float32)
        x = nn.Conv(4, (3, 3), (2, 2), **types)(x)
        x = nn.relu(BatchNorm(**types)(x, train=train))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        x = nn.Dense(self.num_classes, **types)(x)
        return jnp.where(luck > 0, jnp.nan, x) if self.breaks else x
