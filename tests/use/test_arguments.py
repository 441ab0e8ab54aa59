"""Checks that what the commands are asked for reaches what they call."""

import pytest

from lbsgd.use import arguments, evaluate_command, predict_command
from lbsgd.use.export import command as export_command

WORDS = ["--checkpoint=3", "--weights=average", "--statistics=precise", "--allow_code"]
WANTED = {"checkpoint": "3", "weights": "average", "statistics": "precise", "allow_code": True}


@pytest.mark.parametrize(
    ("command", "more"),
    [(evaluate_command, []), (predict_command, ["a.png"]), (export_command, ["out"])],
)
def test_each_argument_of_the_network_is_passed_on(command, more):
    assert arguments.wanted_of(command._parse(["runs/x", *more, *WORDS])) == WANTED


def test_keys_of_the_config_are_parted_from_other_words():
    words = ["runs/x", "--config.data.source", "folder", "--flip", "--config.devices=2"]
    others, keys = arguments.split_keys([*words, "--config.code_may_differ", "a.png"])
    assert others == ["runs/x", "--flip", "a.png"]
    assert keys == {"data.source": "folder", "devices": 2, "code_may_differ": True}
