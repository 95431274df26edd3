"""Settings from files, options and keywords: what counts, what is refused, and what is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import timm

from twinbud.config.effects import setting_notes
from twinbud.config.loading import (
    merge_settings,
    read_settings_file,
    run_config,
    settings_of,
    with_absolute_paths,
)
from twinbud.config.profiles import PROFILES, is_inverted_residual
from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import Method, RunConfig, TrainingConfig
from twinbud.config.settings import all_settings
from twinbud.core.errors import TwinbudError
from twinbud.core.files import dump_yaml

TEACHER = {"teacher": "dinov2-small"}


def configured(**settings: Any) -> RunConfig:
    return run_config(TEACHER | settings, output=Path("run"))


def saved(**settings: Any) -> dict[str, Any]:
    return settings_of(with_absolute_paths(configured(**settings)))


def refusal(**settings: Any) -> str:
    with pytest.raises(TwinbudError) as caught:
        configured(**settings)
    return str(caught.value)


def from_file(folder: Path, text: str) -> dict[str, Any]:
    (folder / "run.yaml").write_text(text, encoding="utf-8", newline="")
    return read_settings_file(folder / "run.yaml")


def refused_file(folder: Path, text: str) -> str:
    with pytest.raises(TwinbudError) as caught:
        from_file(folder, text)
    return str(caught.value).removeprefix(f"--config {folder / 'run.yaml'}: ")


def make_plan(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    plan = {"teacher": "dinov2-small", "student": {"name": "half"}, "rule": "random", "attention": "heads"}
    (folder / "plan.json").write_text(json.dumps(plan | {"swap_roles": True} | changes))
    return folder


def test_saved_paths_hold_wherever_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_plan(tmp_path / "selected", teacher="local-dir:vit")
    assert saved(teacher="local-dir:vit")["teacher"] == f"local-dir:{tmp_path}/vit"
    assert saved(teacher="local-dir:a@b")["teacher"] == f"local-dir:{tmp_path}/a@b"
    assert saved(teacher="convnext_tiny@w.safetensors")["teacher"] == f"convnext_tiny@{tmp_path}/w.safetensors"
    assert saved(teacher="convnext_tiny@/w.safetensors")["teacher"] == "convnext_tiny@/w.safetensors"
    assert saved(teacher="dinov2-small")["teacher"] == "dinov2-small"
    both = saved(teacher="local-dir:vit", selected="selected", recover="none", data="images", split="split.csv")
    assert (both["teacher"], both["selected"]) == ("local-dir:vit", f"{tmp_path}/selected")
    assert (both["data"], both["split"]) == (f"{tmp_path}/images", f"{tmp_path}/split.csv")


def test_a_selection_on_the_command_line_replaces_all_that_the_file_says_of_it() -> None:
    file = {"teacher": "dinov2-small", "student": "half", "rule": "random", "attention": "heads", "swap_roles": True}
    assert merge_settings({**file, "epochs": 3}, {"selected": "DIR", "rule": "uniform"}) == {
        "epochs": 3, "selected": "DIR", "rule": "uniform"
    }  # fmt: skip


def test_a_teacher_on_the_command_line_replaces_the_selection_of_the_file() -> None:
    file = {"teacher": "dinov2-small", "selected": "DIR", "rule": "random"}
    assert merge_settings(file, {"teacher": "convnext_tiny"}) == {"teacher": "convnext_tiny", "rule": "random"}


def test_a_profile_beside_a_file_must_be_the_files() -> None:
    assert merge_settings({"epochs": 3}, {"profile": "quick"}) == {"epochs": 3, "profile": "quick"}
    assert merge_settings({"profile": "quick"}, {"profile": "quick", "epochs": 3}) == {"profile": "quick", "epochs": 3}
    with pytest.raises(TwinbudError, match=r"--profile: 'paper' contradicts profile 'quick' of the --config file"):
        merge_settings({"profile": "quick"}, {"profile": "paper"})


def test_the_default_profile_is_best() -> None:
    assert configured() == configured(profile="best")
    assert configured().training.profile == "best"


def test_the_profile_paper_has_the_defaults_of_the_schema() -> None:
    config = configured(profile="paper")
    assert (config.training, config.recovery) == (TrainingConfig(), RecoveryConfig())


@pytest.mark.parametrize("method", ["timm", "xavier", "kaiming"])
def test_best_with_a_random_start_is_quick(method: str) -> None:
    best, quick = configured(method=method), configured(method=method, profile="quick")
    assert replace(best, training=replace(best.training, profile="quick")) == quick


def test_best_with_the_papers_method_recovers_both_networks() -> None:
    config = configured(method="dual")
    assert (config.model.method, config.auxiliary, config.recovery.recover) == ("dual", "other", "labelled")


def test_best_trains_the_student_of_a_network_of_inverted_residuals(tmp_path: Path) -> None:
    """Whatever names the network: a wheel, timm, a file or a folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "tf_efficientnet_lite0"}')
    for teacher in ("efficientnet-lite0", "mobilenetv2_100", "mobilenetv2_100@own.safetensors", f"local-dir:{folder}"):
        config = configured(teacher=teacher)
        assert (config.training.epochs, config.training.distillation) == (40, "teacher")
        assert (config.tuning.tune_learning_rate, config.training.classifier_start) == (1e-3, "random")
        assert configured(teacher=teacher, method="dual").recovery.recover_stream == "auto"
    assert configured(teacher="local-dir:nowhere").training.epochs == configured().training.epochs == 0


