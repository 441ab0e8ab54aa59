"""From a config to the parts of a run: what `train.run` loops over and `--explain` prints."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from lbsgd import accumulation, runtime, times
from lbsgd.config import run_keys
from lbsgd.data.augment import CentreCrop, Color, CropAndFlip, InceptionCrop, View, Whole
from lbsgd.data.catalogue import build_sources
from lbsgd.data.corrupt import Corrupt
from lbsgd.data.mixing import Mixing
from lbsgd.data.order import Order
from lbsgd.data.pipeline import (
    EvalBatches,
    Loader,
    Prefetch,
    Repeated,
    TrainBatches,
    random_batch,
)
from lbsgd.data.sources import Source, Splits
from lbsgd.diagnostics.plan import Plan, plan
from lbsgd.diagnostics.update_statistics import layer_statistics
from lbsgd.errors import ConfigError
from lbsgd.models import build_model
from lbsgd.models.roles import split_roles
from lbsgd.optim.chain import sgd
from lbsgd.rate import Rate, build_rate
from lbsgd.step import TrainState, eval_step, moments_step, normalize, train_step, worker_loss
from lbsgd.timeline import Timeline
from lbsgd.workers import LANE_AXIS, Placement, count_workers, place

# A run with more would take decades; update indices stay far within int32.
MOST_UPDATES = 10**8
# The largest networks there are have a trillion; these are for images.
MOST_PARAMETERS = 10**11
# Of 1/255, the step between two pixels' values; less is a slip.
LEAST_STD = 1e-6

CACHE = pathlib.Path("~/.cache/lbsgd").expanduser()


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, each a function of its config.

    Attributes:
      total_updates: T; updates are 0..T-1.
      model: the network in training, with the mapped axes of synced batch norm.
      roles: of the parameters, like them.
      initial_state: () -> `TrainState`, the same on any machine (pure, to be compiled).
      evaluate_after, save_after: numbers of updates done at which to evaluate and to save.
      image_shape: `(h, w, c)` of what the network sees.
      corrupt: the examples that could not be read.
      preprocess: uint8 images -> input of the network.
      worker: `step.worker_loss`, bound.
      diagnostics: when the run is to be looked at.
    """

    config: ml_collections.FrozenConfigDict
    splits: Splits
    timeline: Timeline
    placement: Placement
    total_updates: int
    model: Any
    roles: Any
    rate: Rate
    optimizer: optax.GradientTransformationExtraArgs
    initial_state: Callable[[], TrainState]
    evaluate_after: frozenset[int]
    save_after: frozenset[int]
    image_shape: tuple[int, int, int]
    corrupt: Corrupt
    preprocess: Callable[[jax.Array], jax.Array]
    worker: Callable[..., Any]
    diagnostics: Plan

    @property
    def precise_batches(self) -> int:
        """Minibatches that precise batch norm takes its statistics over; 0 for none."""
        return math.ceil(self.config.batch_norm.precise_examples / self.config.batch_size)

    def start(self) -> TrainState:
        """The initial state, on the devices."""
        # Drawing random numbers is much to compile and little to run. On a CPU the compiler takes a
        # third of the time for the same bits when told so.
        options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        initial = jax.jit(
            self.initial_state,
            out_shardings=self.placement.replicated,
            compiler_options=options,
        )
        return initial()

    def train_step(self, placement: Placement | None = None) -> Any:
        """The compiled-to-be step: (state, batch) -> (state, metrics); the state is donated."""
        placement = placement or self.placement
        step = functools.partial(
            train_step,
            worker=self.worker,
            optimizer=self.optimizer,
            learning_rate=self.rate.schedule,
            placement=placement,
            batch_norm_momentum=self.config.batch_norm.momentum,
            total_variance=self.config.batch_norm.running_variance == "total",
            statistics=layer_statistics if self.diagnostics.layers else None,
        )
        return jax.jit(step, donate_argnums=0, out_shardings=placement.replicated)

    def moments_step(self) -> Any:
        """(params, batch_stats, batch) -> batch-norm moments of that minibatch."""
        step = functools.partial(
            moments_step,
            worker=self.worker,
            placement=self.placement,
            total_variance=self.config.batch_norm.running_variance == "total",
        )
        return jax.jit(step, out_shardings=self.placement.replicated)

    def eval_step(self) -> Any:
        """(params, batch_stats, batch) -> `EvalSums`."""
        step = functools.partial(
            eval_step, model=self.model, preprocess=self.preprocess, placement=self.placement
        )
        return jax.jit(step, out_shardings=self.placement.replicated)

    @property
    def mixing(self) -> Mixing:
        """What is mixed and erased on the devices."""
        data = self.config.data
        return Mixing(self.config.seed, data.mixup, data.cutmix, data.erasing, self.image_shape)

    def train_batches(self, purpose: str = "train") -> TrainBatches:
        """The minibatches of the training set, in an order of their own for each purpose."""
        config, data = self.config, self.config.data
        padding = data.crop_padding if data.crop == "padded" else 0
        view: View = Whole(self.image_shape)
        if data.crop == "inception":
            view = InceptionCrop(self.image_shape, config.seed, data.crop_area, data.crop_aspect)
        augment = (
            CropAndFlip(config.seed, padding, data.flip),
            Color(config.seed, data.color_jitter, data.lighting),
        )
        return TrainBatches(
            Loader(self.splits.train, view, augment, self.corrupt, data.threads),
            Order(len(self.splits.train), config.seed, purpose),
            self.timeline,
            self.placement,
            self.mixing,
        )

    def feed(self, start: int) -> Prefetch | Repeated:
        """The batches of the updates from `start` on."""
        if self.config.data.synthetic_on_device:
            batch = random_batch(
                self.abstract_batch(), len(self.splits.train.classes), self.config.seed
            )
            return Repeated(batch, self.total_updates - start)
        return self.train_batches().between(start, self.total_updates)

    def eval_batches(self) -> EvalBatches:
        """The validation set, each example once."""
        data = self.config.data
        view: View = Whole(self.image_shape)
        if data.crop == "inception":
            view = CentreCrop(self.image_shape, data.evaluation_short_side)
        loader = Loader(self.splits.validation, view, (), self.corrupt, data.threads)
        return EvalBatches(loader, self.placement, self.config.evaluation.batch_size)

    def abstract_state(self, placement: Placement | None = None) -> TrainState:
        """Shapes, types and shardings of the state."""
        sharding = (placement or self.placement).replicated
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            jax.eval_shape(self.initial_state),
        )

    def abstract_batch(self, placement: Placement | None = None) -> dict[str, Any]:
        """Shapes, types and shardings of a training batch."""
        p = placement or self.placement
        slots = (p.accumulation_steps, p.devices * p.lanes, p.worker_batch_size)
        row: dict[str, Any] = {
            "image": np.zeros(self.image_shape, np.uint8),
            "label": np.zeros((), np.int32),
        }
        none = np.zeros(1, np.int64)
        row |= {key: drawn[0] for key, drawn in self.mixing.draw(none, none).items()}
        return {
            key: jax.ShapeDtypeStruct(slots + x.shape, x.dtype, sharding=p.batch_sharding)
            for key, x in row.items()
        }

    def compile_train_step(self, placement: Placement | None = None) -> Any:
        """The step compiled ahead of time for its placement."""
        state, batch = self.abstract_state(placement), self.abstract_batch(placement)
        return self.train_step(placement).lower(state, batch).compile()

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of the run; a workdir belongs to one of these."""
        return {
            **run_keys(self.config),
            "the training set": self.splits.train.fingerprint,
            "the validation set": self.splits.validation.fingerprint,
        }


def build(config: ml_collections.ConfigDict) -> Run:
    """The parts of the run that a resolved config describes.

    Raises:
      ConfigError: the parts do not fit together, or not on this machine.
    """
    runtime.set_precision(config.dtype)
    workers = count_workers(config.batch_size, config.worker_batch_size)
    devices = runtime.count_devices(config.devices)
    splits = build_sources(config.data)
    image_shape = _image_shape(config, splits.train)
    _check_data(config, image_shape, len(splits.train.classes))
    timeline = Timeline.constant(len(splits.train), config.batch_size)
    total = times.duration(config, "total", timeline)
    if not total:
        raise ConfigError("training has no length; set total_epochs, total_steps or total_examples")
    if total > MOST_UPDATES:
        raise ConfigError(
            f"training of {total:,} updates is longer than {MOST_UPDATES:,}; lower total_epochs "
            "(_steps, _examples)"
        )

    model = _build_network(config, config.model.num_classes or len(splits.train.classes))
    init = functools.partial(_init_variables, model, image_shape, config.seed)
    params, roles = split_roles(jax.eval_shape(init)["params"])
    _check_size(params)
    rate = build_rate(config, timeline, total)
    optimizer = sgd(rate.schedule, roles, **config.optimizer)

    preprocess = functools.partial(
        normalize, mean=config.data.mean, std=config.data.std, dtype=model.param_dtype
    )
    worker = functools.partial(
        worker_loss,
        model=model,
        preprocess=preprocess,
        label_smoothing=config.label_smoothing,
    )
    put = functools.partial(
        place,
        config.batch_size,
        config.worker_batch_size,
        devices=devices,
        group_size=config.batch_norm.synced_workers,
    )
    run = Run(
        config=config,
        splits=splits,
        timeline=timeline,
        placement=put(accumulation_steps=config.accumulation_steps or 1),
        total_updates=total,
        model=model,
        roles=roles,
        rate=rate,
        optimizer=optimizer,
        initial_state=functools.partial(_initial_state, init, optimizer),
        evaluate_after=times.every(config, "evaluation", timeline, total) | {total},
        save_after=times.every(config, "checkpoint", timeline, total) | {total},
        image_shape=image_shape,
        corrupt=Corrupt(config.data.on_corrupt, config.data.max_corrupt),
        preprocess=preprocess,
        worker=worker,
        diagnostics=plan(config, timeline, total),
    )
    if config.accumulation_steps:
        return run
    return dataclasses.replace(run, placement=_fitting_placement(run, put, workers, devices))


def _build_network(config: ml_collections.ConfigDict, num_classes: int) -> Any:
    return build_model(
        config.model.name,
        num_classes=num_classes,
        width=config.model.width,
        skip_connections=config.model.skip_connections,
        zero_init_residual=config.model.zero_init_residual,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.float64 if config.dtype == "float64" else jnp.float32,
        norm_axis_names=(LANE_AXIS, "member") if config.batch_norm.synced_workers > 1 else (),
        norm_epsilon=config.batch_norm.epsilon,
    )


def _init_variables(model: Any, image_shape: tuple[int, ...], seed: int) -> Any:
    """Drawn in float32 whatever the type, so that runs in float64 start from the same weights."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    single = model.clone(dtype=jnp.float32, param_dtype=jnp.float32)
    variables = single.init(jax.random.key(seed), images, train=False)
    return jax.tree.map(lambda x: x.astype(model.param_dtype), variables)


