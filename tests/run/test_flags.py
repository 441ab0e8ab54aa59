"""The flags of `lbsgd train`: configs from files and from workdirs, keys on top, and mistakes."""

import json
import pathlib
import re

import pytest

from lbsgd.run import flags
from lbsgd.run.config import default_config, flatten, resolve
from lbsgd.run.config_file import ConfigFile
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f"--config={ROOT}/configs/digits.py"
RECIPES = sorted(ROOT.glob("configs/*.py"))


def store(folder: pathlib.Path, config) -> str:
    """Makes a folder that of a run with this config; returns the flag that names it."""
    Workdir(folder).claim({}, config.to_dict(), {}).close()
    return f"--workdir={folder}"


def parsed(*argv: str) -> dict:
    return dict(flatten(resolve(flags.parse(argv).config)))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """All keys of the resolved config, and the flag that names the workdir of its run."""
    config = resolve(ConfigFile(f"{ROOT}/configs/digits.py").config())
    return dict(flatten(config)), store(tmp_path_factory.mktemp("digits"), config)


QUICK = {"digits_growing", "imagenet_lars"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(p.stem, marks=[pytest.mark.long] * (p.stem not in QUICK)) for p in RECIPES],
)
def test_a_workdir_gives_the_config_that_its_run_was_started_with(name, tmp_path):
    config = resolve(ConfigFile(f"{ROOT}/configs/{name}.py").config())
    assert parsed(store(tmp_path, config)) == dict(flatten(config))


def test_what_a_workdir_gives_is_resolved_to_the_same(digits):
    expected, workdir = digits
    assert dict(flatten(resolve(flags.parse([workdir]).config))) == expected


def test_a_file_that_has_a_sweep_says_so(tmp_path):
    """But for one whose rows cannot be read, which is no reason not to train."""
    file = f"{ROOT}/configs/ablations/goyal_table1.py"
    said = flags.parse([f"--config={file}:mini"]).sweep
    assert said.startswith(f"{file} has a sweep of 4 rows")
    assert said.endswith(f"lbsgd sweep run {file}:mini runs the sweep")
    assert flags.parse([DIGITS]).sweep == ""
    for number, sweep in enumerate(
        ("def sweep(arg):\n    1 / 0\n", "def sweep(a, b):\n    pass\n")
    ):
        path = tmp_path / f"{number}.py"
        path.write_text(f"from lbsgd.run.config import default_config as get_config\n{sweep}")
        assert flags.parse([f"--config={path}"]).sweep == ""


VALUES = {
    "stop_at": ("val_error", 24.1),
    "learning_rate.decay_epochs": (0.1, 1 / 3, 5e-324),
    "batch_growth.sizes": (512, 2**53 + 1),
    "batch_growth.at_epochs": (1.0, 2.0),
    "data.color_jitter": (0.1, 0.2, 0.3),
    "allreduce.grid": (2, 4),
    "optimizer.weight_decay": 1e-300,
    "optimizer.trust_epsilon": 0.1 + 0.2,
    "batch_norm.epsilon": 1e15,
    "data.dir": "/tmp/r\udce9 é\U0001f4a9/'\"\\",
    "data.tfds_validation": "",
    "data.crop_antialias": True,
    "seed": 2**32 - 1,
}


def test_every_kind_of_value_survives(tmp_path):
    config = default_config()
    config.update_from_flattened_dict(VALUES)
    found = dict(flatten(flags.stored_config(_stored(tmp_path, config))))
    assert found == dict(flatten(config))
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in flatten(config)
    }


def _stored(folder: pathlib.Path, config) -> pathlib.Path:
    store(folder, config)
    return folder


ON_TOP = [
    (["--config.batch_size=512"], "batch_size", 512),
    (["--config.seed", "3"], "seed", 3),
    (["-config.seed=3"], "seed", 3),
    (["--config.seed=3", "--config.seed=4"], "seed", 4),
    (["--config.learning_rate.decay_epochs=(1.0, 2.5)"], "learning_rate.decay_epochs", (1.0, 2.5)),
    (["--config.stop_at=('val_error', 2)"], "stop_at", ("val_error", 2)),
    (["--config.stop_at=()"], "stop_at", ()),
    (["--config.optimizer.weight_decay=3e-4"], "optimizer.weight_decay", 3e-4),
    (["--config.total_epochs=30"], "total_epochs", 30.0),
    (["--config.data.dir="], "data.dir", ""),
    (["--config.data.dir=a=b"], "data.dir", "a=b"),
    (["--noconfig.model.skip_connections"], "model.skip_connections", False),
    (["--config.model.skip_connections=False"], "model.skip_connections", False),
    (["--config.log.sinks=()"], "log.sinks", ()),
    (["--config.log.sinks=clu,a.b:C"], "log.sinks", ("clu", "a.b:C")),
    (["-config.log.sinks", "a.b:C"], "log.sinks", ("a.b:C",)),
    (["--config.log.sinks=('a:B', 'clu')"], "log.sinks", ("a:B", "clu")),
    (["--config.log.sinks="], "log.sinks", ()),
    (["--config.data.flip"], "data.flip", True),
]