def test_efficientnets_and_mobilenets_are_known_by_name() -> None:
    """One of timm's for each beginning; newer versions of timm may have others."""
    known = (
        *("efficientnet_b0.ra_in1k", "tf_efficientnetv2_s.in21k", "test_efficientnet", "gc_efficientnetv2_rw_t"),
        *("tinynet_a.in1k", "mixnet_s", "tf_mixnet_l", "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_small_050"),
        *("mobilenetv4_conv_small", "mobilenet_edgetpu_v2_s", "tf_mobilenetv3_large_075", "mnasnet_100"),
        *(
            "semnasnet_075",
            "spnasnet_100",
            "fbnetc_100",
            "lcnet_050",
            "hardcorenas_a",
            "hf-hub:timm/lcnet_100.ra2_in1k",
        ),
    )
    assert all(map(is_inverted_residual, known))
    others = ("dinov2-small", "resnet18", "mobilenetv5_300m", "lcnetv2_base", "hf-hub:timm/vit_small_patch14_dinov2")
    assert not any(map(is_inverted_residual, others))
    timms = {name.partition(".")[0] for name in known if not name.startswith("hf-hub:")}
    assert timms <= set(timm.list_models())


def test_a_selection_has_the_defaults_of_the_teacher_in_its_plan(tmp_path: Path) -> None:
    folder = make_plan(tmp_path / "selected", attention="heads", teacher="efficientnet-lite0")
    config = configured(selected=folder)
    assert config.training.layer_decay == 1.0
    assert not setting_notes(config)


def test_a_setting_that_is_given_wins_over_the_profile() -> None:
    config = configured(recover="none", image_size="56")
    assert (config.recovery.recover, config.training.image_size, config.training.epochs) == ("none", 56, 40)


def test_two_equal_configurations_describe_the_same_run(tmp_path: Path) -> None:
    """Whether a value was given or is a default is not part of a configuration."""
    spelled_out = settings_of(configured())
    assert configured(**spelled_out) == configured()
    selected = make_plan(tmp_path / "selected")
    assert configured(selected=selected) == configured(selected=selected, rule="random", swap_roles=True)
    assert setting_notes(configured(recover="none")) == setting_notes(configured(recover="none", recover_views=4))


