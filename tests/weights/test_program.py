"""A .pt2 of a stranger is looked through before torch, which would run what it holds, sees it."""

import json
import pickle
import zipfile

import pytest
import torch

from retinanet.errors import CheckpointError
from retinanet.inference.program import looked_through


class Doubled(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x) * 2 + x.shape[0]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "good.pt2"
    made = torch.export.export(
        Doubled(), (torch.zeros(4, 4),), dynamic_shapes={"x": {0: 2 * torch.export.Dim("half", max=50)}}
    )
    made._guards_code = []
    torch.export.save(made, path)
    return path


def changed(path, to, change):
    """The same archive, every entry as `change(name, bytes)` has it; None leaves it out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return to


def in_model(edit):
    """A change of the graph's description."""

    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        model = json.loads(content)
        edit(model)
        return json.dumps(model).encode()

    return change


def call(target):
    return in_model(lambda model: model["graph_module"]["graph"]["nodes"][0].update(target=target))


def first_argument(**argument):
    return in_model(
        lambda model: model["graph_module"]["graph"]["nodes"][0]["inputs"][0].update(arg=argument)
    )


def spec(**what):
    nested = json.dumps([1, {"type": None, "context": None, "children_spec": [], **what}])
    return in_model(
        lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=nested)
    )


def say(expression):
    return in_model(lambda model: model.update(range_constraints={}, extra={"expr_str": expression}))


class Hostile:
    def __reduce__(self):
        return print, ("this must not run",)


def pickled(name, content):
    return pickle.dumps(Hostile()) if "sample_inputs" in name else content


def test_a_program_of_torchs_operators_passes(program):
    with zipfile.ZipFile(looked_through(program)) as archive:
        assert b"nn_module_stack" not in archive.read("archive/models/model.json")
    loaded = torch.export.load(looked_through(program)).module()
    assert torch.equal(loaded(-torch.eye(6, 4)), torch.full((6, 4), 6.0)) and torch.equal(
        loaded(torch.eye(2, 4)), 2 * torch.eye(2, 4) + 2
    )


def test_torch_sees_what_was_looked_at_and_nothing_else(program, tmp_path):
    """Of a name that is there twice, the two readers may take different ones."""
    bad = changed(program, tmp_path / "bad.pt2", lambda name, content: content)
    with zipfile.ZipFile(bad, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(next(name for name in archive.namelist() if "model.json" in name), b"{}")
    with pytest.raises(CheckpointError, match="parts overlap"):
        looked_through(bad)
    with zipfile.ZipFile(tmp_path / "packed.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/models/model.json", b" " * 100_000)
    with pytest.raises(CheckpointError, match="are packed"):
        looked_through(tmp_path / "packed.pt2")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (call("torch.hub.load"), "calls 'torch.hub.load"),
        (call("torch.ops.os.system.default"), "calls 'torch.ops.os.system.default"),
        (call("_operator.attrgetter"), "calls '_operator.attrgetter"),
        (call("#retinanet:anything"), "calls '#retinanet"),
        (say("__import__('os').system('id')"), "evaluates"),
        (say("Symbol('s0').__class__"), "evaluates"),
        (in_model(lambda model: model.update(guards_code=["print(1)"])), "code that checks its input"),
        (in_model(lambda model: model.update(extra={"as_custom_obj": {"name": "x"}})), "objects"),
        (first_argument(as_operator="torch.os.system"), "objects \\(as_operator"),
        (call("torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file"),
        (
            spec(type="builtins.tuple", context='{"__enum__": 1, "fqn": "os:x"}'),
            "inputs or outputs are builtins.tuple",
        ),
        (
            spec(type="collections.defaultdict", context='["os", "system"]'),
            "inputs or outputs are collections.defaultdict",
        ),
        (
            in_model(
                lambda model: model["graph_module"]["graph"]["inputs"][0]["as_tensor"].update(
                    name="x=print(1)"
                )
            ),
            "names something 'x=print",
        ),
        (in_model(lambda model: model["range_constraints"].update({"s0'": {}})), "names something"),
        (pickled, "no plain tensors"),
    ],
)
def test_what_could_run_is_refused_and_does_not_run(program, tmp_path, change, reason, capsys):
    with pytest.raises(CheckpointError, match=reason):
        looked_through(changed(program, tmp_path / "bad.pt2", change))
    assert "must not run" not in capsys.readouterr().out


def test_a_pickled_weight_and_a_strange_entry_are_refused(program, tmp_path):
    bad = changed(program, tmp_path / "bad.pt2", lambda name, content: content)
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("good/data/constants/opaque_obj_0", pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match="opaque_obj_0"):
        looked_through(bad)
    payload = {
        "config": {
            "weight": {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
        }
    }

    def swap(name, content):
        return json.dumps(payload).encode() if name.endswith("weights_config.json") else content

    with pytest.raises(CheckpointError, match="weight is a pickle"):
        looked_through(changed(program, tmp_path / "worse.pt2", swap))


def test_what_is_no_archive_is_told(tmp_path, program):
    path = tmp_path / "text.pt2"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"not a readable \.pt2"):
        looked_through(path)
    path.write_bytes(program.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"not a readable \.pt2"):
        looked_through(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/models/model.json", b"[" * 100_000)
    with pytest.raises(CheckpointError, match=r"not a readable \.pt2"):
        looked_through(path)