@pytest.mark.parametrize(("argv", "key", "value"), ON_TOP)
def test_keys_are_set_on_top_of_a_file_and_of_a_workdir_alike(argv, key, value, digits):
    expected, workdir = digits
    for words in ([workdir, *argv], [*argv, workdir]):
        assert parsed(*words) == {**expected, key: value}
    for words in ([DIGITS, *argv], [*argv, DIGITS], ["--config", DIGITS[9:], *argv]):
        assert parsed(*words) == {**parsed(DIGITS), key: value}


OPTIONS = "--config.log.sink_options"


def test_options_of_several_names_are_set_on_top(digits):
    _, workdir = digits
    sinks = "--config.log.sinks=wandb,a:S"
    given = [f"{OPTIONS}.wandb.project=x", f"{OPTIONS}.S.a.b=3", f"{OPTIONS}.S.a.b=(1, 'c')"]
    for words in ([DIGITS, sinks, *given], [*given, workdir, sinks], [DIGITS, *given, sinks]):
        found = parsed(*words)["log.sink_options"]
        assert found == {"wandb": {"project": "x"}, "S": {"a": {"b": (1, "c")}}}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            [f"{OPTIONS}.S=1", f"{OPTIONS}.S.a=2"],
            "log.sink_options.S.a: S is 1, which holds no opt",
        ),
        ([f"{OPTIONS}.S.a=word", f"{OPTIONS}.S.a.b=2"], "log.sink_options.S.a.b: a is 'word', whi"),
    ],
)
def test_options_within_what_holds_none_are_a_mistake(words, says):
    with pytest.raises(ConfigError) as error:
        flags.parse([DIGITS, *words])
    assert str(error.value).startswith(says)


def test_what_follows_from_a_key_follows_from_the_one_on_top(tmp_path):
    """256/224 of the image size; but a short side that was chosen stays."""
    images = default_config()
    images.data.update({"crop": "inception", "image_size": 224})
    smaller = "--config.data.image_size=112"
    found = parsed(store(tmp_path / "follows", resolve(images)), smaller)
    assert found["data.evaluation_short_side"] == 128
    images.data.evaluation_short_side = 232
    found = parsed(store(tmp_path / "chosen", resolve(images)), smaller)
    assert found["data.evaluation_short_side"] == 232


def test_other_flags(tmp_path):
    own = ["--coordinator=host:1", "--num_processes", "2", "--process_id=1", "--explain"]
    found = flags.parse([DIGITS, *own, f"--workdir={tmp_path}"])
    assert found[1:] == (tmp_path, True, "host:1", 2, 1, "")
    assert flags.parse([DIGITS])[1:] == (
        pathlib.Path("runs/digits"),
        *(False, None, None, None, ""),
    )


def test_one_file_knows_of_no_other(tmp_path):
    """Not of a function that another one in the same process has."""
    flags.parse([DIGITS])
    (tmp_path / "digits.py").write_text(FILES["nothing.py"])
    with pytest.raises(ConfigError, match="no function get_config"):
        flags.parse([f"--config={tmp_path}/digits.py"])


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    store(tmp_path / "run", default_config())
    assert flags.parse(["--workdir=~/run"]).workdir == tmp_path / "run"


FILES = {
    "nothing.py": "x = 1\n",
    "broken.py": "def get_config(arg='')\n    pass\n",
    "none.py": "def get_config(arg=''):\n    pass\n",
    "number.py": "def get_config(arg=''):\n    return 3\n",
    "lost.py": (
        "from lbsgd.run.config import default_config\n"
        "def get_config(arg=''):\n    config = default_config().unlock()\n    config.data = 3\n"
        "    return config\n"
    ),
    "crash.py": "def get_config(arg=''):\n    return 1 / 0\n",
    "key.py": (
        "from lbsgd.run.config import default_config\n"
        "def get_config(arg=''):\n    config = default_config()\n    config.batchsize = 3\n"
        "    return config\n"
    ),
    "kind.py": (
        "from lbsgd.run.config import default_config\n"
        "def get_config(arg=''):\n    config = default_config()\n    config.batch_size = 2.5\n"
        "    return config\n"
    ),
}

