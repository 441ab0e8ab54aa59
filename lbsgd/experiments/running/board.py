"""How far a sweep is: each row's runs by how they stand, and how long the rest will take."""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lbsgd.experiments.outcome import ENDED, OVER, Standing, Status, standing
from lbsgd.experiments.running.jobs import Run
from lbsgd.system.files import AnyPath
from lbsgd.system.text import pluralize

# Of a run: before that, what it takes to start and to compile would count as if it went on so.
LEAST_MADE = 0.1


class Going(NamedTuple):
    """Holds how far a run is that is being trained.

    Attributes:
      updates: done.
      fraction: of all its updates.
      value: of the headline metric, at its last evaluation; None before the first.
    """

    updates: int = 0
    fraction: float = 0.0
    value: float | None = None

    @property
    def total(self) -> int:
        """How many updates it has in all, as far as that can be told; else 0."""
        return round(self.updates / self.fraction) if self.fraction else 0


@dataclasses.dataclass
class Line:
    """Holds how the runs of a row stand.

    Attributes:
      name: of the row.
      standings: of its runs, by workdir: those of its seeds, and of the points that it is tuned by.
      seeds: workdirs of its seeds.
      going: runs that are being trained, by workdir.
      seconds: of training, since the sweep was started.
      made: runs made in that time, fractions of them included.
    """

    name: str
    standings: dict[str, Standing]
    seeds: frozenset[str]
    going: dict[str, Going] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    made: float = 0.0

    def count(self, *statuses: Status) -> int:
        """Counts the runs that stand so."""
        return sum(standing.status in statuses for standing in self.standings.values())

    @property
    def finals(self) -> list[float]:
        """The final values of the headline metric of its complete seeds."""
        complete = [
            standing.result
            for workdir, standing in self.standings.items()
            if workdir in self.seeds and standing.status == Status.COMPLETE
        ]
        return [result["final"] for result in complete if result.get("final") is not None]

    @property
    def left(self) -> float:
        """How many runs are left to do, less what is done of those that are going."""
        open_ = len(self.standings) - self.count(*ENDED)
        return max(0.0, open_ - sum(going.fraction for going in self.going.values()))


