"""Networks with random weights, nothing at 0 or 1, to be exported."""

import jax
import numpy as np

from lbsgd.data.interface import interface_of
from lbsgd.models.networks import build_network
from lbsgd.run.config import default_config, resolve
from lbsgd.system.devices import precision
from lbsgd.use.model import Model

CLASSES = ("ant", "bee", "cat", "d\u00f6g", "elk", "fox", "gnu")


def random_model(name: str, shape=(16, 16, 3), seed: int = 0, **keys: object) -> Model:
    """A model whose statistics and scales are drawn too, so that each of them matters."""
    config = default_config()
    mean, std = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}.get(shape[2], ((0.4,), (0.3,)))
    config.update_from_flattened_dict(
        {"model.name": name, "data.mean": mean, "data.std": std, **keys}
    )
    config = resolve(config)
    with precision(config.dtype):
        network = build_network(config, config.model.num_classes or len(CLASSES), shape)
        shapes = jax.eval_shape(lambda: network.initialize())
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if len(leaf.shape) > 1:
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return random.normal(0, spread, leaf.shape).astype(leaf.dtype)
        low, high = (0.5, 1.5) if "scale" in name or "var" in name else (-0.3, 0.3)
        return random.uniform(low, high, leaf.shape).astype(leaf.dtype)

    params, stats = jax.tree_util.tree_map_with_path(draw, shapes)
    interface = interface_of(config.data, shape, CLASSES)
    variables = {"params": params, "batch_stats": stats}
    return Model(network, variables, interface, config, 5, devices=1)


def pixels(count: int, shape=(16, 16, 3)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)
