"""Pictures of faces as low rank plus sparse: from scikit-learn's cache of LFW or a folder, never from the network.

Run ``python -m studies.robust_background.faces [FOLDER]``; the study itself needs no faces.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr

__all__ = ["Faces", "load_faces", "picture"]

Array = np.ndarray

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".tif", ".tiff"}
SHOWN = 6


class Faces(NamedTuple):
    """Pictures as rows of pixels."""

    images: Array  # (pictures, height * width), grey, in [0, 1]
    names: list[str]  # of the person, for every picture
    shape: tuple[int, int]  # height and width

    def of(self, name: str) -> Array:
        """The pictures (k, height * width) of one person."""
        return self.images[np.array(self.names) == name]

    def most_pictured(self) -> str:
        """The person with the most pictures."""
        return max(sorted(set(self.names)), key=self.names.count)


def load_faces(folder: str | Path | None = None, least: int = 20, shape: tuple[int, int] = (62, 47)) -> Faces:
    """Grey pictures of all persons with at least ``least`` of them.

    Parameters
    ----------
    folder : path, optional
        One folder of pictures for every person, already cropped to the faces; by default what
        ``sklearn.datasets.fetch_lfw_people`` has downloaded before, in its own crops.
    least : int
    shape : (int, int)
        Height and width that pictures of a folder are resized to; those of scikit-learn have 62 x 47 pixels.

    Raises
    ------
    FileNotFoundError
        Where there are no such pictures; it says where to put some.
    """
    faces = _cached(least) if folder is None else _in_folder(Path(folder), least, shape)
    if not faces.names:
        raise FileNotFoundError(
            f"no person has {least} pictures in {folder or 'the cache of scikit-learn'}; ask for fewer with least"
        )
    return faces


def _cached(least: int) -> Faces:
    from sklearn.datasets import fetch_lfw_people, get_data_home

    try:
        found: Any = fetch_lfw_people(min_faces_per_person=least, download_if_missing=False)
    except OSError as error:
        raise FileNotFoundError(
            f"scikit-learn has no faces in {Path(get_data_home()) / 'lfw_home'} ({error}); call "
            "sklearn.datasets.fetch_lfw_people() once with network access, put its lfw_home there, or give a folder "
            "with one folder of pictures for every person"
        ) from error
    names = [str(found.target_names[k]) for k in found.target]
    return Faces(np.asarray(found.data, float), names, tuple(found.images.shape[1:]))


def _in_folder(folder: Path, least: int, shape: tuple[int, int]) -> Faces:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; make it, with one folder of pictures for every person")
    images, names = [], []
    for person in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in person.iterdir() if path.suffix.lower() in PICTURES)
        if len(files) >= least:
            images += [_grey(path, shape).reshape(-1) for path in files]
            names += [person.name] * len(files)
    return Faces(np.array(images), names, shape)


def _grey(path: Path, shape: tuple[int, int]) -> Array:
    from skimage import color, io, transform, util

    image = util.img_as_float64(io.imread(path))
    grey = color.rgb2gray(image[..., :3]) if image.ndim == 3 else image
    return transform.resize(grey, shape, anti_aliasing=True)


def picture(images: Array, shape: tuple[int, int], rank: int) -> Figure:
    """Some pictures of one person (k, height * width), their part of low rank, and what stands out of it."""
    result, sparse = lr.robust_pca(images, rank)
    shown = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(int)
    figure = Figure(figsize=(1.2 * len(shown), 4.8), layout="constrained")
    axes = figure.subplots(3, len(shown), squeeze=False)
    rows = {"picture": images, f"rank {rank}": result.point.dense(), "outliers": abs(sparse)}
    for line, (name, values) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, k in zip(line, shown, strict=True):
            axis.imshow(values[k].reshape(shape), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    return figure


def main() -> None:
    """Separate the pictures of one person and store the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="one folder of pictures per person; default: scikit-learn's cache")
    parser.add_argument("--person", help="default: who has the most pictures")
    parser.add_argument("--least", type=int, default=20, help="pictures a person must have")
    parser.add_argument("--rank", type=int, default=4, help="of what the pictures have in common")
    parser.add_argument("--output", type=Path, default=Path("faces.png"))
    args = parser.parse_args()
    try:
        faces = load_faces(args.folder, args.least)
    except FileNotFoundError as error:
        parser.error(str(error))
    person = args.person or faces.most_pictured()
    if person not in faces.names:
        parser.error(f"no pictures of {person!r}; there are {', '.join(sorted(set(faces.names)))}")
    picture(faces.of(person), faces.shape, args.rank).savefig(args.output)
    print(f"{len(faces.of(person))} pictures of {person}: {args.output}")


if __name__ == "__main__":
    main()
