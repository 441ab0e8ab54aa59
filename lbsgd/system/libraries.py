"""Settings of the libraries that a process which trains imports; made before it imports them."""

import logging as python_logging
import os
import sys

from lbsgd.system.cache import keep_compiled
from lbsgd.system.limits import num_cores


def set_up_libraries() -> None:
    """Leaves the terminal to the run, the home to the user, and cores to others that share them.

    Libraries speak up from warnings on, and what XLA compiles is kept (`keep_compiled`).
    """
    # Else XLA starts a thread for each core, whatever quota of them this process has.
    os.environ.setdefault("NPROC", str(num_cores()))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it says that they are on
    # Else tensorflow brings a folder of Keras, even one called ~ where there is no home.
    os.environ.setdefault("KERAS_HOME", os.path.join(os.devnull, "keras"))
    keep_compiled()
    _set_up_logging()


def _set_up_logging() -> None:
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # libraries may ask for flags of their own
    logging.use_absl_handler()
    logging.get_absl_handler().python_handler.stream = sys.stderr  # as `protect_streams` made it
    logging.set_verbosity(logging.WARNING)
    # It warns where it cannot keep a cache in the home.
    python_logging.getLogger("matplotlib").setLevel(python_logging.ERROR)
