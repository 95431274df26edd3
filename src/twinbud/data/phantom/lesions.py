"""The tumors of the phantom: location, displacement of tissue and appearance of each kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinbud.data.phantom.anatomy import (
    CSF,
    DURA,
    SELLA,
    WHITE,
    Anatomy,
    Array,
    Canvas,
    brain_depth_offset,
    brain_front,
    skin_depth,
)


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One tumor: center and radius in half head lengths, contrast and shape."""

    kind: str
    x: float
    y: float
    radius: float
    stretch: float
    turn: float
    lobes: tuple[tuple[float, float], ...]
    enhancement: float
    rim: float
    necrosis: float
    edema: float
    push: float


def draw_lesion(kind: str, anatomy: Anatomy, generator: np.random.Generator) -> Lesion:
    """Draw a tumor of a kind, at a location that is typical of it."""
    uniform = generator.uniform
    enhancement = float(uniform(0.25, 0.55))
    if kind == "glioma":
        radius, spread = float(uniform(0.2, 0.34)), 0.09
        x, y = _place_in_white_matter(anatomy, generator)
        rim = enhancement if uniform() < 0.75 else 0.0
        detail = {"rim": rim, "necrosis": float(uniform(0.2, 0.3)), "edema": float(uniform(0.04, 0.13))}
    elif kind == "meningioma":
        radius, spread = float(uniform(0.17, 0.3)), 0.06
        x, y = _place_on_dura(anatomy, radius, generator)
        detail = {"rim": 0.0, "necrosis": 0.0, "edema": float(uniform(0.04, 0.12) * (uniform() < 0.4))}
    else:
        radius, spread = float(uniform(0.11, 0.18)), 0.05
        x = SELLA[0] + anatomy.sella_shift[0] + float(generator.normal(0, 0.012))
        y = SELLA[1] + anatomy.sella_shift[1] + float(uniform(-0.03, 0.06))
        detail = {"rim": 0.0, "necrosis": float(0.12 * (uniform() < 0.2)), "edema": 0.0}
    # Finer lobes are shallower.
    lobes = tuple(
        (float(generator.normal(0, spread / order**0.7)), float(uniform(0, 2 * np.pi))) for order in range(1, 6)
    )
    return Lesion(
        kind=kind, x=x, y=y, radius=radius, stretch=float(uniform(0.8, 1.2)), turn=float(uniform(0, np.pi)),
        lobes=lobes,
        enhancement=enhancement, push=float(uniform(0.15, 0.45)), **detail,
    )  # fmt: skip


def _place_in_white_matter(anatomy: Anatomy, generator: np.random.Generator) -> tuple[float, float]:
    """Draw a center within one hemisphere, away from the midline, the skull and the face."""
    x = float(generator.choice([-1, 1]) * generator.uniform(0.24, 0.4))
    front = max(float(brain_front(x, anatomy.level)) + 0.26, -0.5)
    return x, float(generator.uniform(front, 0.5))


def _place_on_dura(anatomy: Anatomy, radius: float, generator: np.random.Generator) -> tuple[float, float]:
    """Draw a center near the inner table of the skull or the falx, so that the tumor has a broad base on it."""
    on_falx = generator.uniform() < 0.2 and anatomy.level > 0.4
    side = generator.choice([-1, 1])
    if on_falx:
        y = generator.choice([-1, 1]) * generator.uniform(0.5, 0.66)
        return float(side * 0.75 * radius), float(y)
    lowest = 0.55 if anatomy.level > 0.5 else 1.5
    angle = float(side * generator.uniform(lowest, 2.8))
    # The first point inward along the ray that is 0.7 radii from the dura.
    reach = np.linspace(1.2, 0, 400, dtype=np.float32)
    x, y = reach * np.sin(angle), -reach * np.cos(angle)
    step = int(np.argmax(skin_depth(anatomy, x, y) > brain_depth_offset(anatomy) + 0.7 * radius))
    return float(x[step]), float(y[step])


