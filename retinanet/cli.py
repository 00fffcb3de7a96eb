"""The command line: a command is a row of `COMMANDS`, its options are a dataclass of `config`.

The function of a command imports torch, and nothing before it does, so help appears at once.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

from ._version import __version__
from .config import commands as options
from .config.io import check, declared, flat, from_text, override
from .config.presets import PRESETS, preset
from .config.schema import TITLES, Layout, TrainConfig
from .distributed import is_main_process, rank
from .errors import ConfigError, RetinaNetError, unknown_name_error
from .files import explain_os_error


@dataclass(frozen=True)
class Command:
    """A command: what it does, the function to call, the dataclass of its options, its positional words.

    The function is `module:name`, so that it is imported when it is called. False means exit status 1.
    """

    text: str
    function: str
    options: type | None
    words: tuple[str, ...] = ()


TRAIN = """Train a detector on a folder of annotated images.

--preset NAME is read first and sets all other defaults; --init MODEL (a run, a file or a published name) does
so for the network.
--resume RUN, in place of DATA, continues a stopped run (train --resume RUN --help: what may change).
--dry-run prints memory, time and which objects the anchors reach, and trains nothing."""

EXPORT = """Write a model as an ONNX or OpenVINO file, and compare boxes, AP and speed with its source.

The file takes bytes and gives boxes; it knows its classes and its preprocessing. FILE.report.json holds the
comparison."""

AUDIT = """Find the labels that are probably wrong, and the examples that produce a model's loss.

The suspects are listed with the worst first, beside a page of images. The split that the model was trained on
(--split train) is the one to look at."""

LAB = """Run a table or figure of the paper on your own data, and judge its claims. `lab` alone lists them.

