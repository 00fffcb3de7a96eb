"""All but the objects of generated scenes: backgrounds, scribbles that mislead, uneven light and noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]

Bytes = NDArray[np.uint8]


def background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """[3, H, W] in 0..255: two hues mixed by a pattern, under clouds of noise at several octaves."""
    # Muted, and near each other: a background as strong as the objects would be camouflage.
    first = np.clip(rng.uniform(40, 215) + rng.uniform(-40, 40, 3), 15, 240)
    second = np.clip(first + rng.uniform(-60, 60) + rng.uniform(-25, 25, 3), 15, 240)
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, height, width)
    canvas: Floats = planes(first) + pattern * planes(second - first)
    clouds = np.zeros((height, width), dtype=np.float32)
    for cell in (40, 16, 7):
        clouds += (noise(rng, height, width, cell) - 0.5) * rng.uniform(4, 28)
    canvas += clouds * planes(rng.uniform(0.5, 1, 3))
    canvas += (noise(rng, height, width, 96) - 0.5) * planes(rng.uniform(-60, 60, 3))
    return canvas


def planes(colour: NDArray[np.float64]) -> Floats:
    """[3] -> [3, 1, 1]. Images are planar until they are done: numpy is far slower over a last axis of 3."""
    return colour.astype(np.float32)[:, None, None]


def noise(rng: np.random.Generator, height: int, width: int, cell: int) -> Floats:
    """[H, W] in 0..1: random values on a grid of `cell` pixels, smoothly joined."""
    grid = rng.integers(0, 256, (height // cell + 3, width // cell + 3), dtype=np.uint8)
    # between the outermost grid points, where the interpolation has neighbours on both sides
    part = (0.5, 0.5, 0.5 + width / cell, 0.5 + height / cell)
    smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=part)
    return np.asarray(smooth, dtype=np.float32) * np.float32(1 / 255)


def ramp(height: int, width: int, angle: float) -> Floats:
    """[H, W] the distance in pixels along a direction."""
    down = np.arange(height, dtype=np.float32) * math.sin(angle)
    along = np.arange(width, dtype=np.float32) * math.cos(angle)
    slope: Floats = down[:, None] + along
    return slope


def gradient(rng: np.random.Generator, height: int, width: int) -> Floats:
    """[H, W] in 0..1, evenly rising in some direction."""
    slope = ramp(height, width, rng.uniform(0, 2 * math.pi))
    slope -= slope.min()
    slope /= max(float(slope.max()), 1.0)
    return slope


def stripes(rng: np.random.Generator, height: int, width: int) -> Floats:
    """[H, W] in 0..1, straight or meandering, soft or crisp."""
    wave = ramp(height, width, rng.uniform(0, math.pi)) * (2 * math.pi / rng.uniform(10, 70))
    wave += noise(rng, height, width, 80) * rng.uniform(0, 8)
    values: Floats = np.clip(0.5 + np.sin(wave) * rng.uniform(0.5, 3), 0, 1)
    return values


def checkers(rng: np.random.Generator, height: int, width: int) -> Floats:
    """[H, W] in 0..0.6 with soft edges: a crisp and contrasty field would be a block without a box."""
    angle, frequency = rng.uniform(0, math.pi), 2 * math.pi / rng.uniform(24, 80)
    one, other = (np.sin(ramp(height, width, turn) * frequency) for turn in (angle, angle + math.pi / 2))
    values: Floats = np.clip(0.5 + one * other, 0, 1) * 0.6
    return values


def blobs(rng: np.random.Generator, height: int, width: int) -> Floats:
    """[H, W] in 0..1, from clouds to the patches of an army jacket."""
    cloud = noise(rng, height, width, int(rng.integers(12, 60)))
    values: Floats = np.clip((cloud - 0.5) * rng.uniform(1, 8) + 0.5, 0, 1)
    return values


def wood(rng: np.random.Generator, height: int, width: int) -> Floats:
    """[H, W] in 0..1, the contour lines of a smooth field."""
    rings = noise(rng, height, width, 110) * rng.uniform(4, 14)
    values: Floats = np.abs(2 * (rings - np.floor(rings)) - 1)
    return values


PATTERNS = (gradient, stripes, checkers, blobs, wood)


def scribble(rng: np.random.Generator, canvas: Floats) -> None:
    """Draw on [3, H, W] lines, zigzags, open arcs and specks that mislead, as bright as the objects."""
    height, width = canvas.shape[1:]
    colours = rng.uniform(0, 255, (3, 13)).astype(np.float32)
    strength = rng.uniform(0.4, 1, 13).astype(np.float32)
    ink = Image.new("L", (width, height))  # 0 where nothing is drawn, else the number of the stroke
    draw = ImageDraw.Draw(ink)
    for stroke in range(1, int(rng.integers(1, 14))):
        x, y, reach = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(10, 90)
        thick = int(rng.integers(1, 4))
        kind = rng.integers(4)
        if kind == 0:
            draw.line((x, y, rng.uniform(0, width), rng.uniform(0, height)), fill=stroke, width=thick)
        elif kind == 1:
            steps = rng.uniform(-reach / 2, reach / 2, (int(rng.integers(3, 8)), 2))
            points = [(x + dx, y + dy) for dx, dy in np.cumsum(steps, axis=0).tolist()]
            draw.line(points, fill=stroke, width=thick, joint="curve")
        elif kind == 2:  # at most half a turn: a whole one would be a ring
            start, box = rng.uniform(0, 360), (x - reach, y - reach, x + reach, y + reach)
            draw.arc(box, start, start + rng.uniform(60, 180), fill=stroke, width=thick)
        else:
            for dx, dy in rng.uniform(-reach, reach, (int(rng.integers(3, 15)), 2)).tolist():
                draw.rectangle((x + dx, y + dy, x + dx + thick, y + dy + thick), fill=stroke)
    strokes = np.asarray(ink)
    rows, columns = np.nonzero(strokes)
    which, under = strokes[rows, columns], canvas[:, rows, columns]
    canvas[:, rows, columns] = under + strength[which] * (colours[:, which] - under)


def develop(rng: np.random.Generator, canvas: Floats) -> Bytes:
    """Uneven light, an exposure with a tint, and the sensor's noise: [3, H, W] -> [H, W, 3] uint8."""
    height, width = canvas.shape[1:]
    light = 1 + (gradient(rng, height, width) - 0.5) * rng.uniform(0, 0.6)
    shot = canvas * light * planes(rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3))
    shot += rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(0, 9)
    return np.ascontiguousarray(np.clip(shot, 0, 255).astype(np.uint8).transpose(1, 2, 0))
