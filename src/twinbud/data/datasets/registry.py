"""The public sets that twinbud knows by name: what their authors publish, and where copies are found.

Counts are compared with what is found; a copy of another version is then named instead of being taken for the set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twinbud.config.data_spec import MEDMNIST_PREFIX
from twinbud.core.errors import TwinbudError
from twinbud.data.datasets.layouts import Layout, class_folders, ct_slices, divided_class_folders
from twinbud.data.index import SplitName

KAGGLE = "kaggle"
MEDMNIST = "medmnist"


@dataclass(frozen=True, kw_only=True)
class KaggleSource:
    """Where a set is on Kaggle, and how the downloaded files are arranged.

    Attributes:
        handle: ``OWNER/NAME/versions/NUMBER``: the version that has the published counts.
        folders: The class folders, relative to the folder of the set, and the class of each.
        inner: Where in a copy the folder of the set may be, outermost first.
        layout: Lists the files.
        variants: What lists the files of ``NAME@VARIANT``.
    """

    handle: str
    folders: Mapping[str, str]
    inner: tuple[str, ...]
    layout: Layout
    variants: Mapping[str, Layout] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One public set.

    Attributes:
        name: As ``--data`` spells it.
        modality: How the images were made, and of what.
        task: What is classified.
        classes: Names of the classes, as the set numbers or spells them.
        class_counts: Published number of images of each class, where it is published.
        part_counts: Published number of images of the set's own parts, where it has any.
        license: The license of the images, not of twinbud.
        origin: Page of the set.
        extra: The extra of twinbud that downloads it.
        kaggle: Where it is on Kaggle; None for MedMNIST.
        num_channels: 1 for gray images of MedMNIST, 3 for color; 0 where it varies.
        unsupported: Why twinbud cannot train on it yet; None where it can.
    """

    name: str
    modality: str
    task: str
    classes: tuple[str, ...]
    class_counts: Mapping[str, int] = field(default_factory=dict)
    part_counts: Mapping[SplitName, int] = field(default_factory=dict)
    license: str
    origin: str
    extra: str
    kaggle: KaggleSource | None = None
    num_channels: int = 0
    unsupported: str | None = None

    @property
    def num_images(self) -> int:
        """Published number of images."""
        return sum(self.class_counts.values()) or sum(self.part_counts.values())


