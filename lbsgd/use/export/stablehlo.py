"""Exports the network as a program, StableHLO by `jax.export`: pixels in, probabilities out.

The weights and the preprocessing are part of it, and the batch size is free. What computes it needs
JAX, or a server that reads StableHLO, but neither lbsgd nor Flax.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lbsgd.system.devices import precision
from lbsgd.system.errors import ConfigError, first_line
from lbsgd.system.text import one_line
from lbsgd.use.export.checking import FailedError, epsilon
from lbsgd.use.export.formats import Format, Options, on_host
from lbsgd.use.model import Model


def lowered(model: Model, platforms: tuple[str, ...]) -> export.Exported:
    """Lowers the network: uint8 images `[batch, h, w, c]` -> {"logits", "probabilities"}.

    A network whose task is no classification gives {"outputs"}, whatever its outputs are.

    Raises:
      ConfigError: it cannot be lowered for one of the platforms.
    """
    variables = on_host(model)

    def compute(images: jax.Array) -> dict[str, Any]:
        stats = variables["batch_stats"]
        outputs = model.network.evaluate(variables["params"], stats, model.preprocess(images))
        if not model.classifies:
            return {"outputs": outputs}
        return {"logits": outputs, "probabilities": jax.nn.softmax(outputs)}

    with precision(model.config.dtype), _without_source_paths():
        (batch,) = export.symbolic_shape("batch")
        images = jax.ShapeDtypeStruct((batch, *model.interface.image_shape), jnp.uint8)
        try:
            return export.export(jax.jit(compute), platforms=platforms)(images)
        except ConfigError:
            raise
        except Exception as error:  # of any kind: the module may be anyone's
            raise ConfigError(
                f"the network cannot be lowered for {', '.join(platforms)} with a free batch size "
                f"({one_line(first_line(error))}); leave stablehlo out of --format"
            ) from error


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps out of a program in which files of this machine its operations were written."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _write(model: Model, path: pathlib.Path, options: Options) -> None:
    here = export.default_export_platform()
    if here not in options.platforms:
        raise ConfigError(
            f"--platforms must hold {here}, on which the export is checked, besides others"
        )
    # Of no derivatives: what is served is not trained.
    path.write_bytes(lowered(model, options.platforms).serialize(vjp_order=0))


def _outputs(model: Model, path: pathlib.Path, images: np.ndarray) -> Any:
    """Computes the first image alone and then the others, in batches of different sizes.

    Raises:
      FailedError: the probabilities are not those of the logits.
    """
    program = export.deserialize(bytearray(path.read_bytes()))
    with precision(model.config.dtype):
        batches = [batch for batch in (images[:1], images[1:]) if len(batch)]
        parts = [jax.device_get(program.call(batch)) for batch in batches]
        found = jax.tree.map(lambda *of_batches: np.concatenate(of_batches), *parts)
        if not model.classifies:
            return found["outputs"]
        _check_softmax(path, found["probabilities"], jax.nn.softmax(found["logits"]))
    return found["logits"]


def _check_softmax(path: pathlib.Path, found: np.ndarray, expected: jax.Array) -> None:
    # A sum of as many exponentials, each rounded.
    most = 2 * found.shape[-1] * epsilon(found.dtype)
    if not np.allclose(found, np.asarray(expected), rtol=0, atol=most):
        raise FailedError(f"{path.name}: its probabilities are not the softmax of its logits")


def _no_refusal(model: Model) -> str:
    return ""


def _itself(model: Model) -> Model:
    return model


STABLEHLO = Format("model.stablehlo", _no_refusal, _write, _outputs, _itself)
