"""Pictures hold the numbers that they are made from."""

import math

import numpy as np
import pytest
from matplotlib import colormaps

from lbsgd.diagnostics import pictures


def drawn(panel) -> dict[str, tuple[list[float], list[float]]]:
    """Lines of a panel by their label: x and y."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in panel.get_lines()
    }


def measurement(epoch, single, mean, error) -> dict:
    """With tr(Sigma) = 12, each time and on average."""
    return {
        "step": 1,
        "epoch": epoch,
        "gradient_square": single,
        "gradient_covariance_trace": 12.0,
        "gradient_square_mean": mean,
        "gradient_square_error": error,
        "gradient_covariance_trace_mean": 12.0,
        "gradient_noise_scale": 12.0 / mean,
    }


def test_the_noise_scale_has_what_it_is_made_of_and_the_batch_size_as_a_step():
    lines = [
        measurement(0.5, 4.0, 4.0, None),
        measurement(1.0, -2.0, 1.0, 2.5),
        measurement(1.5, 4.0, 4.0, 1.0),
        measurement(2.0, 2.0, 3.0, 0.5),
    ]
    sizes = [{"step": 1, "epoch": x, "batch_size": y} for x, y in ((0.2, 64.0), (1.7, 128.0))]
    figure = pictures.noise_scale_picture([sizes[0], *lines, sizes[1]])
    scale, squares, traces = map(drawn, figure.axes)
    epochs, nan = [0.5, 1.0, 1.5, 2.0], math.nan
    np.testing.assert_equal(scale["gradient noise scale"], (epochs, [nan, nan, 3.0, 4.0]))
    # Where the average is not clearly positive: 12 / (1 + 2 * 2.5).
    np.testing.assert_equal(scale["at least"], (epochs, [nan, 2.0, nan, nan]))
    np.testing.assert_equal(scale["of one measurement"], (epochs, [3.0, nan, nan, nan]))
    (band,) = figure.axes[0].collections
    extents = band.get_paths()[0].get_extents()
    assert (extents.ymin, extents.ymax) == (2.0, 6.0)
    assert scale["batch size"] == ([0.2, 1.7], [64.0, 128.0])
    steps = {line.get_label(): line.get_drawstyle() for line in figure.axes[0].get_lines()}
    assert steps["batch size"] == "steps-pre"
    label = "single estimates,\n1 of 4 negative, not drawn"
    np.testing.assert_equal(squares[label], (epochs, [4.0, nan, 4.0, 2.0]))
    assert squares["average of the window"] == (epochs, [4.0, 1.0, 4.0, 3.0])
    assert traces["single estimates"] == (epochs, [12.0] * 4)
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert labels == ["examples", "|G|²", "tr(Σ)"]


def ink(figure) -> int:
    """Coloured pixels: neither paper, nor black or gray as frames and letters are."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    return int(np.sum(np.ptp(pixels, axis=-1) > 30))


@pytest.mark.parametrize("kind", ["noise_scale", "cosines", "layers"])
def test_one_measurement_is_seen(kind):
    """In each panel: without its legend and scale of colours there is still colour."""
    lists = [{"epoch": 1.0, "confusion_cosines": [0.1, 0.2, 0.7], "gradient_norm": {"a": 1.0}}]
    make = getattr(pictures, f"{kind}_picture")
    figure = make([measurement(1.0, 4.0, 4.0, None)] if kind == "noise_scale" else lists)
    panels = figure.axes[:3] if kind == "noise_scale" else figure.axes[:1]
    for panel in figure.axes:
        if panel.get_legend():
            panel.get_legend().remove()
        panel.set_visible(False)
    for panel in panels:
        panel.set_visible(True)
        assert ink(figure) > 5
        if kind == "cosines":  # the bands too
            for line in panel.get_lines():
                line.set_visible(False)
            assert ink(figure) > 5
        panel.set_visible(False)


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
    colours = [tuple(band.get_facecolor()[0]) for band in panel.collections]
    assert len(set(colours)) == 2
    assert [band.get_label() for band in panel.collections] == ["5% to 95%", "25% to 75%"]
    widest, narrowest = (band.get_paths()[0].get_extents() for band in panel.collections)
    np.testing.assert_allclose([widest.ymin, widest.ymax], [-0.15, 0.75], atol=1e-12)
    np.testing.assert_allclose([narrowest.ymin, narrowest.ymax], [0.05, 0.55], atol=1e-12)
    both = pictures.cosines_picture([*lists, {"epoch": 1.0, "worker_cosines": [0.1]}])
    assert [panel.get_title() for panel in both.axes] == [
        "Gradient confusion: pairs of minibatches",
        "Neighbouring workers",
    ]


def test_layers_have_a_line_each_and_the_lowest_and_highest_are_named():
    """An array without a trust ratio, written as 1, is not in that panel."""
    names = ["stage1_block10/kernel", "stage1_block2/kernel", "stem/kernel", "classifier/bias"]
    lists = [
        {
            "epoch": float(i),
            "gradient_norm": dict(zip(names, (0.5, 3.0 - i, 2.0, 1.5))),
            "trust_ratio": dict(zip(names, (0.1 * i, 1.0 if i > 1 else 0.5, 0.2, 1.0))),
        }
        for i in range(1, 4)
    ]
    figure = pictures.layers_picture(lists)
    gradients, ratios, colours = figure.axes
    assert gradients.get_ylabel() == "gradient norm"
    assert ratios.get_ylabel() == "trust ratio\n(3 of 4 arrays have one)"
    lines = drawn(ratios)
    assert lines.keys() == set(names[:3])
    np.testing.assert_allclose(lines[names[0]], ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]))
    # At the end the second gradient is 0, which a logarithm cannot show.
    assert [text.get_text() for text in gradients.texts] == ["stem/kernel", names[0]]
    assert [text.get_text() for text in ratios.texts] == [names[1], "stem/kernel"]
    # From the input to the output, and in that order the colours.
    order = ["stem/kernel", names[1], names[0], "classifier/bias"]
    assert [text.get_text() for text in colours.get_yticklabels()] == order
    found = {line.get_label(): line.get_color() for line in gradients.get_lines()}
    assert [found[name] for name in order] == [colormaps["viridis"](i / 3) for i in range(4)]


def test_where_there_is_nothing_there_is_no_picture():
    lines = [{"step": 1, "epoch": 0.5, "train_loss": 1.0}, {"step": 2, "gradient_norm": 3.0}]
    assert pictures.noise_scale_picture(lines) is None
    assert pictures.cosines_picture(lines) is None
    assert (
        pictures.layers_picture([*lines, {"step": 2, "epoch": 1.0, "gradient_norm": 3.0}]) is None
    )