def _initial_state(
    init: Callable[[], Any], optimizer: optax.GradientTransformationExtraArgs
) -> TrainState:
    variables = init()
    params, _ = split_roles(variables["params"])
    update, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(update, params, variables["batch_stats"], optimizer.init(params), skipped)


def _image_shape(config: ml_collections.ConfigDict, source: Source) -> tuple[int, int, int]:
    """`(h, w, c)` of what the network sees."""
    height, width, channels = source.image_shape
    if config.data.crop == "inception":
        height = width = config.data.image_size
    return height, width, channels


def _check_size(params: Any) -> None:
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    if count > MOST_PARAMETERS:
        raise ConfigError(
            f"a network of {count:,} parameters is larger than {MOST_PARAMETERS:,}; lower "
            "model.width or model.num_classes"
        )


def _check_data(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], classes: int
) -> None:
    """What the config says of the data against what they are."""
    data, channels = config.data, image_shape[-1]
    for key in ("mean", "std"):
        given = len(data[key])
        if given not in (1, channels):
            raise ConfigError(f"data.{key} has {given} numbers, the images {channels} channels")
    if min(data.std) < LEAST_STD:
        raise ConfigError(f"data.std must not hold 0, nor less than {LEAST_STD:g}")
    if data.crop == "padded" and data.crop_padding >= min(image_shape[:2]):
        raise ConfigError(
            f"data.crop_padding={data.crop_padding} can leave nothing of images of "
            f"{image_shape[0]}x{image_shape[1]}; set it to less"
        )
    if data.crop == "inception" and data.evaluation_short_side < max(image_shape[:2]):
        raise ConfigError(
            f"data.evaluation_short_side={data.evaluation_short_side} is less than "
            f"data.image_size={data.image_size}, which is taken out of it"
        )
    if channels != 3 and (any(data.color_jitter) or data.lighting):
        raise ConfigError(
            f"data.color_jitter and data.lighting are for 3 channels, the images have {channels}"
        )
    if 0 < config.model.num_classes < classes:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}, but the data have {classes} classes; "
            "set it to 0 to take theirs"
        )
    if (data.mixup or data.cutmix) and config.worker_batch_size == 1:
        raise ConfigError("mixup and cutmix mix examples of a worker; worker_batch_size is 1")
    if data.synthetic_on_device and data.source != "synthetic":
        raise ConfigError(
            f"data.synthetic_on_device=True, but data.source is {data.source!r}, not 'synthetic'"
        )


def _fitting_placement(
    run: Run, put: Callable[..., Placement], workers: int, devices: int
) -> Placement:
    def memory(placement: Placement) -> int:
        batch = sum(
            math.prod(s.shape) * s.dtype.itemsize for s in run.abstract_batch(placement).values()
        )
        return accumulation.memory_of(run.compile_train_step(placement), batch // devices)

    identity = json.dumps([run.identity(), devices, runtime.describe_machine()], sort_keys=True)
    return accumulation.choose(
        lambda steps: put(accumulation_steps=steps),
        math.ceil(workers / devices),
        memory,
        runtime.device_memory(run.config),
        CACHE / "accumulation_steps.json",
        hashlib.sha256(identity.encode()).hexdigest(),
    )
