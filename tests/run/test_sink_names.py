"""Sinks as a config names them: which there are, and whose options are whose."""

import itertools

import pytest
from partial_config import config_with

from lbsgd.run.config import resolve
from lbsgd.run.sink_names import explain_sinks, load_sinks, name_of
from lbsgd.system.errors import ConfigError

CODE = """\
def plain(folder):
    return print

class Sink:
    def __init__(self, folder, *, host, port=80):
        pass

    def __call__(self, step, values):
        pass

    class Inner:
        def __init__(self, **anything):
            pass
"""
counter = itertools.count()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module in the current folder."""
    monkeypatch.chdir(tmp_path)
    name = f"sinks_of_users_{next(counter)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


def with_sinks(*sinks, **options):
    return resolve(config_with(**{"log.sinks": sinks, "log.sink_options": options}))


@pytest.mark.parametrize(
    ("sink", "name"),
    [("wandb", "wandb"), ("a:Sink", "Sink"), ("a.b:Outer.Inner", "Inner")],
)
def test_options_go_by_the_last_part_of_a_name(sink, name):
    assert name_of(sink) == name


@pytest.mark.parametrize(
    ("sinks", "options", "says"),
    [
        (("tensorbord",), {}, "unknown log.sinks 'tensorbord'; known: tensorboard, clu, wandb, m"),
        ((3,), {}, "log.sinks must hold names, not 3"),
        (("wandb", "clu", "wandb"), {}, "log.sinks has 'wandb' twice"),
        (("a:Sink", "b:Sink"), {}, "log.sinks has 'Sink' twice"),
        (
            ("clu", "a:S"),
            {"wandb": {}},
            "log.sink_options.wandb is for no sink in log.sinks (there are clu, S)",
        ),
        (
            (),
            {"wandb": {"mode": "offline"}},
            "log.sink_options.wandb is for no sink in log.sinks (none)",
        ),
        (("wandb",), {"wandb": 3}, "log.sink_options.wandb must hold options by name, not 3"),
    ],
)
def test_sinks_that_do_not_fit_their_options_are_an_error(sinks, options, says):
    with pytest.raises(ConfigError) as error:
        with_sinks(*sinks, **options)
    assert str(error.value).startswith(says)


# With {} for the user's module.
MISTAKES = [
    ("nowhere_at_all:Sink", {}, "log.sinks='nowhere_at_all:Sink': there is no module 'nowhere_at"),
    ("{}:Sing", {}, "log.sinks='{0}:Sing': there is no 'Sing' in {0}; the nearest is 'Sink'"),
    (
        "{}:Sink",
        {},
        "log.sinks='{0}:Sink' ({0}.py, line 4) needs 'host'; set log.sink_options.Sink.host",
    ),
    (
        "{}:Sink",
        {"host": "x", "prot": 1},
        "log.sinks='{0}:Sink' ({0}.py, line 4) has no option 'pro"
        "t'; the nearest that it has is 'port'",
    ),
    ("wandb", {"projct": "x"}, "log.sinks='wandb' ("),
    ("tensorboard", {"every": 3}, "log.sinks='tensorboard' ("),
]


@pytest.mark.parametrize(("sink", "options", "says"), MISTAKES)
def test_a_mistake_in_a_sink_is_known_before_anything_is_opened(mine, sink, options, says):
    sink = sink.format(mine)
    config = with_sinks(sink, **({name_of(sink): options} if options else {}))
    with pytest.raises(ConfigError) as error:
        load_sinks(config)
    assert str(error.value).startswith(says.format(mine))


def test_good_sinks_are_loaded_with_their_options(mine):
    sinks = (f"{mine}:plain", f"{mine}:Sink", f"{mine}:Sink.Inner", "mlflow")
    config = with_sinks(*sinks, Sink={"host": "h"}, Inner={"a": 1}, mlflow={"tags": {"b": "c"}})
    loaded = load_sinks(config)
    assert [sink.factory.name for sink in loaded] == list(sinks)
    assert [dict(sink.options) for sink in loaded] == [
        {},
        {"host": "h"},
        {"a": 1},
        {"tags": {"b": "c"}},
    ]
    assert [sink.own for sink in loaded] == [False, False, False, True]


def test_the_files_of_users_sinks_are_named(mine):
    (line,) = explain_sinks(with_sinks("tensorboard", f"{mine}:plain"))
    assert line.startswith(f"code: log.sinks='{mine}:plain' of {mine}.py (SHA-256 ")
