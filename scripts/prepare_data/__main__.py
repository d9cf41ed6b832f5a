"""Prepare a public data set from its archives, as downloaded.

    python -m scripts.prepare_data NAME ARCHIVE... --out DIR

NAME is camvid701, cityscapes, bdd100k, ade20k, coco_stuff, voc, mapillary or mapillary_v2; ARCHIVE is a file as
downloaded, or a folder that was unpacked from one. Only the files that training needs are unpacked. An interrupted
call can be repeated. At the end every split is opened, and its first image is read. Nothing is downloaded: most of
these data sets ask to register and to accept their terms.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dnas.data import load_data_config, open_dataset
from dnas.errors import UserError
from scripts.prepare_data.archives import unpack
from scripts.prepare_data.datasets import sources


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the data set; the exit status is 2 for a user error, which is printed in one line."""
    parser = argparse.ArgumentParser(prog="scripts.prepare_data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=sorted(sources()), metavar="NAME", help=", ".join(sorted(sources())))
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        prepare(options.name, options.archives, options.out)
    except UserError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(name: str, archives: Sequence[Path], out: Path) -> None:
    """Unpack ``archives`` of the data set into ``out`` and open its splits; prints what was found."""
    source = sources()[name]
    expected = f"expected {' and '.join(source.archives)} from {source.home}"
    for archive in archives:
        count = unpack(archive, out, source.place)
        if not count:
            raise UserError(f"{archive}: holds no files of {name}; {expected}")
        print(f"{archive}: {count} files")
    config = load_data_config(f"{name}:{out}")
    for split in source.splits:
        try:
            dataset = open_dataset(config, split)
            dataset[0]
        except UserError as error:
            raise UserError(f"{error} ({expected})") from None
        height, width = dataset.image_size
        print(f"{split}: {len(dataset)} images, the first of {height}x{width}; {dataset.labels.num_classes} classes")
    print(f"use it as --data {name}:{out}")


if __name__ == "__main__":
    sys.exit(main())
