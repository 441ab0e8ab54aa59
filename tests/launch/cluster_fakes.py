"""Stand-ins for the programs of clusters, and what they were given."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"

# Every way in which a shell could take an argument for more than one word, or for a command.
ARGUMENTS = [
    "--config=configs/digits.py",
    "two words",
    "",
    "a'b\"c",
    "$(touch wrong) `touch wrong` $HOME \\ ; touch wrong & | > wrong * ~ # !",
    "line one\nline two",
    "--config.model.name=ünïcode",
]


def executable(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def words(path: pathlib.Path) -> list[str]:
    """What a fake has recorded with printf '%s\\0'."""
    return path.read_text().split("\0")[:-1]
