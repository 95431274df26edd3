"""Stand-ins of the public sets: their folders and file names, with tiny generated images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RADIOGRAPHY = {"COVID": 4, "Lung_Opacity": 5, "Normal": 6, "Viral Pneumonia": 4}
TUMORS = {"glioma": "gl", "meningioma": "me", "notumor": "no", "pituitary": "pi"}
CT_SLICES = {
    "1NonCOVID": {
        "16_Morozov_study_0017_20.png": "study_id_17",
        "16_Morozov_study_0017_21.png": "study_id_17",
        "6_Rahimzadeh_normal10_patient151_SR_4_IM00012.png": "patient151",
        "N016_112.png": "N016",
        "normal037_112.png": "normal037",
    },
    "2COVID": {
        "14_Jun_coronacases_case7_75.png": "case7",
        "14_Jun_coronacases_case7_76.png": "case7",
        "14_Jun_radiopaedia_7_85703_0_case20_10.png": "\xa074724",
        "15_Cohen_16751_2_1.png": "207",
        "17_Zhao_2020.02.10.20021584-p6-52%0.png": "Zhao_Patient 2",
        "P033_112.png": "P033",
    },
    "3CAP": {"cap006_10.png": "cap006", "cap006_11.png": "cap006", "cp001_10.png": "cp001", "cp002_10.png": "cp002"},
}
"""Names of files and patients as the set has them; the space before 74724 is one that is not UTF-8 there."""
CT_TABLES = {"1NonCOVID": "normal", "2COVID": "covid", "3CAP": "cap"}


def save_images(folder: Path, names: Iterable[str], level: int = 0, size: int = 12) -> None:
    """Images of one class, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        generator = np.random.default_rng((level, number, len(str(folder))))
        pixels = generator.normal(50 + 50 * level, 15, (size, size)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)


def save_radiography(root: Path, counts: Mapping[str, int] = RADIOGRAPHY) -> Path:
    """``COVID-19_Radiography_Dataset``, with images and masks of the same names side by side."""
    folder = root / "COVID-19_Radiography_Dataset"
    for level, (name, count) in enumerate(counts.items()):
        names = [f"{name}-{number}.png" for number in range(1, count + 1)]
        save_images(folder / name / "images", names, level)
        save_images(folder / name / "masks", names, 4)
        (folder / f"{name}.metadata.xlsx").write_bytes(b"PK")
    (folder / "README.md.txt").write_text("COVID-19 CHEST X-RAY DATABASE")
    return root


def save_tumors(root: Path, training: int = 4, testing: int = 2) -> Path:
    """``Training`` and ``Testing`` with the same class folders."""
    for part, before, count in (("Training", "Tr", training), ("Testing", "Te", testing)):
        for level, (name, short) in enumerate(TUMORS.items()):
            names = [f"{before}-{short}_{number:04d}.jpg" for number in range(10, 10 + count)]
            save_images(root / part / name, names, level)
    return root


def save_ct_slices(root: Path, tables: Iterable[str] = CT_TABLES) -> Path:
    """``curated_data/curated_data`` with class folders, and beside it the tables of the patients."""
    for level, (name, patients) in enumerate(CT_SLICES.items()):
        save_images(root / "curated_data" / "curated_data" / name, patients, level)
        if name in tables:
            rows = [f'0,{file},{patient},"text, more"\n' for file, patient in patients.items()]
            table = root / f"meta_data_{CT_TABLES[name]}.csv"
            table.write_text("index,File name,Patient ID,Presentation\n" + "".join(rows), encoding="latin-1")
    return root


def medmnist_arrays(
    num_classes: int, shape: tuple[int, ...], counts: tuple[int, int, int] = (12, 4, 6), num_labels: int = 1
) -> dict[str, Any]:
    """The six arrays of a MedMNIST file: random pixels, and every class in every part."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        labels = np.arange(count * num_labels).reshape(count, num_labels) % num_classes
        arrays[f"{part}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    return arrays
