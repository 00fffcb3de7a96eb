"""Files of other projects: the tensors that torch and numpy read, and no code of the file is run."""

import contextlib
import io
import pickle
import random
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retinanet.errors import CheckpointError
from retinanet.weights.foreign.inert import KNOWN, Placeholder, placeholder
from retinanet.weights.foreign.reader import MAGIC, read_foreign, state_dict_of

KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16]
KINDS += [torch.int32, torch.int64]
KINDS += [torch.bool, torch.complex64, torch.complex128, torch.uint16]
FORMS = ["pkl", "legacy", "zip"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "theirs.pth"


def wrapped(form: str, payload: bytes) -> bytes:
    """A pickle as each of the three formats holds it."""
    if form == "pkl":
        return payload
    if form == "legacy":
        return b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, {})) + payload + pickle.dumps([], 2)
    return zipped({"data.pkl": payload})


def zipped(records: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def read(path, data: bytes):
    path.write_bytes(data)
    return read_foreign(path)


def refused(path, data: bytes, reason: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=reason) as raised:
        read(path, data)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 1000


def stands_for(value, name: str) -> bool:
    return isinstance(value, Placeholder) and value.name == name


def alike(ours, theirs) -> bool:
    """Equal in value, type, dtype and shape; an OrderedDict is a dict, arrays and parameters are tensors."""
    if isinstance(theirs, dict):
        return (
            type(ours) is dict
            and list(ours) == list(theirs)
            and all(alike(ours[key], theirs[key]) for key in theirs)
        )
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(alike, ours, theirs))
    if isinstance(theirs, np.ndarray):
        theirs = torch.from_numpy(theirs.astype(theirs.dtype.newbyteorder("="), order="C"))
    if isinstance(theirs, torch.Tensor):
        return type(ours) is torch.Tensor and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return type(ours) is type(theirs) and ours == theirs


def checkpoint():
    """What a torch file may hold: every dtype, shared, strided and empty tensors, and `_metadata`."""
    torch.manual_seed(0)
    everything = {str(kind): (torch.arange(12) % 5).reshape(3, 4).to(kind) for kind in KINDS}
    weights = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)).state_dict()
    base = torch.arange(20.0)
    views = {"rows": base.view(4, 5)[1:], "turned": base.view(4, 5).t()[2:], "none": torch.empty(0, 4)}
    views |= {"one": torch.tensor(7)}
    plain = {"epoch": 3, "lr": [0.1, 1e-3], "big": 1 << 70, "text": "ä", "raw": b"\0\xff", "nothing": None}
    plain |= {"z": 1 + 2j, 5: (), "set": {1}}
    return {
        "model": weights,
        "all": everything,
        "views": views,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": plain,
    }


@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_torch_reads_as_torch_reads_it(path, new):
    saved = checkpoint()
    if not new:
        del saved["all"]["torch.uint16"]  # torch writes it in the old format and cannot read it
    torch.save(saved, path, _use_new_zipfile_serialization=new)
    content = read_foreign(path)
    assert alike(content, saved)
    assert (
        content["views"]["rows"].untyped_storage().data_ptr()
        == content["views"]["turned"].untyped_storage().data_ptr()
    )
    assert alike(content, torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_zip_of_any_pickle_protocol_is_read(path, protocol):
    torch.save(checkpoint(), path, pickle_protocol=protocol)
    assert alike(read_foreign(path), checkpoint())


def test_a_big_endian_file_is_turned_around(path):
    # torch does not turn those without a storage class
    kinds = [kind for kind in KINDS if kind != torch.uint16]
    torch.save({str(kind): torch.arange(6).to(kind) for kind in kinds}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    for number, kind in enumerate(kinds):
        width = kind.itemsize // (2 if kind.is_complex else 1)
        values = np.frombuffer(records[f"data/{number}"], f"V{width}")
        records[f"data/{number}"] = b"".join(value.tobytes()[::-1] for value in values)
    content = read(path, zipped(records | {"byteorder": b"big"}))
    assert all(torch.equal(content[str(kind)], torch.arange(6).to(kind)) for kind in kinds)
    refused(path, zipped(records | {"byteorder": b"middle"}), "endian")


def test_a_file_without_checksums_is_read_and_a_wrong_checksum_is_told(path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"weight": torch.ones(100)}, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_foreign(path)["weight"], torch.ones(100))
    torch.save({"weight": torch.ones(100)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(100).numpy().tobytes()) + 50] ^= 1
    refused(path, data, "CRC")


def test_safetensors_are_read_and_a_truncated_one_is_told(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"weight": torch.arange(4.0)}, path)
    assert alike(read_foreign(path), {"weight": torch.arange(4.0)})
    refused(path, path.read_bytes()[:-3])


