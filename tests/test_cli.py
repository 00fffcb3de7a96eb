"""The command line: flags, exit status, messages."""

import subprocess
import sys
from importlib import import_module

import pytest
from helpers import words

from retinanet import cli
from retinanet.config.commands import EvalConfig
from retinanet.config.presets import preset


def test_flags_land_in_the_config_wherever_they_live():
    line = words(
        "train --preset tiny cells --gamma 1 --set max_grad_norm=None --jitter 0.5 1 --budget 7min --set"
    )
    _, (data, config, name, *_) = cli.parse([*line, "anchor_scales=1 1.5"])
    assert (data, name) == ("cells", "tiny")
    assert (config.criterion.gamma, config.max_grad_norm, config.jitter) == (1, None, (0.5, 1))
    assert (config.model.network.anchor_scales, config.budget) == ((1, 1.5), "7min")
    assert config.model.network.backbone == preset("tiny").model.network.backbone


@pytest.mark.parametrize("line", ["train d --preset tiny --seed 1", "train --preset=tiny d --seed 1"])
def test_the_preset_is_read_first_wherever_it_stands(line):
    _, (data, config, name, *_) = cli.parse(words(line))
    assert (data, config.seed, name) == ("d", 1, "tiny")


def test_several_positionals():
    _, (model, paths, config) = cli.parse(words("predict m a.jpg b.jpg --threshold 0.3"))
    assert (model, paths, config.threshold) == ("m", ("a.jpg", "b.jpg"), 0.3)
    assert cli.parse(["eval", "m", "d"])[1] == ["m", "d", EvalConfig()]


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_usage_names_every_command(words, capsys):
    assert cli.main(words) == (0 if words else 2)
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_the_function_of_every_command_exists():
    for command in cli.COMMANDS.values():
        module, _, name = command.function.partition(":")
        assert callable(getattr(import_module(f"retinanet.{module}"), name))


def test_every_command_has_help_without_torch():
    code = """
import sys
from retinanet import cli
for command in [*cli.COMMANDS, "lab table1b"]:
    try:
        cli.main([*command.split(), "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
    assert "torch" not in sys.modules, command
    print("=" * 9)
"""
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command, page in zip([*cli.COMMANDS, "lab table1b"], text.split("=" * 9)[:-1], strict=True):
        assert "--device" in page or command in ("check", "import", "export", "models", "lab")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "d"], "did you mean 'train'"),
        (["train", "d", "--preset", "tinny"], "did you mean 'tiny'"),
        (["train", "nowhere", "--preset", "tiny"], "nowhere"),
        (["eval", "nowhere", "nodata"], "no"),
        (["predict", "nowhere", __file__], "neither a run folder nor a file"),
        (["check", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_one_message_on_stderr_and_status_1(words, message, capsys):
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("retinanet: ")
    assert message in error
    assert "Traceback" not in error


def test_an_unknown_flag_is_refused_with_its_neighbour(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "d", "--preset", "tiny", "--gama", "1"])
    assert stopped.value.code == 2
    assert "--gamma" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set warmpu=1", "did you mean 'warmup'"),
        ("--set warmup", "--set takes NAME=VALUE"),
        ("--set warmup=soon", "--set warmup: 'soon' is no value for it"),
        ("--set max_grad_norm=0", "max_grad_norm must be above 0, not 0"),
        ("--warmup 0", "--warmup is no flag of its own: write --set warmup=VALUE"),
        ("--set resize=opencv", "`retinanet import` sets it"),
    ],
)
def test_what_set_cannot_do_is_said(words, message, capsys):
    assert cli.main(["train", "nowhere", "--preset", "tiny", *words.split()]) == 1
    assert message in capsys.readouterr().err


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "retinanet", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("retinanet 0.")


WRONG = {
    "demo": ["--budget 7", "--seed -1", "--budget 0it"],
    "check d": ["--scale 8", "--max-pixels 0", "--anchor-ratios 0 1"],
    "train d --preset tiny": ["--batch 0", "--alpha 2", "--jitter 2 1"],
    "train --resume d": ["--workers -1", "--micro-batch 0", "--workers 5000"],
    "lab table1b d --preset tiny": ["--seeds 0", "--gamma -1", "--budget soon"],
    "audit m d": ["--batch 0", "--count 0", "--workers -1"],
    "eval m d": ["--batch 0", "--batch -1", "--workers -1"],
    "predict m d": ["--threshold 7", "--overlap 2", "--scales 400 8"],
    "serve m": ["--port 99999", "--max-wait -1", "--decoders 0"],
    "import m": ["--bn-eps -1", "--bn-eps 2", "--bn-eps nan"],
    "export m": ["--calibration 0", "--max-drop -1", "--scale 1"],
}


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command, flags in WRONG.items() for flag in flags]
)
def test_a_value_out_of_range_gets_one_sentence_before_anything_is_read(command, flag, capsys):
    assert cli.main([*command.split(), *flag.split()]) == 1
    error = capsys.readouterr().err
    name = flag.split()[0].removeprefix("--").replace("-", "_")
    assert error.startswith(f"retinanet: {name} ")
    assert len(error.splitlines()) == 1
