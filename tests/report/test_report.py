"""The page and the card: complete, offline, escaped, and the same twice."""

import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from unittest.mock import Mock

import matplotlib as mpl
import numpy as np
import pytest
import yaml

from twinbud.core.errors import TwinbudError
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predictions import Predictions
from twinbud.report import figures, trust_figures
from twinbud.report.model import Arm, Example, Mistake, RunSummary, Width, encode_picture
from twinbud.report.model_card import write_model_card
from twinbud.report.page import certainty, write_report
from twinbud.training.checkpoint import EpochRecord

pytestmark = pytest.mark.usefixtures("drawn_figures")

EVIL = "<script>alert('x')</script> $\\frac{ | & 腫"


def make_summary(classes=("no lesion", "glioma", EVIL), num_images=60, **changes):
    random = np.random.default_rng(0)
    labels = np.arange(num_images) % len(classes)
    probabilities = random.dirichlet(np.ones(len(classes)), size=num_images)
    probabilities[np.arange(num_images), labels] += 0.7
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    paths = tuple(f"{i}.png" for i in range(num_images))
    predictions = Predictions(paths=paths, labels=labels, probabilities=probabilities, classes=classes)
    history = tuple(
        EpochRecord(
            epoch=e,
            step=e,
            seconds=1.0,
            learning_rate=1e-4,
            loss=1 / e,
            loss_ce=0.8 / e,
            loss_skd=0.2 / e,
            accuracy=0.5,
        )
        for e in (1, 2, 3)
    )
    gray, color = (encode_picture(np.full(shape, 99, dtype=np.uint8)) for shape in ((400, 200), (8, 8, 3)))
    values = {
        "title": f"Title {EVIL}",
        "facts": {"Teacher": EVIL, "Labelled images": "286"},
        "metrics": evaluate(predictions, num_bootstrap=20),
        "num_train": 286,
        "histories": {"": history},
        "comparison": (Arm(name=EVIL, accuracy=0.8, accuracy_interval=(0.7, 0.9), marked=True),),
        "mistakes": (Mistake(picture=gray, path=f"a/{EVIL}.png", label=EVIL, prediction="glioma", confidence=0.987),),
        "examples": (Example(picture=color, label=EVIL),),
        "selection": (Width(name="embedding", teacher=384, student=192, overlap=None),),
        "notes": ("No patient column: split by image, figures may be optimistic.", EVIL),
        "settings": {"alpha": 0.6, "split": None, "note": EVIL},
        "environment": {"versions": {"torch": "2.10"}, "command": EVIL},
    }
    return RunSummary(**{**values, **changes})


