"""Paint the parts of the normal head, from the skin inward, at any level."""

from __future__ import annotations

import numpy as np

from twinbud.data.phantom.anatomy import (
    AIR,
    BONE,
    CSF,
    DURA,
    FAT,
    GRAY,
    MUSCLE,
    SELLA,
    VESSEL,
    VITREOUS,
    WHITE,
    Canvas,
    brain_depth_offset,
    brain_front,
    smoothstep,
)


def paint_head(canvas: Canvas) -> None:
    """Paint the whole normal head at the level of the canvas, from the skin inward."""
    paint_scalp_and_skull(canvas)
    paint_brain(canvas)
    paint_interhemispheric_fissure(canvas)
    paint_sylvian_fissures(canvas)
    paint_deep_gray(canvas)
    paint_ventricles(canvas)
    paint_brainstem_and_cisterns(canvas)
    paint_cerebellum(canvas)
    paint_face(canvas)
    paint_sella(canvas)
    paint_sinuses_and_vessels(canvas)
    paint_incidental_spots(canvas)


def paint_scalp_and_skull(canvas: Canvas) -> None:
    """Paint skin and fat, the two dark tables of the skull around the marrow, and the enhancing dura."""
    a, depth, noise = canvas.anatomy, canvas.depth, canvas.noise
    scalp = a.scalp * (1 + 0.2 * noise["warp_x"])
    canvas.paint(canvas.cover(-depth), FAT * (0.86 + 0.1 * noise["patch"]))
    canvas.paint(canvas.cover(depth - 0.012) * canvas.cover(-depth), 0.5)
    # The temporal muscles lie under the fat at the sides of the forehead.
    muscle = np.clip(1.2 - np.abs(np.abs(canvas.angle) - 1.15) / 0.35, 0, 1)
    canvas.paint(canvas.cover(0.4 * scalp - depth) * muscle, MUSCLE + 0.05 * noise["ridge"])
    canvas.paint(canvas.cover(scalp - depth), BONE)
    middle = np.abs(depth - a.scalp - 0.5 * a.skull)
    marrow = a.marrow * np.clip(0.7 + 0.4 * noise["depth"], 0, 1)
    canvas.paint(canvas.cover(middle - 0.2 * a.skull) * marrow, 0.75)
    inside = brain_depth_offset(a)
    canvas.paint(canvas.cover(np.abs(depth - inside) - 0.006) * 0.6, DURA)
    canvas.paint(canvas.cover(inside + 0.008 - depth), CSF)


def paint_brain(canvas: Canvas) -> None:
    """Paint white matter and folded cortex: sulci run inward from the surface and are lined with gray matter."""
    a, noise = canvas.anatomy, canvas.noise
    depth = canvas.depth - brain_depth_offset(a) - 0.012 - 0.02 * a.atrophy
    depth = np.minimum(depth, canvas.y - brain_front(canvas.x, canvas.level))
    canvas.brain = canvas.cover(-depth)
    radius = np.sqrt(canvas.x**2 + canvas.y**2)
    phase = 0.5 * a.num_sulci * canvas.angle + 2.0 * noise["fold"] + 0.9 * noise["ridge"] + 1.5 * noise["warp_x"]
    to_sulcus = np.abs(np.sin(phase)) * 2 * np.maximum(radius, 0.25) / a.num_sulci
    reach = np.maximum(0.1 + 0.075 * noise["depth"], 0.01)
    to_sulcus += np.maximum(depth - reach, 0) * 1.5
    # Folds in cross-section: winding lines that do not reach the surface.
    winding = np.abs(noise["ridge"]) * 0.035 + np.maximum(depth - 1.6 * reach, 0)
    to_sulcus = np.minimum(to_sulcus, winding + 0.012)
    to_gray = np.minimum(depth, to_sulcus) - a.cortex
    white = WHITE + 0.008 * noise["patch"] + 0.008 * noise["grain"]
    gray = WHITE + (GRAY - WHITE) * a.gray_white_contrast + 0.012 * noise["grain"]
    canvas.paint(canvas.brain, white)
    canvas.paint(canvas.brain * canvas.cover(to_gray, 3.0), gray)
    sulcal = canvas.cover(to_sulcus - 0.004 - 0.016 * a.atrophy, 2.5) * (0.35 + 0.6 * a.atrophy)
    canvas.paint(canvas.brain * sulcal, CSF)


