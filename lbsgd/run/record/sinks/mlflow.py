"""MLflow: a run of its own there for each workdir."""

import collections
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ml_collections

from lbsgd.config.keys import flatten
from lbsgd.run.record.sinks.run_id import keep_run_id, read_run_id
from lbsgd.system.files import AnyPath


def open_sink(
    folder: AnyPath,
    config: Mapping[str, Any],
    *,
    tracking_uri: str | None = None,
    experiment: str = "lbsgd",
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> "Run":
    """Opens the run of a workdir, the same one when it resumes.

    Args:
      tracking_uri: of the store; by default as MLflow has it (the variable MLFLOW_TRACKING_URI).
      run_name: by default the name of the workdir.
    """
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    run_id = read_run_id(folder, "mlflow")
    if run_id:
        client.update_run(run_id, status="RUNNING")
        return Run(client, run_id, Metric)
    found = client.get_experiment_by_name(experiment)
    of_experiment = found.experiment_id if found else client.create_experiment(experiment)
    name = run_name or folder.absolute().name
    run_id = client.create_run(of_experiment, tags=dict(tags or {}), run_name=name).info.run_id
    keep_run_id(folder, "mlflow", run_id)
    keys = flatten(ml_collections.ConfigDict(config))
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in keys])
    return Run(client, run_id, Metric)


class Run:
    """Writes metrics into a run of MLflow, in a thread: a server may be slow, or gone."""

    def __init__(self, client: Any, run_id: str, metric: Callable[..., Any]) -> None:
        """Finds out which steps the run has: MLflow would keep a second value beside the first.

        Args:
          metric: makes one of a name, a value, milliseconds of the clock and a step.
        """
        self._client, self._id, self._metric = client, run_id, metric
        self._last: dict[str, int] = {
            key: max(metric.step for metric in client.get_metric_history(run_id, key))
            for key in client.get_run(run_id).data.metrics
        }
        self._sender = ThreadPoolExecutor(1, "lbsgd-mlflow")
        self._sent: collections.deque[Future[None]] = collections.deque()
        self._failed = False

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Sends metrics after `step` updates, but for steps that the run has already.

        Raises:
          Exception: of MLflow, of what was sent before.
        """
        while self._sent and self._sent[0].done():
            self._failed = self._sent[0].exception() is not None
            self._sent.popleft().result()
        now = time.time_ns() // 10**6
        new = {key: value for key, value in values.items() if step > self._last.get(key, -1)}
        metrics = [self._metric(key, value, now, step) for key, value in new.items()]
        self._sent.append(self._sender.submit(self._client.log_batch, self._id, metrics))

    def close(self) -> None:
        """Waits until all is sent, and says that the run has ended; once it failed, for nothing."""
        try:
            while self._sent and not self._failed:
                self._sent.popleft().result()
            if not self._failed:
                self._client.set_terminated(self._id)
        finally:
            self._sender.shutdown(wait=False, cancel_futures=True)
