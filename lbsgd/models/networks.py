"""Makes pure functions of networks: of lbsgd's own by name, and of other people's Flax modules."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from lbsgd.config.dotted import Named, is_dotted, load
from lbsgd.models.dotted import Built, build_modules, load_network, no_flag
from lbsgd.models.layers import Layers, Path
from lbsgd.models.resnet import ResNet, named_architecture
from lbsgd.models.roles import Role, role_named, split_roles
from lbsgd.models.values import Values
from lbsgd.system.devices import precision
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# What `init` may make; all else would be lost from one update to the next.
_KEPT = {"params", "batch_stats", "intermediates"}
# The mapped axes that synced workers lie along: those of lanes and of devices of a group.
SYNCED_AXES = ("lane", "member")


class Network(NamedTuple):
    """A network as pure functions, whatever module it is made of.

    Attributes:
      module: in training.
      in_evaluation: the module in evaluation.
      evaluation_flags: the arguments of its call, besides images, that say so.
      keep: variables -> (params, batch_stats), without boxes, {} where there are none, in the type
        of parameters.
      initialize: seed -> what `keep` keeps of newly drawn variables; drawn in float32 whatever the
        type, so that runs in float64 start from the same weights. Without a seed, with that of the
        config.
      train: (params, batch_stats, images, key) -> (outputs, what is left in batch_stats); `key` is
        a `jax.random` key of this update and this worker, for dropout and other random layers. With
        frozen statistics nothing is left: {}. Each layer is computed by itself.
      train_joined: a function like `train`, of the same numbers but for rounding, some of whose
        layers are computed as one; of a network that is not lbsgd's own, and with frozen
        statistics, one that is the same.
      evaluate: (params, batch_stats, images) -> outputs.
      variables: seed -> (outputs, variables) as `module.init_with_output` gives them.
      images: shape and type of a worker's images.
      named: whose module it is; None for lbsgd's own.
      roles: the function that `model.roles` names, if any.
      told: whether it has a flag that tells training from evaluation.
    """

    module: nn.Module
    in_evaluation: nn.Module
    evaluation_flags: Mapping[str, Any]
    keep: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    initialize: Callable[..., tuple[Any, Any]]
    train: Callable[..., tuple[Any, Any]]
    train_joined: Callable[..., tuple[Any, Any]]
    evaluate: Callable[..., Any]
    variables: Callable[..., tuple[Any, Mapping[str, Any]]]
    images: jax.ShapeDtypeStruct
    named: Named | None
    roles: Named | None
    told: bool


class Outline(NamedTuple):
    """Holds what tracing a network tells of it, without computing anything.

    Attributes:
      params: shapes and types of the parameters.
      roles: of the parameters, like them.
      batch_stats: shapes and types of the statistics.
      of_step: a tree of bools like them: True where lbsgd's batch norm leaves moments, whose
        running average the step moves; False where the module moves its own.
      values: how many values are normalized together.
      outputs: shapes and types of what `evaluate` gives of one image.
      sources: how many roles are by what: "with_role", "model.roles", or a class as "nn.Dense".
      norms: how many normalization layers there are, by class.
    """

    params: Any
    roles: Any
    batch_stats: Any
    of_step: Any
    values: Values
    outputs: Any
    sources: Mapping[str, int]
    norms: Mapping[str, int]


def parameter_type(config: ml_collections.ConfigDict) -> Any:
    """Returns the type of parameters, and of the images that a network is given."""
    return jnp.float64 if config.dtype == "float64" else jnp.float32


def build_model(name: str, **options: Any) -> ResNet:
    """Builds lbsgd's own network called `name`; see `ResNet` for the options.

    Raises:
      ConfigError: no such network, or no residual blocks to initialise as the identity.
    """
    model = ResNet(named_architecture(name), **options)
    if model.zero_init_residual and not model.skip_connections:
        raise ConfigError(
            "model.zero_init_residual without model.skip_connections is a network that outputs 0; "
            "set model.zero_init_residual=False"
        )
    return model


def build_network(
    config: ml_collections.ConfigDict, num_classes: int, image_shape: tuple[int, ...]
) -> Network:
    """Builds the network of a resolved config.

    Args:
      num_classes: how many outputs it is to have.
      image_shape: `(h, w, c)`.

    Raises:
      ConfigError: there is none of that name, or it does not fit its arguments.
    """
    named = roles = None
    if is_dotted(config.model.name):
        named = load_network(config)
        if config.batch_norm.frozen_statistics:
            raise named.error(
                "is not lbsgd's own, and only of those batch_norm.frozen_statistics is known to "
                "change nothing but batch norm; leave it out, and have the module itself normalize "
                "by running averages"
            )
        built = build_modules(config, named, num_classes)
        roles = load("model.roles", config.model.roles) if config.model.roles else None
    else:
        built = _build_own(config, num_classes)
    wide, guard = parameter_type(config), named.guard if named else contextlib.nullcontext
    variables = functools.partial(_variables, built, tuple(image_shape), guard, config.seed)
    computed = {"precision": config.matmul_precision, "guard": guard}
    module = built.training
    joined = module if named else module.clone(joined=True)
    evaluate = functools.partial(_evaluate, built.evaluation, built.evaluation_flags, **computed)
    if config.batch_norm.frozen_statistics:
        as_evaluated = functools.partial(_evaluate, module, built.evaluation_flags, **computed)
        train = train_joined = functools.partial(_train_as_evaluated, as_evaluated)
    else:
        train, train_joined = (
            functools.partial(_train, m, built.train_flags, **computed) for m in (module, joined)
        )
    return Network(
        built.training,
        built.evaluation,
        built.evaluation_flags,
        functools.partial(_keep, wide),
        functools.partial(_initialize, variables, wide),
        train,
        train_joined,
        evaluate,
        variables,
        jax.ShapeDtypeStruct((config.worker_batch_size, *image_shape), wide),
        named,
        roles,
        built.told,
    )


def _build_own(config: ml_collections.ConfigDict, num_classes: int) -> Built:
    model = build_model(
        config.model.name,
        num_classes=num_classes,
        width=config.model.width,
        skip_connections=config.model.skip_connections,
        zero_init_residual=config.model.zero_init_residual,
        normalization=config.model.normalization,
        dtype=jnp.dtype(config.dtype),
        param_dtype=parameter_type(config),
        precision=config.matmul_precision,
        norm_axis_names=SYNCED_AXES if config.batch_norm.synced_workers > 1 else (),
        norm_epsilon=config.batch_norm.epsilon,
        norm_scale_std=config.batch_norm.initial_scale_std,
    )
    single = model.clone(dtype=jnp.float32, param_dtype=jnp.float32)
    return Built(
        model.clone(remat=config.model.remat), model, single, {"train": True}, {"train": False}
    )


def _variables(
    built: Built,
    image_shape: tuple[int, ...],
    guard: Callable[[], Any],
    seed: int,
    given: Any = None,
) -> tuple[Any, Mapping[str, Any]]:
    """Initialises a module's variables, parameters in the boxes of their roles.

    Args:
      given: an argument in place of `seed`, for programs that are compiled for all seeds.
    """
    key = jax.random.key(seed if given is None else given)
    # Where a module has no argument for it, float32 is the type of what it draws.
    with guard(), precision("float32"):
        images = jnp.zeros((1, *image_shape), jnp.float32)
        return built.initial.init_with_output(key, images, **built.evaluation_flags)


def _initialize(
    variables: Callable[..., tuple[Any, Mapping[str, Any]]], wide: Any, *seed: Any
) -> tuple[Any, Any]:
    """Draws parameters and statistics."""
    return _keep(wide, variables(*seed)[1])


def _keep(wide: Any, variables: Mapping[str, Any]) -> tuple[Any, Any]:
    """Takes from a module's variables what a run keeps."""
    there = nn.meta.unbox(variables)
    params, batch_stats = (
        _widened(there.get(name, {}), wide) for name in ("params", "batch_stats")
    )
    return params, batch_stats


