"""Words as English has them."""

import pytest

from lbsgd.system.text import enumerate_numbers, pluralize


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((0, "lane"), "0 lanes"),
        ((1, "lane"), "1 lane"),
        ((2, "lane"), "2 lanes"),
        ((1000, "update"), "1,000 updates"),
        ((1, "class", "classes"), "1 class"),
        ((3, "class", "classes"), "3 classes"),
        ((1.0, "epoch"), "1 epoch"),
        ((0.99999, "epoch"), "1 epoch"),  # which is what is read
        ((0.75, "epoch"), "0.75 epochs"),
        ((89.9652, "epoch"), "89.97 epochs"),
        ((999.97, "epoch"), "1,000 epochs"),
        ((12345.6, "epoch"), "12,346 epochs"),
    ],
)
def test_a_noun_goes_with_its_number(given, text):
    assert pluralize(*given) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([7], "7"), ([168, 337], "168 and 337"), ([9, 4692, 12511], "9, 4,692 and 12,511")],
)
def test_numbers_with_separators_are_told_apart(numbers, text):
    assert enumerate_numbers(numbers) == text
