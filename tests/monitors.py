"""A monitor for tests of what reports to one."""

from lbsgd.run.record.monitor import Monitor
from lbsgd.run.record.record import NoRecord


class Lines(list):
    """A progress that keeps its lines, as a list of strings."""

    def line(self, text):
        self.append(text)

    def show(self, step, epoch, values):
        pass


def quiet(plan, *, said=None, should_stop=lambda done: False) -> Monitor:
    """A monitor that records nothing.

    Args:
      said: takes the lines; by default nobody does.
    """
    out = Lines() if said is None else said
    return Monitor(
        plan, NoRecord(plan), out, lambda: None, should_stop, lambda update: {}, start=0, skipped=0
    )