def paint_interhemispheric_fissure(canvas: Canvas) -> None:
    """Paint the dark fissure between the hemispheres, with the thin enhancing falx in it."""
    a, level = canvas.anatomy, canvas.level
    middle = np.abs(canvas.x)
    front = canvas.cover(canvas.y + 0.42, 8) * smoothstep(0.3, 0.5, level)
    back = canvas.cover(0.52 - canvas.y, 8) * smoothstep(0.25, 0.5, level)
    reach = np.maximum(front, back) * canvas.brain
    canvas.paint(reach * canvas.cover(middle - 0.006 - 0.012 * a.atrophy, 2) * 0.85, CSF)
    canvas.paint(reach * canvas.cover(middle - 0.003, 1.5) * 0.6, DURA)


def paint_sylvian_fissures(canvas: Canvas) -> None:
    """Paint the fissures between frontal and temporal lobes, from the surface to the insula."""
    a = canvas.anatomy
    seen = smoothstep(0.25, 0.45, canvas.level)
    x = np.abs(canvas.x)
    rough = 0.02 * canvas.noise["fold"] + 0.012 * canvas.noise["ridge"]
    width = (0.004 + 0.016 * a.atrophy) * np.clip(1 + 0.5 * canvas.noise["patch"], 0.2, 2)
    course = np.abs(canvas.y + 0.12 + 0.25 * (x - 0.45) + rough) - width
    lateral = np.maximum(course, 0.44 - x)
    bend = 0.44 + 0.9 * (canvas.y + 0.08) ** 2 + rough
    deep = np.maximum(np.abs(x - bend) - width, np.abs(canvas.y + 0.06) - 0.17)
    canvas.paint(canvas.cover(np.minimum(lateral, deep), 3) * canvas.brain * seen * 0.75, CSF)


def paint_deep_gray(canvas: Canvas) -> None:
    """Paint caudate, lentiform nucleus and thalamus, slightly darker than the white matter between them."""
    seen = smoothstep(0.5, 0.75, canvas.level)
    gray = WHITE + (GRAY - WHITE) * canvas.anatomy.gray_white_contrast
    for side in (-1, 1):
        canvas.ellipse(side * 0.17, -0.2, 0.045, 0.09, gray, turn=-0.3 * side, softness=4, strength=0.8 * seen)
        canvas.ellipse(side * 0.28, -0.04, 0.075, 0.15, gray, turn=-0.35 * side, softness=4, strength=0.8 * seen)
        canvas.ellipse(side * 0.12, 0.12, 0.085, 0.12, gray, turn=0.4 * side, softness=4, strength=0.8 * seen)


def paint_ventricles(canvas: Canvas) -> None:
    """Paint frontal horns, third ventricle and trigones with choroid plexus (high) or temporal horns (low)."""
    a, level = canvas.anatomy, canvas.level
    high, low = smoothstep(0.5, 0.72, level), 1 - smoothstep(0.45, 0.75, level)
    for side in (-1, 1):
        size = a.ventricle * (1 + side * a.ventricle_asymmetry)
        horn = {"softness": 2.0, "strength": high}
        canvas.ellipse(side * 0.085, -0.31, 0.035 * size, 0.12, CSF, turn=-0.35 * side, **horn)
        canvas.ellipse(side * 0.27, 0.37, 0.04 * size, 0.11 * (0.6 + 0.4 * size), CSF, turn=0.45 * side, **horn)
        canvas.ellipse(side * 0.25, 0.34, 0.022, 0.05, VESSEL * 0.8, turn=0.4 * side, softness=3,
                       strength=high * a.choroid)  # fmt: skip
        canvas.ellipse(side * 0.4, 0.12, 0.014 * size, 0.07, CSF, turn=0.25 * side, softness=2, strength=0.8 * low)
    canvas.ellipse(0, 0.06, 0.014 * a.ventricle, 0.13, CSF, softness=2, strength=smoothstep(0.45, 0.65, level))
    canvas.ellipse(0, -0.33, 0.012, 0.1, WHITE, softness=2, strength=0.7 * high)


