"""What the documentation tells people to type is understood by the program."""

import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from retinanet import cli
from retinanet.config.commands import (
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
from retinanet.config.presets import preset
from retinanet.data.formats.detect import FORMATS
from retinanet.lab.tables import EXPERIMENTS, FORMULAS
from retinanet.model.criterion import ASSIGNERS
from retinanet.model.retinanet import NECKS
from retinanet.ops.fused import CLASS_LOSSES
from retinanet.ops.losses import BOX_LOSSES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                if line.startswith("retinanet "):
                    yield page.name, line


def understand(words):
    """Parse a command without running it."""
    verb, rest = words[0], words[1:]
    if verb == "train":
        if "--resume" in rest:
            return cli.parse(verb, cli.train, cli.take("--resume", rest)[1], ResumeConfig())
        name, rest = cli.take("--preset", [word for word in rest if word != "--dry-run"])
        return cli.parse(verb, cli.train, rest, preset(name or "tiny"), "data")
    if verb == "lab":
        return understand_lab(rest)
    config, positionals = {
        "demo": (DemoConfig(), ()),
        "check": (CheckConfig(), ("data",)),
        "replay": (ReplayConfig(), ("dump",)),
        "import": (ImportConfig(), ("foreign",)),
        "export": (ExportConfig(), ("model",)),
        "models": (None, ()),
        "eval": (EvalConfig(), ("model", "data")),
        "predict": (PredictConfig(), ("model", "paths")),
        "audit": (AuditConfig(), ("model", "data")),
        "serve": (ServeConfig(), ("model",)),
    }[verb]
    return cli.parse(verb, cli.VERBS[verb], rest, config, *positionals)


def understand_lab(words):
    if not words:
        return None
    name, rest = words[0], words[1:]
    if name in FORMULAS:
        return cli.parse(f"lab {name}", cli.lab, rest, FigureConfig())
    if name == "report":
        return cli.parse("lab report", cli.lab, rest, None, "study")
    assert name in EXPERIMENTS
    chosen, rest = cli.take("--preset", rest)
    return cli.parse(f"lab {name}", cli.lab, rest, LabConfig(train=preset(chosen or "tiny")), "data")


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_every_command_in_the_documentation_is_understood(page, line):
    understand(shlex.split(line, comments=True)[1:])


def test_there_are_commands_to_test():
    assert len(list(commands())) >= 8


@pytest.mark.parametrize(
    "block", [block for page in PAGES for block in blocks(page, "python") if "load(" not in block]
)
def test_the_python_of_the_documentation_runs(block):
    with ExitStack() as stack:
        for choices in (
            CLASS_LOSSES,
            BOX_LOSSES,
            ASSIGNERS,
            NECKS,
            FORMATS,
        ):  # docs/extending.md adds to them
            stack.enter_context(patch.dict(choices))
        exec(compile(block, "documentation", "exec"), {})


def test_relative_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_gate_runs_the_test_command_of_the_readme():
    assert "<!-- test -->\n```sh\n" in (ROOT / "README.md").read_text()
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
