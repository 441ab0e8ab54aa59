"""Configs are the recipes they say."""

import math
import pathlib
import runpy

import pytest

from lbsgd import train
from lbsgd.run.build import plan_run
from lbsgd.run.config import resolve, run_keys
from lbsgd.schedule.learning_rate import build_learning_rate
from lbsgd.schedule.timeline import Timeline

ROOT = pathlib.Path(__file__).parents[2]
GOYAL = runpy.run_path(str(ROOT / "configs" / "imagenet_goyal.py"))["get_config"]

# Argument -> kn, full rate, updates of warmup: Tables 1, 2a, 2b, 2c and Figure 3.
ROWS = {
    "batch=8192": (8192, 3.2, 782),
    "batch=256": (256, 0.1, 0),
    "batch=64": (64, 0.025, 0),
    "batch=65536": (65536, 25.6, 98),
    "warmup=none": (8192, 3.2, 0),
    "warmup=constant": (8192, 3.2, 782),
    "batch=256,rate=0.05": (256, 0.05, 0),
    "rate=0.2": (8192, 0.2 * 32, 782),
    "scaling=none": (8192, 0.1, 782),
    "scaling=sqrt": (8192, 0.1 * math.sqrt(32), 782),
    "gamma=1": (8192, 3.2, 782),
    "model=resnet101": (8192, 3.2, 782),
}


@pytest.mark.parametrize("arg", ROWS)
def test_a_row_has_the_papers_numbers(arg):
    config = resolve(GOYAL(arg))
    batch_size, full, warmup = ROWS[arg]
    timeline = Timeline.constant(1_281_167, config.batch_size)
    rate = build_learning_rate(config, timeline, timeline.update_at_epoch(90.0))
    assert config.batch_size == batch_size
    assert config.worker_batch_size == 32
    assert rate.full == pytest.approx(full, rel=1e-12)
    assert rate.warmup_updates == warmup
    assert config.model.zero_init_residual == (arg != "gamma=1")
    assert config.model.name == ("resnet101" if "101" in arg else "resnet50")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fashion_mnist", marks=pytest.mark.long),
        pytest.param("cifar10", marks=pytest.mark.long),
        pytest.param("images", marks=pytest.mark.long),
        pytest.param("finetune", marks=pytest.mark.long),
        pytest.param("imagenette", marks=pytest.mark.long),
        pytest.param("imagenet_goyal", marks=pytest.mark.long),
        pytest.param("imagenet_lars", marks=pytest.mark.long),
        pytest.param("imagenet_lamb", marks=pytest.mark.long),
        pytest.param("imagenet_nesterov", marks=pytest.mark.long),
        pytest.param("imagenet_smith", marks=pytest.mark.long),
        pytest.param("imagenet_mikami", marks=pytest.mark.long),
        pytest.param("imagenet_spngd", marks=pytest.mark.long),
        pytest.param("fashion_mnist_spngd", marks=pytest.mark.long),
        pytest.param("cifar10_spngd", marks=pytest.mark.long),
        pytest.param("fashion_mnist_lars", marks=pytest.mark.long),
        pytest.param("fashion_mnist_nesterov", marks=pytest.mark.long),
        pytest.param("fashion_mnist_growing", marks=pytest.mark.long),
        pytest.param("cifar10_lars", marks=pytest.mark.long),
        pytest.param("cifar10_nesterov", marks=pytest.mark.long),
        pytest.param("cifar10_growing", marks=pytest.mark.long),
    ],
)
def test_a_smoke_variant_trains_a_little_without_data(name, tmp_path):
    """All that a machine needs to try the config: three updates, and an evaluation of 40 images."""
    get_config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    config = get_config("smoke")
    if name.startswith("imagenet"):
        config.model.name = "resnet18"
    assert config.data.source == "synthetic"
    outcome = train.run(resolve(config), tmp_path)
    assert (outcome.updates, outcome.complete) == (3, True)
    assert 0 <= outcome.final <= 100


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_large_images_accumulate_as_memory_asks_for(path):
    """A machine with little memory can train whatever images of 64 pixels and more a config has."""
    config = resolve(runpy.run_path(str(path))["get_config"]())
    if config.data.crop in ("inception", "random") and config.data.image_size >= 64:
        assert config.accumulation_steps == 0


@pytest.mark.parametrize("batch_size", [128, 256, 512, 1024, 2048, 4096])
def test_cifar10_minibatches_are_workers_of_128(batch_size):
    """He et al. 2015, section 4.2: 64,000 updates of 128 at 0.1; k times the rate for k workers."""
    get_config = runpy.run_path(str(ROOT / "configs" / "cifar10.py"))["get_config"]
    config = resolve(get_config(f"batch={batch_size}"))
    timeline = Timeline.constant(50_000, batch_size)
    rate = build_learning_rate(config, timeline, timeline.update_at_epoch(config.total_epochs))
    assert rate.full == pytest.approx(0.1 * batch_size / 128, rel=1e-12)
    if batch_size == 128:
        assert timeline.update_at_epoch(config.total_epochs) == pytest.approx(64_000, rel=0.001)
        assert rate.decay_updates == pytest.approx((32_000, 48_000), rel=0.002)
        assert rate.warmup_updates == 0


def test_cifar100_is_the_recipe_of_cifar10_with_its_classes():
    get_config = runpy.run_path(str(ROOT / "configs" / "cifar10.py"))["get_config"]
    before, config = (run_keys(resolve(get_config(arg))) for arg in ("", "cifar100"))
    changed = {key for key, value in config.items() if before[key] != value}
    assert changed == {"data.tfds_name", "data.mean", "data.std"}
    plan = plan_run(resolve(get_config("cifar100,model=cifar_resnet8")))
    assert plan.data.classes == 100
    assert plan.state_shapes.params["classifier"]["kernel"].shape == (64, 100)