def test_a_selection_with_other_attention_than_the_profile_is_noted(tmp_path: Path) -> None:
    interleaved = make_plan(tmp_path / "interleaved", attention="interleaved")
    (note,) = setting_notes(configured(selected=interleaved))
    assert note.endswith("--attention interleaved; --profile best has 'heads': select with --attention heads to get it")
    assert not setting_notes(configured(selected=make_plan(tmp_path / "heads", attention="heads")))


@pytest.mark.parametrize(
    ("settings", "noted"),
    [
        (
            {"method": "kaiming", "rule": "random"},
            "--rule random has no effect with --method kaiming, which",
        ),
        (
            {"method": "finetune", "swap_roles": True},
            "--swap-roles has no effect with --method finetune, which",
        ),
        ({"method": "dual", "layer_scale": "timm"}, "--layer-scale timm has no effect with --method dual, which keeps"),
        ({"method": "timm", "alpha": 0.3}, "--alpha 0.3 has no effect with --method timm and without soft targets"),
        (
            {"method": "probe", "layer_decay": 0.5},
            "--layer-decay 0.5 has no effect with --method probe, which",
        ),
        (
            {"min_steps": 5},
            "--min-steps 5 has no effect as the student is not trained (--epochs 0)",
        ),
    ],
    ids=str,
)
def test_a_setting_that_the_method_does_not_use_is_noted(settings: dict[str, Any], noted: str) -> None:
    (note,) = setting_notes(configured(**settings))
    assert note.startswith(noted)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "timm", "layer_scale": "timm", "learning_rate": 1e-3},
        {"method": "dual", "alpha": 0.3, "beta": 0.5, "temperature": 2, "rule": "random"},
        {"method": "selection", "epochs": 4, "distillation": "teacher", "alpha": 0.3, "temperature": 2},
        *(
            {"profile": profile, "method": method}
            for profile in ("quick", "paper", "best")
            for method in get_args(Method)
        ),
    ],
    ids=str,
)
def test_settings_that_have_an_effect_are_not_noted(settings: dict[str, Any]) -> None:
    assert setting_notes(configured(**settings)) == ()


def test_a_plan_fills_in_its_settings_before_profile_and_schema(tmp_path: Path) -> None:
    model = configured(selected=make_plan(tmp_path / "selected", attention="interleaved")).model
    assert (model.student, model.rule, model.attention, model.swap_roles) == ("half", "random", "interleaved", True)


@pytest.mark.parametrize(("name", "value"), [("rule", "uniform"), ("attention", "interleaved"), ("swap_roles", False)])
def test_a_setting_that_contradicts_the_plan_is_refused(name: str, value: object, tmp_path: Path) -> None:
    """A default that is given counts, too."""
    line = refusal(selected=make_plan(tmp_path / "selected"), **{name: value})
    assert line.startswith(f"--{name.replace('_', '-')}: '{value}' contradicts {tmp_path}/selected, which was selected")


def test_another_teacher_beside_a_plan_is_refused_unless_it_is_opened(tmp_path: Path) -> None:
    selected = make_plan(tmp_path / "selected")
    assert refusal(selected=selected, teacher="local-dir:x", recover="none").startswith("--teacher: 'local-dir:x'")
    assert configured(selected=selected, teacher="local-dir:x").model.teacher == "local-dir:x"


def test_recovery_from_a_selection_needs_the_teacher(tmp_path: Path) -> None:
    settings = {"selected": make_plan(tmp_path / "selected")}
    with pytest.raises(TwinbudError, match=r"--recover: 'labelled' needs .* Add the --teacher .*, or --recover none\."):
        run_config(settings, output=Path("run"))
    assert run_config(settings | {"recover": "none"}, output=Path("run")).model.teacher == "dinov2-small"


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    assert refusal(selected=tmp_path) == (
        f"{tmp_path}: the folder has no readable plan.json. Run: twinbud select --teacher T --output DIR."
    )


