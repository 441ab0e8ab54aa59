"""The feed of a run: its batches, by update index and by worker."""

import dataclasses
from collections.abc import Mapping

from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.loaders import evaluation_loader, training_loader
from lbsgd.data.order import Order, ShardOrder
from lbsgd.data.pipeline import EvalBatches, Prefetch, TrainBatches
from lbsgd.data.repeated import RepeatedBatches, random_batch
from lbsgd.data.source import Splits
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
        """Iterates over the batches of the updates from `start` on, loaded ahead."""
        if self.plan.config.data.synthetic_on_device:
            return self._repeated(start)
        return self.train_batches().between(start, self.plan.total_updates)

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

    def _repeated(self, start: int) -> RepeatedBatches:
        plan, program = self.plan, Program(self.plan)
        batch_of = {
            size: random_batch(
                program.abstract_batch(placement), plan.data.classes, plan.config.seed
            )
            for size, placement in plan.placements.items()
        }
        updates = range(start, plan.total_updates)
        return RepeatedBatches(batch_of[plan.timeline.batch_size(t)] for t in updates)
