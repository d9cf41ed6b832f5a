from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import networkx as nx
import numpy as np
import pytest
from PIL import Image

from derive.multi_branch.drawing import architecture_drawing
from derive.multi_branch.routing import Box, best_route
from dnas.report import (
    ClassLabels,
    Example,
    Fact,
    Figure,
    LatencyAgreement,
    LatencySummary,
    NetworkFigures,
    ReportData,
    Reproduction,
    Section,
    agreement_scatter,
    class_iou_bars,
    drawn,
    examples_sheet,
    headline,
    render_report,
    retraining_curves,
    save_png,
    save_svg,
    search_curves,
    search_section,
    svg_text,
    write_report,
)
from dnas.report.curves import pretraining_epochs, step_series, waiting_note
from dnas.report.numbers import format_count
from dnas.report.pictures import encode_map, mistakes, wrong_share

HOSTILE = '<script>alert("x")</script> $\\frac{ & _under'
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Checker(HTMLParser):
    """Checks that tags are closed in order; collects ids and the addresses that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if values.get("id") else []
        self.loaded += [values[name] for name in ("src", "href", "xlink:href", "action", "data") if values.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


OPERATORS = ("stem", "skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2", "fuse", "head")


def graph() -> nx.DiGraph:
    """Stem, a shared cell, and branches 16 and 32 that merge in the head; with hostile node names."""
    drawn = nx.DiGraph()
    cells = [
        ("stem", "stem", 8, 0, 16, (16, 32)),
        ("a", "conv", 16, 1, 32, (16, 32)),
        ("b16", "zoomed_conv", 16, 2, 48, (16,)),
        ("b32", "skip", 32, 2, 64, (32,)),
        ("c32", "conv_x2", 32, 3, 96, (32,)),
        (HOSTILE, "fuse", 16, 4, 48, (16, 32)),
        ("head", "head", 8, 5, 11, (16, 32)),
    ]
    for name, operator, scale, position, channels, branches in cells:
        drawn.add_node(
            name, label=name, operator=operator, scale=scale, position=position, channels=channels, branches=branches
        )
    edges = [("stem", "a"), ("a", "b16"), ("a", "b32"), ("b32", "c32"), ("b16", HOSTILE), ("c32", HOSTILE)]
    drawn.add_edges_from([*edges, (HOSTILE, "head")])
    return drawn


def search_log(epochs: int = 4) -> list[dict]:
    records: list[dict] = []
    for epoch in range(epochs):
        phase = "pretrain" if epoch < 2 else "search"
        known = phase == "search"
        records += [
            {
                "kind": "step",
                "epoch": epoch,
                "step": step,
                "phase": phase,
                "loss_weights": 2.0 / (1 + epoch + step / 5),
                "loss_architecture": 2.1 if known else None,
                "latency_ms": 9.0 - epoch if known else None,
                "latency_weight": 0.01 if known else None,
            }
            for step in range(5)
        ]
        entropy = {"alpha": 0.9, "beta": 0.8, "gamma": None}
        records.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "phase": phase,
                "miou": {"teacher": 0.3, "student": 0.2},
                "latency_ms": {"student": 9.0, "teacher": 12.0},
                "entropy": {"student": entropy, "teacher": entropy},
                "skip_share": {"student": 0.4, "teacher": 0.1},
                "mean_ratio": {"student": 5.0, "teacher": 12},
                "latency_gradient": {"student": {"alpha": {"share": 0.3}}} if known else None,
                "warnings": {"student.skips": f"{HOSTILE} {epoch}"} if known else {},
            }
        )
    return records


def retrain_log() -> list[dict]:
    steps = [{"kind": "step", "epoch": 0, "step": step, "loss": 1.0 / (1 + step)} for step in range(4)]
    return [*steps, {"kind": "epoch", "epoch": 0, "miou": 0.4, "pixel_accuracy": 0.8}]


def full_report() -> ReportData:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, (40, 60))
    truth[:2] = 255
    image = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    prediction = np.where(truth == 255, 0, truth)
    prediction[20] = (prediction[20] + 1) % 3
    return ReportData(
        title=HOSTILE,
        subtitle=HOSTILE,
        latency=LatencySummary(
            device=HOSTILE,
            backend="eager",
            precision="fp32",
            entries=12,
            input_size=(64, 96),
            slowest=[(HOSTILE, 3.0), ("skip", 0.0)],
            details={HOSTILE: HOSTILE},
        ),
        search=[search_section(search_log())],
        architectures=[drawn(architecture_drawing(graph()), HOSTILE, HOSTILE)],
        networks=[
            NetworkFigures(name="teacher", miou=0.5, latency_ms=9.0, parameters=5_000_000, multiply_adds=10**10),
            NetworkFigures(name=HOSTILE, miou=0.45, latency_ms=4.0, parameters=900, multiply_adds=None),
        ],
        retrain_records={"teacher": retrain_log(), HOSTILE: retrain_log()},
        agreement=LatencyAgreement(
            predicted_ms=[1.0, 2.0, 3.0],
            measured_ms=[1.1, 2.0, 3.2],
            pearson=0.999,
            spearman=1.0,
            mape=5.6,
            networks=["a", "b", HOSTILE],
            marked=[HOSTILE],
        ),
        labels=ClassLabels(names=[HOSTILE, "sky", "road"], colours=[(1, 2, 3), (200, 100, 0), (0, 255, 9)]),
        examples=[
            Example(name=HOSTILE, image=image, prediction=prediction, truth=truth),
            Example(name="no truth", image=image, prediction=prediction),
        ],
        class_iou={"teacher": {HOSTILE: 0.5, "sky": None}, HOSTILE: {HOSTILE: 0.0, "sky": 1.0}},
        extra=[
            Section(
                title=HOSTILE,
                lead=HOSTILE,
                blocks=[
                    Figure(caption=HOSTILE, svg=svg_text(class_iou_bars({"_x": {"a": 0.5}})), description=HOSTILE),
                    Figure(caption="a photo", image=png()),
                ],
            )
        ],
        reproduction=Reproduction(
            commands=[HOSTILE], seed=3, versions={"torch": HOSTILE}, commit="abc", details={"device": HOSTILE}
        ),
    )


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(full_report())


def test_page_is_well_formed_with_unique_ids(page: str) -> None:
    checker = parse(page)
    assert len(checker.ids) == len(set(checker.ids))
    anchors = [address[1:] for address in checker.loaded if address.startswith("#")]
    assert set(anchors) <= set(checker.ids)


def test_page_loads_nothing(page: str, tmp_path: Path) -> None:
    loaded = parse(page).loaded
    assert any(address.startswith("data:image/png") for address in loaded)
    assert any(address.startswith("data:image/jpeg") for address in loaded)
    assert all(address.startswith(("data:", "#")) for address in loaded)
    assert not re.search(r"url\(\s*['\"]?(?!#)", page)
    assert "@import" not in page
    assert write_report(tmp_path / "report.html", full_report()).stat().st_size < 3_000_000


def test_page_escapes_hostile_names(page: str) -> None:
    checker = parse(page)
    assert "script" not in checker.tags
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 15


def test_page_has_a_caption_with_every_figure(page: str) -> None:
    checker = parse(page)
    assert checker.tags.count("figure") == checker.tags.count("figcaption") > 8


def test_drawings_follow_light_and_dark_mode(page: str) -> None:
    style = page[page.index("<style>") : page.index("</style>")]
    drawn = set(re.findall(r"var\((--[a-z]+)\)", page[page.index("</style>") :]))
    assert {"--ink", "--blue", "--grid"} <= drawn
    for name in drawn:
        assert style.count(f"{name}:") == 2, f"{name} is defined for light and for dark"


def test_missing_sections_are_left_out() -> None:
    empty = parse(render_report(ReportData(title="nothing yet")))
    assert empty.titles == []
    assert not {"svg", "img", "nav", "table"} & set(empty.tags)
    full = full_report()
    titles = {
        "latency": "Latency table",
        "search": "Search",
        "architectures": "Derived architecture",
        "networks": "Teacher and student",
        "retrain_records": "Retraining",
        "agreement": "Predicted and measured latency",
        "reproduction": "Reproduction",
    }
    assert set(titles.values()) | {"Predictions"} <= set(parse(render_report(full)).titles)
    for field, title in titles.items():
        alone = ReportData(title="part", **{field: getattr(full, field)})
        assert parse(render_report(alone)).titles == [title]


def test_warnings_are_told(page: str) -> None:
    assert page.count("student.skips") == 1  # a warning over several epochs is one row, with its first reason


def test_a_target_is_shown_beside_prediction_and_measurement() -> None:
    student = NetworkFigures(name="student", latency_ms=8.1, predicted_latency_ms=8.2, target_ms=8.3)
    shown = render_report(ReportData(title="t", networks=[student]))
    assert "target (ms)" in shown
    assert "8.30" in shown
    without = render_report(ReportData(title="t", networks=[replace(student, target_ms=None)]))
    assert "target (ms)" not in without


def test_header_takes_the_last_network_unless_given() -> None:
    student = NetworkFigures(
        name="student", miou=0.571, latency_ms=8.0, parameters=1_912_331, multiply_adds=28_200_000_000
    )
    assert [(fact.value, fact.unit) for fact in headline(student)] == [
        ("57.1", "%"),
        ("8.00", "ms"),
        ("125", "FPS"),
        ("1.91", "M"),
        ("28.2", "G"),
    ]
    elsewhere = replace(student, latency_ms=None, predicted_latency_ms=10.0)
    assert [fact.note for fact in headline(elsewhere)][1:2] == ["student, predicted"]
    assert "57.1<small>%</small>" in render_report(ReportData(title="t", networks=[student]))
    given = render_report(ReportData(title="t", networks=[student], summary=[Fact("Depth", "7", "cells")]))
    assert "<small>cells</small>" in given
    assert "<small>FPS</small>" not in given


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (999_499, "999 k"), (999_600, "1.00 M"), (3_340_000, "3.34 M"), (39.1e9, "39.1 G")],
)
def test_format_count(value: float, text: str) -> None:
    assert " ".join(format_count(value)).strip() == text


def test_svg_is_deterministic_and_ignores_the_users_settings() -> None:
    data = full_report()
    drawings = [
        lambda: search_curves(search_log()),
        lambda: retraining_curves(data.retrain_records),
        lambda: architecture_drawing(graph()),
        lambda: agreement_scatter(data.agreement),
        lambda: class_iou_bars(data.class_iou),
    ]
    for draw in drawings:
        first = svg_text(draw())
        with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "lines.linewidth": 9}):
            before = dict(matplotlib.rcParams)
            again = svg_text(draw())
            assert dict(matplotlib.rcParams) == before
        assert first == again
        assert not re.search(r"20\d\d-\d\d-\d\d", first)
        ET.fromstring(first)
    assert render_report(data) == render_report(full_report())


def test_drawing_leaves_no_pyplot_behind() -> None:
    import subprocess
    import sys

    code = "import sys, dnas.report as r; r.svg_text(r.search_curves([])); sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_in_other_scripts_are_drawn_without_a_warning() -> None:
    assert "道路" in svg_text(class_iou_bars({"学生": {"道路": 0.5}}))


def test_architecture_drawing_shows_scales_channels_and_branches() -> None:
    text = svg_text(architecture_drawing(graph()))
    for expected in (
        "1/8",
        "1/16",
        "1/32",
        "zoomed conv",
        "branch 1/16",
        "branch 1/32",
        "shared by the branches",
        ">96<",
    ):
        assert expected in text
    plain = graph()
    for node in plain:
        del plain.nodes[node]["branches"]
    assert "branch" not in svg_text(architecture_drawing(plain))
    with pytest.raises(ValueError, match="no nodes"):
        architecture_drawing(nx.DiGraph())


@pytest.mark.parametrize("layers", [2, 30])
def test_the_legend_of_a_drawing_lies_within_it(layers: int) -> None:
    drawn = nx.DiGraph()
    for position in range(layers):
        drawn.add_node(position, operator="conv", scale=8, position=position, channels=32, branches=(8, 16))
    for scale in (8, 16):
        for index, operator in enumerate(OPERATORS):
            position = index % layers
            values = {"operator": operator, "scale": scale, "position": position, "branches": (scale,)}
            drawn.add_node((scale, index), channels=32, **values)
    figure = architecture_drawing(drawn, "a title")
    figure.draw_without_rendering()
    (legend,) = (axes.get_legend() for axes in figure.axes)
    assert legend is not None
    assert len(legend.get_texts()) == len(OPERATORS) + 3
    box, canvas = legend.get_tightbbox(), figure.bbox
    assert canvas.x0 <= box.x0 < box.x1 <= canvas.x1
    assert canvas.y0 <= box.y0 < box.y1 <= canvas.y1


def test_arrows_go_around_boxes() -> None:
    start, between, end = (Box(x, 0, 0.7, 0.4) for x in (0, 1, 2))
    assert best_route(start, end, [start, end]) == ((0.35, 0), (1.65, 0))
    detour = best_route(start, end, [start, between, end])
    assert len(detour) == 4
    assert abs(detour[1][1]) > between.height / 2


def test_step_series_spreads_steps_over_their_epoch_and_thins_long_logs() -> None:
    times, values = step_series(search_log(2), "loss_weights")
    np.testing.assert_allclose(times, [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0])
    assert values[0] == 2.0
    assert len(step_series(search_log(2), "loss_architecture")[0]) == 0
    long = [{"kind": "step", "epoch": 0, "step": step, "loss": 1.0} for step in range(1000)]
    times, values = step_series(long, "loss")
    assert len(times) == 300
    np.testing.assert_allclose(values, 1.0)
    assert pretraining_epochs(search_log()) == 2
    assert pretraining_epochs([]) == 0


def test_class_maps_keep_their_exact_colours() -> None:
    labels = full_report().labels
    assert labels is not None
    mask = np.array([[0, 1, 2], [255, 1, 0]])
    decoded = np.asarray(Image.open(io.BytesIO(encode_map(mask, labels))).convert("RGB"))
    expected = [
        [labels.colours[0], labels.colours[1], labels.colours[2]],
        [(0, 0, 0), labels.colours[1], labels.colours[0]],
    ]
    np.testing.assert_array_equal(decoded, expected)


def test_ignored_pixels_are_no_mistakes() -> None:
    labels = full_report().labels
    assert labels is not None
    truth = np.array([[0, 1, 255, 255]])
    image = np.zeros((1, 4, 3), dtype=np.uint8)
    example = Example(name="e", image=image, prediction=np.array([[0, 2, 1, 0]]), truth=truth)
    assert wrong_share(example, labels) == 0.5
    red = mistakes(example, labels)
    assert [tuple(pixel) == (213, 94, 0) for pixel in red[0]] == [False, True, False, False]
    assert wrong_share(replace(example, truth=np.full_like(truth, 255)), labels) == 0.0


def test_pictures_for_a_readme(tmp_path: Path) -> None:
    data = full_report()
    assert data.labels is not None
    save_png(architecture_drawing(graph(), "student"), tmp_path / "a.png")
    save_svg(architecture_drawing(graph()), tmp_path / "a.svg")
    save_png(examples_sheet(data.examples, data.labels), tmp_path / "e.png", dots_per_inch=80)
    with Image.open(tmp_path / "a.png") as drawing, Image.open(tmp_path / "e.png") as sheet:
        assert drawing.width > 500
        assert sheet.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_the_time_spent_waiting_for_images_is_told():
    assert waiting_note([{"kind": "epoch", "epoch": 0}]) == ""
    epochs = [{"kind": "epoch", "epoch": number, "data_wait": share} for number, share in enumerate((0.9, 0.3, 0.3))]
    assert "30 %" in waiting_note(epochs)
    assert "30 % was spent waiting" in search_section(epochs).lead
