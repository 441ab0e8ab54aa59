"""Draws what a run measured of itself as PNG files in its workdir; changes nothing else.

    lbsgd diagnose WORKDIR

Exit code 0: at least one picture; 2: there is nothing to draw, or no run.
"""

import logging
from collections.abc import Sequence

from lbsgd.run.workdir import Workdir
from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.files import AnyPath, user_path


def main(argv: Sequence[str]) -> int:
    """Draws, and returns the exit code."""
    parser = Parser("lbsgd diagnose", __doc__)
    parser.add_argument("workdir", help="the workdir of a run")
    # It warns where it cannot keep a cache in the home.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        for path in draw(Workdir(user_path(parser.parse(argv).workdir))):
            print(path)
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    return EXIT_DONE


def draw(folder: Workdir) -> list[AnyPath]:
    """Writes the pictures that there is something for, and returns where.

    Raises:
      ConfigError: there is nothing, the folder is no run's, or it cannot be written.
    """
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the workdir of a run")
    # matplotlib takes its time; mistakes in the arguments need not wait for it.
    from lbsgd.diagnostics import pictures
    from lbsgd.run.record.metrics import read_metrics
    from lbsgd.system.figures import save_figure

    metrics = read_metrics(folder.metrics)
    lists = read_metrics(folder.diagnostics, lists=True)
    figures = {
        "noise_scale.png": pictures.noise_scale_picture(metrics),
        "cosines.png": pictures.cosines_picture(lists),
        "layers.png": pictures.layers_picture(lists),
    }
    there = {folder.path / name: figure for name, figure in figures.items() if figure}
    if not there:
        raise ConfigError(
            f"{folder.path} holds no diagnostics; a run measures them with "
            "--config.diagnostics.workers.every_steps=100, or .confusion or .layers"
        )
    for path, figure in there.items():
        try:
            save_figure(figure, path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror or error})") from error
    return list(there)
