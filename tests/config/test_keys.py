"""Keys of a config that is none of lbsgd's: how they are declared, read, checked and described."""

import pytest
from ml_collections import ConfigDict

from lbsgd.config.describe import COLUMNS, paragraphs
from lbsgd.config.keys import (
    ON,
    Condition,
    Key,
    Must,
    any_time,
    default_tree,
    flatten,
    names_of_times,
    pair_within,
    times,
)
from lbsgd.config.reading import check_is_key, nearest_key, read
from lbsgd.config.times import check_times, given
from lbsgd.config.unused import reset_unused, without_effect
from lbsgd.config.values import check_values
from lbsgd.system.errors import ConfigError

KEYS = {
    "bake.oven": Key("gas", "The oven.", choices=("gas", "wood")),
    "bake.fan": Key(False, "Whether its fan turns.", used_with={"bake.oven": ("gas",)}),
    "bake.fan_speed": Key(3, "Turns.", unit="a second", used_with={"bake.fan": ON}, positive=True),
    "bake.logs": Key(5, "Logs of wood.", most=20, used_with={"bake.oven": ("wood",)}),
    **times("bake.wait", "How long.", epochs=2.0),
    "salt": Key(0.5, "Grams.", fraction=True, used_if=any_time("bake.wait")),
    "tin": Key((1, 2), "Width and height.", check=pair_within(1, 9)),
    "depth": Key(-1.0, "Of the tin.", negative=True, follows=lambda values: values["tin"][0] - 9.0),
    "toppings": Key((), "Of the cake.", check=Must("be few", lambda value: len(value) < 3)),
    "note": Key("", "To the baker.", check=Must("be polite", lambda text: text != "quick")),
}
DEFAULTS = {name: key.default for name, key in KEYS.items()}


def named(**changes) -> dict[str, str]:
    """Keys without effect, and what they are used with."""
    values = {**DEFAULTS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return {unused.key: unused.words for unused in without_effect(values, KEYS)}


def test_defaults_are_a_tree_that_takes_no_other_keys():
    tree = default_tree(KEYS)
    assert tree.bake.oven == "gas"
    assert dict(flatten(tree)) == DEFAULTS
    with pytest.raises(AttributeError, match='Key "sugar" does not exist'):
        tree.bake.sugar = 1


def test_a_time_has_three_keys():
    assert names_of_times(KEYS) == ["bake.wait"]
    time = {key: KEYS[f"bake.wait_{key}"] for key in ("epochs", "steps", "examples")}
    assert [key.default for key in time.values()] == [2.0, 0, 0]
    assert [key.unit for key in time.values()] == ["epochs", "updates", "examples"]
    assert given(default_tree(KEYS).bake, "wait") == ("epochs", 2.0)
    assert all(key.meaning.startswith("How long.") for key in time.values())
    assert all("instead of bake.wait_epochs" in time[key].meaning for key in ("steps", "examples"))


def test_a_time_is_given_once():
    tree = default_tree(KEYS)
    check_times(tree, KEYS)
    tree.bake.wait_steps = 5
    with pytest.raises(ConfigError, match=r"^wait_epochs=2.0 and wait_steps=5 say the same thing"):
        check_times(tree, KEYS)


def test_a_config_is_completed_by_defaults():
    found = dict(flatten(read(ConfigDict({"bake": {"fan": True}, "salt": 0}), KEYS)))
    assert found == {**DEFAULTS, "bake.fan": True, "salt": 0.0}
    assert type(found["salt"]) is float


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"bake": {"ovn": "gas"}}, "unknown config key 'bake.ovn'; the nearest known one is 'bake"),
        ({"bake": 3}, "config key 'bake' is a group of keys, not 3"),
        ({"bake": {"logs": 2.5}}, r"bake.logs must be int, not 2.5 \(float\)"),
        ({"bake": {"logs": True}}, "bake.logs must be int, not True"),
        ({"bake": {"fan": None}}, "bake.fan must be bool, not None"),
        ({"tin": 3}, "tin must be tuple, not 3"),
    ],
)
def test_what_cannot_be_read_is_one_line(config, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        read(ConfigDict(config), KEYS)


def test_no_config_at_all_is_one_line():
    with pytest.raises(ConfigError, match="get_config must return a ConfigDict, not 3"):
        read(3, KEYS)


def test_names_of_keys_are_completed():
    assert nearest_key("fan_sped", KEYS) == "bake.fan_speed"
    with pytest.raises(ConfigError, match=r"bake is a group of keys; set one of them: bake\.fan, "):
        check_is_key("bake", KEYS)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("bake.oven", "electric", "unknown bake.oven 'electric'; known: gas, wood"),
        ("bake.fan_speed", 0, "bake.fan_speed must be positive, not 0"),
        ("bake.logs", 21, "bake.logs must be at most 20, not 21"),
        ("bake.logs", -1, "bake.logs must be finite and not negative, not -1"),
        ("salt", 1.0, "salt must be at least 0 and less than 1, not 1.0"),
        ("depth", float("nan"), "depth must be finite and not negative, not nan"),
        ("tin", (0, 4), r"tin must be a least and a greatest number, from 1 to 9, not \(0, 4\)"),
        ("tin", (4, 3), "tin must be a least and a greatest"),
        ("toppings", (1, 2, 3), "toppings must be few, not"),
        ("toppings", ("a",), "toppings must hold numbers, not 'a'"),
        ("toppings", (1,) * 1001, "toppings holds 1,001 numbers, more than 1,000"),
        ("note", "a\nb", "note must not hold control characters"),
        ("note", "a" * 4097, "note has 4,097 characters, more than 4,096"),
        ("note", "quick", "note must be polite, not 'quick'"),
    ],
)
def test_values_are_checked(key, value, says):
    check_values(DEFAULTS, KEYS)
    with pytest.raises(ConfigError, match=f"^{says}"):
        check_values({**DEFAULTS, key: value}, KEYS)