def test_no_teacher_is_refused() -> None:
    with pytest.raises(TwinbudError, match="--teacher: no teacher is given"):
        run_config({"data": "phantom"}, output=Path("run"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fraction": 1.5}, "--fraction: '1.5' is not a number above 0 and of at most 1."),
        ({"fraction": "much"}, "--fraction: 'much' is not a number above 0 and of at most 1."),
        ({"epochs": -1}, "--epochs: '-1' is not a whole number of at least 0."),
        ({"epochs": 1.5}, "--epochs: '1.5' is not a whole number of at least 0."),
        ({"epochs": True}, "--epochs: 'true' is not a whole number of at least 0."),
        ({"epochs": [3]}, "--epochs: '[3]' is not a whole number of at least 0."),
        ({"learning_rate": "nan"}, "--learning-rate: 'nan' is not a number of at least 0."),
        ({"clip_norm": "x"}, "--clip-norm: 'x' is not a number above 0, or none."),
        ({"temperature": "hot"}, "--temperature: 'hot' is not a number above 0, or auto."),
        ({"temperature": True}, "--temperature: 'true' is not a number above 0, or auto."),
        ({"temperature": 0}, "--temperature: '0' is not a number above 0, or auto."),
        ({"swap_roles": "maybe"}, "--swap-roles: 'maybe' is not true or false."),
        ({"label_column": 1.5}, "--label-column: '1.5' is not text. Write it in quotes."),
        ({"data": ""}, "--data: the value is empty."),
        ({"seed": "9" * 5000}, "--seed: '" + "9" * 80 + "…' has too many digits."),
        ({"alpha": 1.5}, "--alpha: '1.5' is not a number from 0 to 1."),
        ({"drop_path": 1}, "--drop-path: '1' is not a number of at least 0 and below 1, or auto."),
        ({"threads": 0}, "--threads: '0' is not a whole number from 1 to 1024, or none."),
        ({"threads": 100000}, "--threads: '100000' is not a whole number from 1 to 1024, or none."),
        (
            {"method": "timm", "distillation": "cs-kd"},
            "--distillation: 'cs-kd' contradicts --method timm, which has no",
        ),
        ({"method": "selection", "auxiliary": "copy"}, "--auxiliary: 'copy' contradicts --method selection"),
        ({"rule": "random-inconsistent"}, "--recover: 'labelled' contradicts --rule random-inconsistent"),
        (
            {"recover_refit": "off", "tune_teacher": False},
            "--recover-epochs: '0' with --recover-refit off and --recover-classifier off leaves no recovery step. "
            "Turn one of them on, give at least 1 epoch, or --recover none.",
        ),
    ],
    ids=str,
)
def test_an_invalid_value_is_named_with_what_would_be_valid(settings: dict[str, Any], said: str) -> None:
    assert refusal(**settings).startswith(said)


def test_a_stage_built_by_hand_is_checked_alike() -> None:
    with pytest.raises(TwinbudError, match="--image-size: '0' is not a whole number from 1 to 4096"):
        TrainingConfig(image_size=0)
    with pytest.raises(TwinbudError, match=r"^there is no setting 'epoch'\. Did you mean 'epochs'\? All settings: "):
        TrainingConfig(epoch=1)  # type: ignore[call-arg]