Every row is trained for the same number of iterations (--budget 10min or 300it, of a row), at --seeds seeds,
and kept under --out: what was finished is never repeated. --preset is read first and sets all other defaults;
any setting of `train` may be changed."""

COMMANDS = {
    "demo": Command(
        "The offline first run: generated scenes, minutes of training, AP, a page with images and curves.",
        "demo:run",
        options.DemoConfig,
    ),
    "check": Command(
        "Every problem of a data set, once, with file and id; and the boxes that no anchor can match.",
        "commands.check:run",
        options.CheckConfig,
        ("data",),
    ),
    "train": Command(TRAIN, "training.run:run", TrainConfig, ("data",)),
    "replay": Command(
        "Repeat a step of training that was not finite, from the dump that the run has left.",
        "commands.replay:run",
        options.ReplayConfig,
        ("dump",),
    ),
    "eval": Command(
        "The 12 COCO numbers of a model (or of a COCO results file) on a data set, per class, with curves.",
        "commands.evaluate:run",
        options.EvalConfig,
        ("model", "data"),
    ),
    "predict": Command(
        "Objects in images, videos, folders, globs, lists, or a split of a data set.",
        "commands.predict:run",
        options.PredictConfig,
        ("model", "paths"),
    ),
    "serve": Command(
        "A web page and an HTTP API for a model: POST images to /predict.",
        "serve.server:run",
        options.ServeConfig,
        ("model",),
    ),
    "import": Command(
        "Convert a RetinaNet of torchvision, Detectron2 or MMDetection; its boxes stay the same.",
        "commands.convert:run",
        options.ImportConfig,
        ("foreign",),
    ),
    "export": Command(EXPORT, "commands.export:run", options.ExportConfig, ("model",)),
    "models": Command(
        "List the published weights that can be named in place of a file.", "commands.models:run", None
    ),
    "audit": Command(AUDIT, "audit.run:run", options.AuditConfig, ("model", "data")),
    "lab": Command(LAB, "lab.command:experiment", options.LabConfig, ("data",)),
}

WORDS = {
    "data": ("DATA", f"A folder or file of annotated images: {', '.join(get_args(Layout)).upper()}."),
    "model": ("MODEL", "A run folder, a file of weights, or a name of `retinanet models`."),
    "paths": ("PATH", "Images, videos, folders, globs, .txt lists; with --split a data set."),
    "dump": ("DUMP", "dump-N.pt of a run folder."),
    "foreign": ("FOREIGN", "A file of another project: .pth, .pt or .pkl."),
    "study": ("DIR", "A study's folder: the --out of retinanet lab."),
}
"""Positional words: their name in the help, and what they are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"retinanet {__version__}")
        return 0
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.WARNING)
    try:
        logging.getLogger("retinanet").setLevel(logging.INFO if is_main_process() else logging.ERROR)
        if words[0] == "lab" and words[1:] in ([], ["-h"], ["--help"]):
            print("usage: retinanet lab NAME [DATA] ...\n")
            print("\n".join(f"  {name:9s}{title}" for name, title in lab_names().items()))
            return 0 if words[1:] else 2
        function, values = parse(words)
        module, _, name = function.partition(":")
        return 1 if getattr(import_module(f"retinanet.{module}"), name)(*values) is False else 0
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (RetinaNetError, OSError) as error:
        text = explain_os_error(error) if isinstance(error, OSError) else str(error)
        print(f"retinanet{f' (process {rank()})' if not is_main_process() else ''}: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("retinanet: interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    """The commands and what they do."""
    lines = [f"  {name:9s}{command.text.splitlines()[0]}" for name, command in COMMANDS.items()]
    end = f"retinanet COMMAND --help lists its settings. Presets of train: {', '.join(PRESETS)}."
    return "\n".join(["usage: retinanet COMMAND ...", "", *lines, "", end])


def parse(words: Sequence[str]) -> tuple[str, list[Any]]:
    """The function that a command line calls, as `module:name`, and its arguments, checked."""
    name, *rest = words
    if name not in COMMANDS:
        raise unknown_name_error("command", name, COMMANDS)
    command = COMMANDS[name]
    if name == "train":
        return parse_train(rest)
    if name == "lab":
        return parse_lab(rest)
    return command.function, read(name, rest, command.options and command.options(), *command.words)


def parse_train(words: list[str]) -> tuple[str, list[Any]]:
    """A run that goes on, or a new one, or what a new one would need."""
    started = time.perf_counter()  # a budget of minutes holds the imports that follow
    run, rest = take("--resume", words)
    if run is not None:
        return "training.run:resume_run", [
            Path(run),
            *read("train --resume RUN", rest, options.ResumeConfig()),
            started,
        ]
    name, rest = take("--preset", rest)
    dry, rest = "--dry-run" in rest, [word for word in rest if word != "--dry-run"]
    default, name, init = start(name, rest)
    values = read("train", rest, default, "data")
    if dry:
        return "training.autobatch:dry_run", values
    return COMMANDS["train"].function, [*values, name, init, started]


def parse_lab(words: list[str]) -> tuple[str, list[Any]]:
    """A table or figure to train, a figure of a formula, or the report of a study."""
    from .lab.tables import EXPERIMENTS, FORMULAS

    name, *rest = words
    if name == "report":
        return "lab.report:run", [Path(*read("lab report", rest, None, "study"))]
    if name in FORMULAS:
        (config,) = read(f"lab {name}", rest, options.FigureConfig())
        return "lab.command:formula", [name, config.out]
    if name not in EXPERIMENTS:
        raise unknown_name_error("experiment", name, lab_names())
    chosen, rest = take("--preset", rest)
    base, _, _ = start(chosen, rest)
    return COMMANDS["lab"].function, [name, *read(f"lab {name}", rest, options.LabConfig(train=base), "data")]


def lab_names() -> dict[str, str]:
    """What `retinanet lab` can do, by name."""
    from .lab.tables import EXPERIMENTS, FORMULAS

    titles = {name: found.title for name, found in EXPERIMENTS.items()}
    return {**titles, **FORMULAS, "report": "One page of all that a study's folder holds"}


def start(name: str | None, words: list[str]) -> tuple[TrainConfig, str | None, Any]:
    """The defaults of a training (a preset, and the network of --init), its preset, the model of --init."""
    if {"-h", "--help"} & set(words):
        return preset(name or "tiny"), name, None
    from .commands.train import start_config
    from .config.presets import default_preset

    name = name or default_preset(take("--device", words)[0] or "auto")
    config, init = start_config(name, take("--init", words)[0])
    return config, name, init


def take(flag: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of a flag that is read before the others, and the other words."""
    for position, word in enumerate(arguments):
        if word == flag:
            if position + 1 == len(arguments):
                raise ConfigError(f"{flag} needs a value")
            return arguments[position + 1], arguments[:position] + arguments[position + 2 :]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1], arguments[:position] + arguments[position + 1 :]
    return None, arguments


def read(name: str, arguments: list[str], default: Any, *words: str) -> list[Any]:
    """The words after a command's name: its positional words, then its options, checked."""
    import tyro
    from tyro.conf import OmitArgPrefixes, Positional, arg

    training = isinstance(default, (TrainConfig, options.LabConfig))
    if training:
        refuse_rare(default, arguments)
    fields: list[Any] = []
    for word in words:
        metavar, text = WORDS[word]
        about = arg(metavar=metavar, help=text)
        several, one = Annotated[Positional[tuple[str, ...]], about], Annotated[Positional[str], about]
        fields.append((word, several if word == "paths" else one))
    if training:
        fields += groups(default)
    elif default is not None:
        fields.append(("config", type(default), field(default=default)))
    parsed: Any = tyro.cli(
        make_dataclass("Words", fields),
        args=arguments,
        prog=f"retinanet {name}",
        description=COMMANDS[name.split()[0]].text,
        config=(OmitArgPrefixes,),
        add_help=True,
    )
    values = [getattr(parsed, word) for word in words]
    if default is not None:
        values.append(changed(default, parsed) if training else parsed.config)
        check(values[-1])
    return values


def groups(default: Any) -> list[tuple[str, Any, Any]]:
    """The everyday settings of a training, a dataclass for each heading, and --set for the others."""
    from tyro.conf import UseAppendAction, arg

    known, help_texts, values = declared(default), documentation(default), flat(default)
    found: list[tuple[str, Any, Any]] = []
    for group, title in TITLES.items():
        members = [
            (name, Annotated[kind, arg(help=help_texts[name])], field(default=values[name]))
            for name, (entry, kind) in known.items()
            if entry.metadata.get("group") == group
        ]
        if members:
            kind = make_dataclass(group.capitalize(), members, frozen=True)
            kind.__doc__ = None
            found.append((f"{group}_flags", Annotated[kind, arg(name=title)], field(default=kind())))
    text = f"Another setting, as --set warmup=0: {', '.join(rare(default))}."
    words = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE", help=text)]
    return [*found, ("set", words, field(default=()))]


def changed(default: Any, parsed: Any) -> Any:
    """The default with what the flags of `groups` and --set say."""
    parts = [value for name, value in vars(parsed).items() if name.endswith("_flags")]
    flags = {name: value for part in parts for name, value in vars(part).items()}
    return override(default, flags | from_text(default, parsed.set))


def rare(default: Any) -> list[str]:
    """The settings of a training that are no flags."""
    return [
        name
        for name, (entry, _) in declared(default).items()
        if entry.metadata.get("group") is None and not entry.metadata.get("foreign")
    ]


def refuse_rare(default: Any, arguments: list[str]) -> None:
    """ConfigError for a flag that is a setting of --set."""
    known = rare(default)
    for flag in (word.split("=")[0] for word in arguments if word.startswith("--")):
        name = flag.removeprefix("--").replace("-", "_")
        if name in known:
            raise ConfigError(f"{flag} is no flag of its own: write --set {name}=VALUE")


def documentation(config: Any) -> dict[str, str]:
    """The docstring below each field of a config and its parts, by name."""
    found: dict[str, str] = {}
    for kind in type(config).__mro__[:-1]:
        (tree,) = ast.parse(inspect.getsource(kind)).body
        body = tree.body  # type: ignore[attr-defined]
        for one, two in pairwise(body):
            if isinstance(one, ast.AnnAssign) and isinstance(two, ast.Expr):
                text = two.value.value  # type: ignore[attr-defined]
                found[one.target.id] = inspect.cleandoc(text)  # type: ignore[union-attr]
    for value in vars(config).values():
        found |= documentation(value) if is_dataclass(value) else {}
    return found
