"""Pictures hold the numbers that they are made from."""

import math

import numpy as np

from lbsgd.diagnostics import pictures


def drawn(panel) -> dict[str, tuple[list[float], list[float]]]:
    """Lines of a panel by their label: x and y."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in panel.get_lines()
    }


def test_the_noise_scale_has_the_batch_size_beside_it():
    lines = [
        {"step": i, "epoch": i / 2, "gradient_noise_scale": scale, "batch_size": size}
        | {"gradient_square": square, "gradient_covariance_trace": 3.0}
        for i, (scale, size, square) in enumerate(
            [(None, 64, -1.0), (90.0, 64, 0.5), (7.0, 128, 2.0)]
        )
    ]
    other = {"step": 1, "epoch": 0.7, "train_loss": 2.0}
    figure = pictures.noise_scale_picture([lines[0], other, *lines[1:]])
    scale, parts = map(drawn, figure.axes)
    epochs = [0.0, 0.5, 1.0]
    np.testing.assert_equal(scale["gradient noise scale"], (epochs, [math.nan, 90.0, 7.0]))
    assert scale["batch size"] == (epochs, [64, 64, 128])
    np.testing.assert_equal(parts["|G|², single estimates"], (epochs, [math.nan, 0.5, 2.0]))


def test_cosines_have_their_minimum_and_distribution():
    cosines = np.linspace(-0.2, 0.8, 101)
    lists = [
        {"step": 1, "epoch": 1.0, "confusion_cosines": cosines.tolist()},
        {"step": 1, "epoch": 1.0, "gradient_norm": {"a": 1.0}},
        {"step": 2, "epoch": 2.0, "confusion_cosines": [0.5, None, 0.3]},
        {"step": 3, "epoch": 3.0, "confusion_cosines": [None, None]},
    ]
    figure = pictures.cosines_picture(lists)
    (panel,) = figure.axes
    lines = drawn(panel)
    np.testing.assert_allclose(lines["minimum"][1], [-0.2, 0.3, math.nan])
    np.testing.assert_allclose(lines["median"][1], [0.3, 0.4, math.nan], atol=1e-12)
    widest, narrowest = (band.get_paths()[0].get_extents() for band in panel.collections)
    np.testing.assert_allclose([widest.ymin, widest.ymax], [-0.15, 0.75], atol=1e-12)
    np.testing.assert_allclose([narrowest.ymin, narrowest.ymax], [0.05, 0.55], atol=1e-12)
    both = pictures.cosines_picture([*lists, {"epoch": 1.0, "worker_cosines": [0.1]}])
    assert [panel.get_title() for panel in both.axes] == [
        "Gradient confusion: pairs of minibatches",
        "Neighbouring workers",
    ]


def test_layers_have_a_line_each():
    norms = {"a/kernel": 1.0, "b/kernel": 0.5}
    lists = [
        {
            "epoch": float(i),
            "gradient_norm": norms,
            "trust_ratio": {"a/kernel": 0.1 * i, "b/kernel": 1.0},
        }
        for i in range(1, 4)
    ]
    figure = pictures.layers_picture(lists)
    assert [panel.get_ylabel() for panel in figure.axes] == ["gradient norm", "trust ratio"]
    lines = drawn(figure.axes[1])
    np.testing.assert_allclose(lines["a/kernel"], ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]))
    assert lines["b/kernel"][1] == [1.0] * 3


def test_where_there_is_nothing_there_is_no_picture():
    lines = [{"step": 1, "epoch": 0.5, "train_loss": 1.0}, {"step": 2, "gradient_norm": 3.0}]
    assert pictures.noise_scale_picture(lines) is None
    assert pictures.cosines_picture(lines) is None
    assert (
        pictures.layers_picture([*lines, {"step": 2, "epoch": 1.0, "gradient_norm": 3.0}]) is None
    )
