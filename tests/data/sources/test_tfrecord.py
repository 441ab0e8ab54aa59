"""TFRecord files that tensorflow-datasets wrote, converted without TensorFlow."""

import json
import re
import subprocess

import pytest
from tfds_datasets import ROOT, TRAIN, command_in, data_config, examples, run, shards

from lbsgd.data.sources.tfds import tfds
from lbsgd.data.sources.tfrecord import convert
from lbsgd.system.errors import ConfigError


def test_command_in_the_message_converts_tfrecord(written, tfrecord):
    """Record by record what tensorflow-datasets wrote as ArrayRecord; TFRecord stays."""
    with pytest.raises(ConfigError, match="no random access") as caught:
        tfds(data_config(tfrecord))
    before = {path: path.read_bytes() for path in tfrecord.glob("*.tfrecord-*")}
    subprocess.run(command_in(caught.value), cwd=ROOT, check=True, capture_output=True)
    for ours, theirs in zip(tfds(data_config(tfrecord)), tfds(data_config(written / "data"))):
        assert examples(ours) == examples(theirs)
        assert ours.fingerprint == theirs.fingerprint
    names = {path.name for path in (written / "data/pets/1.2.3").iterdir()}
    assert {path.name for path in tfrecord.iterdir()} == names | {path.name for path in before}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_conversion_goes_on_where_it_was_stopped(tfrecord, capsys):
    convert(tfrecord)
    first, second = shards(tfrecord)[:2]
    times = first.stat().st_mtime_ns
    second.unlink()
    file = tfrecord / "dataset_info.json"
    info = json.loads(file.read_text())
    assert info.pop("alternativeFileFormats") == ["array_record"]
    file.write_text(json.dumps(info))
    capsys.readouterr()
    convert(tfrecord)
    assert capsys.readouterr().out == f"{second}\n"
    assert first.stat().st_mtime_ns == times
    assert len(examples(tfds(data_config(tfrecord)).train)) == TRAIN
    convert(tfrecord)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "cut short or damaged"),
        (lambda content: content[:5], "cut short or damaged"),
        (lambda content: b"\xff" * 8 + content[8:], "cut short or damaged"),
        (lambda content: content + content, "has 20 records, not the 10"),
    ],
    ids=["end", "start", "length", "count"],
)
def test_damaged_tfrecord_is_not_converted(tfrecord, damage, message):
    path = min(tfrecord.glob("*-train.tfrecord-*"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message):
        convert(tfrecord)
    assert shards(tfrecord) == []
    with pytest.raises(ConfigError, match="no random access"):
        tfds(data_config(tfrecord))


def test_full_disk_is_reported(tfrecord):
    """As far as a limit on the size of files is like one."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"from lbsgd.data.command import main; sys.exit(main(['--tfrecord', {str(tfrecord)!r}]))"
    )
    done = run("-c", code, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"lbsgd: cannot write .*incomplete.*File too large.*\n", done.stderr)
    assert shards(tfrecord) == []


def test_nothing_to_convert(pets):
    file = pets / "dataset_info.json"
    file.write_text(file.read_text().replace('"array_record"', '"riegeli"'))
    with pytest.raises(ConfigError, match="has no TFRecord files"):
        convert(pets)
