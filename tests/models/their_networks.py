"""Modules as other people write them, for tests to name in a config."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbsgd.models.normalization import BatchNorm
from lbsgd.models.roles import Role, with_role


class Mlp(nn.Module):
    """No normalization, and no flag."""

    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x.reshape((x.shape[0], -1))))
        return nn.Dense(self.num_classes)(x)


class GroupNormDropout(nn.Module):
    num_classes: int
    rate: float = 0.5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(8, (3, 3), precision=self.precision, **types)(x)
        x = nn.relu(nn.GroupNorm(4, **types)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(jnp.mean(x, (1, 2)))
        return nn.Dense(self.num_classes, precision=self.precision, **types)(x)


class StockBatchNorm(nn.Module):
    num_classes: int
    momentum: float = 0.8

    @nn.compact
    def __call__(self, x, training=False):
        x = nn.Conv(8, (3, 3), use_bias=False, name="conv")(x)
        x = nn.BatchNorm(not training, momentum=self.momentum, name="norm")(x)
        return nn.Dense(self.num_classes)(jnp.mean(nn.relu(x), (1, 2)))


class Mixed(nn.Module):
    """A batch norm of lbsgd's, one of Flax's, and statistics of another kind."""

    num_classes: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        types = {"dtype": self.param_dtype, "param_dtype": self.param_dtype}
        x = BatchNorm(name="ours", **types)(x, train=train)
        x = nn.BatchNorm(use_running_average=not train, name="stock")(x)
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        if train:
            seen.value = seen.value + 1
        return nn.Dense(self.num_classes)(jnp.mean(x, (1, 2)))


class Vit(nn.Module):
    """Patches, a class token without a role, an embedding of positions, and attention."""

    num_classes: int
    features: int = 8

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Conv(self.features, (4, 4), (4, 4), name="patches")(x)
        x = x.reshape((x.shape[0], -1, self.features))
        shape = (1, 1, self.features)
        token = self.param("class_token", nn.initializers.zeros, shape)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], *shape[1:])), x], 1)
        x = x + nn.Embed(x.shape[1], self.features, name="position")(jnp.arange(x.shape[1]))[None]
        attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, name="attention")
        x = x + attention(nn.LayerNorm(name="norm")(x), deterministic=deterministic)
        return nn.Dense(self.num_classes, name="head")(x[:, 0])


def vit_roles(path, shape):
    return "bias" if path == ("class_token",) else None


def wrong_role(path, shape):
    return "weight" if path == ("class_token",) else None


def broken_roles(path, shape):
    return Role.BIAS if shape[9] else None


class FlagOfClass(nn.Module):
    """As of old: a module for training, and another for evaluation."""

    num_classes: int
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train)(x)
        return nn.Dense(self.num_classes)(jnp.mean(x, (1, 2)))


def made_by_function(num_classes, depth=2, train=True):
    """A function that returns a module of Flax's own."""
    layers = [nn.Conv(4, (3, 3)), nn.BatchNorm(use_running_average=not train)] * 1
    layers += [nn.Dense(4) for _ in range(depth)]
    return nn.Sequential([*layers, lambda x: jnp.mean(x, (1, 2)), nn.Dense(num_classes)])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(x.shape[-1])(x))
        return x, None


class Layered(nn.Module):
    """Of each class of layers one, in the transformations that Flax lifts."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.ConvTranspose(4, (3, 3))(x)
        x = nn.ConvLocal(4, (3, 3))(x)
        x = nn.InstanceNorm()(nn.GroupNorm(2)(nn.RMSNorm()(nn.LayerNorm()(x))))
        x = nn.DenseGeneral(4, axis=(-2, -1))(x)
        x = nn.Einsum((4, 5), "...a,ab->...b")(x)
        scan = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
        )
        x = scan()(x, None)[0]
        x = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=2
        )(4)(jnp.stack([x, x])).mean(0)
        x = nn.jit(nn.remat(nn.Dense))(5)(x)
        x = nn.WeightNorm(nn.Dense(3))(x)
        x = nn.RNN(nn.OptimizedLSTMCell(5))(x)
        x = nn.RNN(nn.GRUCell(5))(x)
        x = nn.MultiHeadDotProductAttention(1, normalize_qk=True)(x)
        return nn.remat(nn.Embed)(3, 2)(jnp.argmax(x, -1) % 3)


class Products(nn.Module):
    """Of which no layer is told a precision."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        w = self.param("w", with_role(Role.KERNEL, nn.initializers.normal()), (4, self.num_classes))
        return jnp.mean(x, (1, 2)) @ w