def mass_effect(lesion: Lesion, anatomy: Anatomy, x: Array, y: Array) -> tuple[Array, Array]:
    """Return where the tissue now at (x, y) was before the tumor displaced it; the skull does not move."""
    dx, dy = x - lesion.x, y - lesion.y
    distance = np.hypot(dx, dy)
    fade = np.clip(1 - distance / (2.4 * lesion.radius), 0, 1) ** 2
    yielding = np.clip((skin_depth(anatomy, x, y) - brain_depth_offset(anatomy)) / 0.08, 0, 1)
    pull = lesion.push * lesion.radius * fade * yielding / np.maximum(distance, 0.25 * lesion.radius)
    return x - dx * pull, y - dy * pull


def paint_lesion(canvas: Canvas, lesion: Lesion, x: Array, y: Array) -> None:
    """Paint the tumor; (x, y) are head coordinates without displacement."""
    c, s = np.cos(lesion.turn), np.sin(lesion.turn)
    dx, dy = x - lesion.x, y - lesion.y
    u, v = (c * dx + s * dy) * lesion.stretch, (c * dy - s * dx) / lesion.stretch
    angle, noise = np.arctan2(v, u), canvas.noise
    swell = np.ones_like(angle)
    for order, (amplitude, phase) in enumerate(lesion.lobes, start=2):
        swell += amplitude * np.cos(order * angle + phase)
    distance = np.hypot(u, v) - lesion.radius * swell + 0.006 * noise["fold"]
    # These tumors do not grow through bone.
    inside = canvas.cover(brain_depth_offset(canvas.anatomy) - canvas.depth + 0.004)
    if lesion.kind == "glioma":
        _paint_glioma(canvas, lesion, distance, inside * canvas.brain)
        return
    if lesion.edema:
        rough = distance + 0.03 * noise["patch"]
        canvas.paint(0.7 * canvas.brain * np.clip(1 - rough / lesion.edema, 0, 1), WHITE - 0.11)
    body = WHITE + lesion.enhancement + 0.012 * noise["patch"] + 0.01 * noise["grain"]
    canvas.paint(canvas.cover(distance, 2.2) * inside, body)
    if lesion.kind == "meningioma":
        dural = np.abs(canvas.depth - brain_depth_offset(canvas.anatomy) - 0.01) - 0.012
        tail = canvas.cover(dural, 2) * np.clip(1 - distance / (0.6 * lesion.radius), 0, 1)
        canvas.paint(tail * 0.8, DURA + 0.5 * lesion.enhancement)
    elif lesion.necrosis:
        canvas.paint(canvas.cover(distance + 0.55 * lesion.radius, 4), body - lesion.necrosis)


def _paint_glioma(canvas: Canvas, lesion: Lesion, distance: Array, inside: Array) -> None:
    """Paint an infiltrating tumor: edema, uneven body, dark core and, if high-grade, an irregular bright rim."""
    noise = canvas.noise
    ragged = distance + 0.014 * noise["patch"] + 0.012 * noise["ridge"] + 0.02 * noise["fold"]
    edema = np.clip(1 - (ragged + 0.02) / lesion.edema, 0, 1)
    canvas.paint(0.75 * inside * edema, WHITE - 0.12)
    solid = WHITE - 0.11 + 0.05 * noise["patch"] + 0.02 * noise["ridge"]
    canvas.paint(0.85 * inside * canvas.cover(ragged, 6), solid)
    core = canvas.cover(ragged + 0.4 * lesion.radius + 0.02 * noise["depth"], 5)
    canvas.paint(0.9 * inside * core, np.maximum(WHITE - lesion.necrosis, CSF + 0.02 * noise["grain"]))
    if lesion.rim:
        thickness = 0.022 + 0.012 * noise["depth"]
        rim = canvas.cover(np.abs(ragged + 0.25 * lesion.radius) - thickness, 2.5)
        patchy = np.clip(0.75 + 0.4 * noise["patch"], 0, 1)
        canvas.paint(inside * rim * patchy, WHITE + lesion.rim + 0.03 * noise["ridge"])
