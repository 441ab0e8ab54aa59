"""The program of a run: its plan's functions, compiled for the devices that are here."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from lbsgd.run.calls import programs_between
from lbsgd.run.layout import on_devices, sharded
from lbsgd.run.numbers import UpdateNumbers
from lbsgd.run.plan import Plan
from lbsgd.run.sharing import SHARED, Out, SharedFunction
from lbsgd.step.train_step import TrainState
from lbsgd.system.devices import precision
from lbsgd.system.errors import ConfigError
from lbsgd.system.processes import onto_devices
from lbsgd.system.text import printable
from lbsgd.weights.initial import Arrays, InitialWeights
from lbsgd.workers.compiler import Options, compiler_options
from lbsgd.workers.placement import Placement

Shape = tuple[int, int, int]  # (h, w, c)
# What an update is compiled for.
StepKey = tuple[Placement, Shape]


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a run.

    They compute with the types of their plan's config, whatever else this process computes.

    Attributes:
      compiled: updates that are compiled already, by placement and image shape.
      weights: arrays that the run starts from, by name; process 0 alone has them.
    """

    plan: Plan
    compiled: Mapping[StepKey, jax.stages.Compiled] = dataclasses.field(default_factory=dict)
    weights: Arrays = dataclasses.field(default_factory=dict)

    def start(self) -> TrainState:
        """Makes the initial state, on the devices: of the weights that are given, else drawn.

        Raises:
          ConfigError: the weights to start from are not there.
        """
        # Drawing random numbers is much to compile and little to run. On a CPU the compiler takes a
        # third of the time for the same bits when told so.
        options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

        def initial_state(*given: Any) -> TrainState:
            plan = self.plan
            return on_devices(plan.initial_state(*given), plan.second_order, plan.placement)

        initial = self._shared(initial_state, self.state_shardings(), options)
        given = [self._given(self.plan.weights)] if self.plan.weights else []
        state: TrainState = initial(np.uint32(self.plan.config.seed), *given)
        return state

    def _given(self, weights: InitialWeights) -> dict[str, jax.Array]:
        """Puts the arrays of process 0 on all devices.

        Raises:
          ConfigError: they are not there.
        """
        if weights.missing:
            raise ConfigError(f"init_from: {printable(weights.source)!r} {weights.missing}")
        shapes = {name: self.plan.variables().shapes[name] for name in weights.taken}
        nothing = {name: np.zeros(s.shape, s.dtype) for name, s in shapes.items()}
        with precision(self.plan.config.dtype):
            given: dict[str, jax.Array] = onto_devices(
                dict(self.weights) or nothing, sharded(shapes, self.plan.placement.replicated)
            )
        return given

    def state_shardings(self, placement: Placement | None = None) -> TrainState:
        """Returns where the devices hold the parts of a state: a prefix of its tree."""
        placement = placement or self.plan.placement
        return self.plan.state_shardings(placement, placement.mesh)

    def abstract_state(self) -> TrainState:
        """Returns shapes, types and shardings of the state as it is stored."""
        state: TrainState = sharded(self.plan.state_shapes, self.plan.placement.replicated)
        return state

    def abstract_batch(
        self, placement: Placement | None = None, image_shape: Shape | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes, types and shardings of a training batch, by default of whole images."""
        placement = placement or self.plan.placement
        shapes = self.plan.batch_shapes(placement, image_shape)
        batch: dict[str, jax.ShapeDtypeStruct] = sharded(shapes, placement.batch_sharding)
        return batch

    @functools.cached_property
    def numbers(self) -> UpdateNumbers:
        """Gives what each update takes as its third argument, by update index."""
        return UpdateNumbers(self.plan)

    def train_step(self, placement: Placement | None = None) -> Callable[..., Any]:
        """Jits the update: (state, batch, numbers) -> (state, metrics); the state is donated."""
        return self._bind(self._jitted(placement or self.plan.placement))

    def compile_train_step(
        self, placement: Placement | None = None, image_shape: Shape | None = None
    ) -> jax.stages.Compiled:
        """Compiles the update ahead of time for its placement, by default for whole images."""
        key = placement or self.plan.placement, image_shape or self.plan.image_shape
        if key in self.compiled:
            return self.compiled[key]
        with precision(self.plan.config.dtype):
            out = (self.state_shardings(key[0]), key[0].replicated)
            return SHARED.compile(self.lower_train_step(*key), out, self.step_options)

    @property
    def step_options(self) -> Options:
        """Gives the compiler's options for the update."""
        return compiler_options(self.plan.config.allreduce, self.plan.topology)

    def lower_train_step(
        self, placement: Placement | None = None, image_shape: Shape | None = None
    ) -> jax.stages.Lowered:
        """Lowers the update for its placement, by default for whole images."""
        placement = placement or self.plan.placement
        with precision(self.plan.config.dtype):
            shapes = self.plan.shapes_on_devices(placement)
            state = sharded(shapes, self.state_shardings(placement))
            batch = self.abstract_batch(placement, image_shape)
            numbers = sharded(self.plan.number_shapes(), placement.replicated)
            return self._jitted(placement).lower(state, batch, numbers)

    def compile_call(
        self, placement: Placement, image_shape: Shape, count: int
    ) -> jax.stages.Compiled:
        """Compiles `count` updates in one call: (state, batches, numbers) -> (state, metrics).

        The batches and the metrics of several updates are stacked.
        """
        if count == 1:
            return self.compile_train_step(placement, image_shape)
        plan, replicated = self.plan, placement.replicated
        of_state = self.state_shardings(placement)
        out = (of_state, replicated)
        jitted = jax.jit(
            plan.train_steps(placement), donate_argnums=0, out_shardings=out, keep_unused=True
        )
        with precision(plan.config.dtype):
            batches = {
                key: jax.ShapeDtypeStruct((count, *s.shape), s.dtype)
                for key, s in plan.batch_shapes(placement, image_shape).items()
            }
            lowered = jitted.lower(
                sharded(plan.shapes_on_devices(placement), of_state),
                sharded(batches, placement.stacked_sharding),
                sharded(self.numbers.shapes_of_call(count), replicated),
            )
            return SHARED.compile(lowered, out, self.step_options)

    def moments_step(self) -> Callable[..., Any]:
        """Compiles (params, batch_stats, numbers, batch) -> batch-norm moments of the batch."""
        return self._shared(self.plan.moments_step())

    def eval_step(self) -> Callable[..., dict[str, jax.Array]]:
        """Compiles (params, batch_stats, batch) -> sums of the task, and the number of examples."""
        return self._shared(self.plan.eval_step())

    def _jitted(self, placement: Placement) -> jax.stages.Wrapped:
        step = self.plan.train_step(placement)
        out = (self.state_shardings(placement), placement.replicated)
        return jax.jit(step, donate_argnums=0, out_shardings=out, keep_unused=True)

    def _shared(
        self, function: Callable[..., Any], out: Out | None = None, options: Options | None = None
    ) -> Callable[..., Any]:
        out = out or self.plan.placement.replicated
        return self._bind(SharedFunction(function, out, options))

    def _bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function to be called with the types of the plan's config."""

        def bound(*args: Any) -> Any:
            with precision(self.plan.config.dtype):
                return function(*args)

        return bound


class Compiles(Protocol):
    """Compiles the calls of a plan for a placement and an image shape."""

    @property
    def plan(self) -> Plan:
        """The plan."""

    def compile_call(self, placement: Placement, shape: Shape, count: int) -> jax.stages.Compiled:
        """Compiles `count` updates in one call, or takes what is compiled already."""


class CompiledSteps:
    """Compiles the calls of each batch and image size, in a thread, in the order of their need.

    So while a run trains with its first sizes, the updates of the others are compiled.
    """

    def __init__(self, program: Compiles, start: int, until: int | None = None) -> None:
        """Starts to compile what the updates from `start` on need.

        Args:
          until: the update index to end before; by default that of the run.
        """
        plan = program.plan
        self._plan = plan
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "lbsgd-compile")
        self._steps = {
            key: self._pool.submit(program.compile_call, *key)
            for key in programs_between(plan, start, plan.total_updates if until is None else until)
        }

    def __call__(self, update: int, count: int = 1) -> jax.stages.Compiled:
        """Returns what is compiled of a call, from the update index `update` on, once it is there.

        Args:
          count: how many updates it has.
        """
        plan = self._plan
        key = plan.placement_of(update), plan.image_shape_of(update), count
        return self._steps[key].result()

    def close(self) -> None:
        """Ends the compiling after the one it is at."""
        self._pool.shutdown(wait=False, cancel_futures=True)