class OfAverages(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        return nn.BatchNorm()(x, use_running_average=use_running_average)


class Frozen(nn.Module):
    """Statistics that are never moved, and a norm of each channel."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.InstanceNorm()(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(10)(jnp.mean(x, (1, 2)))


class Tiny(nn.Module):
    """Normalises one value of an example."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(not train, name="norm")(jnp.mean(x, (1, 2)))
        return nn.Dense(10)(x)


class TinyGroups(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(None, group_size=2)(nn.Dense(8)(jnp.mean(x, (1, 2))))
        return nn.Dense(10)(x)


class Raw(nn.Module):
    """Of a parameter without a type."""

    @nn.compact
    def __call__(self, x):
        init = with_role(Role.KERNEL, nn.initializers.normal())
        return jnp.mean(x, (1, 2)) @ self.param("w", init, (3, 10))


# --- with mistakes ---------------------------------------------------------------------------


class Cache(Mlp):
    @nn.compact
    def __call__(self, x):
        self.variable("cache", "index", lambda: jnp.zeros(()))
        self.sow("losses", "norm", jnp.sum(x))
        return super().__call__(x)


class AnotherFlag(Mlp):
    @nn.compact
    def __call__(self, x, is_training):
        return super().__call__(x)


class NoFlag(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm()(x)


class IsTraining(nn.Module):
    """Of a flag of another name, whose default is evaluation."""

    num_classes: int
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, is_training=False):
        x = nn.BatchNorm(use_running_average=not is_training)(x)
        x = nn.remat(nn.Dropout)(self.rate, deterministic=not is_training)(jnp.mean(x, (1, 2)))
        return nn.Dense(self.num_classes)(x)


class Det(nn.Module):
    num_classes: int
    rate: float = 0.5
    of_attention: float = 0.0

    @nn.compact
    def __call__(self, x, det=True, scale=1.0):
        x = nn.MultiHeadDotProductAttention(1, dropout_rate=self.of_attention)(
            jnp.mean(x, 1), deterministic=det
        )
        x = nn.Dropout(self.rate, deterministic=det)(jnp.mean(x, 1))
        return nn.Dense(self.num_classes)(x)


class EvalOfClass(nn.Module):
    eval_mode: bool = True

    @nn.compact
    def __call__(self, x, **_):
        x = BatchNorm()(jnp.mean(x, (1, 2)), train=not self.eval_mode)
        return nn.Dense(10)(x)


def inferring(inference=True, latest=True, model="small"):
    layers = [nn.BatchNorm(use_running_average=inference), lambda x: jnp.mean(x, (1, 2))]
    return nn.Sequential([*layers, nn.Dense(10)])


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.SpectralNorm(nn.Dense(10))(jnp.mean(x, (1, 2)), update_stats=False)


class AxisName(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(False, axis_name="lane")(x)


class Collective(Mlp):
    @nn.compact
    def __call__(self, x):
        return super().__call__(jax.lax.pmean(x, "lane"))


class Raises(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ jnp.ones((2, 3))


class WrongInTraining(Mlp):
    @nn.compact
    def __call__(self, x, train):
        if train:
            raise KeyError("of training alone")
        return super().__call__(x)


class NewStatistics(Mlp):
    @nn.compact
    def __call__(self, x, train):
        if train:
            self.variable("batch_stats", "late", lambda: jnp.zeros(()))
        return super().__call__(x)


class Counter(Mlp):
    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.int32))
        return super().__call__(x)


class HardCoded(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(False)(x)


def of_any_options(num_classes, **options):
    return Typed(num_classes, **options)


class Typed(nn.Module):
    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, (1, 2)))


def needy(num_classes, heads):
    return Mlp(num_classes * heads)


class Noise(Mlp):
    """Of a stream of random numbers of its own name."""

    @nn.compact
    def __call__(self, x, train):
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return super().__call__(x)


class Whole(nn.Module):
    @nn.compact
    def __call__(self, x):
        n = self.param("n", with_role(Role.BIAS, lambda key: jnp.ones((), jnp.int32)))
        return x * n.astype(x.dtype)


class Nothing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x


class WithoutCall(nn.Module):
    pass


class Plain:
    def __init__(self, num_classes):
        self.num_classes = num_classes


made_already = Nothing()