def paint_brainstem_and_cisterns(canvas: Canvas) -> None:
    """Paint suprasellar cistern, midbrain or pons in its dark ring of cistern, aqueduct or fourth ventricle."""
    a, level = canvas.anatomy, canvas.level
    seen = 1 - smoothstep(0.6, 0.8, level)
    star = smoothstep(0.1, 0.3, level) * (1 - smoothstep(0.65, 0.85, level))
    stem = 0.15 + 0.03 * (1 - smoothstep(0.1, 0.4, level))
    rows, columns = canvas.window(0, -0.08, 0.36)
    x, y = canvas.x[rows, columns], canvas.y[rows, columns] + 0.1
    spikes = 0.22 * np.cos(5 * np.arctan2(x, -y)) + 0.1 * canvas.noise["fold"][rows, columns]
    corners = np.hypot(x, y) - (0.085 + 0.035 * a.atrophy) * (1 + spikes)
    coverage = canvas.cover(corners, 4) * star
    canvas.image[rows, columns] += coverage * (CSF - canvas.image[rows, columns])
    # Peduncles bulge to the front, the tectum to the back; the ring of cistern is uneven and has gaps.
    x, y = canvas.x, canvas.y - 0.11
    angle = np.arctan2(np.abs(x), -y)
    shape = 1 + 0.1 * np.cos(2 * angle - 1.5) + 0.07 * np.cos(4 * angle - 2.4) + 0.03 * canvas.noise["fold"]
    distance = np.hypot(x / 1.08, y) - stem * shape
    ring = (0.006 + 0.026 * a.atrophy) * np.clip(1 + 0.5 * canvas.noise["depth"], 0, 2)
    # At the level of the pons the cerebellar peduncles close the ring at the sides.
    low = 1 - smoothstep(0.1, 0.35, level)
    opening = 1 - low * np.clip(1.3 - np.abs(angle - 1.9), 0, 1)
    canvas.paint(canvas.cover(distance - ring, 3) * seen * opening * 0.85, CSF)
    canvas.paint(canvas.cover(distance, 3) * seen, WHITE + 0.01 * canvas.noise["patch"])
    canvas.ellipse(0, 0.0, 0.022, 0.04, CSF, softness=3, strength=0.8 * seen)
    fourth = (1 - smoothstep(0.1, 0.3, level)) * a.ventricle
    canvas.ellipse(0, 0.11 + 0.72 * stem, 0.012 + 0.04 * fourth, 0.012 + 0.018 * fourth, CSF, softness=2, strength=seen)


def paint_cerebellum(canvas: Canvas) -> None:
    """Paint the fine transverse folia of the cerebellum behind the brainstem, below the enhancing tentorium."""
    seen = 1 - smoothstep(0.25, 0.5, canvas.level)
    x = np.abs(canvas.x)
    edge = np.maximum(0.3 - canvas.y + 0.08 * np.cos(5 * x), x - 0.22 - 0.75 * (canvas.y - 0.1))
    inside = canvas.cover(edge, 2) * canvas.brain * seen
    stripes = np.sin(75 * np.hypot(x - 0.1, canvas.y - 0.1) + 2 * canvas.noise["fold"] + canvas.noise["ridge"])
    texture = 0.39 + 0.025 * stripes * (0.4 + canvas.anatomy.atrophy) + 0.01 * canvas.noise["grain"]
    canvas.paint(inside, texture)
    tent = canvas.cover(np.abs(edge) - 0.006, 2) * canvas.brain * seen
    canvas.paint(tent * 0.45, DURA)


def paint_face(canvas: Canvas) -> None:
    """Paint what is in front of the sphenoid ridge: orbital fat, globes, air cells and dark bone."""
    a, level, noise = canvas.anatomy, canvas.level, canvas.noise
    seen = 1 - smoothstep(0.3, 0.46, level)
    if seen == 0:
        return
    ahead = canvas.y - brain_front(canvas.x, level)
    inside = canvas.cover(0.7 * a.scalp - canvas.depth) * seen
    scalp = canvas.image.copy()
    canvas.paint(canvas.cover(ahead) * inside, MUSCLE + 0.09 * noise["ridge"])
    canvas.paint(canvas.cover(np.abs(ahead + 0.02) - 0.025, 2) * inside, BONE + 0.04)
    front = -0.66
    for side in (-1, 1):
        canvas.ellipse(
            side * 0.31,
            front + 0.12,
            0.165,
            0.27,
            0.78 * FAT,
            turn=-0.4 * side,
            softness=3,
            strength=0.9 * seen,
        )
        canvas.ellipse(side * 0.6, front + 0.22, 0.05, 0.15, MUSCLE, turn=-0.4 * side, softness=4, strength=seen)
        canvas.ellipse(side * 0.27, front + 0.2, 0.016, 0.2, MUSCLE, turn=-0.4 * side, softness=2, strength=seen)
        canvas.ellipse(side * 0.41, front + 0.14, 0.018, 0.17, MUSCLE, turn=-0.6 * side, softness=2, strength=seen)
        globe = (side * 0.34, front - 0.03)
        canvas.ellipse(*globe, a.orbit, a.orbit * 1.05, 0.5, strength=seen)
        canvas.ellipse(*globe, a.orbit - 0.02, a.orbit * 1.05 - 0.02, VITREOUS, strength=seen)
        canvas.ellipse(globe[0], globe[1] - 0.75 * a.orbit, 0.05, 0.02, 0.4, strength=seen)
    # Clip everything at the skin.
    canvas.image = scalp + canvas.cover(0.012 - canvas.depth, 2) * (canvas.image - scalp)
    # Ethmoid cells: air in thin enhancing mucosa.
    wall = 0.11 + 0.03 * np.sin(9 * canvas.y) + 0.02 * noise["patch"]
    cells = np.maximum(np.abs(canvas.x) - wall, np.maximum(canvas.y - SELLA[1] + 0.13, -0.85 - canvas.y))
    septa = np.clip(0.25 - np.abs(noise["ridge"]), 0, 1) * 1.6
    canvas.paint(canvas.cover(cells, 2) * inside, AIR + 0.02 + septa)


