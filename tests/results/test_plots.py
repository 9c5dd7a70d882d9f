import io
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from graft.errors import DataError
from graft.results.plots import COLOURS, INK, MARKERS, figure, learning_curve
from graft.results.tables import summary

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_curve_holds_every_arm_and_size(sweep) -> None:
    found = texts(learning_curve(summary(sweep(), "accuracy"), "accuracy", "Accuracy on python-docs"))
    assert {"8", "64", "512", "Accuracy on python-docs", "labelled examples", "accuracy (higher is better)"} <= set(
        found
    )
    legend = [text for text in found if text.startswith("probe ")]
    assert legend == [f"probe classifier={name}" for name in ("logistic", "ridge", "knn", "centroid", "majority")]


def test_the_points_are_the_means(sweep, accuracy) -> None:
    axes = figure(summary(sweep(), "accuracy"), "accuracy", "t").axes[0]
    drawn = {container.get_label(): container.lines[0].get_ydata() for container in axes.containers}
    for arm, name in enumerate(("majority", "centroid", "knn", "ridge", "logistic")):
        means = [np.mean([accuracy(arm, size, seed) for seed in range(5)]) for size in (8, 64, 512)]
        assert drawn[f"probe classifier={name}"] == pytest.approx(means)


def test_the_same_summary_gives_the_same_bytes_whatever_the_users_style(sweep) -> None:
    cells = summary(sweep(), "accuracy")
    first = learning_curve(cells, "accuracy", "t")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True, "svg.hashsalt": "x"}):
        before = dict(matplotlib.rcParams)
        assert learning_curve(cells, "accuracy", "t") == first
        assert dict(matplotlib.rcParams) == before


def test_an_arm_keeps_its_colour_in_every_picture(sweep) -> None:
    cells = [*summary(sweep(), "accuracy"), *summary(sweep(), "log_loss")]
    pictures = [figure(cells, metric, "t").axes[0].get_legend_handles_labels() for metric in ("accuracy", "log_loss")]
    colours = [
        {label: handle.lines[0].get_color() for handle, label in zip(*picture, strict=True)} for picture in pictures
    ]
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == 5


def test_two_pictures_share_no_id_and_take_the_pages_colour(sweep) -> None:
    cells = [*summary(sweep(), "accuracy"), *summary(sweep(), "log_loss")]
    curves = [learning_curve(cells, metric, "t") for metric in ("accuracy", "log_loss")]
    ids = [set(re.findall(r' id="([^"]+)"', curve)) for curve in curves]
    assert ids[0]
    assert not ids[0] & ids[1]
    for curve, own in zip(curves, ids, strict=True):
        assert set(re.findall(r"(?:#|url\(#)([mp][0-9a-f]{9,})", curve)) <= own
        assert INK not in curve
        assert "currentColor" in curve


def test_names_are_drawn_literally(record, sweep) -> None:
    nasty = ("$x^2$ </svg><script>", "日本", "a & b")
    arms = [("probe", {"classifier": name}) for name in nasty]
    svg = learning_curve(summary(sweep(arms), "accuracy"), "accuracy", '"quoted" <title>')
    assert {f"probe classifier={name}" for name in nasty} <= set(texts(svg))
    assert "<script" not in svg


@pytest.mark.parametrize("sizes", [(8,), (10, 100, 1000), (8, 16, 32, 64, 128, 256, 512)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_any_sizes_and_seeds_are_drawn(sweep, sizes, seeds) -> None:
    found = texts(learning_curve(summary(sweep(sizes=sizes, seeds=seeds), "accuracy"), "accuracy", "t"))
    assert {f"{size:,}" for size in sizes} <= set(found)


def test_many_arms_stay_distinct_and_inside_the_picture(sweep) -> None:
    arms = [("probe", {"classifier": f"kind-{place:02} " + "long " * 12}) for place in range(24)]
    drawing = figure(summary(sweep(arms), "accuracy"), "accuracy", "t")
    drawing.savefig(io.BytesIO(), format="png", dpi=40)
    legend = drawing.axes[0].get_legend().get_window_extent()
    assert legend.y0 >= 0
    assert legend.x1 <= drawing.bbox.x1
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in drawing.axes[0].containers}
    assert len(looks) == 24
    assert np.gcd(len(COLOURS), len(MARKERS)) == 1


def test_cells_of_no_or_several_tasks_are_an_error(sweep) -> None:
    with pytest.raises(DataError, match="got tasks: none"):
        learning_curve([], "accuracy", "t")
    with pytest.raises(DataError, match="got tasks: digits, wine"):
        learning_curve(summary(sweep(tasks=("digits", "wine")), "accuracy"), "accuracy", "t")
