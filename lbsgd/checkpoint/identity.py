"""Compares the identities of runs: what decides the numbers of each."""

from collections.abc import Mapping
from typing import Any

from lbsgd.system.text import differences


def identity_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Lists where the identities of two runs differ: "" if nowhere.

    What they say of code counts where both say something.
    """
    trees = [dict(identity) for identity in (there, here)]
    if not all(tree.get("code") for tree in trees):
        for tree in trees:
            tree.pop("code", None)
    return differences(*trees)
