"""A whole training against the same training in PyTorch, ten updates in float64.

Four workers of eight digits, Nesterov momentum, coupled decay of the kernels, gradual warmup. In
PyTorch each worker's examples go through the network on their own, gradients are averaged, and
torch.optim.SGD makes the update.

Once from the start, and once as in fine-tuning: parameters are frozen, rates multiplied, and batch
norm keeps the statistics it has, which are `requires_grad=False`, parameter groups, and `eval()`.
"""

import jax
import numpy as np
import pytest

from lbsgd.data.pipeline import load_job
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

WORKERS, N, UPDATES = 4, 8, 10
REFERENCE, FULL, WARMUP = 0.05, 0.2, 8
MOMENTUM, DECAY, SMOOTHING = 0.9, 5e-3, 0.1
KEEP = 0.9  # of a running average
# Where the strides are in ResNet-8.
STRIDES = {"stage1_block1": 1, "stage2_block1": 2, "stage3_block1": 2}
FINE_TUNING = {
    "batch_norm.frozen_statistics": True,
    "optimizer.freeze": ("stem*", "stage1_block1/conv1"),
    "optimizer.rate_multipliers": {"classifier": 2.0, "stage2_*": 0.25, "norm scale": 0.5},
}
# Pixels of an example at each batch norm: 8x8 digits, halved by the stages.
PIXELS = {"stem_norm": 64, "stage1_block1": 64, "stage2_block1": 16, "stage3_block1": 4}


def is_frozen(path: str) -> bool:
    """By hand, of FINE_TUNING."""
    return path.startswith(("stem_", "stage1_block1/conv1/"))


def multiplier(path: str) -> float:
    """By hand, of FINE_TUNING."""
    of_layer = {"classifier": 2.0, "stage2_block1": 0.25}.get(path.split("/")[0], 1.0)
    return of_layer * (0.5 if path.endswith("scale") else 1.0)


def leaves(tree) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    """64-bit types for all tests of this module, so that they can share what is compiled."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({}, id="whole"),
        pytest.param(FINE_TUNING, id="fine-tuning", marks=pytest.mark.long),
    ],
)
def run(request):
    config = default_config()
    config.update(
        {
            "dtype": "float64",
            "batch_size": WORKERS * N,
            "worker_batch_size": N,
            "total_steps": UPDATES,
            "devices": 2,
            "accumulation_steps": 2,
            "label_smoothing": SMOOTHING,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {
                "reference_learning_rate": REFERENCE,
                "reference_batch_size": N,
                "warmup_epochs": 0.0,
                "warmup_steps": WARMUP,
            },
            "optimizer": {"momentum": MOMENTUM, "nesterov": True, "weight_decay": DECAY},
        }
    )
    config.update_from_flattened_dict(request.param)
    return build(resolve(config))


def tuned(run) -> bool:
    return run.plan.config.batch_norm.frozen_statistics


@pytest.fixture(scope="module")
def start(run):
    """Random parameters and the statistics and momentum that every run starts from.

    In fine-tuning the statistics are those of another run.
    """
    random = np.random.default_rng(0)

    def statistic(path, leaf):
        is_variance = path[-1].key == "var"
        if tuned(run):
            return random.uniform(0.5, 1.5, leaf.shape) - (not is_variance)
        return np.full(leaf.shape, float(is_variance))

    def fill(path, leaf):
        if path[-1].key == "kernel":  # keeps the scale of activations
            return random.normal(size=leaf.shape) * np.sqrt(2 * leaf.shape[-1] / leaf.size)
        if path[-1].key == "scale":
            return random.uniform(0.5, 1.5, leaf.shape)
        return random.normal(size=leaf.shape) * 0.1

    state = run.plan.state_shapes
    return state.replace(
        update_index=np.int32(0),
        skipped=np.int32(0),
        params=jax.tree_util.tree_map_with_path(fill, state.params),
        batch_stats=jax.tree_util.tree_map_with_path(statistic, state.batch_stats),
        opt_state=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.opt_state),
    )


@pytest.fixture(scope="module")
def in_jax(run, start):
    """Metrics of each update and the last state, on two devices in two accumulation steps."""
    assert (run.plan.placement.devices, run.plan.placement.accumulation_steps) == (2, 2)
    step, numbers = run.program.compile_train_step(), run.program.numbers
    state = jax.device_put(start, run.plan.placement.replicated)
    metrics = []
    for update, batch in enumerate(run.feed.train_batches().between(0, UPDATES)):
        state, values = step(state, batch, numbers.at(update))
        metrics.append(jax.device_get(values) | numbers.reported(update))
    return metrics, jax.device_get(state)


# --- the same in PyTorch ---------------------------------------------------------------------


def to_torch(array: np.ndarray):
    """Kernels from [h, w, in, out] to [out, in, h, w], or from [in, out] to [out, in]."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return torch.tensor(np.ascontiguousarray(array.transpose(*axes)))