def test_nested_and_flat_settings_are_the_same(tmp_path: Path) -> None:
    flat = from_file(tmp_path, "data: phantom\nteacher: dinov2-small\nepochs: 3\nrecover: none\nprofile: quick\n")
    nested = from_file(
        tmp_path,
        "data: {data: phantom}\nmodel: {teacher: dinov2-small}\n"
        "training: {epochs: 3, profile: quick}\nrecovery: {recover: none}\n",
    )
    assert flat == nested
    assert from_file(tmp_path, "data: phantom\nmodel:\ntraining: {epochs: 3}\nseed: 1\n") == {
        "data": "phantom", "epochs": 3, "seed": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3\n", "there is no setting 'epoch'. Did you mean 'epochs'? All settings: twinbud train --help."),
        ("training: {epoch: 3}\n", "training: there is no setting 'epoch'."),
        ("trainin: {epochs: 3}\n", "there is no setting 'trainin'."),
        ("model: {epochs: 3}\n", "model: 'epochs' is a setting of 'training'. Move it there."),
        ("epochs: 3\ntraining: {epochs: 4}\n", "training: 'epochs' is given twice. Keep one of them."),
        ("epochs: 3\nseed: 1\nepochs: 4\n", "the settings cannot be read (line 3: 'epochs' is written twice)."),
        ("training:\n  epochs: 3\n  epochs: 4\n", "the settings cannot be read (line 3: 'epochs' is written twice)."),
        ("seed: &a 1\nsplit_seed: *a\n", "the settings cannot be read (line 2: aliases are not supported)."),
        ("seed: 1:30\n", "--seed: '1:30' is not a whole number."),
        ("seed: 0x10\n", "--seed: '0x10' is not a whole number."),
        ("fraction: .inf\n", "--fraction: '.inf' is not a number above 0 and of at most 1."),
        ("epochs: yes\n", "--epochs: 'yes' is not a whole number of at least 0."),
        ("method: yes\n", "--method: 'yes' is not one of dual"),
        ("", "the content is not a mapping of settings. Write NAME: VALUE lines."),
    ],
    ids=repr,
)
def test_a_fault_in_a_file_is_named_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    assert said in refused_file(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        *((f"compile: {word}\n", "compile", "on") for word in ("on", "On", "yes", "true", "'on'")),
        *((f"compile: {word}\n", "compile", "off") for word in ("off", "no", "false", "False")),
        ("recover_refit: off\nrecover_epochs: 1\n", "recover_refit", "off"),
        ("swap_roles: yes\n", "swap_roles", True),
        ("swap_roles: off\n", "swap_roles", False),
        ("seed: 010\n", "seed", 10),
        ("label_column: 010\n", "label_column", "010"),
        ("label_column: 10\n", "label_column", "10"),
        ("label_column: no\n", "label_column", "no"),
        ("label_column: 2001-01-01\n", "label_column", "2001-01-01"),
        ("label_column: '1e5'\n", "label_column", "1e5"),
        ("learning_rate: 1e-4\n", "learning_rate", 1e-4),
        ("clip_norm: none\n", "clip_norm", None),
        ("clip_norm: null\n", "clip_norm", None),
        ("clip_norm: ~\n", "clip_norm", None),
        ("clip_norm:\n", "clip_norm", None),
        ("recover: none\n", "recover", "none"),
        ("recover: null\n", "recover", "none"),
        ("split: 7\n", "split", Path("7")),
    ],
    ids=str,
)
def test_yaml_words_mean_what_is_written(text: str, name: str, value: object, tmp_path: Path) -> None:
    config = run_config(TEACHER | from_file(tmp_path, text), output=Path("run"))
    found = {**vars(config.data), **vars(config.model), **vars(config.training), **vars(config.recovery)}[name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "name", ["on", "no", "010", "1:30", "1e5", "0x10", "null", "~", "true", "2001-01-01", "+5", ".5", " x", "é", "a: b"]
)
def test_odd_names_survive_the_settings_file(name: str, tmp_path: Path) -> None:
    config = configured(label_column=name)
    read = from_file(tmp_path, dump_yaml(settings_of(config)))
    assert run_config(read, output=Path("run")) == config


def test_every_profile_only_changes_settings_that_exist() -> None:
    assert {name for changes in PROFILES.values() for name in changes} <= set(all_settings())


@pytest.mark.parametrize("name", ["data", "split", "teacher", "selected"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_name_that_is_no_utf_8_is_an_error_that_shows_escapes(name: str, kind: type) -> None:
    line = refusal(**{name: kind("caf\udce9")})
    assert line == f"--{name}: caf\\udce9: 1 file name is not UTF-8. Rename them."


def test_an_output_that_is_no_utf_8_is_an_error() -> None:
    with pytest.raises(TwinbudError, match=r"^--output: caf\\udce9: 1 file name is not UTF-8"):
        run_config(TEACHER, output=Path("caf\udce9"))