ARRAYS = {
    "conv.weight": np.arange(24, dtype="f4").reshape(2, 3, 2, 2),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(5, dtype=">f4"),
    "mask": np.array([[True], [False]]),
    "empty": np.zeros((0, 3), "f4"),
    "scalar": np.array(3, "i8"),
    **{
        code: np.arange(4).astype(code)
        for code in ("i1", "i2", "i4", "u1", "u2", "u4", "u8", "f2", "c8", "c16")
    },
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_detectron2s_pickles_of_arrays_become_tensors(path, protocol):
    content = {"model": ARRAYS, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    assert alike(read(path, pickle.dumps(content, protocol)), content)


def test_what_python_2_wrote_is_latin1(path):
    raw = np.arange(-3, 3, dtype="f4").tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    array += b"(K\x01K\x03K\x02\x86cnumpy\ndtype\n(U\x02f4K\x00K\x01tR"
    array += (
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )
    number = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02f8K\x00K\x01tRU\x08"
        + struct.pack("<d", 2.5)
        + b"tR"
    )
    pairs = b"ccollections\nOrderedDict\n(](](U\x01aK\x01e](U\x01bc__builtin__\nset\n(](K\x07etReetR"
    data = (
        b"\x80\x02}(U\x05model}U\x01w"
        + array
        + b"sU\tauthor \xe9\xe8U\x01xU\x02lr"
        + number
        + b"U\x01p"
        + pairs
        + b"u."
    )
    content = read(path, data)
    assert alike(content, pickle.loads(data, encoding="latin1") | {"lr": 2.5})
    assert content["model"]["w"].tolist() == [[-3, -2], [-1, 0], [1, 2]]
    assert content["author éè"] == "x"
    assert content["p"] == {"a": 1, "b": {7}}


def test_scalars_become_numbers_and_arrays_of_objects_stay_unread(path):
    scalars = [np.float64(0.5), np.float32(0.25), np.int64(-3), np.bool_(True), np.uint8(200)]
    scalars += [np.complex64(1j)]
    content = {"scalars": scalars, "objects": np.array([{}, None]), "names": np.array(["cat", "dog"])}
    for protocol in (2, 4, 5):
        answer = read(path, pickle.dumps(content, protocol))
        assert alike(answer["scalars"], [0.5, 0.25, -3, True, 200, 1j])
        assert stands_for(answer["objects"], "numpy.ndarray") and stands_for(answer["names"], "numpy.ndarray")


def test_mmengines_history_is_a_placeholder_and_its_module_is_never_imported(path, tmp_path, monkeypatch):
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    modules = {name: types.ModuleType(name) for name in names}
    exec("class HistoryBuffer:\n    def __init__(self, log): self.log = log", modules[names[-1]].__dict__)
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        buffer = modules[names[-1]].HistoryBuffer(np.arange(9.0))
        hub = {
            "log_scalars": OrderedDict(loss=buffer),
            "runtime_info": OrderedDict(lr=np.float64(0.01), iter=9),
        }
        content = {
            "meta": {"epoch": 1, "cfg": "model = dict()"},
            "state_dict": {"bbox_head.weight": torch.ones(3)},
            "message_hub": hub,
        }
        torch.save(content, path)
    trap = tmp_path / "mmengine" / "logging"
    trap.mkdir(parents=True)
    for file in (trap.parent / "__init__.py", trap / "__init__.py", trap / "history_buffer.py"):
        file.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit), path.open("rb") as file:
        torch.load(file, weights_only=False)  # the trap works
    content = read_foreign(path)
    buffer = content["message_hub"]["log_scalars"]["loss"]
    assert stands_for(buffer, "mmengine.logging.history_buffer.HistoryBuffer")
    assert alike(content["message_hub"]["runtime_info"], {"lr": 0.01, "iter": 9})
    assert content["meta"]["epoch"] == 1
    assert state_dict_of(content)["bbox_head.weight"].tolist() == [1, 1, 1]
    assert not set(names) & set(sys.modules)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile(canary) -> dict[str, bytes]:
    """Pickles that make the directory `canary`, and some that fail thereafter."""
    name, code = text(str(canary)), text(f"__import__('os').mkdir({str(canary)!r})")
    plain = b"\x80\x02cos\nmkdir\n(" + name + b"tR."
    imported = b"cbuiltins\n__import__\n(" + text("os") + b"tR"
    return {
        "mkdir": plain,
        "system": b"\x80\x02cos\nsystem\n(" + text(f"mkdir {canary}") + b"tR.",
        "in a dict": b"\x80\x02}(" + text("model") + b"}" + text("x") + b"cos\nmkdir\n(" + name + b"tRsu.",
        "for a key": b"\x80\x02}(cos\nmkdir\n" + name + b"\x85RK\x01u.",
        "by INST": b"(" + name + b"iposix\nmkdir\n.",
        "by OBJ": b"(cos\nmkdir\n" + name + b"o.",
        "by STACK_GLOBAL": b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93" + name + b"\x85R.",
        "by BUILD": b"\x80\x02cfunctools\npartial\n(cos\ngetcwd\nt\x81(cos\nmkdir\n(" + name + b"t}Ntb)R.",
        "eval": b"cbuiltins\neval\n(" + code + b"tR.",
        "exec": b"c__builtin__\nexec\n(" + code + b"tR.",
        "subprocess": b"csubprocess\ncheck_call\n((" + text("mkdir") + name + b"ltR.",
        "getattr": b"cbuiltins\ngetattr\n(" + imported + text("mkdir") + b"tR(" + name + b"tR.",
        "partial": b"cfunctools\npartial\n(cos\nmkdir\n" + name + b"tR)R.",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nmkdir\n(" + name + b"ltRtR.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cfractions\nFraction\ncbuiltins\nobject\nNtR0cos\nmkdir\n"
        + name
        + b"\x85R.",
        "pickle": b"\x80\x03cpickle\nloads\n(" + octets(plain) + b"tR.",
        "torch.load": b"\x80\x03ctorch.storage\n_load_from_bytes\n("
        + octets(wrapped("legacy", plain))
        + b"tR.",
        "in a builder": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nmkdir\nctorch\nTensor\n"
        + name
        + b"\x85NtR.",
        "in a tensor": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(cos\nmkdir\n" + name + b"\x85RNNtR.",
    }


def octets(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


@pytest.mark.parametrize("form", FORMS)
def test_no_hostile_pickle_has_anything_run(path, tmp_path, form):
    canary = tmp_path / "canary"
    for name, payload in hostile(canary).items():
        with contextlib.suppress(Exception):
            pickle.loads(payload)
        assert canary.exists(), f"{name} harms nobody"
        canary.rmdir()
        with contextlib.suppress(CheckpointError):
            content = read(path, wrapped(form, payload))
            assert all(value == 1 or stands_for(value["x"], "os.mkdir") for value in content.values()), name
        assert not canary.exists(), name


@pytest.mark.parametrize("state", ["function", "class"])
def test_a_pickle_cannot_set_attributes_of_what_it_names(path, state):
    evil = b"}" + text("evil") + b"K\x01s"
    named = {
        "function": b"ctorch._utils\n_rebuild_tensor_v2\n" + evil + b"b.",
        "class": b"ctorch.storage\nUntypedStorage\nN" + evil + b"\x86b.",
    }
    for form in FORMS:
        with contextlib.suppress(CheckpointError):
            read(path, wrapped(form, b"\x80\x02" + named[state]))
    for known in (torch._utils._rebuild_tensor_v2, torch.UntypedStorage, *KNOWN.values()):
        assert not hasattr(known, "evil")


def test_a_placeholder_swallows_arguments_state_items_and_attributes(path):
    for data in (
        b"\x80\x02ca.b\nC\n)\x81}b(NNe(NNu.",
        b"\x80\x04" + text("a.b") + text("C") + b"\x93(K\x01tR}b(NN\x90.",
        b"(K\x01ia.b\nC\n}b.",
        b"(ca.b\nC\nK\x01o(N}tb.",
        b"\x80\x04ca.b\nC\n)}\x92)R.",
    ):
        refused(path, data, r"whole object of a\.b\.C")


def test_plain_values_of_every_protocol_are_those_of_pickle(path):
    values = [None, True, 0, -1, 255, 65536, 1 << 40, -(1 << 100), 0.5, "", "ä" * 300, b"", b"x" * 300]
    values += [bytearray(b"x"), 1j, (), (1,), (1, 2, 3, 4)]
    values += [[[]], {"a": {1: {(1, "b"): None}}}, {1, "a"}, frozenset({2.5, None}), np.float32(1).item()]
    for protocol in range(6):
        answer = read(path, pickle.dumps({"values": values}, protocol))["values"]
        assert answer == values and list(map(type, answer)) == list(map(type, values))


def test_only_these_names_are_ever_called():
    assert {name.split(".")[0] for name in KNOWN} == {"_codecs", "builtins", "collections", "numpy", "torch"}
    assert not any(
        word in name for name in KNOWN for word in ("eval", "exec", "import", "attr", "open", "load")
    )


def files() -> dict[str, bytes]:
    """One small file of weights of each form."""
    answer = {}
    for form in ("zip", "legacy"):
        file = io.BytesIO()
        weights = OrderedDict(weight=torch.arange(8.0), bias=torch.ones(2))
        torch.save({"state_dict": weights}, file, _use_new_zipfile_serialization=form == "zip")
        answer[form] = file.getvalue()
    for protocol in (2, 4, 5):
        content = {"model": {"weight": np.arange(8.0), "bias": np.ones(2, "f4")}, "__author__": "x"}
        answer[f"pkl {protocol}"] = pickle.dumps(content, protocol)
    return answer


FILES = files()


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_truncated_file_is_told_wherever_it_ends(path, data):
    for length in range(0, len(data), 11):
        refused(path, data[:length])


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_flipped_bits_give_an_answer_or_a_checkpoint_error(path, data):
    draw = random.Random(0)
    told = 0
    for _ in range(200):
        spoilt = bytearray(data)
        for _ in range(draw.choice((1, 1, 3))):
            spoilt[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            assert isinstance(read(path, spoilt), dict)
        except CheckpointError as error:
            told += len(str(error)) < 1000
    assert told > 20


def test_what_is_no_checkpoint_is_told(path, tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    refused(path, b"", "empty")
    refused(path, b"hello", "truncated")
    refused(path, b"<!DOCTYPE html><html>", "web page")
    refused(path, b"version https://git-lfs.github.com/spec/v1\n", "LFS")
    refused(path, zipped({"code/x.py": b""}), "without its data.pkl")
    refused(
        path, zipped({"data.pkl": b"}.", "constants.pkl": b")."}), "TorchScript archive; give the state dict"
    )
    refused(path, pickle.dumps({1: 2}), "no dict")
    refused(path, b"cmodels\nYolo\n)\x81}b.", r"whole object of models\.Yolo")
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    refused(path, path.read_bytes(), "tar file")
    for missing in (tmp_path / "nothing.pth", tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(CheckpointError):
            read_foreign(missing)


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.ones(1), "n": 3},
        {
            "state_dict": {"a": torch.ones(1), "n": None},
            "ema_state_dict": {"b": torch.ones(1)},
            "optimizer": {},
        },
        {"model": {"module.a": torch.ones(1)}, "model_ema": {"b": torch.ones(1)}},
        {"model_state_dict": {"module.a": torch.ones(1)}, "epoch": 1},
        {"model": {"state_dict": {"a": torch.ones(1)}}},
    ],
)
def test_the_weights_are_found_in_the_usual_wrappers(content):
    assert list(state_dict_of(content)) == ["a"]


def test_module_stays_in_names_that_do_not_all_have_it():
    assert list(state_dict_of({"module.a": torch.ones(1), "b": torch.ones(1)})) == ["module.a", "b"]


def test_content_without_weights_lists_its_keys():
    with pytest.raises(CheckpointError, match=r"'ema_state_dict', 'epoch', 'model' \(a ultralytics\.Model\)"):
        state_dict_of(
            {"ema_state_dict": {"a": torch.ones(1)}, "epoch": 3, "model": placeholder("ultralytics.Model")()}
        )
    with pytest.raises(CheckpointError, match="nothing"):
        state_dict_of({})


def test_a_tensor_that_is_not_dense_is_not_dropped_silently(path):
    torch.save({"a": torch.ones(1), "sparse": torch.eye(2).to_sparse()}, path)
    with pytest.raises(CheckpointError, match="the first being sparse"):
        state_dict_of(read_foreign(path))
