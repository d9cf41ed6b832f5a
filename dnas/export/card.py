"""The model card of an exported file: Markdown beside it, as model hubs show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dnas.export.metadata import ExportMetadata
from dnas.export.parity import Parity
from dnas.files import dump_yaml, write_text


def card_path(file: str | Path) -> Path:
    """The card of an exported file, ``FILE.md``."""
    return Path(f"{file}.md")


def write_card(
    file: str | Path, name: str, metadata: ExportMetadata, facts: Mapping[str, str], parity: Parity | None = None
) -> Path:
    """Write the card of ``file`` and return its path; ``facts`` are further lines, such as the data and the mIoU."""
    path = card_path(file)
    write_text(path, card_text(name, Path(file).name, metadata, facts, parity))
    return path


def card_text(
    name: str,
    file: str,
    metadata: ExportMetadata,
    facts: Mapping[str, str],
    parity: Parity | None = None,
    usage: Sequence[str] = (),
) -> str:
    """The card as Markdown, with the front matter that model hubs read; ``usage`` are lines of code, or commands."""
    front = {
        "license": metadata.licence or "unknown",
        "pipeline_tag": "image-segmentation",
        "library_name": "dnas",
        "tags": ["image-segmentation", "semantic-segmentation", "dnas"],
    }
    lines = ["---", dump_yaml(front).strip(), "---", "", f"# {name}", ""]
    lines += [f"`{file}`: a network for semantic segmentation, exported by dnas {metadata.dnas_version}.", ""]
    lines += [f"- {label}: {text}" for label, text in {**_described(metadata), **facts}.items()]
    if parity is not None:
        lines.append(f"- compared with PyTorch: {parity_text(parity)}")
    if metadata.class_names:
        lines += ["", "| index | class | colour (RGB) |", "|---|---|---|"]
        colours = [", ".join(map(str, colour)) for colour in metadata.colours] or ["-"] * len(metadata.class_names)
        rows = zip(metadata.class_names, colours, strict=True)
        lines += [f"| {index} | {class_name} | {colour} |" for index, (class_name, colour) in enumerate(rows)]
    usage = usage or (f"dnas predict {file} IMAGES --out predictions", f"dnas benchmark {file}")
    lines += ["", "```", *usage, "```", ""]
    return "\n".join(lines)


def parity_text(parity: Parity) -> str:
    """What a comparison found, in words."""
    images = f"{parity.images} {'images' if parity.real else 'random images'}"
    difference = f"largest difference of a logit {parity.max_abs_difference:.2g}, " if parity.max_abs_difference else ""
    return f"{difference}{100 * parity.equal_argmax:.2f} % of the pixels agree, on {images}"


def _described(metadata: ExportMetadata) -> dict[str, str]:
    def shown(values: tuple[float, ...]) -> str:
        return ", ".join(f"{value:g}" for value in values)

    def size(sides: tuple[int, int]) -> str:
        return f"{sides[0]}x{sides[1]}"

    if metadata.end_to_end:
        taken = "any size" if metadata.dynamic_size else size(metadata.image_size or metadata.input_size)
        images = f"RGB uint8, {taken}, {metadata.layout.upper()}; resized, normalised and decided in the file"
    else:
        taken = "any size" if metadata.dynamic_size else size(metadata.input_size)
        images = f"RGB in 0 to 1, minus mean, divided by deviation, {taken}, NCHW"
    found = {
        "input": images,
        "output": "classes (N, H, W) uint8" if metadata.end_to_end else "logits (N, classes, H, W)",
    }
    if metadata.mean:
        found |= {"mean": shown(metadata.mean), "deviation": shown(metadata.std)}
    found["precision"] = metadata.precision
    if metadata.calibration_images is not None:
        found["calibrated on"] = f"{metadata.calibration_images} images"
    if metadata.excluded_layers:
        found["layers in floating point"] = ", ".join(metadata.excluded_layers)
    if metadata.parameters is not None:
        found["parameters"] = f"{metadata.parameters / 1e6:.3f} M"
    if metadata.multiply_adds is not None:
        found["multiply-adds"] = f"{metadata.multiply_adds / 1e9:.3f} G at {size(metadata.input_size)}"
    return {**found, "licence": metadata.licence or "not stated", "commit": metadata.commit or "unknown"}
