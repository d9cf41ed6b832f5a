"""The sections of the page, built from the data of a report; sections without data are omitted."""

from __future__ import annotations

from collections.abc import Sequence

from dnas.report import charts, curves, pictures
from dnas.report.blocks import Bar, Block, Definitions, Fact, Figure, Gallery, Picture, Section, Swatch, Table
from dnas.report.data import (
    ClassLabels,
    Example,
    LatencySummary,
    NetworkFigures,
    ReportData,
    Reproduction,
)
from dnas.report.numbers import MISSING, count, format_count, format_ms, percent, three_digits
from dnas.report.style import svg_text


def headline(network: NetworkFigures) -> tuple[Fact, ...]:
    """The summary figures of one network for the page's header; unknown ones are omitted."""
    facts = []
    if network.miou is not None:
        facts.append(Fact("mIoU", percent(network.miou), "%", f"{network.name}, validation"))
    latency = network.predicted_latency_ms if network.latency_ms is None else network.latency_ms
    if latency is not None:
        kind = "predicted" if network.latency_ms is None else "measured"
        facts.append(Fact("Latency", format_ms(latency), "ms", f"{network.name}, {kind}"))
        facts.append(Fact("Speed", three_digits(1000 / latency), "FPS", "batch size 1"))
    if network.parameters is not None:
        value, unit = format_count(network.parameters)
        facts.append(Fact("Parameters", value, unit, network.name))
    if network.multiply_adds is not None:
        value, unit = format_count(network.multiply_adds)
        facts.append(Fact("Multiply-adds", value, unit, "for one image"))
    return tuple(facts)


def build_sections(data: ReportData) -> list[Section]:
    """The sections for which ``data`` has content, results first."""
    sections: list[Section | None] = [
        _comparison(data.networks),
        _architectures(data),
        _examples(data),
        *data.search,
        _retraining(data),
        _latency_table(data.latency),
        _agreement(data),
        *data.extra,
        _reproduction(data.reproduction),
    ]
    return [section for section in sections if section is not None]


def _comparison(networks: Sequence[NetworkFigures]) -> Section | None:
    if not networks:
        return None
    columns = {
        "network": [network.name for network in networks],
        "mIoU (%)": [percent(network.miou) for network in networks],
        "pixel accuracy (%)": [percent(network.pixel_accuracy) for network in networks],
        "latency (ms)": [format_ms(network.latency_ms) for network in networks],
        "predicted (ms)": [format_ms(network.predicted_latency_ms) for network in networks],
        "target (ms)": [format_ms(network.target_ms) for network in networks],
        "FPS": [MISSING if not net.latency_ms else three_digits(1000 / net.latency_ms) for net in networks],
        "parameters": [count(network.parameters) for network in networks],
        "multiply-adds": [count(network.multiply_adds) for network in networks],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell != MISSING for cell in cells)}
    table = Table(
        header=tuple(shown),
        rows=list(zip(*shown.values(), strict=True)),
        numeric=range(1, len(shown)),
        caption="Latency is the median at batch size 1; predicted is the sum of the latency table's entries.",
    )
    return Section(
        title="Teacher and student" if len(networks) > 1 else "Result",
        lead="The derived networks after retraining, on the validation images.",
        blocks=[table],
    )


def _architectures(data: ReportData) -> Section | None:
    if not data.architectures:
        return None
    lead = "The architectures that the search chose."
    return Section(title="Derived architecture", lead=lead, blocks=list(data.architectures))


def _examples(data: ReportData) -> Section | None:
    blocks: list[Block] = []
    labels = data.labels
    if data.examples and labels is not None:
        present = pictures.classes_present(data.examples, labels)
        legend = [Swatch(labels.names[number], labels.colours[number]) for number in present]
        if pictures.any_ignored(data.examples, labels):
            legend.append(Swatch("ignored", (0, 0, 0)))
        blocks.append(
            Gallery(
                rows=[_example_row(example, labels) for example in data.examples],
                legend=legend,
                caption="In the last picture, pixels with a wrong prediction are orange. Mistakes are most common at "
                "thin objects and class borders.",
            )
        )
    if data.class_iou:
        blocks.append(
            Figure(
                svg=svg_text(charts.class_iou_bars(data.class_iou)),
                caption="IoU by class on the validation images. A class marked absent has no pixel in prediction or "
                "ground truth and does not count in the mean.",
                description="Bars of the intersection over union of every class",
                width=700,
            )
        )
    if not blocks:
        return None
    return Section(title="Predictions", lead="Validation images, which were not used for training.", blocks=blocks)


