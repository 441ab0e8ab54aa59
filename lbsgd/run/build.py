"""From a config to the parts of a run: what `train.run` loops over and `--explain` prints."""

import dataclasses
import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.loaders import evaluation_loader, training_loader
from lbsgd.data.mixing import Mixing
from lbsgd.data.order import Order
from lbsgd.data.pipeline import (
    AHEAD,
    EvalBatches,
    Prefetch,
    RepeatedBatches,
    TrainBatches,
    random_batch,
)
from lbsgd.data.source import Splits
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.models import build_model, init_variables, outline
from lbsgd.models.roles import split_roles
from lbsgd.optim.chain import build_optimizer
from lbsgd.run.checks import check_data, check_normalization, check_size, image_shape_of
from lbsgd.run.config import run_keys
from lbsgd.schedule import batch_growth, times
from lbsgd.schedule.functions import Schedule
from lbsgd.schedule.learning_rate import Rate, build_rate, sgd_noise_scale
from lbsgd.schedule.measurements import Plan, plan
from lbsgd.schedule.timeline import Timeline
from lbsgd.step.evaluation import eval_step, moments_step
from lbsgd.step.layer_statistics import layer_statistics
from lbsgd.step.pixels import normalize
from lbsgd.step.train_step import TrainState, train_step
from lbsgd.step.worker import worker_loss
from lbsgd.system.devices import (
    IN_FLIGHT,
    count_devices,
    device_memory,
    is_out_of_memory,
    set_precision,
)
from lbsgd.system.machine import cache_folder, describe_machine
from lbsgd.system.processes import is_first, json_from_process_0
from lbsgd.system.text import pluralize
from lbsgd.workers import fit
from lbsgd.workers.collectives.allreduce import gradient_mean
from lbsgd.workers.placement import DEVICE_AXES, LANE_AXIS, Placement, place