def from_torch(tensor) -> np.ndarray:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim))
    return tensor.detach().numpy().transpose(*axes)


def forward(p, buffers, x, training):
    """ResNet-8 with option A shortcuts; in training moves the running averages in `buffers`."""

    def conv(name, x, stride=1):
        return F.conv2d(x, p[f"{name}/conv/kernel"], stride=stride, padding=1)

    def norm(name, x):
        running = (buffers[f"{name}/{moment}"] for moment in ("mean", "var"))
        affine = (p[f"{name}/scale"], p[f"{name}/offset"])
        return F.batch_norm(x, *running, *affine, training, 1 - KEEP, 1e-5)

    x = F.relu(norm("stem_norm", conv("stem_conv", x)))
    for name, stride in STRIDES.items():
        y = F.relu(norm(f"{name}/norm1", conv(f"{name}/conv1", x, stride)))
        y = norm(f"{name}/norm2", conv(f"{name}/conv2", y))
        more = y.shape[1] - x.shape[1]
        x = F.relu(F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, more)) + y)
    return F.linear(x.mean((2, 3)), p["classifier/kernel"], p["classifier/bias"])


def large_minibatch(params, buffers, images, labels, training):
    """Sets the gradients averaged over workers; returns mean loss, wrong answers, new buffers."""
    loss_sum, wrong, left = 0.0, 0, []
    for x, y in zip(images, labels):
        mine = {name: buffer.clone() for name, buffer in buffers.items()}
        logits = forward(params, mine, x, training)
        loss = F.cross_entropy(logits, y, label_smoothing=SMOOTHING) / WORKERS
        loss.backward()  # adds to the gradients of the workers before
        loss_sum += loss.item()
        wrong += int((logits.argmax(1) != y).sum())
        left.append(mine)
    averaged = {name: sum(mine[name] for mine in left) / WORKERS for name in buffers}
    return loss_sum, wrong, averaged


