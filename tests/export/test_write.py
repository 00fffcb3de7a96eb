"""The verb `export`: files that answer as their source, open again, and are refused when they do not."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import retinanet
from retinanet.commands import export as command
from retinanet.commands.evaluate import run
from retinanet.config.commands import EvalConfig, ExportConfig
from retinanet.config.io import override
from retinanet.data.scenes import scene
from retinanet.errors import CheckpointError, ConfigError
from retinanet.export import write as writing
from retinanet.inference.load import resolve_weights
from retinanet.inference.runtimes import open_runtime
from retinanet.weights.checkpoint import load_model, read_weights, save_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of onnxscript, openvino and nncf about each other


@pytest.fixture(scope="module")
def talkative(trained, tmp_path_factory):
    """The short run's model, made to answer a lot."""
    model, card = load_model(resolve_weights(trained))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.class_subnet[-1].weight, std=0.1)
    torch.nn.init.constant_(model.class_subnet[-1].bias, -2.5)
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    save_model(path, model.state_dict(), card)
    return path


def export(talkative, folder, format, size=None):
    out = folder / f"shipped{writing.FORMATS[format][0]}"
    assert command.run(str(talkative), ExportConfig(format, out, size=size))
    return out


@pytest.fixture(scope="module")
def exported(talkative, tmp_path_factory):
    """The talkative model as an ONNX file."""
    return export(talkative, tmp_path_factory.mktemp("exported"), "onnx")


@pytest.fixture(scope="module")
def pictures():
    shapes = [(96, 128), (96, 128), (128, 64), (40, 200)]
    return [scene((1, number), size).image for number, size in enumerate(shapes)]


def same(one, other, atol=0.05):
    assert len(one) == len(other)
    order = [torch.argsort(answer.boxes.sum(dim=1)) for answer in (one, other)]
    torch.testing.assert_close(one.boxes[order[0]], other.boxes[order[1]], rtol=0, atol=atol)
    assert torch.equal(one.labels[order[0]], other.labels[order[1]])


def padded_inside(out):
    """The file answers for any sides what it answers for the padded ones, alone and in a batch."""
    model = open_runtime(out)
    for count, height, width in ((1, 50, 75), (2, 64, 97), (1, 333, 500)):
        shape = (count, 3, height, width)
        images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).byte()
        sizes = torch.tensor([[height, width]] * count, dtype=torch.float32)
        by_hand = torch.nn.functional.pad(images, (0, -width % 32, 0, -height % 32))
        rows = zip(model.run(images, sizes), model.run(by_hand, sizes), strict=True)
        for (boxes, scores, labels), (boxes_by_hand, scores_by_hand, labels_by_hand) in rows:
            assert len(boxes) > 0 and torch.equal(labels, labels_by_hand)
            torch.testing.assert_close(boxes, boxes_by_hand, rtol=0, atol=1e-3)
            torch.testing.assert_close(scores, scores_by_hand, rtol=0, atol=1e-5)


def other_sizes_are_refused(out):
    """A file for one size never answers for another."""
    model = open_runtime(out)
    for height, width in ((96, 96), (95, 128), (128, 128)):
        with pytest.raises(Exception, match=r"dimension|shape"):
            model.run(torch.zeros(1, 3, height, width, dtype=torch.uint8), torch.tensor([[96.0, 96.0]]))


@pytest.mark.parametrize(
    ("format", "size"),
    [
        ("onnx", None),
        pytest.param("openvino", None, marks=pytest.mark.slow),
        pytest.param("onnx", (96, 128), marks=pytest.mark.slow),
    ],
)
def test_an_exported_file_is_proved_and_opens_as_the_same_detector(
    format, size, talkative, pictures, scenes, tmp_path, request
):
    usual = (format, size) == ("onnx", None)
    out = request.getfixturevalue("exported") if usual else export(talkative, tmp_path, format, size)
    report = json.loads(out.with_name(f"{out.name}.report.json").read_text())
    assert report["passed"] and report["format"] == format and report["sha256"]
    cases = {case["name"]: case for case in report["cases"]}
    assert {"images", "batch", "nothing", "tall", "wide", "tiny", "strip"} == set(cases)
    assert cases["batch"]["batch"] == 4
    assert cases["images"]["detections"] > 50 and max(case["pixels"] for case in cases.values()) < 0.1
    detector = retinanet.load(out)
    source = retinanet.load(talkative)
    for name in ("names", "category_ids", "threshold"):
        assert getattr(detector, name) == getattr(source, name)
    if size is None:
        for one, other in zip(source.predict(pictures), detector.predict(pictures), strict=True):
            same(one, other)
        one, other = (
            run(str(model), str(scenes), EvalConfig(split="test", workers=0)) for model in (talkative, out)
        )
        assert one["AP50"] == pytest.approx(other["AP50"], abs=1e-3)
        padded_inside(out)
    else:
        other_sizes_are_refused(out)
    files = {out.name, f"{out.name}.report.json"} | ({"shipped.bin"} if format == "openvino" else set())
    assert {file.name for file in out.parent.iterdir()} == files
    written = out.read_bytes() + out.with_name(f"{out.name}.report.json").read_bytes()
    for path in (out.parent, scenes, talkative.parent, "site-packages"):
        assert str(path).encode() not in written
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        command.run(str(talkative), ExportConfig(format, out))
    with pytest.raises(ConfigError, match="exported itself"):
        command.run(str(out), ExportConfig("onnx", tmp_path / "again.onnx"))
    with pytest.raises(ConfigError, match="--scales"):
        retinanet.load(out, scales=(64, 96))