_TUMORS = ("glioma", "meningioma", "notumor", "pituitary")
_KAGGLE_SETS = (
    DatasetEntry(
        name="brain-tumor-mri",
        modality="brain MRI",
        task="type of tumor",
        classes=_TUMORS,
        class_counts={"glioma": 1621, "meningioma": 1645, "notumor": 2000, "pituitary": 1757},
        part_counts={"train": 5712, "test": 1311},
        license="CC0-1.0",
        origin="https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset",
        extra=KAGGLE,
        kaggle=KaggleSource(
            handle="masoudnickparvar/brain-tumor-mri-dataset/versions/1",  # version 2 has 7,200 images
            folders={f"{part}/{tumor}": tumor for part in ("Training", "Testing") for tumor in _TUMORS},
            inner=("",),
            layout=class_folders,
            variants={"given": divided_class_folders},
        ),
    ),
    DatasetEntry(
        name="covid-ct-slices",
        modality="lung CT, slices",
        task="COVID-19, community-acquired pneumonia, normal",
        classes=("CAP", "COVID-19", "Normal"),
        class_counts={"CAP": 2618, "COVID-19": 7593, "Normal": 6893},
        license="of its seven source sets (see the page)",
        origin="https://www.kaggle.com/datasets/maedemaftouni/large-covid19-ct-slice-dataset",
        extra=KAGGLE,
        kaggle=KaggleSource(
            handle="maedemaftouni/large-covid19-ct-slice-dataset",
            folders={"1NonCOVID": "Normal", "2COVID": "COVID-19", "3CAP": "CAP"},
            inner=("curated_data/curated_data", "curated_data", ""),
            layout=ct_slices,
        ),
    ),
    DatasetEntry(
        name="covid19-radiography",
        modality="chest X-ray",
        task="COVID-19, lung opacity, viral pneumonia, normal",
        classes=("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"),
        class_counts={"COVID": 3616, "Lung_Opacity": 6012, "Normal": 10192, "Viral Pneumonia": 1345},
        license="of the original authors (see the page)",
        origin="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
        extra=KAGGLE,
        kaggle=KaggleSource(
            handle="tawsifurrahman/covid19-radiography-database/versions/5",
            folders={f"{name}/images": name for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")},
            inner=("COVID-19_Radiography_Dataset", ""),
            layout=class_folders,
        ),
    ),
)

_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip


def _medmnist(
    name: str,
    modality: str,
    task: str,
    classes: tuple[str, ...],
    counts: tuple[int, int, int],
    num_channels: int,
    *,
    license: str = "CC BY 4.0",
    unsupported: str | None = None,
) -> DatasetEntry:
    train, val, test = counts
    return DatasetEntry(
        name=MEDMNIST_PREFIX + name,
        modality=modality,
        task=task,
        classes=classes,
        part_counts={"train": train, "val": val, "test": test},
        license=license,
        origin="https://medmnist.com",
        extra=MEDMNIST,
        num_channels=num_channels,
        unsupported=unsupported,
    )


_MEDMNIST_SETS = (
    _medmnist(
        "bloodmnist", "blood cell microscopy", "type of cell",
        ("basophil", "eosinophil", "erythroblast",
         "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte", "neutrophil",
         "platelet"),
        (11959, 1712, 3421), 3,
    ),
    _medmnist(
        "breastmnist", "breast ultrasound", "malignant or not", ("malignant", "normal, benign"), (546, 78, 156), 1,
    ),
    _medmnist(
        "chestmnist", "chest X-ray", "14 findings, several in one image",
        ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
         "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
        (78468, 11219, 22433), 1,
        unsupported="an image can have several of its 14 labels; export it to a CSV for --task multi-label",
    ),
    _medmnist(
        "dermamnist", "dermatoscopy", "type of skin lesion",
        ("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
         "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
        (7007, 1003, 2005), 3, license="CC BY-NC 4.0",
    ),
    _medmnist(
        "octmnist", "retinal OCT", "type of retinal disease",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"), (97477, 10832, 1000), 1,
    ),
    _medmnist("organamnist", "abdominal CT, axial", "organ", _ORGANS, (34561, 6491, 17778), 1),
    _medmnist("organcmnist", "abdominal CT, coronal", "organ", _ORGANS, (12975, 2392, 8216), 1),
    _medmnist("organsmnist", "abdominal CT, sagittal", "organ", _ORGANS, (13932, 2452, 8827), 1),
    _medmnist(
        "pathmnist", "colon histology", "type of tissue",
        ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
         "cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
        (89996, 10004, 7180), 3,
    ),
    _medmnist(
        "pneumoniamnist", "chest X-ray, children", "pneumonia or not", ("normal", "pneumonia"), (4708, 524, 624), 1,
    ),
    _medmnist(
        "retinamnist", "fundus photography", "grade of diabetic retinopathy, as five classes",
        ("0", "1", "2", "3", "4"), (1080, 120, 400), 3,
    ),
    _medmnist(
        "tissuemnist", "kidney cortex microscopy", "type of cell",
        ("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
         "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
         "Thick Ascending Limb"),
        (165466, 23640, 47280), 1,
    ),
)  # fmt: skip

DATASETS: tuple[DatasetEntry, ...] = (*_KAGGLE_SETS, *_MEDMNIST_SETS)
"""Every set that is known by name, sorted; sets of the Hugging Face hub describe themselves."""


def entry_of(name: str) -> DatasetEntry:
    """Return the entry of a name.

    Raises:
        TwinbudError: There is none.
    """
    for entry in DATASETS:
        if entry.name == name:
            return entry
    raise TwinbudError(f"'{name}' is not the name of a set", where="--data", fix="Run: twinbud datasets")
