"""Words as English has them."""

import pytest

from lbsgd.system.text import pluralize


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((0, "lane"), "0 lanes"),
        ((1, "lane"), "1 lane"),
        ((2, "lane"), "2 lanes"),
        ((1000, "update"), "1,000 updates"),
        ((1, "class", "classes"), "1 class"),
        ((3, "class", "classes"), "3 classes"),
        ((1024, "device", "", "d"), "1024 devices"),
        ((1.0, "epoch", "", ".4g"), "1 epoch"),
        ((0.99999, "epoch", "", ".4g"), "1 epoch"),  # which is what is read
        ((0.75, "epoch", "", ".4g"), "0.75 epochs"),
    ],
)
def test_a_noun_goes_with_its_number(given, text):
    assert pluralize(*given) == text
