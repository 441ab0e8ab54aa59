"""Prints the script that has a shell complete the words of lbsgd.

    lbsgd completion bash     for ~/.bashrc:  eval "$(lbsgd completion bash)"
    lbsgd completion zsh      for ~/.zshrc:   eval "$(lbsgd completion zsh)", after compinit
    lbsgd completion fish     for a file:     ~/.config/fish/completions/lbsgd.fish

Commands, flags, configs with their variants, keys of the config and their values are completed,
and paths by the shell. The script asks `lbsgd completion words -- WORD ...` at each TAB.
"""

from collections.abc import Iterable, Sequence
from importlib import resources

from lbsgd.run.completion.words import HelpOf, complete
from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError

SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str], commands: Iterable[str], help_of: HelpOf) -> int:
    """Prints the script, or what may stand for the last word, and returns the exit code."""
    if list(argv[:2]) == ["words", "--"]:
        print("\n".join(complete(argv[2:], commands, help_of)))
        return EXIT_DONE
    parser = Parser("lbsgd completion", __doc__)
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")
    try:
        shell = parser.parse(argv).shell
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    print(script(shell), end="")
    return EXIT_DONE


def script(shell: str) -> str:
    """Returns the script of a shell."""
    folder = resources.files("lbsgd.run.completion") / "scripts"
    return (folder / f"lbsgd.{shell}").read_text("utf-8")
