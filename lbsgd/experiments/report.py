"""Makes the report of sweeps and runs: results.json, table.md, pictures and report.html."""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from lbsgd.experiments import figures, html, table
from lbsgd.experiments.loading import combine, load
from lbsgd.experiments.results import Results
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, replace_file

# It is 64 MB, which training alone does not need.
_MISSING = "report.html is left out: it needs plotly, which pip install 'lbsgd[report]' installs"


class Report(NamedTuple):
    """Holds what a report says, and where it is.

    Attributes:
      table: in Markdown, with what must be known to read it.
      files: that were written.
      missing: says what report.html lacks to be one of them; "" for nothing.
    """

    table: str
    files: list[AnyPath]
    missing: str


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
        missing = "" if _has_plotly() else _MISSING
        files = _write(results, text, out, page=not missing)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror or error}); choose another --out"
        ) from error
    return Report(text, files, missing)


def _has_plotly() -> bool:
    return importlib.util.find_spec("plotly") is not None


def _write(results: Results, text: str, out: AnyPath, *, page: bool) -> list[AnyPath]:
    names = ["results.json", "table.md"]
    results.write(out / names[0])
    replace_file(out / names[1], text + "\n")
    if page:
        names.append("report.html")
        replace_file(out / names[-1], html.page(results))
    return [*(out / name for name in names), *figures.draw(results, out)]
