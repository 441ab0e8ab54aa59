"""Makes the report of sweeps and runs: results.json, table.md, pictures and report.html."""

from collections.abc import Sequence
from typing import NamedTuple

from lbsgd.experiments import figures, html, table
from lbsgd.experiments.loading import combine, load
from lbsgd.experiments.results import Results
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, replace_file


class Report(NamedTuple):
    """Holds what a report says, and where it is.

    Attributes:
      table: in Markdown, with what must be known to read it.
      files: that were written.
    """

    table: str
    files: list[AnyPath]


def make_report(folders: Sequence[AnyPath], out: AnyPath, metric: str = "") -> Report:
    """Writes the report of sweeps and single runs, finished or not, as one table.

    Args:
      folders: as `load` takes them; the first sweep among them says what is shown.
      out: the folder that it is written into, which is made if need be.
      metric: of evaluations, as `val_error_top5`; by default the one that the sweep names, or the
        headline of the task.

    Raises:
      ConfigError: one holds no results, they cannot be compared, or `out` cannot be written.
    """
    results = combine([load(folder) for folder in folders], metric)
    text = table.markdown(results)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = _write(results, text, out)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror or error}); choose another --out"
        ) from error
    return Report(text, files)


def _write(results: Results, text: str, out: AnyPath) -> list[AnyPath]:
    results.write(out / "results.json")
    replace_file(out / "table.md", text + "\n")
    replace_file(out / "report.html", html.page(results))
    names = ("results.json", "table.md", "report.html")
    return [*(out / name for name in names), *figures.draw(results, out)]
