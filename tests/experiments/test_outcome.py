"""How a run stands is told by the files in its workdir."""

import pytest
from tiny_run import tiny_config

from lbsgd import train
from lbsgd.experiments.outcome import Status, forget_failure, note_failure, standing
from lbsgd.system.errors import DivergedError


@pytest.mark.long
def test_a_run_from_its_start_to_its_end(tmp_path):
    workdir = tmp_path / "run"
    assert standing(workdir).status == Status.MISSING
    config = tiny_config(total_steps=4, devices=1)
    train.run(config, workdir, should_stop=lambda done: done >= 2)
    assert standing(workdir).status == Status.UNFINISHED
    note_failure(workdir, "no more electricity")
    assert standing(workdir)[:2] == (Status.FAILED, "no more electricity")
    forget_failure(workdir)
    train.run(config, workdir)
    found = standing(workdir)
    assert found.status == Status.COMPLETE
    assert found.result["updates"] == 4
    assert "minibatch: kn=64" in (workdir / "explanation.txt").read_text()


@pytest.mark.long
def test_a_run_that_diverges_says_so_in_its_result(tmp_path):
    config = tiny_config(
        devices=1, **{"learning_rate.reference_learning_rate": 1e15, "learning_rate.warmup": "none"}
    )
    with pytest.raises(DivergedError) as caught:
        train.run(config, tmp_path)
    found = standing(tmp_path)
    assert found.status == Status.DIVERGED
    assert found.reason.startswith("the ")
    assert found.reason in str(caught.value)
    assert found.result["complete"] is False
    # It is tried again from its checkpoint, with the same end.
    with pytest.raises(DivergedError):
        train.run(config, tmp_path)
    assert standing(tmp_path).status == Status.DIVERGED


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_damaged_files_count_as_not_there(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "result.json").write_text(text)
    (tmp_path / "failed.json").write_text(text)
    assert standing(tmp_path).status == Status.UNFINISHED
