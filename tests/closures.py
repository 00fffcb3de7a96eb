"""How much of the package one must load, open or learn; `python tests/closures.py` prints it.

A closure is what Python loads to import a module: it, what it imports at top level, and so on (imports for
type checkers are not counted). A reading list is what a reader opens to follow one thing from its start to
its end.
"""

import ast
import contextlib
import functools
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "retinanet"

BATCH_TO_STEP = ["training.loop", "training.setup", "training.optim", "structures", "model.preprocess"]
BATCH_TO_STEP += ["model.retinanet", "model.backbone", "model.criterion", "ops.anchors", "ops.assign"]
BATCH_TO_STEP += ["ops.boxes", "ops.losses"]
"""`assign_fast` and `fused` are faster forms of `assign` and `losses`, held equal to them by tests. What
`autocast` and `all_reduce_sum` do, their names say."""
DISK_TO_BATCH = ["data.dataset", "data.formats.coco", "data.loader", "data.images", "data.augment"]
DISK_TO_BATCH += ["data.sampler", "model.resize"]
READING = {"batch to step": BATCH_TO_STEP, "disk to step": DISK_TO_BATCH + BATCH_TO_STEP}
"""What one opens to follow a batch to its optimiser step, and an image from its file to there."""

CLOSURES = ["training.loop", "inference.detector", "evaluation.evaluate", "commands.predict"]


@functools.cache
def modules() -> dict[str, Path]:
    """All modules by their dotted names below the package; `__init__` files hold nothing but names."""
    paths = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def lines(names: Iterable[str]) -> int:
    return sum(len(modules()[name].read_text().splitlines()) for name in names)


@functools.cache
def imports(name: str, top_level: bool = False) -> frozenset[str]:
    """The modules of the package that one imports: anywhere in the file, or only when it is loaded."""
    tree = ast.parse(modules()[name].read_text())
    nodes = _loaded(tree.body) if top_level else ast.walk(tree)
    return frozenset(target for node in nodes for target in _targets(name, node))


def closure(name: str) -> set[str]:
    """What Python loads to import a module, itself included."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports(module, top_level=True)
    return found


def cycle() -> list[str]:
    """A ring of top-level imports, where there is one."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        done.add(name)
        return next(filter(None, (visit(n, (*path, name)) for n in imports(name, top_level=True))), [])

    return next(filter(None, (visit(name, ()) for name in modules())), [])


def flags(command: str) -> list[str]:
    """The flags that the --help of a command shows, in its order; --help itself aside."""
    from retinanet import cli

    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setenv("COLUMNS", "100")
        with contextlib.suppress(SystemExit):
            cli.main([*command.split(), "--help"])
    found = re.findall(r"^\W*?(--[a-z][\w.-]*)", shown.getvalue(), re.MULTILINE)
    return [flag for flag in dict.fromkeys(found) if flag != "--help"]


def _loaded(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when a module is loaded."""
    for node in body:
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from _loaded(node.body)
            yield from _loaded(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _loaded([*node.body, *node.orelse, *node.finalbody])
            for handler in node.handlers:
                yield from _loaded(handler.body)
        else:
            yield node


def _targets(name: str, node: ast.AST) -> Iterator[str]:
    """The modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        wanted = [alias.name.split(".")[1:] for alias in node.names if alias.name.startswith("retinanet.")]
    elif isinstance(node, ast.ImportFrom):
        module = node.module.split(".") if node.module else []
        if node.level:
            base = [*name.split(".")[: -node.level], *module]
        elif module[0] == "retinanet":
            base = module[1:]
        else:
            return
        whole = ".".join(base)
        wanted = [base] if whole in modules() else [[*base, alias.name] for alias in node.names]
    else:
        return
    yield from (target for words in wanted if (target := ".".join(words)) in modules())


def table() -> Iterator[str]:
    """Everything that is counted, a line each."""
    from retinanet import cli

    for name in CLOSURES:
        yield f"closure of {name:26}{len(closure(name)):6d} files {lines(closure(name)):7,d} lines"
    for name, files in READING.items():
        yield f"to open, {name:28}{len(files):6d} files {lines(files):7,d} lines"
    for command in cli.COMMANDS:
        if command != "lab":  # a command of commands
            yield f"{command:37}{len(flags(command)):6d} flags"
    for folder in (ROOT, ROOT.parent / "tests"):
        paths = [*folder.rglob("*.py")]
        total = sum(len(path.read_text().splitlines()) for path in paths)
        yield f"{folder.name:37}{len(paths):6d} files {total:7,d} lines"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT.parent))
    print("\n".join(table()))
