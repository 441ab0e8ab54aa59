"""Shares of a machine."""

import os

import pytest

from lbsgd.experiments.running.shares import shares, split_cores
from lbsgd.system.errors import ConfigError


@pytest.mark.parametrize(
    ("cores", "processes", "sizes"),
    [(range(8), 2, [4, 4]), (range(8), 3, [2, 3, 3]), ([1, 5, 9], 3, [1, 1, 1])],
)
def test_each_core_belongs_to_one_process(cores, processes, sizes):
    split = split_cores(list(cores), processes)
    assert sorted(len(share) for share in split) == sizes
    assert [core for share in split for core in share] == list(cores)


def test_one_process_is_not_tied_to_cores():
    assert split_cores([0, 1], 1) == [()]


def test_more_processes_than_cores_share_them():
    assert split_cores([3, 4], 5) == [(3,), (4,), (3,), (4,), (3,)]


def test_system_without_affinity_ties_nobody():
    assert split_cores([], 3) == [(), (), ()]


@pytest.mark.parametrize(
    ("processes", "visible"), [(2, ["4,2", "0,1"]), (4, ["4", "2", "0", "1"]), (3, ["4", "2", "0"])]
)
def test_each_gpu_belongs_to_one_process(processes, visible):
    found = shares(processes, {"CUDA_VISIBLE_DEVICES": "4,2,0,1"})
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in found] == visible


def test_fewer_gpus_than_processes_are_told():
    with pytest.raises(ConfigError, match="--parallel 3, but there are only 2 GPUs"):
        shares(3, {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_on_the_cpu_gpus_are_left_alone():
    environment = {"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cpu"}
    assert all(
        share.environment.keys() == {"NPROC"} and 1 <= int(share.environment["NPROC"]) <= 64
        for share in shares(2, environment)
    )


def test_threads_of_all_processes_are_as_many_as_cores():
    cores = len(os.sched_getaffinity(0))
    found = shares(cores, {"JAX_PLATFORMS": "cpu"})
    assert sum(int(share.environment["NPROC"]) for share in found) == cores
