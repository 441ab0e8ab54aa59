"""Cross entropy against PyTorch and closed forms, and pixels in standard units; in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.step.pixels import normalize
from lbsgd.tasks.losses import cross_entropy

EPS = np.finfo(np.float64).eps
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_pytorch_s(smoothing):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits = 5 * random.normal(size=(20, 7))
    labels = random.integers(0, 7, 20)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing, reduction="none"
    )
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    # Sums of seven terms below thirty.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=10 * 30 * EPS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_cross_entropy_of_equal_logits_is_log_classes(classes, smoothing):
    found = cross_entropy(jnp.full((1, classes), 3.0), jnp.zeros(1, jnp.int32), smoothing)
    np.testing.assert_allclose(found, np.log(classes), rtol=classes * EPS)


@pytest.mark.parametrize("label", [0, 1])
def test_cross_entropy_of_two_classes(label):
    """Logits (a, 0): log(1 + exp(-a)) for class 0, that and a for class 1; smoothing mixes them."""
    a, s = 1.5, 0.2
    of_class = [np.log1p(np.exp(-a)), np.log1p(np.exp(-a)) + a]
    expected = (1 - s) * of_class[label] + s * np.mean(of_class)
    found = cross_entropy(jnp.asarray([[a, 0.0]]), jnp.asarray([label]), s)
    np.testing.assert_allclose(found, expected, rtol=10 * EPS)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.asarray([[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_array_equal(cross_entropy(logits, jnp.zeros(2, jnp.int32)), [0.0, 1e4])


def test_normalize_is_by_channel():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    expected = np.empty(images.shape)
    for c in range(3):
        expected[..., c] = (images[..., c] / 255.0 - MEAN[c]) / STD[c]
    found = normalize(jnp.asarray(images), MEAN, STD, jnp.float64)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=20 * EPS)


def test_normalize_by_one_number_for_all_channels():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    found = normalize(jnp.asarray(images), (0.5,), (0.25,), jnp.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (images / 255.0 - 0.5) / 0.25, rtol=0, atol=4 * 6e-8 * 2)