def _widened(tree: Any, wide: Any) -> Any:
    """Casts a tree to float64, where parameters are; else its types are the module's."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(wide) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree) if wide == jnp.float64 else tree


def _train(
    module: nn.Module,
    flags: Mapping[str, Any],
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    key: jax.Array,
    *,
    precision: str,
    guard: Callable[[], Any],
) -> tuple[Any, Any]:
    """Computes outputs and new statistics in training.

    Raises:
      ConfigError: the module raised an error, or left other statistics than it started with.
    """
    # Flax takes "params" for every stream that is not there.
    rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)}
    variables = {"params": params, "batch_stats": batch_stats}
    with guard(), jax.default_matmul_precision(precision):
        outputs, left = module.apply(variables, images, rngs=rngs, mutable=["batch_stats"], **flags)
        return outputs, _like(batch_stats, left.get("batch_stats", {}))


def _like(batch_stats: Any, left: Any) -> Any:
    """Gives the statistics that training leaves the types of those it started with.

    Raises:
      ValueError: they are others.
    """
    shapes = [jax.tree.map(jnp.shape, nn.meta.unbox(tree)) for tree in (batch_stats, left)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"batch_stats {short_repr(shapes[1])} after an update, {short_repr(shapes[0])} at the "
            "start; make all of them in evaluation too"
        )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), nn.meta.unbox(left), batch_stats)


def _evaluate(
    module: nn.Module,
    flags: Mapping[str, Any],
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    *,
    precision: str,
    guard: Callable[[], Any],
) -> Any:
    """Computes outputs in evaluation."""
    with guard(), jax.default_matmul_precision(precision):
        return module.apply({"params": params, "batch_stats": batch_stats}, images, **flags)


def _train_as_evaluated(
    evaluate: Callable[..., Any], params: Any, batch_stats: Any, images: jax.Array, key: jax.Array
) -> tuple[Any, Any]:
    """Computes outputs in training by frozen statistics, of which none are left to be averaged."""
    # lbsgd's networks have nothing but batch norm that training changes.
    return evaluate(params, batch_stats, images), {}


def outline(network: Network) -> Outline:
    """Outlines a network by tracing it.

    Raises:
      ConfigError: it cannot be traced, a parameter has no role, there are none, one or a statistic
        is not a float, it has state that a run does not keep, or layers to be told that they
        train and no flag for it.
    """
    error = network.named.error if network.named else ConfigError
    layers = Layers(error)
    values = Values(examples=1, training=False)
    with nn.intercept_methods(layers.intercept), nn.intercept_methods(values.intercept):
        # Of a function of its own, for what is traced once is not traced again.
        outputs, variables = jax.eval_shape(lambda: network.variables())
    if network.named and not network.told and layers.of_training:
        raise no_flag(network.named, network.module, sorted(layers.of_training))
    _check_collections(variables, error)
    roles, sources = _infer_roles(variables.get("params", {}), layers, network)
    params, batch_stats = jax.eval_shape(network.keep, variables)
    _check_floats(params, batch_stats, error)
    if network.named:
        outputs, values = _trace_calls(network, params, batch_stats)
    else:
        outputs = outputs.update(dtype=network.images.dtype)
    of_step = layers.left_by_ours(batch_stats)
    return Outline(params, roles, batch_stats, of_step, values, outputs, sources, layers.norms())


def _trace_calls(network: Network, params: Any, batch_stats: Any) -> tuple[Any, Values]:
    """Traces evaluation of one image and training of a worker's; of lbsgd's own that is known."""
    one = network.images.update(shape=(1, *network.images.shape[1:]))
    outputs = jax.eval_shape(lambda *args: network.evaluate(*args), params, batch_stats, one)
    values = Values(examples=network.images.shape[0], training=True)
    with nn.intercept_methods(values.intercept):
        key = jax.eval_shape(lambda: jax.random.key(0))
        jax.eval_shape(lambda *args: network.train(*args), params, batch_stats, network.images, key)
    return outputs, values


def _check_collections(variables: Mapping[str, Any], error: Callable[[str], ConfigError]) -> None:
    others = sorted(set(variables) - _KEPT)
    if others:
        raise error(
            f"has state in {', '.join(map(repr, others))}, which is not kept from one "
            "update to the next; of Flax's collections only 'params' and 'batch_stats' are"
        )


def _check_floats(params: Any, batch_stats: Any, error: Callable[[str], ConfigError]) -> None:
    """Checks that all parameters can be trained, and all statistics averaged over workers."""
    if not jax.tree.leaves(params):
        raise error("has no parameters, so there is nothing to train")
    for tree, what, only in (
        (params, "parameter", "floats are trained"),
        (batch_stats, "batch_stats", "floats are averaged over workers"),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise error(f"has {what} {name} of {leaf.dtype}, and only {only}")


def _infer_roles(params: Any, layers: Layers, network: Network) -> tuple[Any, Mapping[str, int]]:
    """Finds the role of each parameter: by its box, the function, or its layer's class."""
    sources: Counter[str] = Counter()

    def infer(path: Path, shape: tuple[int, ...]) -> Role | None:
        role = _role_by(network.roles, path, shape) if network.roles else None
        if role:
            sources["model.roles"] += 1
            return role
        known = layers.class_and_role(path)
        if known:
            sources[f"nn.{known[0]}"] += 1
        return known and known[1]

    roles = split_roles(params, infer, layers.error)[1]
    boxed = len(jax.tree.leaves(roles)) - sources.total()
    return roles, dict(+Counter({"with_role": boxed, **sources}))


def _role_by(function: Named, path: Path, shape: tuple[int, ...]) -> Role | None:
    """Asks the function that `model.roles` names."""
    with function.guard():
        word = function.value(path, shape)
    if word is None:
        return None
    try:
        return role_named(word)
    except ConfigError as error:
        raise function.error(f"of {'/'.join(path)}: {error}") from error
