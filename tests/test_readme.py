"""What the documentation tells people to type is understood by the program."""

import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from retinanet import cli
from retinanet.config.presets import preset
from retinanet.data.formats.detect import FORMATS
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


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_every_command_in_the_documentation_is_understood(page, line):
    words = shlex.split(line, comments=True)[1:]
    if words == ["lab"]:  # which lists the experiments
        return
    with patch("retinanet.commands.train.start_config", lambda name, init: (preset(name), None)):
        cli.parse(words)


def test_there_are_commands_to_test():
    assert len(list(commands())) >= 8


@pytest.mark.parametrize(
    "block", [block for page in PAGES for block in blocks(page, "python") if "load(" not in block]
)
def test_the_python_of_the_documentation_runs(block):
    with ExitStack() as stack:
        # docs/extending.md adds to these
        for choices in (CLASS_LOSSES, BOX_LOSSES, ASSIGNERS, NECKS, FORMATS):
            stack.enter_context(patch.dict(choices))
        exec(compile(block, "documentation", "exec"), {})


def test_relative_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_gate_runs_the_test_command_of_the_readme():
    assert "<!-- test -->\n```sh\n" in (ROOT / "README.md").read_text()
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
