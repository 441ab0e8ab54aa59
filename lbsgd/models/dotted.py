"""Builds other people's Flax modules, which a config names as "package.module:name"."""

import contextlib
import inspect
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from lbsgd.config.dotted import Named, load
from lbsgd.system.errors import ConfigError

# What Flax's own modules and most others call it, with its value in training.
TRAIN_FLAGS = {
    "train": True,
    "training": True,
    "deterministic": False,
    "use_running_average": False,
}
_FLAGS_IN_WORDS = "train, training, deterministic or use_running_average"
# What others call it: is_training, train_mode, det, inference.
_LIKE_A_FLAG = re.compile(
    r"(^|_)(is)?(train|eval|infer|determ|(det|test|testing|mode)(_|$))", re.IGNORECASE
)


class Built(NamedTuple):
    """Holds a network's modules, for training and for evaluation, and the flags of their calls.

    Attributes:
      initial: as in evaluation, but computing in float32: what parameters are drawn by.
      told: whether there is a flag, of the calls or of what makes the modules.
    """

    training: nn.Module
    evaluation: nn.Module
    initial: nn.Module
    train_flags: dict[str, Any]
    evaluation_flags: dict[str, Any]
    told: bool = True


def load_network(config: ml_collections.ConfigDict) -> Named:
    """Loads the class or the function that `model.name` names.

    Raises:
      ConfigError: it is not there, or cannot compute in bfloat16, as the config asks.
    """
    named = load("model.name", config.model.name)
    if isinstance(named.value, nn.Module):
        raise named.error("is a module made already; name its class, or a function that returns it")
    given = named.takes("dtype") or "dtype" in config.model.options
    if config.dtype == "bfloat16" and not given:
        raise named.error(
            "has no argument dtype, so its layers would not hear of dtype='bfloat16'; give it one "
            "to hand on to them, or set dtype='float32'"
        )
    return named


def build_modules(config: ml_collections.ConfigDict, named: Named, num_classes: int) -> Built:
    """Builds the module with the options of the config, and with what else it has arguments for.

    Those are `num_classes`, `dtype`, `param_dtype` and `precision`; and the flag that tells
    training from evaluation, where it is not an argument of the module's call.

    Raises:
      ConfigError: its arguments are wrong, it is no module, or it cannot be told that it trains.
    """
    options = config.model.options.to_dict()
    of_init = _flags_of_init(named, options)
    wide = jnp.float64 if config.dtype == "float64" else jnp.float32

    def build(training: bool, dtype: Any, param_dtype: Any) -> nn.Module:
        offered = {
            "num_classes": num_classes,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "precision": config.matmul_precision,
        }
        module = named.call(options, **offered, **_values(of_init, training))
        if not isinstance(module, nn.Module):
            raise named.error(f"makes a {type(module).__name__}, which is no flax.linen.Module")
        return module

    training = build(True, jnp.dtype(config.dtype), wide)
    of_call = _flags_of_call(named, type(training))
    return Built(
        training,
        build(False, jnp.dtype(config.dtype), wide),
        build(False, jnp.float32, jnp.float32),
        _values(of_call, True),
        _values(of_call, False),
        bool(of_init or of_call),
    )


def _values(flags: list[str], training: bool) -> dict[str, bool]:
    return {flag: TRAIN_FLAGS[flag] == training for flag in flags}


def _flags_of_init(named: Named, options: dict[str, Any]) -> list[str]:
    """Lists the train flags that are arguments of the class, and not of its call, or of a function.

    Raises:
      ConfigError: the options set one, and training and evaluation would be alike.
    """
    cls = named.value if inspect.isclass(named.value) else None
    if cls and issubclass(cls, nn.Module) and set(TRAIN_FLAGS) & set(_parameters(cls)):
        return []
    flags = [flag for flag in TRAIN_FLAGS if named.takes(flag)]
    for flag in flags:
        if flag in options:
            raise named.error(
                f"is told {flag} by lbsgd, in training and in evaluation; leave model.options."
                f"{flag} out"
            )
    return flags


def _parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Lists the parameters of a module's call after the images, by name."""
    call = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    parameters = list(inspect.signature(call).parameters.values())[2:] if call else []
    return {parameter.name: parameter for parameter in parameters}


def _flags_of_call(named: Named, cls: type[nn.Module]) -> list[str]:
    """Lists the train flags among the arguments of a module's call.

    Raises:
      ConfigError: it cannot be called with images and these alone.
    """
    if not any("__call__" in vars(base) for base in cls.__mro__):
        raise named.error(f"makes a {cls.__name__} without __call__, which is to take images")
    flags = []
    for name, parameter in _parameters(cls).items():
        by_name = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if by_name and name in TRAIN_FLAGS:
            flags.append(name)
        elif parameter.default is inspect.Parameter.empty and not variadic:
            raise named.error(
                f"has a __call__ that needs {name!r}; lbsgd calls it with images, and with the "
                f"flag that tells training from evaluation where that is called {_FLAGS_IN_WORDS}"
            )
    return flags


def no_flag(named: Named, module: nn.Module, layers: Iterable[str]) -> ConfigError:
    """Makes the error of a network that is not told that it trains.

    Args:
      module: of it.
      layers: classes of its layers that are not the same in training and evaluation.
    """
    parameters = dict(_parameters(type(module)))
    with contextlib.suppress(TypeError, ValueError):  # of a function in C
        parameters.update(inspect.signature(named.value).parameters)
    like = [name for name, parameter in parameters.items() if _is_like_a_flag(parameter)]
    unknown = f" ({', '.join(like)} {'is' if len(like) == 1 else 'are'} not known)" if like else ""
    return named.error(
        f"has {' and '.join(layers)}, and no flag by which it is told that it trains{unknown}; "
        f"name the argument {_FLAGS_IN_WORDS}"
    )


def _is_like_a_flag(parameter: inspect.Parameter) -> bool:
    known = isinstance(parameter.default, bool | str | None)
    return known and bool(_LIKE_A_FLAG.search(parameter.name))