# Of training that a device holds: its own, those of the updates that wait, those loaded ahead.
MINIBATCHES = 1 + IN_FLIGHT + AHEAD


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, each a function of its config.

    Attributes:
      placements: where the workers are, by batch size.
      total_updates: T; updates are 0..T-1.
      model: the network in training, with the mapped axes of synced batch norm.
      roles: of the parameters, like them.
      schedules: what varies with the update index, by the name it has among the metrics.
      initial_state: () -> `TrainState`, the same on any machine (pure, to be compiled).
      evaluate_after, save_after: numbers of updates done at which to evaluate and to save.
      image_shape: `(h, w, c)` of what the network sees.
      corrupt: the examples that could not be read.
      preprocess: uint8 images -> input of the network.
      worker: `step.worker_loss`, bound.
      gradient_mean: the all-reduce, bound; None for `lax.pmean`.
      diagnostics: when the run is to be looked at.
      compiled: steps that are compiled already.
    """

    config: ml_collections.FrozenConfigDict
    splits: Splits
    timeline: Timeline
    placements: Mapping[int, Placement]
    total_updates: int
    model: Any
    roles: Any
    rate: Rate
    schedules: Mapping[str, Schedule]
    optimizer: optax.GradientTransformationExtraArgs
    initial_state: Callable[[], TrainState]
    evaluate_after: frozenset[int]
    save_after: frozenset[int]
    image_shape: tuple[int, int, int]
    corrupt: CorruptExamples
    preprocess: Callable[[jax.Array], jax.Array]
    worker: Callable[..., Any]
    gradient_mean: Callable[[Any], Any] | None
    diagnostics: Plan
    compiled: Mapping[Placement, Any] = dataclasses.field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        """Where the workers of the first update are; evaluations too use its devices."""
        return self.placements[self.config.batch_size]

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
            schedules=self.schedules,
            placement=placement,
            batch_norm_momentum=self.config.batch_norm.momentum,
            total_variance=self.config.batch_norm.running_variance == "total",
            gradient_mean=self.gradient_mean,
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

    def train_batches(self) -> TrainBatches:
        """The minibatches of the training, by update index."""
        return self.other_batches("train", self.timeline, self.placements)

    def other_batches(
        self, purpose: str, timeline: Timeline, placements: Mapping[int, Placement]
    ) -> TrainBatches:
        """Minibatches of the training set in an order of their own for each purpose."""
        seed, train = self.config.seed, self.splits.train
        return TrainBatches(
            training_loader(self.config, train, self.image_shape, self.corrupt),
            Order(len(train), seed, purpose),
            timeline,
            placements,
            self.mixing,
        )

    def feed(self, start: int) -> Prefetch | RepeatedBatches:
        """The batches of the updates from `start` on."""
        if self.config.data.synthetic_on_device:
            classes, seed = len(self.splits.train.classes), self.config.seed
            batch_of = {
                size: random_batch(self.abstract_batch(placement), classes, seed)
                for size, placement in self.placements.items()
            }
            updates = range(start, self.total_updates)
            return RepeatedBatches(batch_of[self.timeline.batch_size(t)] for t in updates)
        return self.train_batches().between(start, self.total_updates)

    def eval_batches(self) -> EvalBatches:
        """The validation set, each example once."""
        validation = self.splits.validation
        loader = evaluation_loader(self.config, validation, self.image_shape, self.corrupt)
        # What fits in training fits here, where nothing is kept to be differentiated.
        p = self.placement
        trained = p.devices * p.lanes * p.worker_batch_size
        return EvalBatches(loader, p, self.config.evaluation.batch_size or trained)

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
        placement = placement or self.placement
        if placement in self.compiled:
            return self.compiled[placement]
        state, batch = self.abstract_state(placement), self.abstract_batch(placement)
        return self.train_step(placement).lower(state, batch).compile()

    def identity(self) -> dict[str, Any]:
        """Collects what decides the parameters of the run; a workdir belongs to one of these."""
        return {
            **run_keys(self.config),
            "the training set": self.splits.train.fingerprint,
        }


def build(config: ml_collections.ConfigDict) -> Run:
    """The parts of the run that a resolved config describes.

    Raises:
      ConfigError: the parts do not fit together, or not on this machine.
    """
    set_precision(config.dtype)
    devices = count_devices(config.devices)
    splits = build_sources(config.data, config.seed)
    image_shape = image_shape_of(config, splits.train)
    check_data(config, image_shape, len(splits.train.classes))
    timeline = batch_growth.build_timeline(config, len(splits.train))
    total = times.total(config, timeline)

    model = _build_network(config, config.model.num_classes or len(splits.train.classes))
    init = functools.partial(init_variables, model, image_shape, config.seed)
    params, roles, values = outline(init)
    check_size(params)
    diagnostics = plan(config, timeline, total)
    check_normalization(config, values, confusion=bool(diagnostics.confusion))
    rate = build_rate(config, timeline, total)
    sizes = timeline.sizes_between(0, total)
    momenta = {size: batch_growth.momentum_of_size(config, size) for size in sizes}
    optimizer = build_optimizer(
        rate.schedule,
        roles,
        **{**config.optimizer, "momentum": batch_growth.momentum_schedule(timeline, momenta)},
    )

    preprocess, worker = _build_worker(config, model)
    put = functools.partial(
        place,
        worker_batch_size=config.worker_batch_size,
        devices=devices,
        group_size=config.batch_norm.synced_workers,
    )
    steps = config.accumulation_steps or 1
    run = Run(
        config=config,
        splits=splits,
        timeline=timeline,
        placements={size: put(size, accumulation_steps=steps) for size in sizes},
        total_updates=total,
        model=model,
        roles=roles,
        rate=rate,
        schedules=_schedules(config, rate, timeline, momenta),
        optimizer=optimizer,
        initial_state=functools.partial(_initial_state, init, optimizer),
        evaluate_after=times.every(config, "evaluation", timeline, total) | {total},
        save_after=times.every(config, "checkpoint", timeline, total) | {total},
        image_shape=image_shape,
        corrupt=CorruptExamples(config.data.on_corrupt, config.data.max_corrupt),
        preprocess=preprocess,
        worker=worker,
        gradient_mean=gradient_mean(params, DEVICE_AXES, devices, **config.allreduce),
        diagnostics=diagnostics,
    )
    return run if config.accumulation_steps else _fitting(run, put)


def _schedules(
    config: ml_collections.ConfigDict, rate: Rate, timeline: Timeline, momenta: Mapping[int, float]
) -> dict[str, Schedule]:
    sizes = {size: float(size) for size in momenta}
    found = {"learning_rate": rate.schedule, "batch_size": batch_growth.by_size(timeline, sizes)}
    momentum = batch_growth.momentum_schedule(timeline, momenta)
    if callable(momentum):
        found["momentum"] = momentum
    if config.optimizer.name != "lamb":  # which has no momentum in this sense
        found["sgd_noise_scale"] = sgd_noise_scale(rate.schedule, momenta, timeline)
    return found


def _build_network(config: ml_collections.ConfigDict, num_classes: int) -> Any:
    return build_model(
        config.model.name,
        num_classes=num_classes,
        width=config.model.width,
        skip_connections=config.model.skip_connections,
        zero_init_residual=config.model.zero_init_residual,
        normalization=config.model.normalization,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.float64 if config.dtype == "float64" else jnp.float32,
        precision=config.matmul_precision,
        norm_axis_names=(LANE_AXIS, "member") if config.batch_norm.synced_workers > 1 else (),
        norm_epsilon=config.batch_norm.epsilon,
    )


def _build_worker(
    config: ml_collections.ConfigDict, model: Any
) -> tuple[Callable[[jax.Array], jax.Array], Callable[..., Any]]:
    """Binds `step.normalize` and `step.worker_loss`."""
    preprocess = functools.partial(
        normalize, mean=config.data.mean, std=config.data.std, dtype=model.param_dtype
    )
    return preprocess, functools.partial(
        worker_loss, model=model, preprocess=preprocess, label_smoothing=config.label_smoothing
    )


def _initial_state(
    init: Callable[[], Any], optimizer: optax.GradientTransformationExtraArgs
) -> TrainState:
    variables = init()
    params, _ = split_roles(variables["params"])
    update, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    # Without batch norm there are no statistics.
    stats = variables.get("batch_stats", {})
    return TrainState(update, params, stats, optimizer.init(params), skipped)


def _fitting(run: Run, put: Callable[..., Placement]) -> Run:
    """The run with placements that fit the memory, and the steps compiled to find them."""
    compiled: dict[Placement, Any] = {}
    devices = run.placement.devices

    def measure(placement: Placement) -> int:
        if is_first():
            workers = pluralize(placement.lanes, "worker")
            print(f"lbsgd: compiles {workers} a device, for memory", file=sys.stderr, flush=True)
        try:
            compiled[placement] = run.compile_train_step(placement)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return fit.TOO_MANY
        return fit.memory_of(compiled[placement], batch_bytes(placement))

    def batch_bytes(placement: Placement) -> int:
        return _bytes_of(run.abstract_batch(placement)) // devices

    def batches_bytes(placement: Placement) -> int:
        return MINIBATCHES * batch_bytes(placement)

    state = run.abstract_state()
    exchange = run.config.allreduce.to_dict()  # its buckets take memory too
    identity = [run.identity(), exchange, devices, describe_machine()]
    cache = cache_folder()
    memory = fit.StepMemory(
        measure,
        _bytes_of(state) + _bytes_of(state.params),  # and the gradient
        cache / "step_memory.json" if cache else None,
        hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
    )
    limit = json_from_process_0(device_memory(run.config))

    def choose(size: int, workers: int) -> Placement:
        each = math.ceil(workers / devices)
        place = functools.partial(put, size)
        return fit.choose(
            lambda steps: place(accumulation_steps=steps), each, memory, batches_bytes, limit
        )

    chosen = {size: choose(size, p.workers) for size, p in run.placements.items()}
    kept = {p: step for p, step in compiled.items() if p in chosen.values()}
    return dataclasses.replace(run, placements=chosen, compiled=kept)


def _bytes_of(shapes: Any) -> int:
    return sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes))