@pytest.mark.parametrize(
    ("format", "precision", "size"),
    [
        ("openvino", "int8", (96, 128)),
        pytest.param("openvino", "bf16", None, marks=pytest.mark.slow),
        pytest.param("onnx", "int8", None, marks=pytest.mark.slow),
    ],
)
def test_other_precisions_are_measured_by_their_ap(format, precision, size, talkative, scenes, tmp_path):
    out = tmp_path / f"small{writing.FORMATS[format][0]}"
    config = ExportConfig(
        format, out, precision, size, data=str(scenes), split="test", calibration=3, max_drop=1.0, workers=0
    )
    assert command.run(str(talkative), config)
    report = json.loads((tmp_path / f"{out.name}.report.json").read_text())
    assert (report["precision"], report["split"]) == (precision, "test")
    assert set(report["ap"]) - {"source at its own size"} == {"source", "exported"}
    assert ("source at its own size" in report["ap"]) == (size is not None)
    found = retinanet.load(out)
    assert found.precision == precision
    other_sizes_are_refused(out) if size else padded_inside(out)
    sure, again = (sum(case[name] for case in report["cases"]) for name in ("sure", "again"))
    # the last layer is random, so int8 moves many across the threshold
    assert again > {"int8": 0.6, "bf16": 0.9}[precision] * sure > 100
    if precision == "int8":
        with pytest.raises(ConfigError, match="exported in int8, so --precision bf16 has no say"):
            retinanet.load(out, precision="bf16")


def test_a_file_that_differs_is_not_written(talkative, exported, tmp_path, monkeypatch):
    """The file mixes up the means of blue and red: a silent error where nothing is proved."""
    import onnx

    weights, card = read_weights(talkative)
    means = override(card.model, {"pixel_mean": card.model.preprocess.pixel_mean[::-1]}, foreign=True)
    save_model(tmp_path / "model.safetensors", weights, replace(card, model=means))
    monkeypatch.setattr(writing, "traced", lambda graph, size: None)
    monkeypatch.setattr(writing, "to_onnx", lambda program, text: onnx.load(exported))
    out = tmp_path / "wrong.onnx"
    assert not command.run(str(tmp_path / "model.safetensors"), ExportConfig("onnx", out))
    assert not out.exists()
    report = json.loads((tmp_path / "wrong.onnx.report.json").read_text())
    assert not report["passed"] and report["reasons"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ExportConfig("onnx", precision="bf16"), "fp32 or int8, not in bf16"),
        (ExportConfig("openvino", precision="int8"), "int8 needs --data"),
        (ExportConfig("onnx", size=(100, 320)), "not 100 320 but 96 320"),
        (ExportConfig("onnx", size=(96, 320), scale=96), "either --size or --scale"),
        (
            ExportConfig("openvino", precision="int8", data="x", calibration=0),
            "calibration must be at least 1",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_at_once(config, reason, talkative):
    with pytest.raises(ConfigError, match=reason):
        command.run(str(talkative), config)


def test_a_wrong_suffix_is_told(talkative, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        command.run(str(talkative), ExportConfig("onnx", tmp_path / "model.xml"))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_file_of_nobody_is_told(suffix, tmp_path):
    path = tmp_path / f"text{suffix}"
    path.write_text("this is no model")
    with pytest.raises(CheckpointError, match="cannot be read by"):
        retinanet.load(path)
    with pytest.raises(CheckpointError, match=r"no model|no such file"):
        retinanet.load(tmp_path / f"none{suffix}")


def test_an_onnx_file_of_another_project_is_told(tmp_path):
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "other.onnx",
    )
    with pytest.raises(CheckpointError, match="no file that `retinanet export` wrote"):
        retinanet.load(tmp_path / "other.onnx")


def test_without_the_extra_the_error_is_the_line_that_installs_it(talkative, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'retinanet\[export\]'"):
        command.run(str(talkative), ExportConfig("onnx", tmp_path / "x.onnx"))
    (tmp_path / "y.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pip install 'retinanet\[export\]'"):
        retinanet.load(tmp_path / "y.onnx")


def test_nothing_is_reported_to_the_vendor():
    """NNCF's telemetry is a stub; in a process without pytest, where it would not be anyway."""
    code = """
from retinanet.export import onnx
try:
    onnx.quantized(None, [], 1, [])
except Exception:
    pass
import nncf.telemetry.wrapper as wrapper
print(type(wrapper.telemetry).__name__)
"""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.split()[-1] == "MagicMock"
