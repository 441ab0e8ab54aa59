"""Every array is accounted for: taken, left, replaced, or a mistake that a line names."""

import pytest

from lbsgd.models.resnet import named_architecture
from lbsgd.system.text import LONGEST_LINE
from lbsgd.weights.matching import check_rows, describe_rows, match, recognize, table_of
from lbsgd.weights.stored import Entry, UnreadableError
from lbsgd.weights.torchvision import torchvision_names

NAMES = torchvision_names(named_architecture("resnet18"))
HEAD = {"params/classifier/kernel": (1,), "params/classifier/bias": (0,)}
# Of a network of four channels everywhere, and three classes.
HERE = {name: (3, 3, 4, 4) if name.endswith("kernel") else (4,) for name in NAMES}
HERE |= {"params/classifier/kernel": (4, 3), "params/classifier/bias": (3,)}


def there(**changes):
    """What fits, in torchvision's names; changes are by name with _ for dots, None to leave out."""
    entries = {NAMES[name]: Entry(shape[::-1], "float32") for name, shape in HERE.items()}
    entries |= {"bn1.num_batches_tracked": Entry((), "int64")}
    entries |= {name.replace("__", "."): entry for name, entry in changes.items()}
    return {name: entry for name, entry in entries.items() if entry}


def rows_of(entries, head=HEAD):
    return match(recognize("resnet18", entries, HERE), entries, HERE, lambda: head)


def whats(rows):
    """What became of the arrays that were not simply taken, by their names there or here."""
    return {row.there or row.here: row.what for row in rows if row.what != "taken"}


COUNTER = {"bn1.num_batches_tracked": "not needed"}


def test_what_fits_is_taken_and_counters_need_no_place():
    entries = there()
    rows = rows_of(entries)
    assert whats(rows) == COUNTER
    assert {row.there for row in rows} == entries.keys()
    assert {row.here for row in rows} == {*HERE, ""}
    check_rows(rows, ())
    assert describe_rows(rows) == [
        f"{len(HERE)} of the network's {len(HERE)} arrays taken; 1 counter of batches not needed"
    ]


CASES = {
    "missing": ({"bn1__bias": None}, {"params/stem_norm/offset": "missing"}),
    "unexpected": ({"aux__weight": Entry((4,), "float32")}, {"aux.weight": "unexpected"}),
    "wrong shape": ({"bn1__bias": Entry((5,), "float32")}, {"bn1.bias": "wrong shape"}),
    "wrong type": ({"bn1__bias": Entry((4,), "int64")}, {"bn1.bias": "wrong type"}),
}


@pytest.mark.parametrize("kind", CASES)
def test_what_does_not_fit_is_a_mistake_unless_it_is_allowed(kind):
    changes, expected = CASES[kind]
    rows = rows_of(there(**changes))
    assert whats(rows) == {**expected, **COUNTER}
    (name,) = expected
    with pytest.raises(UnreadableError, match=f"{kind}: {name}") as raised:
        check_rows(rows, tuple(other for other in CASES if other != kind))
    assert "\n" not in str(raised.value)
    check_rows(rows, (kind,))
    check_rows(rows, (f"*{name[2:]}",))
    assert any(kind in line and name in line for line in describe_rows(rows)[1:])
    assert any(
        line.split()[0] == kind.split()[0] and name in line for line in table_of(rows).split("\n")
    )


def test_a_head_for_other_classes_is_replaced_and_another_misfit_of_it_is_none():
    classes = {"fc__weight": Entry((1000, 4), "float32"), "fc__bias": Entry((1000,), "float32")}
    rows = rows_of(there(**classes))
    assert whats(rows) == {"fc.weight": "head replaced", "fc.bias": "head replaced", **COUNTER}
    check_rows(rows, ())
    assert "fc.weight ((1000, 4) there, (4, 3) here)" in describe_rows(rows)[1]
    narrow = rows_of(there(**{**classes, "fc__weight": Entry((1000, 5), "float32")}))
    assert whats(narrow)["fc.weight"] == "wrong shape"
    flat = rows_of(there(**{**classes, "fc__weight": Entry((4,), "float32")}))
    assert whats(flat)["fc.weight"] == "wrong shape"
    unknown = rows_of(there(**classes), head={})
    assert whats(unknown)["fc.weight"] == "wrong shape"


def test_a_head_of_other_classes_is_replaced_be_they_as_many():
    entries = there()
    rows = match(
        recognize("resnet18", entries, HERE), entries, HERE, lambda: HEAD, other_classes=True
    )
    assert whats(rows) == {"fc.weight": "head replaced", "fc.bias": "head replaced", **COUNTER}
    check_rows(rows, ())
    assert describe_rows(rows)[1] == (
        "2 arrays of the head replaced, for the classes are others, drawn by the seed: "
        "fc.weight, fc.bias"
    )


def test_nothing_that_fits_is_a_mistake_whatever_is_allowed():
    entries = there(**{name.replace(".", "__"): None for name in there() if name != "conv1.weight"})
    entries["conv1.weight"] = Entry((9, 9, 9, 9), "float32")
    with pytest.raises(UnreadableError, match="no array that fits"):
        check_rows(rows_of(entries), ("missing", "unexpected", "wrong shape"))


def test_what_to_do_is_never_cut_off_and_allowing_is_no_advice_where_nothing_would_be_left():
    long = {f"{'encoder.' * 20}{i}": Entry((4,), "float32") for i in range(3)}
    for entries, allowing in (
        ({**there(), **long}, True),
        (dict.fromkeys(long, Entry((4,), "x")), False),
    ):
        rows = match(recognize("resnet18", there(), HERE), entries, HERE, lambda: HEAD)
        with pytest.raises(UnreadableError, match="does not fit") as raised:
            check_rows(rows, ())
        assert len(str(raised.value)) <= LONGEST_LINE
        assert ("init_allow=" in str(raised.value)) == allowing
        with pytest.raises(UnreadableError, match=r"; set the width$"):
            check_rows(rows, (), lambda: "set the width")


@pytest.mark.parametrize(
    ("network", "names", "says"),
    [
        ("resnet18", ["encoder.w", "a"], "'a', 'encoder.w'"),
        ("resnet18", [], "none at all"),
        ("cifar_resnet8", list(there()), "only resnet18, resnet34"),
    ],
)
def test_names_that_cannot_be_translated_are_a_mistake(network, names, says):
    here = HERE if network == "resnet18" else ["params/a"]
    with pytest.raises(UnreadableError, match=says):
        recognize(network, names, here)


def test_own_names_are_recognized_and_stay():
    names = recognize("cifar_resnet8", ["params/a/kernel"], ["params/a/kernel"])
    assert (names.there, names.of_torch) == ({"params/a/kernel": "params/a/kernel"}, False)
