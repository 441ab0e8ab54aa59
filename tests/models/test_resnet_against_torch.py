"""The forward pass against the same network written by hand in PyTorch, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.models.resnet import Architecture, ResNet, named_architecture
from lbsgd.models.roles import split_roles

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

N, SIZE, CLASSES = 6, 16, 10
CIFAR = named_architecture("cifar_resnet8")
NETS = {
    "cifar_resnet8": ResNet(CIFAR, CLASSES, width=0.5),
    "bottlenecks, large stem": ResNet(Architecture((1, 2), 4, bottleneck=True), CLASSES),
    "bottlenecks, deep stem, pooled": ResNet(
        Architecture((1, 1), 4, True, "deep", "pooled_projection"), CLASSES
    ),
    "basic blocks, projections": ResNet(Architecture((1, 1), 4, stem="small"), CLASSES),
    "basic blocks, group norm": ResNet(
        Architecture((1, 1), 4, stem="small"), CLASSES, normalization="group"
    ),
    "bottlenecks, group norm": ResNet(
        Architecture((1, 1), 8, bottleneck=True), CLASSES, normalization="group"
    ),
    "basic blocks without norm": ResNet(
        Architecture((1, 1), 4, stem="small"), CLASSES, normalization="none"
    ),
    "without skips": ResNet(CIFAR, CLASSES, width=0.5, skip_connections=False),
}


class TorchResNet:
    """He et al. 2015 by hand, one line a layer, on the variables of a `ResNet` by name.

    Attributes:
      left: after a training pass, the mean and the biased variance of each batch norm.
    """

    def __init__(self, net: ResNet, variables) -> None:
        self.net, self.left = net, {}
        self.params, self.stats = variables["params"], variables.get("batch_stats")

    def conv(self, node, x, stride=1):
        node = {k: torch.tensor(np.asarray(v)) for k, v in node["conv"].items()}
        assert ("bias" in node) == (self.net.normalization == "none")
        kernel = node["kernel"].permute(3, 2, 0, 1)
        padding = kernel.shape[-1] // 2
        return F.conv2d(x, kernel, node.get("bias"), stride=stride, padding=padding)

    def group_norm(self, params, x):
        """The most groups that leave at least two channels in each, at most 32."""
        channels = x.shape[1]
        groups = max(g for g in range(1, 33) if channels % g == 0 and channels // g > 1)
        scale, offset = (torch.tensor(np.asarray(params["norm"][k])) for k in ("scale", "bias"))
        return F.group_norm(x, groups, scale, offset, eps=1e-5)

    def norm(self, path, x, train):
        if self.net.normalization == "none":
            return x
        params, stats = self.params, self.stats
        for name in path.split("/"):
            params, stats = params[name], stats and stats[name]
        if self.net.normalization == "group":
            return self.group_norm(params, x)
        scale, offset = (torch.tensor(np.asarray(params[k])) for k in ("scale", "offset"))
        mean, var = (torch.tensor(np.asarray(stats[k])) for k in ("mean", "var"))
        if train:
            self.left[f"{path}/mean"] = x.mean((0, 2, 3)).numpy()
            self.left[f"{path}/var"] = x.var((0, 2, 3), correction=0).numpy()
        return F.batch_norm(x, mean, var, scale, offset, training=train, momentum=0.0, eps=1e-5)

    def block(self, name, x, features, stride, train):
        p, a = self.params[name], self.net.architecture
        out = 4 * features if a.bottleneck else features

        def conv_norm(i, x, stride=1):
            x = self.conv(p[f"conv{i}"], x, stride)
            return self.norm(f"{name}/norm{i}", x, train)

        if a.bottleneck:
            y = F.relu(conv_norm(1, x))
            y = F.relu(conv_norm(2, y, stride))
            y = conv_norm(3, y)
        else:
            y = F.relu(conv_norm(1, x, stride))
            y = conv_norm(2, y)
        if not self.net.skip_connections:
            return F.relu(y)
        if stride == 1 and x.shape[1] == out:
            shortcut = x
        elif a.shortcut == "pad":
            shortcut = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, out - x.shape[1]))
        else:
            if a.shortcut == "pooled_projection" and stride == 2:
                x, stride = F.avg_pool2d(x, 2), 1
            shortcut = self.conv(p["shortcut_conv"], x, stride)
            shortcut = self.norm(f"{name}/shortcut_norm", shortcut, train)
        return F.relu(y + shortcut)

    def __call__(self, images: np.ndarray, train: bool) -> np.ndarray:
        a = self.net.architecture
        width = round(a.width * self.net.width)
        x = torch.tensor(images).permute(0, 3, 1, 2)
        strides = {"imagenet": {"": 2}, "deep": {1: 2, 2: 1, 3: 1}, "small": {"": 1}}
        for i, stride in strides[a.stem].items():
            x = self.conv(self.params[f"stem_conv{i}"], x, stride)
            x = F.relu(self.norm(f"stem_norm{i}", x, train))
        if a.stem != "small":
            x = F.max_pool2d(x, 3, 2, 1)
        for stage, blocks in enumerate(a.blocks):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage{stage + 1}_block{i + 1}"
                x = self.block(name, x, width * 2**stage, stride, train)
        head = self.params["classifier"]
        weight, bias = (torch.tensor(np.asarray(head[k])) for k in ("kernel", "bias"))
        return F.linear(x.mean((2, 3)), weight.T, bias).numpy()


def random_variables(net: ResNet, images) -> dict:
    """Variables with nothing at 0 or 1, of which a mistake could hide behind."""
    shapes = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), images)
    shapes = {**shapes, "params": split_roles(shapes["params"])[0]}
    random = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":  # keeps the scale of activations
            fan_in = leaf.size // leaf.shape[-1]
            return random.normal(size=leaf.shape) * np.sqrt(2 / fan_in)
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.5, 1.5, leaf.shape)
        return random.normal(size=leaf.shape) * 0.5

    return jax.tree_util.tree_map_with_path(fill, shapes)


def flat(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


# Without batch norm training and evaluation are one.
CASES = [
    pytest.param(net, train, id=f"{name}, {'train' if train else 'eval'}")
    for name, net in NETS.items()
    for train in ((False, True) if net.normalization == "batch" else (True,))
]


@pytest.mark.parametrize(("net", "train"), CASES)
def test_the_forward_pass_is_pytorch_s(x64, net, train):
    """Logits, and in training the moments that each batch norm leaves behind.

    The longest sums have 7 * 7 * 3 products or 6 * 16 * 16 terms of a moment, there are at most
    ten layers one after the other, and values are of order 1 to 10: 10 layers * 1536 terms *
    1e-16 * 10 = 2e-11 at the very worst. A wrong stride, padding or epsilon (1e-5) is far above.
    """
    net = net.clone(dtype=jnp.float64, param_dtype=jnp.float64, zero_init_residual=False)
    images = np.random.default_rng(1).normal(size=(N, SIZE, SIZE, 3))
    variables = random_variables(net, images)
    oracle = TorchResNet(net, variables)
    expected = oracle(images, train)
    apply = jax.jit(functools.partial(net.apply, train=train, mutable=["batch_stats"]))
    logits, left = apply(variables, images)
    assert logits.dtype == jnp.float64
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10)
    expected_stats = oracle.left if train else flat(variables.get("batch_stats", {}))
    found_stats = flat(left.get("batch_stats", {}))
    assert found_stats.keys() == expected_stats.keys()
    for path, value in expected_stats.items():
        np.testing.assert_allclose(found_stats[path], value, rtol=0, atol=1e-10, err_msg=path)