# What is given, and what the one line must say: what is wrong, and what to do or what is known.
MISTAKES = {
    "unknown key": ([DIGITS, "--config.batchsize=3"], "'batchsize'.*nearest.*'batch_size'"),
    "key of a group": ([DIGITS, "--config.momentum=1"], "nearest.*'optimizer.momentum'"),
    "wrong type": ([DIGITS, "--config.batch_size=abc"], "batch_size must be int, not 'abc'"),
    "no such variant": ([DIGITS + ":huge"], "no variant 'huge'"),
    "no such row": ([f"--config={ROOT}/configs/imagenet_goyal.py:size=3"], "'size=3'.*batch=..."),
    "no such file": (["--config=configs/none.py"], "configs/none.py does not exist"),
    "no such name": (["--config=digist:x"], "no config 'digist', neither .* nearest is 'digits',"),
    "no get_config": (["--config={tmp}/nothing.py"], "nothing.py: there is no function get_config"),
    "syntax error": (["--config={tmp}/broken.py"], "broken.py: SyntaxError"),
    "error in it": (["--config={tmp}/crash.py"], "crash.py, line 2: ZeroDivisionError"),
    "unknown key in it": (["--config={tmp}/key.py"], "key.py: unknown.*nearest.*'batch_size'"),
    "wrong type in it": (["--config={tmp}/kind.py"], "kind.py, line 4: TypeError: .*batch_size"),
    "no config": ([], "no config; give one with --config .*, or the workdir of a run"),
    "keys alone": (["--config.seed=1"], "no config; give one"),
    "no value": (["--config"], "Missing value for flag --config"),
    "a group": ([DIGITS, "--config.learning_rate=1"], "group.*reference_learning_rate"),
    "nothing returned": (["--config={tmp}/none.py"], "none.py: get_config returns no config"),
    "a folder": ([f"--config={ROOT}/configs"], "configs is no file"),
    "unknown flag": ([DIGITS, "--wrokdir=x"], "'wrokdir'.*workdir"),
    "unknown flag alone": (["--wrokdir=x"], "'wrokdir'.*workdir"),
    "a stray word": ([DIGITS, "train"], "unexpected argument 'train'"),
    "a stray word of a workdir": (["{run}", "train"], "unexpected argument 'train'"),
    "a group lost": (["--config={tmp}/lost.py", "--config.data.dir=x"], "lost.py"),
    "a number returned": (["--config={tmp}/number.py"], "number.py: .*a ConfigDict, not 3"),
    "unknown key on a workdir": (["{run}", "--config.batchsize=3"], "nearest.*'batch_size'"),
    "wrong type on a workdir": (["{run}", "--config.batch_size=abc"], "batch_size must be int"),
    "a group on a workdir": (["{run}", "--config.data=3"], "data is a group of keys"),
    "no run": (["--workdir={tmp}/none"], "none holds no run to resume; begin one .*--config"),
    "below a file": (["--workdir={tmp}/key.py/x"], "key.py/x holds no run"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, tmp_path):
    args, says = MISTAKES[name]
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    run = store(tmp_path / "run", default_config())
    with pytest.raises(ConfigError) as caught:
        flags.parse([arg.format(tmp=tmp_path, run=run) for arg in args])
    assert re.search(says, str(caught.value)), caught.value


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"config": 3}', "[" * 10**5, '{"config": "\\ud800', b"\xff", None],
)
def test_a_config_of_a_run_that_is_damaged_is_a_line(text, tmp_path):
    path = tmp_path / "config.json"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.json .*; give the config again with --config"):
        flags.parse([f"--workdir={tmp_path}"])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"batchsize": 3}, "unknown config key 'batchsize'"),
        ({"data": 3}, "data is a group of keys"),
        ({"batch_size": "many"}, "batch_size must be int, not 'many'"),
        ({"stop_at": {}}, "stop_at must be tuple, not "),
        ({"seed": {"a": 1}}, "unknown config key 'seed.a'"),
    ],
)
def test_a_config_of_another_version_is_a_line(config, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(ConfigError, match=rf"config\.json: .*{says}.*; give the config again"):
        flags.parse([f"--workdir={tmp_path}"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.name", "os:system"),
        ("task.loss", "mine:loss"),
        ("optimizer.name", "optax:lion"),
        ("log.sinks", ("tensorboard", "mine:sink")),
    ],
)
def test_a_workdir_chooses_no_code(key, value, tmp_path):
    """Whoever wrote it would: such a run resumes with its config, which the user trusts."""
    config = default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError) as caught:
        flags.stored_config(_stored(tmp_path, config))
    message = str(caught.value)
    assert f"it names code, {key}={value!r}, and no workdir chooses what is run" in message
    assert message.endswith("give the config again with --config")


def test_help_tells_every_flag_and_every_key():
    text = flags.help_text()
    assert max(map(len, text.splitlines())) <= 100
    for name in ("config", *flags.TrainFlags._fields[1:-1]):
        assert f"  --{name}" in text
    rooms = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
    rooms_of_keys = ["workers", "schedule", "optim", "models", "tasks", "step", "data", "run"]
    assert rooms == ["flags", *rooms_of_keys]
    words = {word.partition("=")[0] for word in text.split()}
    assert {key for key, _ in flatten(default_config())} <= words


def test_multipliers_are_set_by_pattern(tmp_path):
    """On the command line, in the config that the workdir keeps, and from there again."""
    patterns = {"classifier": 10, "stage1_*": 0.1, "*/conv1": 0.5, "norm scale": 2.0}
    words = [f"--config.optimizer.rate_multipliers.{name}={x}" for name, x in patterns.items()]
    words += ["--config.optimizer.freeze=('stem*', 'bias')"]
    config = resolve(flags.parse([DIGITS, *words]).config)
    found = dict(flatten(config))
    assert found["optimizer.rate_multipliers"] == patterns
    assert found["optimizer.freeze"] == ("stem*", "bias")
    assert parsed(store(tmp_path, config)) == found