class Board:
    """Keeps how far a sweep is.

    Attributes:
      lines: by name of the row.
    """

    def __init__(
        self, seeds: Mapping[str, Sequence[AnyPath]], tried: Mapping[str, Sequence[AnyPath]]
    ) -> None:
        """Reads how the runs of the rows stand.

        Args:
          seeds: by name of the row, the workdirs of its seeds.
          tried: by name of the row, those of the points that it is tuned by.
        """
        self.lines = {
            name: Line(
                name,
                {str(workdir): standing(workdir) for workdir in [*tried.get(name, ()), *own]},
                frozenset(map(str, own)),
            )
            for name, own in seeds.items()
        }
        self._since: dict[str, float] = {}
        self._at_once: dict[str, int] = {}

    @property
    def total(self) -> int:
        """How many runs there are in all."""
        return sum(len(line.standings) for line in self.lines.values())

    @property
    def done(self) -> int:
        """How many of them are over: complete, diverged or failed."""
        return sum(line.count(*ENDED) for line in self.lines.values())

    def reset_failures(self, runs: Sequence[Run]) -> None:
        """Has runs that failed before count as to be done, for they are tried again."""
        for run in runs:
            standings = self.lines[run.row].standings
            if standings[run.workdir].status == Status.FAILED:
                standings[run.workdir] = Standing(Status.UNFINISHED, "", {})

    def begin(self, run: Run, at_once: int = 1) -> None:
        """Notes that a run is being trained.

        Args:
          at_once: how many runs share the process.
        """
        self.lines[run.row].going[run.workdir] = Going()
        self._at_once[run.workdir] = at_once
        self._since[run.workdir] = time.monotonic()

    def show(self, run: Run, updates: int, fraction: float, values: Mapping[str, float]) -> None:
        """Notes how far a run is."""
        line = self.lines[run.row]
        before = line.going.get(run.workdir)
        if before is not None:
            # The first message may be of a run that resumed far on: that was not made just now.
            self._spend(line, run, fraction - before.fraction if before.updates else 0.0)
            value = self._headline(values)
            going = Going(updates, fraction, before.value if value is None else value)
            line.going[run.workdir] = going

    def end(self, run: Run, standing: Standing) -> None:
        """Notes that a run is no longer trained, and how it stands."""
        line = self.lines[run.row]
        before = line.going.pop(run.workdir, None)
        if before is not None and standing.status in OVER:
            self._spend(line, run, 1.0 - before.fraction)
        self._since.pop(run.workdir, None)
        line.standings[run.workdir] = standing

    def headline(self) -> str:
        """Names the headline metric as evaluations have it; "" before any run has ended."""
        return next(
            (
                str(standing.result["headline"])
                for line in self.lines.values()
                for standing in line.standings.values()
                if standing.result.get("headline")
            ),
            "",
        )

    def seconds_left(self, processes: int) -> float | None:
        """Estimates how long the rest takes, from how long it took so far; None before that."""
        return self._seconds(list(self.lines.values()), processes)

    def seconds_left_of(self, line: Line, processes: int) -> float | None:
        """Estimates how long the rest of a row takes with all processes."""
        return self._seconds([line], processes)

    def _seconds(self, lines: Sequence[Line], processes: int) -> float | None:
        made = sum(line.made for line in self.lines.values())
        if made < LEAST_MADE:
            return None
        of_all = sum(line.seconds for line in self.lines.values()) / made

        def of_run(line: Line) -> float:
            return line.seconds / line.made if line.made > LEAST_MADE else of_all

        left = sum(line.left * of_run(line) for line in lines)
        return left / processes

    def _spend(self, line: Line, run: Run, made: float) -> None:
        now = time.monotonic()
        seconds = now - self._since.get(run.workdir, now)
        line.seconds += seconds / self._at_once.get(run.workdir, 1)
        line.made += max(0.0, made)
        self._since[run.workdir] = now

    def _headline(self, values: Mapping[str, float]) -> float | None:
        name = self.headline()
        first = next((x for key, x in values.items() if key != "val_loss"), None)
        return values.get(name) if name else first


def say_end(run: Run, standing: Standing) -> str:
    """Says how a run ended: "kn=32 seed 3: validation error 1.23%"."""
    if standing.status == Status.COMPLETE:
        return f"{run}: {say_result(standing.result)}"
    if standing.status in (Status.DIVERGED, Status.FAILED):
        return f"{run}: {standing.status}: {standing.reason}"
    return f"{run}: stopped, to be resumed by the same command"


def say_result(result: Mapping[str, Any]) -> str:
    """Says the final value of the headline metric: "validation error 1.23%"."""
    final = result.get("final")
    if final is None:
        return "complete; it was never evaluated"
    metric = result.get("metrics", {}).get(result.get("headline"), {})
    return f"validation {metric.get('words', '')} {say_value(final, metric.get('unit', ''))}"


def say_value(value: float, unit: str) -> str:
    """Writes a value with its unit: "1.23%", "0.6931"."""
    return f"{value:.2f}%" if unit == "%" else f"{value:.4f}"


def say_finals(line: Line) -> str:
    """Says mean and standard deviation of the complete seeds of a row: "1.23% +- 0.12"."""
    finals = line.finals
    if not finals:
        return ""
    result = next(s.result for s in line.standings.values() if s.result.get("headline"))
    unit = result.get("metrics", {}).get(result["headline"], {}).get("unit", "")
    mean = say_value(statistics.mean(finals), unit)
    if len(finals) == 1:
        return mean
    return f"{mean} \N{PLUS-MINUS SIGN} {say_value(statistics.stdev(finals), unit)}"


def say_counts(line: Line) -> str:
    """Counts runs of a row that have no result to show: "1 diverged, 2 failed"."""
    counts = [(line.count(status), status) for status in (Status.DIVERGED, Status.FAILED)]
    return ", ".join(f"{number} {status}" for number, status in counts if number)


def say_time(seconds: float | None) -> str:
    """Says a time in its two largest units: "3 h 20 min"; "" of one that is not known."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return pluralize(round(hours / 24), "day")
