import pytest
import yaml

from vitalk.benchmarks.acoustic import PLANS, TIMED, Setting, _heard, affordable, compare, recipe
from vitalk.errors import UserError
from vitalk.recipes import load_recipe
from vitalk.speech.judge.robustness import Robustness


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path / "corpus", "s0", tmp_path / "aligner", tmp_path / "vocoder", 1.0, tmp_path / "runs")


@pytest.mark.parametrize("slug", PLANS)
def test_every_plan_is_a_recipe_with_the_same_data_and_so_many_steps(slug, setting):
    for stage, preset in enumerate(PLANS[slug].presets):
        config = recipe(slug, stage, 200, setting)
        asked, arguments = config["data"]["init_args"], config["model"]["init_args"]
        assert config["trainer"]["max_steps"] == 200
        assert (asked["path"], asked["speakers"], asked["mel"]) == (str(setting.corpus), ["s0"], "vitalk")
        assert arguments["mel"] == asked["mel"]
        assert asked.get("aligner") == (str(setting.aligner) if PLANS[slug].aligned else None)
        assert 1 <= arguments["warmup_steps"] <= 20
        for name, share in PLANS[slug].starts:
            assert arguments.get(name, share * 200) == share * 200
        for callback in config["trainer"].get("callbacks", []):
            assert callback["init_args"]["decay"] == pytest.approx(0.9)
        _, own = load_recipe(slug, preset)
        assert own["model"]["class_path"] == config["model"]["class_path"]
        yaml.safe_dump(config)


def test_a_second_stage_starts_where_the_first_ended(setting):
    start = recipe("portaspeech", 1, 100, setting)["model"]["init_args"]["start"]
    assert start == str(setting.folder / "portaspeech-cpu" / "model.safetensors")


def test_what_is_missing_is_told_before_anything_is_trained(setting):
    with pytest.raises(UserError, match="there is no aligner at"):
        compare(setting, ["fastspeech2"], 2)
    assert not setting.folder.exists()


def test_the_verb_refuses_unknown_systems():
    from typer.testing import CliRunner

    from vitalk.cli import app

    done = CliRunner().invoke(app, ["bench", "acoustic", "--only", "evit"])
    assert isinstance(done.exception, UserError) and "--only evit is not known" in str(done.exception)


def test_as_many_steps_as_fit_after_the_start():
    start, step = 14.0, 0.25
    short, long = (start + steps * step for steps in TIMED)
    assert affordable(short, long, 540.0) == int((540.0 - short) / step)
    assert affordable(short, long, 20.0) == TIMED[1]  # the least, even where time is short
    with pytest.raises(UserError, match="something else is running"):
        affordable(long, short, 540.0)


def test_what_could_not_be_heard_is_told_why():
    assert _heard({"heard": "no sound"}) == {"wer": None, "heard": "no sound"}
    means = {"wer_pooled": {"mean": 0.1, "low": 0.05, "high": 0.2}}
    assert _heard({**means, "heard": "no sound"}) == {"wer": 0.1, "wer_interval": "5.0 to 20.0", "heard": "no sound"}
    row = _heard({**means, "hard": Robustness(3, 4, 5, 0.1)})
    assert (row["repeated"], row["skipped"], row["hard_errors"]) == (3, 4, 0.1) and "heard" not in row
