"""The feed of a run: its batches, by update index and by worker."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.loaders import evaluation_loader, training_loader
from lbsgd.data.order import Order, ShardOrder
from lbsgd.data.pipeline import Batch, EvalBatches, Prefetch, TrainBatches
from lbsgd.data.repeated import RepeatedBatches, random_batch, repeat
from lbsgd.data.source import Splits
from lbsgd.run.calls import Call, calls_between
from lbsgd.run.plan import Plan
from lbsgd.run.program import Program
from lbsgd.schedule.timeline import Timeline
from lbsgd.workers.placement import Placement


@dataclasses.dataclass(frozen=True)
class Feed:
    """The batches of a run.

    Attributes:
      corrupt: the examples that could not be read.
    """

    plan: Plan
    splits: Splits
    corrupt: CorruptExamples

    def training(self, start: int) -> Prefetch | RepeatedBatches:
        """Iterates over the batches of the calls from update `start` on, loaded ahead.

        Those of calls of several updates are stacked, `[U, A, D * L, n, ...]`.
        """
        calls = calls_between(self.plan, start, self.plan.total_updates)
        if self.plan.config.data.synthetic_on_device:
            return self._repeated(calls)
        return self.train_batches().of_calls(calls)

    def train_batches(self) -> TrainBatches:
        """Gives the minibatches of the training, by update index."""
        plan = self.plan
        batches = self.other_batches("train", plan.timeline, plan.placements)
        return dataclasses.replace(batches, order=self._order(), image_sizes=plan.image_sizes)

    def other_batches(
        self, purpose: str, timeline: Timeline, placements: Mapping[int, Placement]
    ) -> TrainBatches:
        """Gives minibatches of the training set in an order of their own for each purpose.

        Their images are whole: what they are for is the network as it is evaluated.
        """
        plan, train = self.plan, self.splits.train
        return TrainBatches(
            training_loader(
                plan.config,
                train,
                plan.image_shape,
                self.corrupt,
                plan.task.targets,
                plan.augmentation,
            ),
            Order(len(train), plan.config.seed, purpose),
            timeline,
            placements,
            plan.mixing,
        )

    def _order(self) -> Order | ShardOrder:
        """Gives the order of the training."""
        config, count = self.plan.config, len(self.splits.train)
        if config.data.shuffle == "global":
            return Order(count, config.seed)
        workers = self.plan.placement.workers
        return ShardOrder(count, config.seed, workers, config.worker_batch_size)

    def eval_batches(self) -> EvalBatches:
        """Gives the validation set, each example once."""
        plan, validation = self.plan, self.splits.validation
        loader = evaluation_loader(
            plan.config, validation, plan.interface, self.corrupt, plan.task.targets
        )
        # What fits in training fits here, where nothing is kept to be differentiated.
        p = plan.placement
        trained = p.devices * p.lanes * p.worker_batch_size
        return EvalBatches(loader, p, plan.config.evaluation.batch_size or trained)

    def _repeated(self, calls: Iterable[Call]) -> RepeatedBatches:
        plan, program = self.plan, Program(self.plan)
        batch_of = {
            size: random_batch(
                program.abstract_batch(placement), plan.data.classes, plan.config.seed
            )
            for size, placement in plan.placements.items()
        }

        @functools.cache
        def batch(size: int, count: int) -> Batch:
            sharding = plan.placements[size].stacked_sharding
            return batch_of[size] if count == 1 else repeat(batch_of[size], count, sharding)

        return RepeatedBatches(batch(plan.timeline.batch_size(c.first), c.updates) for c in calls)
