"""The house: imports point strictly downward, lazy ones included, and no file holds more than one idea."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "retinanet"

ORDER = [
    "__main__",
    "cli",
    "demo",
    "lab.anatomy",
    "lab.exhibit",
    "lab.planted",
    "lab.suspects",
    "lab.evidence",
    "lab.shares",
    "lab.illustrate",
    "lab.report",
    "lab.study",
    "lab.findings",
    "lab.experiments",
    "lab.stats",
    "lab.figures",
    "lab.paper",
    "lab.rivals",
    "lab.peers",
    "serve.server",
    "serve.connection",
    "serve.app",
    "serve.guard",
    "serve.upload",
    "serve.batching",
    "serve.schema",
    "serve.metrics",
    "export.write",
    "export.proof",
    "export.onnx",
    "export.openvino",
    "export.int8",
    "export.torch",
    "export.graph",
    "engine.check",
    "engine.predict",
    "engine.video",
    "engine.film",
    "engine.clip",
    "engine.parts",
    "engine.replay",
    "engine.train",
    "engine.modelcard",
    "engine.recipe",
    "engine.cost",
    "engine.plan",
    "engine.watch",
    "engine.state",
    "engine.step",
    "engine.session",
    "engine.evaluate",
    "engine.record",
    "engine.sources",
    "engine.tiles",
    "engine.detector",
    "engine.machine",
    "engine.optim",
    "engine.metrics",
    "engine.results",
    "weights.origin",
    "weights.transfer",
    "weights.hub",
    "weights.runtimes",
    "weights.program",
    "weights.convert",
    "weights.conventions",
    "weights.projects",
    "weights.coco_names",
    "weights.foreign",
    "weights.unpickle",
    "weights.arrays",
    "weights.checkpoint",
    "view.gallery",
    "view.page",
    "view.markdown",
    "view.plots",
    "view.draw",
    "data.loader",
    "data.sampler",
    "data.shared",
    "data.balance",
    "data.augment",
    "data.validate",
    "data.layout",
    "data.coco",
    "data.voc",
    "data.yolo",
    "data.scenes",
    "data.textures",
    "data.headers",
    "data.index",
    "data.cache",
    "data.dataset",
    "data.images",
    "model.criterion",
    "model.postprocess",
    "model.preprocess",
    "model.resize",
    "model.retinanet",
    "model.subnets",
    "model.pyramid",
    "model.backbone",
    "model.folding",
    "ops.fused",
    "ops.compiled",
    "ops.mining",
    "ops.keep",
    "ops.nms",
    "ops.losses",
    "ops.assign",
    "ops.windows",
    "ops.anchors",
    "ops.boxes",
    "distributed",
    "presets",
    "settings",
    "verbs",
    "config",
    "structures",
    "online",
    "errors",
]
"""From the roof to the ground: a module may import what comes after it. `__init__` names the public ones and
imports nothing itself.
"""

RANK = {name: position for position, name in enumerate(reversed(ORDER))}
LONGEST = 360


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def first_party_imports(path: Path):
    """Module names below retinanet that a file imports, wherever in the file."""
    package = name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                target = [*base, *(node.module or "").split(".")] if node.module else base
            elif node.module and node.module.split(".")[0] == "retinanet":
                target = node.module.split(".")[1:]
            else:
                continue
            found = ".".join(target)
            if found in RANK:
                yield found
            else:  # from ..view import plots, from . import __version__
                yield from (
                    name
                    for name in (".".join([*target, alias.name]) for alias in node.names)
                    if not name.startswith("__version__")
                )
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.split(".", 1)[1] for alias in node.names if alias.name.startswith("retinanet.")
            )


def test_every_module_has_its_place():
    assert sorted(RANK) == sorted(map(name_of, modules()))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_strictly_downward(path):
    here = name_of(path)
    for name in first_party_imports(path):
        assert RANK[name] < RANK[here], f"{here} may not import {name}: it is not below it"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_below_weights_nobody_knows_the_config():
    for path in modules():
        if name_of(path).split(".")[0] in ("data", "model", "ops", "view"):
            assert not {"config", "verbs"} & {*first_party_imports(path)}, f"{name_of(path)} knows the config"