def paint_sella(canvas: Canvas) -> None:
    """Paint the normal, enhancing pituitary gland between the carotids and cavernous sinuses."""
    a = canvas.anatomy
    seen = 1 - smoothstep(0.2, 0.4, canvas.level)
    x, y = SELLA[0] + a.sella_shift[0], SELLA[1] + a.sella_shift[1]
    canvas.ellipse(x, y, 0.15, 0.055, 0.25, softness=4, strength=0.8 * seen)
    for side in (-1, 1):
        canvas.ellipse(x + side * 0.115, y + 0.01, 0.03, 0.05, 0.6, softness=3, strength=seen)
        canvas.ellipse(x + side * 0.1, y, 0.02, 0.022, BONE, softness=2, strength=0.9 * seen)
    canvas.ellipse(x, y, a.gland, 0.7 * a.gland, 0.66, softness=2.5, strength=seen)
    # Higher slices show the stalk and the carotid tips only.
    above = smoothstep(0.25, 0.4, canvas.level) * (1 - smoothstep(0.6, 0.8, canvas.level))
    canvas.ellipse(x, y + 0.03, 0.016, 0.016, 0.6, softness=2, strength=above)
    for side in (-1, 1):
        canvas.ellipse(x + side * 0.16, y + 0.02, 0.1, 0.011, VESSEL, turn=0.3 * side, softness=2, strength=0.6 * above)


def paint_sinuses_and_vessels(canvas: Canvas) -> None:
    """Paint enhancing venous sinuses at the back and front, and cortical veins across the brain."""
    a, level = canvas.anatomy, canvas.level
    inside = 1 - brain_depth_offset(a) / (0.5 + 0.5 * a.width)
    canvas.ellipse(0, inside - 0.01, 0.045 * a.sinus, 0.03 * a.sinus, VESSEL, softness=3, strength=0.75)
    canvas.ellipse(0, inside - 0.03 - 0.02 * a.sinus, 0.012, 0.035 * a.sinus, VESSEL, softness=3, strength=0.6)
    canvas.ellipse(0, -inside, 0.016, 0.022 * a.sinus, VESSEL, softness=3, strength=0.6 * smoothstep(0.4, 0.6, level))
    low = 1 - smoothstep(0.1, 0.3, level)
    for side in (-1, 1):
        canvas.ellipse(
            side * 0.57 * a.width / 0.8,
            0.52,
            0.03,
            0.08,
            VESSEL,
            turn=0.6 * side,
            softness=3,
            strength=0.7 * low,
        )
    # A vein follows a zero of one noise field; a second field decides where it is in the slice.
    for course, dip, spacing in (("ridge", "depth", 0.035), ("patch", "fold", 0.05)):
        vein = canvas.cover(np.abs(canvas.noise[course]) * spacing - 0.003, 1.5)
        seen = np.clip((canvas.noise[dip] - 1.9 + 0.8 * a.vessels) * 1.5, 0, 1)
        canvas.paint(vein * seen * canvas.brain * 0.8, VESSEL)


def paint_incidental_spots(canvas: Canvas) -> None:
    """Paint benign findings that occur in every class: cysts, lacunes, calcifications, venous knots."""
    a = canvas.anatomy
    for angle, share, size, contrast in a.spots:
        radius = share**0.5 * 0.78
        x, y = a.width * radius * np.sin(angle), -radius * np.cos(angle)
        if y > brain_front(x, canvas.level) + 0.08:
            canvas.ellipse(x, y, size, size * 0.8, WHITE + contrast, turn=angle, softness=3, strength=0.85)
