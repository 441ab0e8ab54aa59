"""Paths as users give them."""

import os
import pathlib

import pytest

from lbsgd.system.errors import ConfigError
from lbsgd.system.files import expand_home


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~", "/home/a"),
        ("~/x/~", "/home/a/x/~"),
        ("x", "x"),
        ("./~/x", "~/x"),
        ("~nobody-of-this-name", "~nobody-of-this-name"),
        ("x/~", "x/~"),
    ],
)
def test_the_home_takes_the_place_of_a_tilde(given, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    assert expand_home(given) == pathlib.Path(path)


@pytest.mark.parametrize("given", ["~", "~/x"])
def test_a_user_without_a_home_is_told(given, monkeypatch):
    """Else a folder called ~ would be made."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31)  # one without an entry in /etc/passwd
    with pytest.raises(ConfigError, match="this user has no home; set HOME"):
        expand_home(given)
    assert expand_home("./~") == pathlib.Path("~")
