"""Arguments of config files."""

import pytest

from lbsgd.run.config import default_config
from lbsgd.run.recipes import select, set_epochs
from lbsgd.system.errors import ConfigError

ROWS = {
    "batch=": "batch_size",
    "rate=": "learning_rate.reference_learning_rate",
    "model=": "model.name",
    "epochs=": set_epochs,
    "twice": lambda config, _: config.update(batch_size=2 * config.batch_size),
    "gamma=1": lambda config, _: config.model.update(zero_init_residual=False),
}


def selected(arg: str):
    config = default_config()
    config.total_epochs = 90.0
    return select(config, arg, ROWS)


def test_no_argument_leaves_the_recipe():
    assert selected("").to_dict() == {**default_config().to_dict(), "total_epochs": 90.0}


def test_parts_are_applied_in_order():
    config = selected("batch=512,twice,rate=0.2,model=resnet18,gamma=1")
    assert config.batch_size == 1024
    assert selected("twice,batch=512").batch_size == 512
    assert config.learning_rate.reference_learning_rate == 0.2
    assert config.model.name == "resnet18"
    assert not config.model.zero_init_residual


def test_another_length_moves_the_decays_in_proportion():
    config = selected("epochs=30")
    assert config.total_epochs == 30
    assert config.learning_rate.decay_epochs == (10.0, 20.0, pytest.approx(80 / 3, abs=1e-6))
    assert config.learning_rate.warmup_epochs == 5


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (
            "btach=512",
            r"no variant 'btach=512'; known: batch=\.\.\., .*twice, gamma=1",
        ),
        ("batch", "no variant 'batch'"),
        ("batch=", "no variant 'batch='"),
        ("gamma=2", "no variant 'gamma=2'"),
        ("twice=3", "no variant 'twice=3'"),
        ("batch=many", "variant 'batch=many': invalid literal"),
        ("batch=512,epochs=long", "variant 'epochs=long': could not convert"),
    ],
)
def test_what_is_not_known_is_one_line(arg, message):
    with pytest.raises(ConfigError, match=message):
        selected(arg)
