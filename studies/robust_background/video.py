"""A video made of photographs: one is the background under changing light, coins of another roll across it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Video", "make_video"]

Array = np.ndarray


class Video(NamedTuple):
    """Frames as rows of pixels."""

    frames: Array  # (frames, height * width), what the camera sees
    background: Array  # (frames, height * width), without objects and noise; rank 3
    moving: Array  # (frames, height * width), where an object is


def make_video(photograph: str, shape: tuple[int, int], frames: int, objects: int, pause: float, seed: int) -> Video:
    """A noiseless video.

    Parameters
    ----------
    photograph : str
        Of scikit-image: the background.
    shape : (int, int)
        Height and width in pixels.
    frames, objects : int
    pause : float
        Share of the frames in which an object stays where it is.
    seed : int
        Of the paths of the objects.
    """
    rng = np.random.default_rng(seed)
    background = _under_light(_grey(photograph, shape), frames)
    video, moving = background.copy(), np.zeros(background.shape, bool)
    size = max(6, shape[0] // 4)
    for number in range(objects):
        coin, disc = _coins(size)[number]
        for t, (i, j) in enumerate(_path(rng, (shape[0] - size, shape[1] - size), frames, pause)):
            window = (t, slice(i, i + size), slice(j, j + size))
            video[window] = np.where(disc, coin, video[window])
            moving[window] |= disc
    flat = (frames, -1)
    return Video(video.reshape(flat), background.reshape(flat), moving.reshape(flat))


def _under_light(photograph: Array, frames: int) -> Array:
    """The photograph (h, w) times a brightness that swings, and shadows that wander across and down: rank 3."""
    h, w = photograph.shape
    t = np.arange(frames)[:, None, None] / frames
    across, down = np.linspace(-1, 1, w), np.linspace(-1, 1, h)[:, None]
    light = 1 + 0.15 * np.sin(2 * np.pi * t) + 0.2 * np.cos(2 * np.pi * t) * across + 0.1 * (2 * t - 1) * down
    return 0.7 * photograph * light


def _path(rng: np.random.Generator, room: tuple[int, int], frames: int, pause: float) -> list[tuple[int, int]]:
    """Corners of an object that crosses the room about once, bouncing off its edges, and rests on its way."""
    rest = round(pause * frames)
    when = rng.integers(frames // 5, frames - rest - frames // 5 + 1)
    clock = np.arange(frames) - np.clip(np.arange(frames) - when, 0, rest)
    speed = rng.uniform(0.7, 1.3, 2) * np.array(room) / (frames - rest) * rng.choice((-1, 1), 2)
    places = []
    for start, step, most in zip(rng.uniform(0, room), speed, room, strict=True):
        position = (start + step * clock) % (2 * most)
        places.append(np.minimum(position, 2 * most - position).round().astype(int))
    return list(zip(*places, strict=True))


def _grey(name: str, shape: tuple[int, int]) -> Array:
    from skimage import color, data, transform

    image: Any = getattr(data, name)()
    grey = color.rgb2gray(image) if image.ndim == 3 else image / 255.0
    return transform.resize(grey, shape, anti_aliasing=True)


@lru_cache(maxsize=4)
def _coins(size: int) -> list[tuple[Array, Array]]:
    """Coins cut out of a photograph, the largest first, and their outlines, (size, size) each."""
    from skimage import data, filters, measure, morphology, transform

    image = data.coins() / 255.0
    solid = morphology.closing(image > filters.threshold_otsu(image), np.ones((5, 5)))
    regions = [r for r in measure.regionprops(measure.label(solid)) if r.eccentricity < 0.6 and r.area > 800]
    regions.sort(key=lambda region: -region.area)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = y**2 + x**2 < (size / 2 - 0.3) ** 2
    return [(transform.resize(image[r.slice], (size, size), anti_aliasing=True), disc) for r in regions]
