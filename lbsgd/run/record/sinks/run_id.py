"""The name that a run has in a service, kept in its workdir, so that it resumes there too."""

from lbsgd.system.files import AnyPath, replace_file


def read_run_id(folder: AnyPath, service: str) -> str:
    """Reads the id that a workdir keeps for a service; "" if there is none yet."""
    path = _path(folder, service)
    return path.read_text().strip() if path.is_file() else ""


def keep_run_id(folder: AnyPath, service: str, run_id: str) -> None:
    """Keeps the id of a run in a service in its workdir."""
    replace_file(_path(folder, service), run_id + "\n")


def _path(folder: AnyPath, service: str) -> AnyPath:
    return folder / f"{service}_run_id.txt"
