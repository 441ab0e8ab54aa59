"""The mutants of `make mutants` are changes of the code as it is."""

import pathlib

import pytest
from mutants import MUTANTS, ROOT, Mutant, mutate


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.promise)
def test_a_mutant_is_a_change_that_compiles_and_names_tests_that_exist(tmp_path, mutant):
    path = tmp_path / "lbsgd" / mutant.file
    path.parent.mkdir(parents=True)
    before = (ROOT / "lbsgd" / mutant.file).read_text()
    path.write_text(before)
    mutate(tmp_path, mutant)
    assert path.read_text() != before
    compile(path.read_text(), str(path), "exec")
    assert mutant.tests
    assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests)


@pytest.mark.parametrize("old", ["nothing of the kind", "a"])
def test_a_change_of_what_does_not_stand_there_once_is_an_error(tmp_path, old):
    (tmp_path / "lbsgd").mkdir()
    pathlib.Path(tmp_path / "lbsgd" / "x.py").write_text("a = a")
    with pytest.raises(ValueError, match="has not once"):
        mutate(tmp_path, Mutant("none", "x.py", old, "b", ()))
