"""Patterns and roles select parameters, and trees are parted into what is trained and what not."""

import jax
import numpy as np
import pytest

from lbsgd.models.roles import Role
from lbsgd.models.selection import multipliers_by, selected, trained_by, trained_part, with_frozen
from lbsgd.system.errors import ConfigError

BLOCK = {
    "conv1": {"conv": {"kernel": Role.KERNEL}},
    "norm1": {"scale": Role.NORM_SCALE, "offset": Role.NORM_OFFSET},
}
ROLES = {
    "stem_conv": {"conv": {"kernel": Role.KERNEL}},
    "stage1_block1": BLOCK,
    "stage2_block1": BLOCK,
    "classifier": {"kernel": Role.KERNEL, "bias": Role.BIAS},
}


def names(flags) -> set[str]:
    """The paths of those that are True."""
    leaves = jax.tree_util.tree_leaves_with_path(flags)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, x in leaves if x}


ALL = names(ROLES)


@pytest.mark.parametrize(
    ("pattern", "those"),
    [
        ("classifier", {"classifier/kernel", "classifier/bias"}),
        ("classifier/bias", {"classifier/bias"}),
        ("stage1_block1/conv1/conv/kernel", {"stage1_block1/conv1/conv/kernel"}),
        ("stage?_*/norm1", {f"stage{i}_block1/norm1/{x}" for i in (1, 2) for x in BLOCK["norm1"]}),
        ("*/conv1", {f"stage{i}_block1/conv1/conv/kernel" for i in (1, 2)}),
        ("stage[!1]*/norm1/scale", {"stage2_block1/norm1/scale"}),
        ("norm offset", {f"stage{i}_block1/norm1/offset" for i in (1, 2)}),
        ("kernel", {name for name in ALL if name.endswith("kernel")}),
        ("*", ALL),
    ],
)
def test_a_role_or_a_glob_for_each_of_the_first_parts(pattern, those):
    assert names(selected("key", pattern, ROLES)) == those


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("clasifier", "classifier"),
        ("stage1_block1/conv2", "stage1_block1/conv1"),
        ("norm_scale", "norm scale"),
        ("*kernel", "kernel"),  # it does not reach over a part
        ("Classifier", "classifier"),
        ("classifier/kernel/0", "classifier/kernel"),
    ],
)
def test_what_matches_nothing_is_an_error_that_names_the_nearest(pattern, nearest):
    with pytest.raises(ConfigError, match=f"optimizer.freeze: '.*' matches no.* is {nearest!r}$"):
        trained_by((pattern,), ROLES)


def test_what_several_patterns_freeze_is_all_that_each_does():
    trained = trained_by(("stem*", "norm scale", "stage1_*"), ROLES)
    assert names(trained) == {
        "stage2_block1/conv1/conv/kernel",
        "stage2_block1/norm1/offset",
        "classifier/kernel",
        "classifier/bias",
    }
    assert names(trained_by((), ROLES)) == ALL
    with pytest.raises(ConfigError, match=r"^optimizer\.freeze leaves no parameter"):
        trained_by(("st*", "classifier"), ROLES)


def test_multipliers_of_several_patterns_are_multiplied():
    everything = trained_by((), ROLES)
    found = multipliers_by(
        {"stage*": 0.5, "norm scale": 4.0, "classifier": 10.0}, ROLES, everything
    )
    by_name = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(found)
    }
    assert by_name.pop("stem_conv/conv/kernel") == 1
    assert by_name.pop("classifier/kernel") == by_name.pop("classifier/bias") == 10
    assert {x for name, x in by_name.items() if name.endswith("scale")} == {2.0}
    assert {x for name, x in by_name.items() if not name.endswith("scale")} == {0.5}
    with pytest.raises(ConfigError, match="rate_multipliers: 'stage3' matches no"):
        multipliers_by({"stage3": 2.0}, ROLES, everything)
    with pytest.raises(ConfigError, match="all that 'stem_conv' matches is frozen"):
        multipliers_by({"stem_conv": 2.0}, ROLES, trained_by(("st*",), ROLES))


def test_the_trained_part_has_no_frozen_leaf_and_goes_back_to_its_place():
    tree = jax.tree.map(lambda _: np.zeros(2), ROLES)
    trained = trained_by(("st*",), ROLES)
    part = trained_part(tree, trained)
    assert len(jax.tree.leaves(part)) == 2
    whole = with_frozen(jax.tree.map(lambda x: x + 1, part), tree)
    assert jax.tree.structure(whole) == jax.tree.structure(tree)
    assert {name: x[0] for name, x in whole["classifier"].items()} == {"kernel": 1, "bias": 1}
    assert whole["stem_conv"]["conv"]["kernel"] is tree["stem_conv"]["conv"]["kernel"]
    assert trained_part(tree, None) is tree