def _example_row(example: Example, labels: ClassLabels) -> list[Picture]:
    prediction = Picture(data=pictures.encode_map(example.prediction, labels), caption="prediction")
    row = [Picture(data=pictures.encode_photo(example.image), caption=example.name)]
    if example.truth is None:
        return [*row, prediction]
    share = pictures.wrong_share(example, labels)
    wrong = pictures.encode_photo(pictures.mistakes(example, labels))
    return [
        *row,
        Picture(data=pictures.encode_map(example.truth, labels), caption="ground truth"),
        prediction,
        Picture(data=wrong, caption=f"mistakes: {100 * share:.1f} % of pixels"),
    ]


def _retraining(data: ReportData) -> Section | None:
    records = {name: lines for name, lines in data.retrain_records.items() if lines}
    if not records:
        return None
    figure = Figure(
        svg=svg_text(curves.retraining_curves(records)),
        caption="Training of the derived networks from scratch. If the mIoU still rises at the end, more epochs would "
        "help; if the loss falls while the mIoU stalls, the network is overfitting. The loss of a student trained with "
        "distillation includes the distillation loss, so the losses are not comparable.",
        description="Curves of loss, mIoU and pixel accuracy over the epochs of retraining",
        width=960,
    )
    lead = f"{_enumeration(list(records))} trained from scratch."
    note = curves.waiting_note([line for lines in records.values() for line in lines])
    return Section(title="Retraining", lead=f"{lead} {note}".rstrip(), blocks=[figure])


def _enumeration(names: Sequence[str]) -> str:
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return text[:1].upper() + text[1:]


def _latency_table(latency: LatencySummary | None) -> Section | None:
    if latency is None:
        return None
    items = [("device", latency.device), ("backend", latency.backend), ("precision", latency.precision)]
    if latency.input_size is not None:
        items.append(("input size", f"{latency.input_size[0]} × {latency.input_size[1]} (height × width)"))
    items.append(("operators measured", f"{latency.entries}"))
    items += [(name, str(value)) for name, value in latency.details.items()]
    blocks: list[Block] = [Definitions(items=items)]
    if latency.slowest:
        longest = max(ms for _, ms in latency.slowest) or 1.0
        blocks.append(
            Table(
                header=("slowest operators", "ms"),
                rows=[(key, Bar(format_ms(ms), ms / longest)) for key, ms in latency.slowest],
                numeric=(1,),
                caption="The slowest operators, with inputs as channels × height × width. Replacing one of these by a "
                "skip or a zoomed convolution saves most.",
            )
        )
    return Section(title="Latency table", lead="Every operator of the space, measured on this device.", blocks=blocks)


def _agreement(data: ReportData) -> Section | None:
    if data.agreement is None or not len(data.agreement.predicted_ms):
        return None
    figure = Figure(
        svg=svg_text(charts.agreement_scatter(data.agreement)),
        caption="Latency of whole networks, predicted as the sum of the table's entries and measured. On the dashed "
        "line both are equal. Points parallel to it indicate a constant offset, which does not change the ranking that "
        "the search uses. MAPE is the mean absolute percentage error.",
        description="Scatter of predicted against measured latency",
        width=560,
    )
    lead = "Accuracy of the latencies that the table predicts."
    return Section(title="Predicted and measured latency", lead=lead, blocks=[figure])


def _reproduction(reproduction: Reproduction | None) -> Section | None:
    if reproduction is None:
        return None
    items = [] if reproduction.seed is None else [("seed", str(reproduction.seed))]
    if reproduction.commit:
        items.append(("commit", reproduction.commit))
    items += [*reproduction.versions.items(), *((name, str(value)) for name, value in reproduction.details.items())]
    blocks: list[Block] = []
    if reproduction.commands:
        blocks.append(Definitions(items=[("$", command) for command in reproduction.commands], mono=True))
    if items:
        blocks.append(Definitions(items=items))
    lead = "The same commands, seed and versions reproduce the run."
    return Section(title="Reproduction", lead=lead, blocks=blocks)
