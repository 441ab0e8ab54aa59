"""Only good checkpoints of this run are used, the newest first."""

import shutil

import jax.numpy as jnp
import pytest
from checkpoint_folder import Opened, damage, filled, on_disk, restored, state

from lbsgd.system.errors import ConfigError


def test_the_newest_is_used(tmp_path):
    filled(tmp_path, [9, 10, 100])
    assert restored(tmp_path) == (100, [])


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    filled(tmp_path, [3])
    for name in ("007", "4x", "-5", "notes"):
        (tmp_path / name).mkdir()
    assert restored(tmp_path) == (3, [])
    assert len(on_disk(tmp_path)) == 5


def test_those_passed_over_are_named_with_the_reason(tmp_path):
    filled(tmp_path, [1, 2, 3, 4])
    damage(tmp_path / "4")
    shutil.rmtree(tmp_path / "3")
    (tmp_path / "3").write_text("")
    shutil.rmtree(tmp_path / "2" / "state")
    update, said = restored(tmp_path)
    assert update == 1
    assert said[0] == (
        "checkpoint 4 is passed over: its manifest does not have the checksum that it names"
    )
    assert said[1] == "checkpoint 3 is passed over: it is not a folder"
    assert said[2].startswith("checkpoint 2 is passed over: it has ")
    assert len(said) == 3


def test_a_folder_with_another_update_in_it_is_passed_over(tmp_path):
    filled(tmp_path, [1, 2])
    (tmp_path / "2").rename(tmp_path / "3")
    assert restored(tmp_path) == (1, ["checkpoint 3 is passed over: it is of update 2"])


def test_checkpoints_of_another_run_are_passed_over(tmp_path):
    filled(tmp_path, [1])
    other = {"seed": 1, "model": {"name": "r", "width": 0.5}, "more": [1, 2]}
    filled(tmp_path, [2], identity=other)
    assert restored(tmp_path) == (
        1,
        [
            "checkpoint 2 is passed over: it is of another run, which differs in data (None "
            "there, a1b2 here), model.width (0.5 there, 0.25 here), more ([1, 2] there, None "
            "here), seed (1 there, 0 here)"
        ],
    )


def test_an_identity_is_itself_again(tmp_path):
    """Whatever JSON makes of tuples, and though NaN is not NaN."""
    identity = {"shape": (1, 2), "rate": 0.1, "nothing": float("nan"), "none": {}}
    filled(tmp_path, [1], identity=identity)
    assert restored(tmp_path, identity=identity) == (1, [])


def test_if_none_is_good_it_is_an_error(tmp_path):
    filled(tmp_path, [1, 2])
    damage(tmp_path / "1")
    damage(tmp_path / "2")
    with Opened(tmp_path) as opened:
        with pytest.raises(ConfigError, match=f"none of the 2 checkpoints in {tmp_path} is good; "):
            opened.checkpoints.restore(state())
    assert len(opened.said) == 2
    assert opened.checkpoints.newest is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["params"].pop("scale"), "params/scale is only in it"),
        (lambda s: s.update(extra=jnp.zeros(1)), "extra is not in it"),
        (
            lambda s: s["params"].update(scale=jnp.zeros((6,), jnp.bfloat16)),
            r"params/scale is bfloat16\[5\] there, bfloat16\[6\] here",
        ),
        (
            lambda s: s["params"].update(scale=jnp.zeros((5,), jnp.float16)),
            r"params/scale is bfloat16\[5\] there, float16\[5\] here",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_an_error(tmp_path, change, message):
    filled(tmp_path, [1, 2])
    other = state()
    change(other)
    with Opened(tmp_path) as opened:
        where = f"checkpoint {tmp_path / '2'} is of another network or optimizer: {message}; it was"
        with pytest.raises(ConfigError, match=where):
            opened.checkpoints.restore(other)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot hold checkpoints \(File exists\); choose"):
        Opened(tmp_path / "file")


def test_a_folder_that_vanished_cannot_be_read(tmp_path):
    with Opened(tmp_path / "there") as opened:
        (tmp_path / "there").rmdir()
        with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\)"):
            opened.checkpoints.restore(state())
