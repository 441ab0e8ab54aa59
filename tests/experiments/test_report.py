"""Reports are files that are complete in themselves, whatever the runs came to."""

import html
import html.parser
import json
import sys

import made_up
import pytest
from PIL import Image

from lbsgd.experiments import load
from lbsgd.experiments.figures import COLORS, curves_figure, overlays, series
from lbsgd.experiments.html import page
from lbsgd.experiments.loading import combine
from lbsgd.experiments.report_command import main

ROWS = {"kn=64": {"batch_size": 64}, "kn=256": {"batch_size": 256}}


def begun(path, **settings):
    """A small sweep of which the last run is missing."""
    sweep = made_up.sweep_of(ROWS, seeds=2, **settings)
    folder = made_up.begin(sweep, path)
    for name, seed in (("kn=64", 0), ("kn=64", 1), ("kn=256", 0)):
        made_up.write_run(sweep, folder, name, seed, [80.0, *[20.0 + seed] * 5])
    return folder


def test_without_plotly_the_page_alone_is_left_out(tmp_path, monkeypatch, capsys):
    begun(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main([str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        "report.html is left out: it needs plotly, which pip install 'lbsgd[report]' installs"
    )
    assert (tmp_path / "x" / "table.md").read_text() in out
    made = {path.name for path in (tmp_path / "x").iterdir()}
    assert {"results.json", "table.md"} < made
    assert "report.html" not in made


def test_a_report_is_made_while_the_sweep_goes_on(tmp_path, capsys):
    begun(tmp_path / "x", against="batch_size")
    assert main([str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "20.50 ± 0.71" in out
    assert "- kn=256: missing (seed 1)" in out
    assert (tmp_path / "x" / "table.md").read_text() in out
    found = {path.name for path in (tmp_path / "x").iterdir() if path.is_file()}
    made = found - {"sweep.json"}
    pictures = {name for name in made if name.endswith(".png")}
    assert made - pictures == {"results.json", "table.md", "report.html"}
    assert all(str(tmp_path / "x" / name) in out for name in made)
    assert {name[:15] for name in pictures} == {"curves_kn=256_o", "against_batch_s"}
    for name in pictures:
        with Image.open(tmp_path / "x" / name) as picture:
            assert picture.size == (840, 540)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is neither"),
        (["x", "x"], "say with --out DIR"),
        (["x", "--out", "x/sweep.json"], "choose another --out"),
        ([], "required: DIR"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    made_up.begin(made_up.sweep_of(ROWS), tmp_path / "x")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


class Page(html.parser.HTMLParser):
    """Collects the elements of a page, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script" and self.scripts:
            self.scripts[-1] += data

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    made_up.goyal_table1(folder)
    results = load(folder)
    return results, page(results)


def test_the_page_names_nothing_outside_of_itself(whole):
    _, text = whole
    found = Page(text)
    assert [s for s in found.tags("script") if "src" in s] == []
    assert {"link", "img", "iframe", "object", "base"}.isdisjoint(
        {tag for tag, _ in found.elements}
    )
    policy = next(m["content"] for m in found.tags("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src" not in policy
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_names_and_reasons_are_text(whole):
    _, text = whole
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "out of memory: &lt;b&gt;8 GiB&lt;/b&gt; wanted" in text
    assert "learning rate: &lt;b&gt;0&lt;/b&gt;" in text
    # The data, plotly, and what draws them.
    assert len(Page(text).tags("script")) == 3


def test_the_page_holds_each_row_with_its_derivation(whole):
    results, text = whole
    found = Page(text)
    assert len(found.tags("details")) == len(results.rows)
    boxes = [box for box in found.tags("input") if "data-row" in box]
    assert [box["data-row"] for box in boxes] == [str(i) for i in range(len(results.rows))]
    assert text.count("<h3>Derivation</h3>") == len(results.rows)
    assert "<code>learning_rate.warmup = constant</code>" in text


def test_the_page_draws_the_means_of_the_rows(whole):
    results, text = whole
    data = json.loads(Page(text).scripts[0])
    traces = data["metrics"]["error"]["traces"]
    (mean,) = [t for t in traces if (t["row"], t["kind"]) == (0, "mean")]
    curves = [run.curves["val_error"].values for run in results.rows[0].runs]
    assert mean["y"] == pytest.approx(made_up.np.mean(curves, axis=0), rel=1e-5)
    (training,) = [t for t in traces if (t["row"], t["kind"]) == (0, "training")]
    curves = [run.curves["train_error"].values for run in results.rows[0].runs]
    assert training["y"] == pytest.approx(made_up.np.mean(curves, axis=0), rel=1e-5)
    assert [t["row"] for t in traces if t["kind"] == "run"].count(1) == 5
    assert list(data["metrics"]) == ["error", "loss"]


def test_plotly_is_given_text_and_not_its_html(whole):
    _, text = whole
    data = json.loads(Page(text).scripts[0])
    traces = [t for found in data["metrics"].values() for t in found["traces"]]
    traces += [*data["finals"], *data["against"]["traces"]]
    names = {t["name"] for t in traces} | {x for t in traces for x in t.get("text", ())}
    assert any("&lt;script&gt;" in name for name in names)
    assert not any("<" in name for name in names)


def test_bands_and_bars_are_as_wide_as_the_page_says(whole):
    """Draws one standard deviation, but two of final values against a number, as in Figure 1."""
    results, text = whole
    data = json.loads(Page(text).scripts[0])
    (band,) = [
        t for t in data["metrics"]["error"]["traces"] if (t["row"], t["kind"]) == (0, "band")
    ]
    curves = [run.curves["val_error"].values for run in results.rows[0].runs]
    mean, std = made_up.np.mean(curves, axis=0), made_up.np.std(curves, axis=0, ddof=1)
    expected = [*(mean + std), *(mean - std)[::-1]]
    assert band["y"] == pytest.approx(expected, rel=1e-5)
    std = made_up.np.std(results.rows[0].finals("val_error"), ddof=1)
    (bar,) = [t["error_x"] for t in data["finals"] if (t["row"], t["kind"]) == (0, "mean")]
    assert bar["array"] == pytest.approx([std])
    assert data["against"]["traces"][0]["error_y"]["array"][0] == pytest.approx(2 * std)


def test_the_page_says_where_single_runs_differ(tmp_path):
    folder = begun(tmp_path)
    paths = [folder.path / name / "seed_0" for name in ROWS]
    text = page(combine([load(path) for path in paths]))
    assert "<h3>Differs from kn=64, seed 0 in</h3>" in text
    assert "<code>batch_size = 256, there 64</code>" in text


def test_pictures_draw_training_solid_and_validation_dashed(tmp_path):
    results = load(begun(tmp_path).path)
    (panel,) = curves_figure(results, results.rows).axes
    styles = {"-": "train_error", "--": "val_error"}
    drawn = {(line.get_color(), line.get_linestyle()): line.get_ydata() for line in panel.lines}
    assert len(drawn) == len(panel.lines) == 4
    for (color, style), values in drawn.items():
        row = results.rows[COLORS.index(color)]
        curves = [run.curves[styles[style]].values for run in row.drawn()]
        assert values == pytest.approx(made_up.np.mean(curves, axis=0))


def test_a_page_of_nothing_yet(tmp_path):
    made_up.begin(made_up.sweep_of(ROWS, seeds=1), tmp_path)
    text = page(load(tmp_path))
    assert "No run has come to a result yet." in text
    assert "0 of 2 runs complete" in text


def test_rows_that_differ_in_the_number_alone_are_a_line(whole):
    results, _ = whole
    found = series(results)
    assert list(found) == ["", "warmup=none", "warmup=constant"]
    assert [point.x for point in found[""]] == [256, 8192, 65536]
    finals = results.rows[0].finals("val_error")
    assert found[""][0].bar == pytest.approx(2 * made_up.np.std(finals, ddof=1))


def test_points_of_a_line_are_in_the_order_of_the_number(tmp_path):
    rows = {f"kn={kn}": {"batch_size": kn} for kn in (256, 64, 128)}
    sweep = made_up.sweep_of(rows, seeds=1, against="batch_size")
    folder = made_up.begin(sweep, tmp_path)
    for name in rows:
        made_up.write_run(sweep, folder, name, 0, [9.0] * 5)
    (line,) = series(load(tmp_path)).values()
    assert [point.name for point in line] == ["kn=64", "kn=128", "kn=256"]


def test_rows_are_laid_over_the_baseline_or_as_the_sweep_says(tmp_path):
    names = [f"kn={2**i}" for i in range(5, 8)]
    rows = {name: {"batch_size": int(name[3:])} for name in names}
    for i, settings in enumerate(({"baseline": "kn=64"}, {"overlays": (("kn=32", "kn=128"),)})):
        made_up.begin(made_up.sweep_of(rows, seeds=1, **settings), tmp_path / str(i))
    found = [
        [[row.name for row in rows] for rows in overlays(load(tmp_path / str(i)))] for i in (0, 1)
    ]
    assert found[0] == [["kn=64", "kn=32"], ["kn=64", "kn=128"]]
    assert found[1] == [["kn=32", "kn=128"]]
