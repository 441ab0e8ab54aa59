"""Runs that make their updates together: they meet at each, and one program makes it for all.

Each is `lbsgd.train.run` in a thread of its own, with its own data, record and checkpoints; the
threads take turns.
"""

import contextlib
import threading
from collections.abc import Callable

import jax
import numpy as np

from lbsgd.experiments.joint import JointProgram
from lbsgd.experiments.turns import Turns
from lbsgd.run.calls import Call
from lbsgd.run.program import CompiledSteps, Program
from lbsgd.run.updates import Metrics, OwnUpdates
from lbsgd.step.train_step import TrainState
from lbsgd.step.worker import Batch
from lbsgd.system.devices import explain_out_of_memory, precision


class Group:
    """Runs members in turn; those that train meet at each update."""

    def __init__(self, count: int, should_stop: Callable[[int], bool]) -> None:
        """Runs nobody yet.

        Args:
          should_stop: asked with the number of updates done.
        """
        self._count, self._asked, self._stopped = count, should_stop, False
        self._answers: dict[int, bool] = {}
        self._turns = Turns(count, self._met)
        self._arrived: list[Member] = []
        self._together: Together | None = None

    def run(self, act: Callable[[int], None]) -> None:
        """Calls act(member) for each member, in a thread of its own, and waits for all."""
        threads = [
            threading.Thread(
                target=self._run_member, args=(act, i), name=f"lbsgd-run-{i}", daemon=True
            )
            for i in range(self._count)
        ]
        for thread in threads:
            thread.start()
        self._turns.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # as of Ctrl-C
            self._stopped = True
            for thread in threads:
                thread.join()
            raise

    def _run_member(self, act: Callable[[int], None], member: int) -> None:
        self._turns.begin(member)
        try:
            act(member)
        finally:
            self._turns.leave(member)

    def should_stop(self, done: int) -> bool:
        """Tells all members the same after as many updates."""
        if done not in self._answers:
            self._answers[done] = self._stopped or self._asked(done)
        return self._answers[done]

    def join(self, member: int) -> Callable[[Program, TrainState, int], "Member"]:
        """Gives what a member makes its updates by."""

        def make_updates(program: Program, state: TrainState, done: int) -> Member:
            joins = Member(program, state, done)
            # One that only has its last state to evaluate meets nobody.
            if done < program.plan.total_updates:
                self._arrived.append(joins)
                joins.meet = lambda: self._turns.meet(member)
                joins.meet()
            joins.begin(self._together)
            return joins

        return make_updates

    def _met(self) -> None:
        """Lets those that have arrived begin together, and then update together."""
        if not self._together:
            # Who comes alone, the others being complete, stays alone.
            self._together = Together(self._arrived) if len(self._arrived) > 1 else None
            return
        done = self._together.update()
        self._answers = {at: answer for at, answer in self._answers.items() if at >= done}


class Member:
    """Makes the updates of one run: alone until it has come as far as the others, then together.

    Attributes:
      program, done: of the run; how many updates it had done when it arrived.
      meet: waits until all others have met.
      batch: of the update that it waits for.
      metrics: of the last update together.
    """

    def __init__(self, program: Program, state: TrainState, done: int) -> None:
        """Arrives with a state after `done` updates."""
        self.program, self.done = program, done
        self._start: TrainState | None = state
        self._own: OwnUpdates | None = None
        self._together: Together | None = None
        self._copy: TrainState | None = None
        self.meet: Callable[[], None] = lambda: None
        self.batch: Batch | None = None
        self.metrics: Metrics = {}

    def begin(self, together: "Together | None") -> None:
        """Starts to compile what it needs alone.

        Args:
          together: those that it belongs to, if it has updates to make.
        """
        self._together = together
        level = together.level if together else None
        assert self._start is not None
        self._own = OwnUpdates(self.program, self._start, self.done, level)
        self._start = None

    @property
    def state(self) -> TrainState:
        """The state after all updates so far: a copy, once these are made together."""
        if self._own:
            return self._own.state
        assert self._together
        if self._copy is None:
            self._copy = self._together.state_of(self)
        return self._copy

    def give(self) -> TrainState:
        """Gives its state away, to be stacked."""
        assert self._own
        state, self._own = self._own.state, None
        return state

    def wait(self, call: Call) -> None:
        """Waits until the update of a call is compiled."""
        if self._together and call.first >= self._together.level:
            self._together.wait(call.first)
        elif self._own:
            self._own.wait(call)

    def __call__(self, call: Call, batch: Batch) -> Metrics:
        """Makes the update of a call, once the others are there."""
        if self._own and (self._together is None or call.first < self._together.level):
            return self._own(call, batch)
        self._copy, self.batch = None, batch
        self.meet()
        return self.metrics

    def close(self) -> None:
        """Ends the compiling for itself."""
        if self._own:
            self._own.close()


class Together:
    """The members that train, in one stacked state.

    Attributes:
      level: the updates that each has done when they begin together.
    """

    def __init__(self, members: list[Member]) -> None:
        """Starts to compile what they need from where the one is that has come farthest."""
        self._members, self.level = list(members), max(member.done for member in members)
        self._done = self.level
        first = members[0].program
        self._plan, self._numbers = first.plan, first.numbers
        self._program = JointProgram(first, len(members))
        self._steps = CompiledSteps(self._program, self.level)
        seeds = np.array([m.program.plan.config.seed for m in members], np.uint32)
        self._seeds = jax.device_put(seeds, self._plan.placement.replicated)
        self._states: TrainState | None = None

    def wait(self, update: int) -> None:
        """Waits until the update of this index is compiled.

        Raises:
          ConfigError: it needs more memory than a device has.
        """
        with self._enough_memory():
            step = self._steps(update)
        self._program.check_memory(step, self._plan.placement_of(update))

    def update(self) -> int:
        """Makes the update of all that are still there; returns how many are done then."""
        there = [member for member in self._members if member.batch is not None]
        batches = [(m if m.batch is not None else there[0]).batch for m in self._members]
        numbers = self._numbers.at(self._done)._replace(seed=self._seeds)
        # What a member that has left would have computed is computed on, and nobody looks at it.
        with precision(self._plan.config.dtype), self._enough_memory():
            if self._states is None:
                states = {id(member): member.give() for member in there}
                given = [states.get(id(m), states[id(there[0])]) for m in self._members]
                self._states = self._program.stack(given)
            step = self._steps(self._done)
            self._states, metrics = step(self._states, batches, numbers)
        for member, values in zip(self._members, metrics):
            member.batch, member.metrics = None, values
        self._done += 1
        return self._done

    def state_of(self, member: Member) -> TrainState:
        """Copies the state of a member."""
        assert self._states is not None
        return self._program.take(self._states, self._members.index(member))

    def _enough_memory(self) -> contextlib.AbstractContextManager[None]:
        count = len(self._members)
        return explain_out_of_memory(
            f"training {count} runs at once", f"set seeds_at_once to less than {count}"
        )
