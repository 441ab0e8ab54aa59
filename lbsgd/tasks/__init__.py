"""Tasks: what a batch holds, its loss and its metrics, and what evaluation sums up."""

from lbsgd.tasks.classification import classification as classification
from lbsgd.tasks.task import Metric as Metric
from lbsgd.tasks.task import Task as Task
from lbsgd.workers.reductions import Reduction as Reduction
