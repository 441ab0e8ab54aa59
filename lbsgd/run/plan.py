"""The plan of a run: every number that follows from its config, what the data hold, and a machine.

A plan opens no file and asks no device. So it can be made on a laptop for a pod that is not there
and data that lie elsewhere: it is what `--explain` prints, and what programs are made of.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lbsgd.checkpoint.manifest import named_leaves
from lbsgd.config.dotted import Named
from lbsgd.data.augmentation.named import Augmentation, build_augmentation
from lbsgd.data.facts import Facts
from lbsgd.data.image_sizes import ImageSizes, plan_image_sizes
from lbsgd.data.interface import Interface, interface_of
from lbsgd.data.mixing import Mixing, mixing_of
from lbsgd.models.networks import Network, Outline, build_network, outline
from lbsgd.models.selection import trained_by, trained_part
from lbsgd.models.unused import explain_unused_batch_norm, reset_unused_batch_norm
from lbsgd.run import layout
from lbsgd.run.checks import (
    check_data,
    check_network,
    check_running_mixup,
    check_shards,
    image_shape_of,
)
from lbsgd.run.config import explain_unused, in_effect, named_code, run_keys
from lbsgd.run.initial_state import bind_state_of, initial_state
from lbsgd.run.mixed_batches import RunningMixup, build_running_mixup
from lbsgd.run.scheduled import numbers_of, rule_of_run, schedules_of
from lbsgd.run.second_order import build_second_order
from lbsgd.run.sink_names import load_sinks
from lbsgd.run.target import Target, find_target
from lbsgd.run.worker import bind_worker, build_preprocess, joins_layers
from lbsgd.schedule import batch_growth, times
from lbsgd.schedule.functions import Schedule
from lbsgd.schedule.learning_rate import LearningRate, build_learning_rate
from lbsgd.schedule.measurements import Measurements, plan_measurements
from lbsgd.schedule.timeline import Timeline
from lbsgd.step.evaluation import eval_step, moments_step
from lbsgd.step.layer_statistics import layer_statistics
from lbsgd.step.numbers import Numbers
from lbsgd.step.second_order import SecondOrder
from lbsgd.step.train_step import TrainState, train_step, train_steps
from lbsgd.step.worker import Worker
from lbsgd.system.devices import precision
from lbsgd.tasks.build import build_task, check_task, targets_of
from lbsgd.tasks.task import Task
from lbsgd.weights.initial import InitialWeights, Variables
from lbsgd.weights.keys import IDENTITY
from lbsgd.weights.stored import Pixels
from lbsgd.workers.collectives.allreduce import gradient_mean
from lbsgd.workers.placement import DEVICE_AXES, Placement, place
from lbsgd.workers.topology import Topology


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says what a run computes, and where its workers lie.

    Attributes:
      data: what is known of the data.
      topology: the machine that the run is planned for.
      placements: where the workers are, by batch size.
      total_updates: T; updates are 0..T-1.
      network: in training with the mapped axes of synced batch norm.
      outline: what tracing it tells: shapes, roles.
      trained: like the parameters, True where they are trained, False where they are frozen.
      task: what is learned, and by what it is judged.
      code: what the config names that is not lbsgd's own.
      schedules: what varies with the update index, by the name it has among the metrics.
      numbers: what each update takes: a number, or a schedule of it.
      initial_state: seed, arrays -> `TrainState`, the same on any machine (pure, to be compiled);
        without a seed, with that of the config; arrays by name take the place of what is drawn.
      state_shapes: shapes and types of the state, as `jax.ShapeDtypeStruct`s; as it is stored, by
        worker where devices hold it by slot.
      evaluate_after, save_after: numbers of updates done at which to evaluate and to save.
      image_shape: `(h, w, c)` of what the network sees, in evaluation at least.
      augmentation: what `data.augment` names.
      image_sizes: `(h, w)` of what it sees in training, by update.
      preprocess: uint8 images -> input of the network.
      worker: `step.worker.worker_loss`, bound; each layer computed by itself.
      gradient_mean: the all-reduce, bound; None for `lax.pmean`.
      second_order: how natural gradients are made; None for a first-order optimizer.
      running_mixup: None for none.
      measurements: when diagnostics are due.
      target: that the run ends at; None for none.
      weights: that it starts from; None where it draws them all.
      unused: a line that names the keys without effect, if there are any; `config` is without them.
      estimated: how the number of accumulation steps was estimated, a line; "" where it was not.
    """

    config: ml_collections.FrozenConfigDict
    data: Facts
    topology: Topology
    timeline: Timeline
    placements: Mapping[int, Placement]
    total_updates: int
    network: Network
    outline: Outline
    trained: PyTree[bool]
    task: Task
    code: tuple[Named, ...]
    learning_rate: LearningRate
    schedules: Mapping[str, Schedule]
    numbers: Numbers
    optimizer: optax.GradientTransformationExtraArgs
    initial_state: Callable[..., TrainState]
    state_shapes: TrainState
    evaluate_after: frozenset[int]
    save_after: frozenset[int]
    image_shape: tuple[int, int, int]
    augmentation: Augmentation | None
    image_sizes: ImageSizes
    preprocess: Callable[[jax.Array], jax.Array]
    worker: Worker
    gradient_mean: Callable[[Any], Any] | None
    second_order: SecondOrder | None
    running_mixup: RunningMixup | None
    measurements: Measurements
    target: Target | None
    weights: InitialWeights | None = None
    unused: tuple[str, ...] = ()
    estimated: str = ""

    @property
    def placement(self) -> Placement:
        """Where the workers of the first update are; evaluations too use its devices."""
        return self.placements[self.config.batch_size]

    def placement_of(self, update: int) -> Placement:
        """Returns where the workers are at an update index; past the last, where they were then."""
        return self.placements[self.timeline.batch_size(min(update, self.total_updates - 1))]

    def image_shape_of(self, update: int) -> tuple[int, int, int]:
        """Returns `(h, w, c)` of the images of an update index."""
        return (*self.image_sizes(update), self.image_shape[2])

    def place(self, batch_size: int, accumulation_steps: int) -> Placement:
        """Places the workers of a batch size in so many accumulation steps.

        Raises:
          ConfigError: they cannot be.
        """
        return _place(self.config, self.topology, batch_size, accumulation_steps)

    @property
    def precise_batches(self) -> int:
        """Minibatches that precise batch norm takes its statistics over; 0 for none."""
        return math.ceil(self.config.batch_norm.precise_examples / self.config.batch_size)

    @property
    def interface(self) -> Interface:
        """Says what the network takes and gives in evaluation."""
        return interface_of(self.config.data, self.image_shape, self.data.class_names)

    @property
    def mixing(self) -> Mixing:
        """What is mixed and erased on the devices."""
        return mixing_of(self.config.data, self.config.seed, self.image_shape)

    def batch_shapes(
        self, placement: Placement, image_shape: tuple[int, int, int] | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a training batch, each `[A, D * L, n, ...]`.

        Args:
          image_shape: by default that of whole images.
        """
        p = placement
        slots = (p.accumulation_steps, p.devices * p.lanes, p.worker_batch_size)
        row: dict[str, Any] = {"image": np.zeros(image_shape or self.image_shape, np.uint8)}
        none = np.zeros(1, np.int64)
        targets = targets_of(self.task, none.astype(np.int32))
        row |= {key: drawn[0] for key, drawn in (targets | self.mixing.draw(none, none)).items()}
        return {key: jax.ShapeDtypeStruct(slots + x.shape, x.dtype) for key, x in row.items()}

    def train_step(
        self, placement: Placement, *, alone: bool = True
    ) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """Binds the update of a placement, pure: (state, batch, numbers) -> (state, metrics).

        Args:
          alone: whether it is not mapped over several runs, whose weights differ.
        """
        worker = self.worker
        if alone and joins_layers(self.config, placement):
            worker = functools.partial(worker, network=self.network.train_joined)
        return functools.partial(
            train_step,
            worker=worker,
            reductions=self.task.reductions,
            optimizer=self.optimizer,
            placement=placement,
            of_step=None if self.config.batch_norm.frozen_statistics else self.outline.of_step,
            trained=self.trained,
            total_variance=self.config.batch_norm.running_variance == "total",
            gradient_mean=self.gradient_mean,
            statistics=layer_statistics if self.measurements.layers else None,
            second_order=self.second_order,
            running_mixup=self.running_mixup and self.running_mixup.mix,
        )

    def train_steps(
        self, placement: Placement
    ) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """Binds several updates, pure: (state, batches, numbers) -> (state, metrics of each)."""
        return functools.partial(train_steps, step=self.train_step(placement))

    @property
    def is_spread(self) -> bool:
        """Tells whether processes have parts of the state that the others do not have."""
        shared_out = self.state_shapes.curvature, self.state_shapes.mixed
        return self.topology.processes > 1 and bool(jax.tree.leaves(shared_out))

    def shapes_on_devices(self, placement: Placement) -> TrainState:
        """Gives shapes and types of the state as devices hold it."""
        return layout.shapes(self.state_shapes, self.second_order, placement)

    def state_shardings(self, placement: Placement, mesh: Mesh | AbstractMesh) -> TrainState:
        """Says where the parts of the state are: a prefix of its tree."""
        return layout.shardings_on(mesh, self.second_order, placement)

    def moments_step(self) -> Callable[..., Any]:
        """Binds (params, batch_stats, numbers, batch) -> batch-norm moments of that minibatch."""
        return functools.partial(
            moments_step,
            worker=self.worker,
            placement=self.placement,
            of_step=self.outline.of_step,
            total_variance=self.config.batch_norm.running_variance == "total",
        )

    def eval_step(self) -> Callable[..., dict[str, jax.Array]]:
        """Binds (params, batch_stats, batch) -> sums of the task."""
        return functools.partial(
            eval_step,
            network=self.network.evaluate,
            preprocess=self.preprocess,
            evaluate=self.task.evaluate,
            placement=self.placement,
        )

    def number_shapes(self) -> Numbers:
        """Shapes and types of the numbers of an update."""
        whole = {"seed": jnp.uint32, "update_index": jnp.int32}
        with precision(self.config.dtype):
            floating = jax.ShapeDtypeStruct((), jnp.result_type(float))
            shapes = jax.tree.map(lambda _: floating, self.numbers)
            return shapes._replace(
                **{key: jax.ShapeDtypeStruct((), dtype) for key, dtype in whole.items()}
            )

    def trace(self, placement: Placement | None = None) -> jax.stages.Traced:
        """Traces the update for devices that need not be here, to be lowered for their platform."""
        placement = placement or self.placement
        replicated = NamedSharding(placement.abstract_mesh, PartitionSpec())
        by_slot = NamedSharding(placement.abstract_mesh, placement.batch_spec)
        out = (self.state_shardings(placement, placement.abstract_mesh), replicated)
        step = jax.jit(self.train_step(placement), donate_argnums=0, out_shardings=out)
        with precision(self.config.dtype):
            return step.trace(
                layout.sharded(self.shapes_on_devices(placement), out[0]),
                layout.sharded(self.batch_shapes(placement), by_slot),
                layout.sharded(self.number_shapes(), replicated),
            )

    def identity(self) -> dict[str, Any]:
        """Collects what decides the parameters of the run; a workdir belongs to one of these."""
        # As much of a digest as tells files apart, and can be read.
        code = {named.name: named.digest[:12] for named in self.code}
        of_code = {"code": code} if code and not self.config.code_may_differ else {}
        whole = {**run_keys(self.config), **of_code, "the training set": self.data.fingerprint}
        return whole | ({IDENTITY: self.weights.fingerprint} if self.weights else {})

    def variables(self) -> Variables:
        """Describes the variables of the network, for weights to be set."""
        shapes = {"params": self.state_shapes.params, "batch_stats": self.state_shapes.batch_stats}
        outputs = self.config.model.num_classes or self.data.classes
        pixels = Pixels(self.image_shape, self.interface.mean, self.interface.std)
        classes = self.data.class_names
        return Variables(self.network, outputs, classes, pixels, named_leaves(shapes))


def make_plan(config: ml_collections.ConfigDict, data: Facts, topology: Topology) -> Plan:
    """Plans the run of a resolved config.

    With accumulation_steps=0 all workers of a device lie side by side: `lbsgd.run.fitting` finds
    how many steps they need.

    Raises:
      ConfigError: its parts do not fit together, or not with the data or the machine.
    """
    load_sinks(config)  # what is wrong with one is known to all processes, and to `--explain`
    with precision(config.dtype):
        plan = _make_plan(in_effect(config), data, topology)
    unused = [*explain_unused(config), *explain_unused_batch_norm(config, plan.outline)]
    return dataclasses.replace(plan, unused=tuple(unused))


def _make_plan(config: ml_collections.ConfigDict, data: Facts, topology: Topology) -> Plan:
    image_shape = image_shape_of(config, data)
    check_data(config, image_shape, data.classes)
    timeline = batch_growth.build_timeline(config, data.examples)
    total = times.total(config, timeline)
    augmentation = build_augmentation(config.data, config.seed, image_shape)
    image_sizes = plan_image_sizes(augmentation, image_shape, timeline, total)

    network = build_network(config, config.model.num_classes or data.classes, image_shape)
    found = outline(network)
    config = reset_unused_batch_norm(config, found)
    measurements = plan_measurements(config, timeline, total)
    check_network(config, data, found, image_sizes, bool(measurements.confusion))
    task, code = build_task(config, data.classes), tuple(named_code(config))
    of_task = next((named for named in code if named.key == "task.name"), None)
    check_task(task, found.outputs, image_shape, named=of_task, network=network.named)
    learning_rate = build_learning_rate(config, timeline, total)
    sizes = timeline.sizes_between(0, total)
    check_shards(config, data.examples, sizes)
    check_running_mixup(config, sizes, image_sizes.smaller_than(image_shape))
    momenta = {size: batch_growth.momentum_of_size(config, size) for size in sizes}
    trained = trained_by(config.optimizer.freeze, found.roles)
    second_order = build_second_order(config, network, found, trained, task, topology.devices)
    rule = rule_of_run(config, found, trained, learning_rate, timeline, momenta)
    steps = config.accumulation_steps or 1
    preprocess = build_preprocess(config)
    mixup = build_running_mixup(config, task, preprocess, image_shape)
    mixed = mixup.shapes if mixup else None
    state_of = bind_state_of(config, rule, trained, second_order, mixed)
    return Plan(
        config=config,
        data=data,
        topology=topology,
        timeline=timeline,
        placements={size: _place(config, topology, size, steps) for size in sizes},
        total_updates=total,
        network=network,
        outline=found,
        trained=trained,
        task=task,
        code=code,
        learning_rate=learning_rate,
        schedules=schedules_of(config, learning_rate, timeline, momenta),
        numbers=numbers_of(config, rule, task),
        optimizer=rule.transform,
        initial_state=functools.partial(initial_state, network.initialize, state_of),
        state_shapes=jax.eval_shape(state_of, found.params, found.batch_stats),
        evaluate_after=times.every(config, "evaluation", timeline, total) | {total},
        save_after=times.every(config, "checkpoint", timeline, total) | {total},
        image_shape=image_shape,
        augmentation=augmentation,
        image_sizes=image_sizes,
        preprocess=preprocess,
        worker=bind_worker(network, preprocess, task),
        second_order=second_order,
        running_mixup=mixup,
        gradient_mean=_gradient_mean(config, trained_part(found.params, trained), topology),
        measurements=measurements,
        target=find_target(config.stop_at, task, averaged=bool(config.ema.decay)),
    )


def _place(
    config: ml_collections.ConfigDict, topology: Topology, batch_size: int, steps: int
) -> Placement:
    return place(
        batch_size,
        config.worker_batch_size,
        devices=topology.devices,
        accumulation_steps=steps,
        group_size=config.batch_norm.synced_workers,
        platform=topology.platform,
    )


def _gradient_mean(
    config: ml_collections.ConfigDict, params: Any, topology: Topology
) -> Callable[[Any], Any] | None:
    """Binds the mean over devices of gradients like these parameters; None for `lax.pmean`."""
    c = config.allreduce
    exchange = {**c, "grid": topology.grid(c), "bucket_mib": topology.bucket_mib(c)}
    return gradient_mean(params, DEVICE_AXES, topology.devices, **exchange)
