"""The manifests of launch/ against the published schema of JobSet, and the program's flags."""

import copy
import pathlib
import re

import pytest
import yaml
from cluster_fakes import LAUNCH, ROOT

from lbsgd.run import config as config_lib
from lbsgd.system import errors

MANIFESTS = sorted(LAUNCH.glob("*.yaml"))


def load(path: pathlib.Path) -> dict:
    return yaml.safe_load(path.read_text())


def job_of(manifest: dict) -> dict:
    [replicated] = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(manifest: dict) -> dict:
    [container] = job_of(manifest)["template"]["spec"]["containers"]
    return container


def known(manifest: dict) -> dict:
    """What of it the published schema knows; an unknown key is lost, a missing one appears."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    return models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_follows_the_published_schema(path):
    assert known(load(path)) == load(path)


def test_the_schema_knows_wrong_keys_and_types():
    manifest = load(MANIFESTS[0])
    unknown, missing, mistyped = (copy.deepcopy(manifest) for _ in range(3))
    job_of(unknown)["template"]["spec"]["terminationGracePeriod"] = 30
    assert known(unknown) != unknown
    del container_of(missing)["name"]
    assert known(missing) != missing
    job_of(mistyped)["template"]["spec"]["terminationGracePeriodSeconds"] = "30 s"
    with pytest.raises(ValueError, match="terminationGracePeriodSeconds"):
        known(mistyped)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_restarts_what_another_start_can_mend(path):
    manifest = load(path)
    job, policy = job_of(manifest), manifest["spec"]["failurePolicy"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container_of(manifest)["name"],
        "operator": "In",
        "values": [errors.EXIT_USER, errors.EXIT_DIVERGED],
    }
    [hopeless] = policy["rules"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", hopeless["name"])
    assert hopeless["action"] == "FailJobSet"
    assert hopeless["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] > 0
    # Any other end of a pod fails its job, which restarts the set; podFailurePolicy needs Never.
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_gives_time_and_memory(path):
    manifest = load(path)
    pod = job_of(manifest)["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 120
    container = container_of(manifest)
    assert container["command"] == [
        "python",
        "-m",
        "lbsgd.main",
        "train",
    ]  # a shell would get the SIGTERM
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in mounts["/shared"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_starts_a_run_that_there_is(path):
    container = container_of(load(path))
    given = dict(arg.removeprefix("--").split("=", 1) for arg in container["args"])
    assert (ROOT / given["config"]).is_file()
    assert given["workdir"].startswith("/shared/")
    assert given["config.data.dir"].startswith("/shared/")
    for name in given:
        if name.startswith("config."):
            config_lib.check_is_key(name.removeprefix("config."))
    env = {variable["name"] for variable in container.get("env", [])}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) == env


def test_gpu_manifest_counts_its_processes():
    manifest = load(LAUNCH / "jobset_gpu.yaml")
    job, spec = job_of(manifest), manifest["spec"]
    env = {variable["name"]: variable for variable in container_of(manifest)["env"]}
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(env["NUM_PROCESSES"]["value"])
    [replicated] = spec["replicatedJobs"]
    assert spec["coordinator"] == {
        "replicatedJob": replicated["name"],
        "jobIndex": 0,
        "podIndex": 0,
    }
    assert spec["network"]["enableDNSHostnames"]
    assert {"coordinator", "num_processes", "process_id"} <= {
        arg.removeprefix("--").split("=")[0] for arg in container_of(manifest)["args"]
    }


def test_tpu_manifest_fills_its_slice():
    manifest = load(LAUNCH / "jobset_tpu.yaml")
    job = job_of(manifest)
    sides = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sides[0]) * int(sides[1])
    per_host = container_of(manifest)["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"] == chips // per_host
    flags = " ".join(container_of(manifest)["args"])
    assert "coordinator" not in flags  # JAX finds the others by itself