def test_numbers_may_be_negative_where_the_key_says_so():
    check_values({**DEFAULTS, "depth": -3.0}, KEYS)


def test_a_key_of_another_option_is_named():
    assert named() == {}
    assert named(bake__logs=7) == {"bake.logs": "bake.oven='wood'"}
    assert named(bake__logs=7, bake__oven="wood") == {}
    assert named(bake__fan=True, bake__oven="wood") == {"bake.fan": "bake.oven='gas'"}
    assert named(bake__fan_speed=9) == {"bake.fan_speed": "bake.fan, which is off"}
    assert named(bake__fan_speed=9, bake__fan=True) == {}
    assert named(bake__wait_epochs=0.0, salt=0.1) == {"salt": "bake.wait_*, which is off"}
    assert named(bake__wait_epochs=0.0, bake__wait_steps=2, salt=0.1) == {}


def test_a_key_of_an_unused_key_is_unused_and_named_with_its_reason():
    found = named(bake__oven="wood", bake__fan=True, bake__fan_speed=9)
    assert found == dict.fromkeys(("bake.fan", "bake.fan_speed"), "bake.oven='gas'")


def test_an_unused_key_counts_as_its_default():
    """A wood oven's fan is off, whatever was set, so that what is of no fan is used."""
    keys = {**KEYS, "stir": Key(1, "By hand.", used_with={"bake.fan": (False,)})}
    values = {**DEFAULTS, "bake.oven": "wood", "bake.fan": True, "stir": 2}
    assert [unused.key for unused in without_effect(values, keys)] == ["bake.fan"]


def test_what_the_default_stands_for_is_the_default():
    keys = {**KEYS, "depth": Key(0.0, "", follows=KEYS["depth"].follows, used_with={"salt": (0,)})}
    assert without_effect({**DEFAULTS, "depth": -8.0}, keys) == []
    (unused,) = without_effect({**DEFAULTS, "depth": -7.0}, keys)
    assert str(unused) == "depth=-7.0 (used only with salt=0)"


def test_what_is_unused_is_reset():
    tree = default_tree(KEYS)
    tree.update_from_flattened_dict({"bake.logs": 7, "bake.fan": True, "bake.fan_speed": 9})
    reset_unused(tree, KEYS)
    assert dict(flatten(tree)) == {**DEFAULTS, "bake.fan": True, "bake.fan_speed": 9}


def test_keys_are_described_with_defaults_units_and_options():
    keys = {**KEYS, "oil": Key("", "Of the pan. " * 20, used_if=Condition("x, which is off", bool))}
    lines = paragraphs(keys)
    assert "  bake.oven=gas  The oven. [gas or wood]" in lines
    assert "  bake.fan_speed=3  Turns. [a second; used with bake.fan]" in lines
    assert "  bake.logs=5  Logs of wood. [used with bake.oven=wood]" in lines
    assert "  tin=(1, 2)  Width and height." in lines
    assert "  salt=0.5  Grams. [used with bake.wait_*]" in lines
    assert lines[-1].endswith("[used with x]")
    assert lines[-2].startswith("      pan. Of the")
    assert max(map(len, lines)) <= COLUMNS


OWN = {
    "cook.name": Key("me", "Who cooks.", choices=("me", "you"), dotted=True),
    "cook.helpers": Key((), "Who helps.", choices=("cat",), dotted=True),
    "cook.options": Key({}, "What the cook takes."),
}


def test_options_are_by_name_and_of_any_name():
    config = default_tree(OWN)
    config.cook.options.salt = 3
    config.cook.options = {"spices": ("thyme", 2), "oven": {"fan": True}}
    given = dict(flatten(read(config, OWN)))
    assert given["cook.options"] == {"spices": ("thyme", 2), "oven": {"fan": True}}
    check_values(given, OWN)
    check_is_key("cook.options.anything", OWN)
    with pytest.raises(AttributeError):
        config.cook.spoon = 1
    with pytest.raises(ConfigError, match=r"cook\.options holds options by name, not 3"):
        read(ConfigDict({"cook": {"options": 3}}), OWN)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"a b": 1}, "cook.options: 'a b' is no name of an option"),
        ({"a": {"b": object}}, "cook.options.a.b must be numbers or words, not"),
        ({"a": float("nan")}, "cook.options.a must be finite"),
        ({"a": ("x\n",)}, "cook.options.a must not hold control characters"),
    ],
)
def test_options_hold_what_can_be_stored(options, says):
    with pytest.raises(ConfigError) as caught:
        check_values({"cook.options": options}, OWN)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("cook.name", "she", "unknown cook.name 'she'; known: me, you, or \"package.module:name\""),
        ("cook.helpers", ("cat", "dog"), "unknown cook.helpers 'dog'; known: cat, or"),
        ("cook.helpers", (1,), "cook.helpers must hold names, not 1"),
    ],
)
def test_names_are_of_the_choices_or_dotted(key, value, says):
    check_values({"cook.name": "a.b:c", "cook.helpers": ("cat", "d:e")}, OWN)
    with pytest.raises(ConfigError) as caught:
        check_values({key: value}, OWN)
    assert says in str(caught.value)
