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
import optax

from lbsgd import accumulation, runtime
from lbsgd import config as config_lib
from lbsgd.data.augment import CropAndFlip
from lbsgd.data.order import Order
from lbsgd.data.pipeline import EvalBatches, TrainBatches
from lbsgd.data.sources import Source, Splits, build_sources
from lbsgd.errors import ConfigError
from lbsgd.models import build_model
from lbsgd.models.roles import split_roles
from lbsgd.optim import learning_rate as rates
from lbsgd.optim.chain import sgd
from lbsgd.step import TrainState, eval_step, moments_step, normalize, train_step, worker_loss
from lbsgd.timeline import Timeline
from lbsgd.workers import LANE_AXIS, Placement, count_workers, place

# A run with more would take decades; update indices stay far within int32.
MOST_UPDATES = 10**8

CACHE = pathlib.Path("~/.cache/lbsgd").expanduser()


@dataclasses.dataclass(frozen=True)
class Rate:
    """The learning rate of a run: the schedule and the numbers it was made from.

    Attributes:
      schedule: update index -> rate.
      full: k * eta, the rate after warmup.
      warmup_updates: W; 0 for no warmup.
      decay_updates: where steps of decay happen.
    """

    schedule: rates.Schedule
    full: float
    warmup_updates: int
    decay_updates: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, each a function of its config.

    Attributes:
      total_updates: T; updates are 0..T-1.
      model: the network in training, with the mapped axes of synced batch norm.
      roles: of the parameters, like them.
      initial_state: () -> `TrainState`, the same on any machine (pure, to be compiled).
      evaluate_after, save_after: numbers of updates done at which to evaluate and to save.
      preprocess: uint8 images -> input of the network.
      worker: `step.worker_loss`, bound.
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
    preprocess: Callable[[jax.Array], jax.Array]
    worker: Callable[..., Any]

    @property
    def precise_batches(self) -> int:
        """Minibatches that precise batch norm takes its statistics over; 0 for none."""
        return math.ceil(self.config.batch_norm.precise_examples / self.config.batch_size)

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

    def train_batches(self, purpose: str = "train") -> TrainBatches:
        """The minibatches of the training set, in an order of their own for each purpose."""
        data = self.config.data
        return TrainBatches(
            self.splits.train,
            Order(len(self.splits.train), self.config.seed, purpose),
            self.timeline,
            self.placement,
            CropAndFlip(self.config.seed, data.crop_padding, data.flip),
            data.threads,
        )

    def eval_batches(self) -> EvalBatches:
        """The validation set, each example once."""
        return EvalBatches(
            self.splits.validation, self.placement, self.config.evaluation.batch_size
        )

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
        image = slots + self.splits.train.image_shape
        return {
            "image": jax.ShapeDtypeStruct(image, jnp.uint8, sharding=p.batch_sharding),
            "label": jax.ShapeDtypeStruct(slots, jnp.int32, sharding=p.batch_sharding),
        }

    def compile_train_step(self, placement: Placement | None = None) -> Any:
        """The step compiled ahead of time for its placement."""
        state, batch = self.abstract_state(placement), self.abstract_batch(placement)
        return self.train_step(placement).lower(state, batch).compile()

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of the run; a workdir belongs to one of these."""
        return {
            **config_lib.run_keys(self.config),
            "the training set": self.splits.train.fingerprint,
            "the validation set": self.splits.validation.fingerprint,
        }


def build_rate(config: ml_collections.ConfigDict, timeline: Timeline, total: int) -> Rate:
    """The learning rate of Goyal et al. 2017, section 2, as the config selects it.

    Raises:
      ConfigError: warmup longer than training, or of no length.
    """
    c = config.learning_rate
    reference = c.reference_learning_rate
    full = rates.scale_learning_rate(
        reference, c.reference_batch_size, config.batch_size, c.scaling
    )
    warmup = 0
    if c.warmup != "none" and config.batch_size > c.reference_batch_size:
        warmup = config_lib.duration(c, "warmup", timeline)
        if not warmup:
            raise ConfigError(
                f"learning_rate.warmup={c.warmup!r} needs a length of at least one update: set "
                "learning_rate.warmup_epochs, _steps or _examples, or warmup='none'"
            )
    if warmup > total:
        raise ConfigError(
            f"the warmup of {warmup} updates is longer than the training of {total}; "
            "lower learning_rate.warmup_epochs (_steps, _examples) or train longer"
        )
    boundaries: tuple[int, ...] = ()
    if c.decay == "steps":
        boundaries = tuple(timeline.update_at_epoch(epoch) for epoch in c.decay_epochs)
        if boundaries and boundaries[0] < warmup:
            raise ConfigError(
                f"learning_rate.decay_epochs={c.decay_epochs} starts at update {boundaries[0]}, "
                f"within the warmup of {warmup}; decay later or shorten the warmup"
            )
        schedule = rates.step_decay(full, boundaries, c.decay_factor)
    elif c.decay == "cosine":
        schedule = rates.cosine_decay(full, warmup, total)
    elif c.decay == "polynomial":
        schedule = rates.polynomial_decay(full, warmup, total, c.decay_power)
    else:
        schedule = rates.constant(full)
    if warmup and c.warmup == "gradual":
        schedule = rates.gradual_warmup(schedule, reference, full, warmup)
    elif warmup:
        schedule = rates.constant_warmup(schedule, reference, warmup)
    return Rate(schedule, full, warmup, boundaries)


def build(config: ml_collections.ConfigDict) -> Run:
    """The parts of the run that a resolved config describes.

    Raises:
      ConfigError: the parts do not fit together, or not on this machine.
    """
    runtime.set_precision(config.dtype)
    workers = count_workers(config.batch_size, config.worker_batch_size)
    devices = runtime.count_devices(config.devices)
    splits = build_sources(config.data)
    _check_channels(config, splits.train)
    timeline = Timeline.constant(len(splits.train), config.batch_size)
    total = config_lib.duration(config, "total", timeline)
    if not total:
        raise ConfigError("training has no length; set total_epochs, total_steps or total_examples")
    if total > MOST_UPDATES:
        raise ConfigError(f"training of {total:,} updates is longer than {MOST_UPDATES:,}")

    model = _build_network(config, splits.train)
    init = functools.partial(_init_variables, model, splits.train.image_shape, config.seed)
    _, roles = split_roles(jax.eval_shape(init)["params"])
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
        evaluate_after=config_lib.every(config, "evaluation", timeline, total) | {total},
        save_after=config_lib.every(config, "checkpoint", timeline, total) | {total},
        preprocess=preprocess,
        worker=worker,
    )
    if config.accumulation_steps:
        return run
    return dataclasses.replace(run, placement=_fitting_placement(run, put, workers, devices))


def _build_network(config: ml_collections.ConfigDict, source: Source) -> Any:
    return build_model(
        config.model.name,
        num_classes=len(source.classes),
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
    update = jnp.zeros((), jnp.int32)
    return TrainState(update, params, variables["batch_stats"], optimizer.init(params))


def _check_channels(config: ml_collections.ConfigDict, source: Source) -> None:
    channels = source.image_shape[-1]
    for key in ("mean", "std"):
        given = len(config.data[key])
        if given not in (1, channels):
            raise ConfigError(f"data.{key} has {given} numbers, the images {channels} channels")
    if not all(config.data.std):
        raise ConfigError("data.std must not hold 0")


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