@pytest.fixture(scope="module")
def in_torch(run, start):
    """Metrics of each update, and the last parameters and running averages, by path."""
    params = {path: to_torch(x) for path, x in leaves(start.params).items()}
    buffers = {path: torch.tensor(x) for path, x in leaves(start.batch_stats).items()}
    trained = [path for path in params if not (tuned(run) and is_frozen(path))]
    optimizer = torch.optim.SGD(
        [
            {
                "params": [params[path].requires_grad_(True)],
                "weight_decay": DECAY if path.endswith("kernel") else 0.0,
                "multiplier": multiplier(path) if tuned(run) else 1.0,
            }
            for path in trained
        ],
        lr=REFERENCE,
        momentum=MOMENTUM,
        nesterov=True,
    )
    batches, metrics = run.feed.train_batches(), []
    for update in range(UPDATES):
        rate = REFERENCE + (FULL - REFERENCE) * min(update / WARMUP, 1)
        for group in optimizer.param_groups:
            group["lr"] = group["multiplier"] * rate
        images, labels = workers_of(load_job(batches.job(update)))
        optimizer.zero_grad()
        loss, wrong, buffers = large_minibatch(params, buffers, images, labels, not tuned(run))
        gradients = torch.cat([params[path].grad.ravel() for path in trained])
        norm = torch.linalg.vector_norm(gradients)
        optimizer.step()
        of_update = {"train_loss": loss, "train_error": 100 * wrong / (WORKERS * N)}
        of_update |= {"learning_rate": rate, "gradient_norm": float(norm), "skipped": 0}
        noise = rate * len(run.feed.splits.train) / (WORKERS * N * (1 - MOMENTUM))
        of_update |= {"batch_size": WORKERS * N, "sgd_noise_scale": noise}
        metrics.append(of_update)
    return metrics, {path: from_torch(x) for path, x in params.items()}, buffers


def workers_of(batch):
    """Images `[k, n, 1, 8, 8]`, standardised, and labels `[k, n]` of a loaded batch."""
    images = batch["image"].reshape(WORKERS, N, 1, 8, 8)  # one channel may stand anywhere
    labels = batch["label"].reshape(WORKERS, N).astype(np.int64)
    return torch.tensor((images / 255.0 - 0.5) / 0.5), torch.tensor(labels)


# --- they agree ------------------------------------------------------------------------------

# A gradient is good to about 1e-14 (sums of at most 8 * 64 terms, nine layers there and back), and
# at these rates ten updates do not carry an error on by more than a factor of 1e4. An update with
# one thing wrong (a rate, a decay, a variance) differs by 1e-4 and more.
TOLERANCE = 1e-10


def assert_same_metrics(found, expected):
    for update, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=TOLERANCE), (name, update)
    # It is not a standstill that agrees.
    assert expected[-1]["train_loss"] < expected[0]["train_loss"] - 0.1


def assert_same_parameters(found, expected, start, frozen):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if path in frozen:
            np.testing.assert_array_equal(found[path], start[path], err_msg=path)
            continue
        np.testing.assert_allclose(found[path], value, rtol=0, atol=TOLERANCE, err_msg=path)
        assert np.abs(value - start[path]).max() > 1e-3, f"{path} did not move"


def assert_same_running_averages(found, theirs):
    """PyTorch normalises by the biased variance but keeps an average of the unbiased one.

    That is n / (n - 1) as large, n the numbers it is taken over: examples times pixels. What is
    left of the 1 that running variances start from, 0.9^10, is alike in both.
    """
    assert found.keys() == theirs.keys()
    left_of_start = KEEP**UPDATES
    for path, tensor in theirs.items():
        expected = tensor.numpy()
        if path.endswith("var"):
            n = N * PIXELS[path.split("/")[0]]
            expected = left_of_start + (expected - left_of_start) * (n - 1) / n
            # The two conventions differ by far more than the tolerance.
            assert np.abs(expected - tensor.numpy()).max() > 1000 * TOLERANCE
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=TOLERANCE, err_msg=path)


def test_the_whole_training_is_pytorch_s(run, in_jax, in_torch, start):
    """Loss, error and rate of every update, and all that is left after the last.

    One test, so that parallel test runs do not train several times.
    """
    metrics, state = in_jax
    expected_metrics, expected_params, expected_averages = in_torch
    assert_same_metrics(metrics, expected_metrics)
    before, averages = leaves(start.params), leaves(state.batch_stats)
    frozen = set(filter(is_frozen, before)) if tuned(run) else set()
    assert_same_parameters(leaves(state.params), expected_params, before, frozen)
    if tuned(run):
        for path, average in leaves(start.batch_stats).items():
            np.testing.assert_array_equal(averages[path], average, err_msg=path)
    else:
        assert_same_running_averages(averages, expected_averages)