class Reader(HTMLParser):
    """Collects tags and addresses, and checks that every element is closed in turn."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(tmp_path, summary):
    write_report(tmp_path / "report.html", summary)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def card_of(tmp_path, summary):
    write_model_card(tmp_path / "README.md", summary)
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_card_of_a_network_that_timm_cannot_build_names_what_opens_it(tmp_path):
    card = card_of(tmp_path, replace(make_summary(), opens_with_timm=False))
    assert "library_name: twinbud\n" in card
    assert 'import twinbud\nmodel = twinbud.open_model("PATH")' in card
    assert "timm.create_model" not in card
    assert "open_model" not in card_of(tmp_path, make_summary())


def test_page_fetches_nothing_and_says_so_to_the_browser(tmp_path):
    page = page_of(tmp_path, make_summary())
    reader = Reader(page)
    assert reader.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in reader.addresses)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_no_text_of_the_user_becomes_markup(tmp_path):
    page = page_of(tmp_path, make_summary())
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 10
    card = card_of(tmp_path, make_summary())
    assert "<script" not in card.lower()


def test_ids_of_the_figures_do_not_collide(tmp_path):
    ids = Reader(page_of(tmp_path, make_summary())).ids
    assert len(ids) == len(set(ids)) > 10


def test_page_shows_what_was_measured(tmp_path):
    summary = make_summary()
    page = page_of(tmp_path, summary).replace("\u00a0", " ")
    interval = summary.metrics.confidence_intervals["accuracy"]
    assert interval is not None
    low, high = interval
    assert f"95 % interval: {100 * low:.1f} % to {100 * high:.1f} %" in page
    assert "20 bootstrap replicates of the 60 images" in page
    for row in summary.metrics.per_class.values():
        assert f"{100 * (row.sensitivity or 0):.1f} %" in page
    assert "Not a medical device" in page
    assert "No patient column: split by image, figures may be optimistic." in page
    assert "confidence 99 %" in page
    assert page.count("<svg") == 4


def test_same_summary_gives_the_same_bytes(tmp_path):
    assert page_of(tmp_path, make_summary()) == page_of(tmp_path, make_summary())


def test_a_summary_of_metrics_alone_is_a_whole_page(tmp_path):
    full = make_summary()
    bare = RunSummary(title="bare", metrics=full.metrics)
    page = page_of(tmp_path, bare)
    Reader(page)
    assert "<h2>Training" not in page
    assert "Comparison" not in page


def test_several_histories_are_drawn_together(tmp_path):
    records = make_summary().histories[""]
    page = page_of(tmp_path, make_summary(histories={"dual": records, "timm": records}))
    assert "dual, training" in page
    assert "timm, training" in page


def test_undefined_values_are_dashes(tmp_path):
    summary = make_summary()
    metrics = replace(
        summary.metrics,
        auroc_macro=None,
        confidence_intervals=dict.fromkeys(summary.metrics.confidence_intervals),
        per_class={
            name: replace(row, sensitivity=None if name == "glioma" else 1.0, auroc=None)
            for name, row in summary.metrics.per_class.items()
        },
    )
    undefined = replace(summary, metrics=metrics, settings={}, comparison=())
    for text in (page_of(tmp_path, undefined), card_of(tmp_path, undefined)):
        assert not re.search(r"\bnan\b|>None<|\| None \|", text, flags=re.IGNORECASE)
        assert "–" in text


def test_a_perfect_score_is_not_presented_as_certainty():
    metrics = replace(make_summary().metrics, accuracy=1.0, num_test=30)
    assert "10.0\u00a0% of further images" in certainty(metrics)


def test_a_failed_write_leaves_no_page(tmp_path):
    (tmp_path / "locked").write_text("a file where a folder should be")
    with pytest.raises((TwinbudError, OSError)):
        write_report(tmp_path / "locked" / "report.html", make_summary())
    assert [p.name for p in tmp_path.iterdir()] == ["locked"]


@pytest.mark.parametrize("num_classes", [2, 8, 20])
def test_confusion_matrix_shows_every_count_and_class(num_classes):
    counts = np.arange(num_classes**2).reshape(num_classes, num_classes) + 1000
    names = [f"class {k}" for k in range(num_classes)]
    svg = figures.confusion_matrix_figure(counts.tolist(), names)
    texts = set(re.findall(r">([^<>]+)</text>", svg))
    assert {f"{count:,}" for count in counts.ravel()} <= texts
    assert set(names) <= texts


def test_the_confusion_matrix_of_many_classes_omits_zeros():
    counts = np.diag(np.full(60, 3))
    counts[0, 1] = 5
    svg = figures.confusion_matrix_figure(counts.tolist(), [f"class {number}" for number in range(60)])
    texts = re.findall(r">([^<>]+)</text>", svg)
    assert (texts.count("3"), texts.count("5"), texts.count("0")) == (60, 1, 0)


def test_figures_use_the_text_color_of_the_page_and_leave_no_global_state():
    before = dict(mpl.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = figures.reliability_diagram(make_summary().metrics.reliability)
    assert "currentColor" in svg
    assert figures.INK not in svg
    assert dict(mpl.rcParams) == before


def test_class_names_that_the_font_of_figures_lacks_are_no_warning():
    name = "\N{GRINNING FACE}"
    roc, decision = Mock(false_positive_rate=[0, 1], sensitivity=[0, 1]), Mock(model=[0.0] * 50, treat_all=[0.0] * 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert name in trust_figures.roc_figure(Mock(roc_curves={name: roc}, points={}))
        assert name in trust_figures.decision_figure(Mock(decision_curves={name: decision}))


def test_card_has_a_header_and_the_one_way_to_open_the_model(tmp_path):
    card = card_of(tmp_path, make_summary())
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "timm"
    assert "license" not in yaml.safe_load(header)
    for sentence in (
        'timm.create_model("local-dir:PATH", pretrained=True)',
        "Not a medical device",
        "286 labelled images of 3 classes",
        "Measured on 60 held-out images from the same source",
        "not measured on\nother hospitals, scanners or patients",
    ):
        assert sentence in body


def test_every_table_row_of_the_card_has_the_columns_of_its_head(tmp_path):
    table = []
    for line in [*card_of(tmp_path, make_summary()).splitlines(), ""]:
        if line.startswith("|"):
            table.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(table)) <= 1
            table = []
