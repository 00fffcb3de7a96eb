"""The command line: one verb, one function, no logic. Types, defaults and help come from the dataclasses in
`config`.

torch is imported by what a verb calls and not before, so that help answers at once.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, is_dataclass, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from ._version import __version__
from .config.commands import (
    AuditConfig,
    CheckConfig,
    DemoConfig,
    EvalConfig,
    ExportConfig,
    FigureConfig,
    ImportConfig,
    LabConfig,
    PredictConfig,
    ReplayConfig,
    ResumeConfig,
    ServeConfig,
)
from .config.io import check as check_settings
from .config.io import declared, flat, from_text, override
from .config.presets import PRESETS, preset
from .config.schema import TITLES, TrainConfig
from .distributed import is_main_process, rank
from .errors import ConfigError, RetinaNetError, unknown_name_error


def demo(arguments: list[str]) -> int:
    """The offline first run: generated scenes, minutes of training, AP, a page with pictures and curves."""
    config = parse("demo", demo, arguments, DemoConfig())
    from .demo import run

    run(config)
    return 0


def check(arguments: list[str]) -> int:
    """Every problem of a data set, once, with file and id; and the boxes that no anchor can match."""
    data, config = parse("check", check, arguments, CheckConfig(), "data")
    from .commands.check import run

    return 0 if run(data, config) else 1


def train(arguments: list[str]) -> int:
    """Train a detector on a folder of annotated images.

    --preset NAME is read first and sets all other defaults; --init MODEL (a run, a file or a published name)
    does so for the network.
    --resume RUN, in place of DATA, goes on with a run that was stopped (train --resume RUN --help: what may
    change).
    --dry-run prints memory, time and which objects the anchors reach, and trains nothing.
    """
    run, rest = take("--resume", arguments)
    if run is not None:
        changes = parse("train --resume RUN", train, rest, ResumeConfig())
        from .commands.train import resume_run

        resume_run(Path(run), changes)
        return 0
    name, rest = take("--preset", rest)
    dry, rest = "--dry-run" in rest, [word for word in rest if word != "--dry-run"]
    default, pretrained = preset(name or "tiny"), None
    if not {"-h", "--help"} & set(rest):
        from .commands.train import start_config
        from .config.presets import default_preset

        device, init = take("--device", rest)[0], take("--init", rest)[0]
        name = name or default_preset(device or "auto")
        default, pretrained = start_config(name, init)
    data, config = parse("train", train, rest, default, "data")
    if dry:
        from .training.autobatch import dry_run

        dry_run(data, config)
        return 0
    from .commands.train import run as start

    start(data, config, name, pretrained)
    return 0


def replay(arguments: list[str]) -> int:
    """Repeat a step of training that was not finite, from the dump that the run has left."""
    dump, config = parse("replay", replay, arguments, ReplayConfig(), "dump")
    from .commands.replay import run

    return 0 if run(dump, config) else 1


def evaluate(arguments: list[str]) -> int:
    """The 12 COCO numbers of a model (or of a COCO results file) on a data set, per class, with curves."""
    model, data, config = parse("eval", evaluate, arguments, EvalConfig(), "model", "data")
    from .commands.evaluate import run

    run(model, data, config)
    return 0


def predict(arguments: list[str]) -> int:
    """Objects in images, videos, folders, globs, lists, or a split of a data set, as COCO results and as
    pictures.
    """
    model, paths, config = parse("predict", predict, arguments, PredictConfig(), "model", "paths")
    from .commands.predict import run

    return 0 if run(model, paths, config) else 1


def serve(arguments: list[str]) -> int:
    """A web page and an HTTP API for a model: POST pictures to /predict."""
    model, config = parse("serve", serve, arguments, ServeConfig(), "model")
    from .serve.server import run

    run(model, config)
    return 0


def import_(arguments: list[str]) -> int:
    """Turn a RetinaNet of torchvision, Detectron2 or MMDetection (.pth, .pkl) into a file of ours that gives
    its boxes.
    """
    foreign, config = parse("import", import_, arguments, ImportConfig(), "foreign")
    from .commands.convert import run

    run(foreign, config)
    return 0


def export(arguments: list[str]) -> int:
    """Write a model as ONNX, OpenVINO or a torch program, and prove it: boxes, AP and speed beside its
    source.

    The file takes bytes and gives boxes; it knows its classes and its preprocessing. FILE.report.json holds
    what was found.
    """
    model, config = parse("export", export, arguments, ExportConfig(), "model")
    from .commands.export import run

    return 0 if run(model, config) else 1


def audit(arguments: list[str]) -> int:
    """Find the labels that are probably wrong, and the examples that produce a model's loss.

    The suspects are listed with the worst first, beside a page of images. The split that the model was
    trained on (--split train) is the one to look at.
    """
    model, data, config = parse("audit", audit, arguments, AuditConfig(), "model", "data")
    from .audit.run import run

    run(model, data, config)
    return 0


def lab(arguments: list[str]) -> int:
    """Run a table or figure of the paper on your own data, and judge its conclusions. `retinanet lab` lists
    them.

    Every row is trained for the same number of iterations (--budget 10min or 300it, of a row), at --seeds
    seeds, and kept under --out:
    what was finished is never repeated. --preset is read first and sets all other defaults; any setting of
    `train` may be changed.
    """
    from .lab.tables import EXPERIMENTS, FORMULAS

    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("", "-h", "--help"):
        print("usage: retinanet lab NAME [DATA] ...\n")
        print("\n".join(f"  {name:9s}{title}" for name, title in lab_names().items()))
        return 0 if name else 2
    if name == "report":
        folder = parse("lab report", lab, rest, None, "study")
        from .lab.report import run as report

        report(Path(folder))
    elif name in FORMULAS:
        config = parse(f"lab {name}", lab, rest, FigureConfig())
        from .lab.command import formula

        formula(name, config.out)
    elif name in EXPERIMENTS:
        chosen, rest = take("--preset", rest)
        if chosen is None and not {"-h", "--help"} & set(rest):
            from .config.presets import default_preset

            chosen = default_preset(take("--device", rest)[0] or "auto")
        base, init = preset(chosen or "tiny"), take("--init", rest)[0]
        if init not in (None, "imagenet", "none"):
            from .commands.train import start_config

            base, _ = start_config(chosen or "tiny", init)
        data, config = parse(f"lab {name}", lab, rest, LabConfig(train=base), "data")
        from .lab.command import experiment

        experiment(name, data, config)
    else:
        raise unknown_name_error("experiment", name, lab_names())
    return 0


def lab_names() -> dict[str, str]:
    """What `retinanet lab` can do, by name."""
    from .lab.tables import EXPERIMENTS, FORMULAS

    report = {"report": "One page of all that a study's folder holds"}
    return {**{name: found.title for name, found in EXPERIMENTS.items()}, **FORMULAS, **report}


def models(arguments: list[str]) -> int:
    """List the published weights that can be named in place of a file: their AP, licence, and whether they
    are here.
    """
    parse("models", models, arguments, None)
    from .commands.models import table

    print(table())
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "check": check,
    "train": train,
    "replay": replay,
    "eval": evaluate,
    "predict": predict,
    "serve": serve,
    "import": import_,
    "export": export,
    "models": models,
    "audit": audit,
    "lab": lab,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
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
        if words[0] not in VERBS:
            raise unknown_name_error("command", words[0], VERBS)
        return VERBS[words[0]](words[1:])
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (RetinaNetError, OSError) as error:
        print(f"retinanet{f' (process {rank()})' if not is_main_process() else ''}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("retinanet: interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    """The verbs and what they do."""
    lines = [
        "usage: retinanet VERB ...",
        "",
        *(f"  {name:9s}{(verb.__doc__ or '').strip().splitlines()[0]}" for name, verb in VERBS.items()),
    ]
    return "\n".join(
        [
            *lines,
            "",
            "retinanet VERB --help lists the settings of a verb. Presets of train: "
            + ", ".join(PRESETS)
            + ".",
        ]
    )


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


def parse(verb: str, function: Any, arguments: list[str], default: Any, *positionals: str) -> Any:
    """The words of a command: its positionals, then its config, checked; no list when there is only one."""
    import tyro
    from tyro.conf import OmitArgPrefixes, Positional, arg

    data = Annotated[
        Positional[str], arg(metavar="DATA", help="A folder or file of annotated images: COCO, VOC or YOLO.")
    ]
    model = Annotated[
        Positional[str],
        arg(metavar="MODEL", help="A run folder, a file of weights, or a name of `retinanet models`."),
    ]
    files = "Images, videos, folders, globs, .txt lists; with --split a data set."
    paths = Annotated[Positional[tuple[str, ...]], arg(metavar="PATH", help=files)]
    dump = Annotated[Positional[str], arg(metavar="DUMP", help="dump-N.pt of a run folder.")]
    foreign = Annotated[
        Positional[str], arg(metavar="FOREIGN", help="A file of another project: .pth, .pt or .pkl.")
    ]
    study = Annotated[
        Positional[str], arg(metavar="DIR", help="A study's folder: the --out of retinanet lab.")
    ]
    kinds: dict[str, Any] = {
        "data": data,
        "model": model,
        "paths": paths,
        "dump": dump,
        "foreign": foreign,
        "study": study,
    }
    training = isinstance(default, (TrainConfig, LabConfig))
    refuse_rare(default, arguments)
    fields = [
        *((name, kinds[name]) for name in positionals),
        *(groups(default) if training else []),
        *(
            [("config", type(default), field(default=default))]
            if default is not None and not training
            else []
        ),
    ]
    words = make_dataclass("Words", fields)  # type: ignore[arg-type, unused-ignore]
    parsed: Any = tyro.cli(
        words,
        args=arguments,
        prog=f"retinanet {verb}",
        description=function.__doc__,
        config=(OmitArgPrefixes,),
        add_help=True,
    )
    values = [getattr(parsed, name) for name in positionals]
    if default is not None:
        values.append(changed(default, parsed) if training else parsed.config)
        check_settings(values[-1])
    return values if len(values) > 1 else next(iter(values), None)


def groups(default: Any) -> list[tuple[str, Any, Any]]:
    """The everyday settings of a training as fields of one dataclass per heading, and --set for the others."""
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
    if isinstance(default, (TrainConfig, LabConfig)):
        for word in arguments:
            name = word.split("=")[0].removeprefix("--").replace("-", "_")
            if word.startswith("--") and name in rare(default):
                raise ConfigError(f"{word.split('=')[0]} is no flag of its own: write --set {name}=VALUE")


def documentation(config: Any) -> dict[str, str]:
    """The docstring below each field of a config and its parts, by name."""
    found: dict[str, str] = {}
    for kind in type(config).__mro__[:-1]:
        (tree,) = ast.parse(inspect.getsource(kind)).body
        body = tree.body  # type: ignore[attr-defined]
        for one, two in pairwise(body):
            if isinstance(one, ast.AnnAssign) and isinstance(two, ast.Expr):
                found[one.target.id] = inspect.cleandoc(two.value.value)  # type: ignore[union-attr, attr-defined]
    for value in vars(config).values():
        found |= documentation(value) if is_dataclass(value) else {}
    return found
