"""Published weights: fetched once, verified, converted once; each network failure is explained in seconds."""

import hashlib
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from helpers import TRAINING, model_config
from huggingface_hub import constants, errors
from torchvision.models.detection import RetinaNet_ResNet50_FPN_V2_Weights, RetinaNet_ResNet50_FPN_Weights

import retinanet
from retinanet import download as online
from retinanet.cli import main
from retinanet.commands.train import start_config
from retinanet.errors import CheckpointError, ConfigError
from retinanet.inference.load import read_pretrained, resolve_weights
from retinanet.weights import hub
from retinanet.weights.checkpoint import ModelInfo, build, read_weights
from retinanet.weights.foreign.projects import COCO

BODY = b"weights, as it were " * 50_000
OTHER_SHA256 = hashlib.sha256(BODY[::-1]).hexdigest()
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY, usedforsecurity=False).hexdigest()
NAME = "torchvision/small"
SMALL = model_config(backbone="test_resnet", channels=32, num_convs=1, scale=64)


class Handler(BaseHTTPRequestHandler):
    """A file at every address, and by its first word what goes wrong with it."""

    def do_GET(self):
        self.server.asked.append(self.path)
        kind = self.path.rsplit("/", 1)[1].split("-")[0]
        if kind == "silent":
            self.server.closing.wait(10)
            return
        self.send_response(404 if kind == "missing" else 200)
        if kind != "unmeasured":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(
            {"missing": b"", "truncated": BODY[:-1000], "stalled": BODY[:5000], "changed": BODY[::-1]}.get(
                kind, BODY
            )
        )
        self.wfile.flush()
        if kind == "stalled":
            self.server.closing.wait(10)

    def log_message(self, *_):
        """Be quiet."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of the test's own, and no proxy."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "torch" / "hub"


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.closing, server.handle_error = [], threading.Event(), lambda *_: None
        # the threads end with the test: a socket that a later garbage collection found open would fail
        # another test
        server.daemon_threads = False
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def publish(monkeypatch):
    """Put one more row into the table; what it converts to is a small network of ours."""

    def imported(path, style):
        assert path.read_bytes() == BODY
        return build(SMALL, 80).state_dict(), ModelInfo(
            SMALL, tuple(COCO.values()), tuple(COCO), about={"style": style, "sha256": SHA256}
        )

    def publish(address, algorithm="sha256", digits=None, style=None):
        digits = digits or {"sha256": SHA256[:8], "md5": MD5[:6]}[algorithm]
        entry = hub.Published(
            NAME, f"{address}-{digits}.pth", (algorithm, digits), "CC0", 12.3, "a page", style
        )
        monkeypatch.setitem(hub.KNOWN, NAME, entry)
        return entry

    monkeypatch.setattr(hub, "import_weights", imported)
    return publish


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------- the table


def test_the_table_says_what_the_installed_torchvision_says():
    entries = {
        "torchvision/retinanet_resnet50_fpn": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
        "torchvision/retinanet_resnet50_fpn_v2": RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
    }
    assert set(entries) == {name for name in hub.KNOWN if name.startswith("torchvision/")}
    for name, theirs in entries.items():
        assert (hub.KNOWN[name].address, hub.KNOWN[name].ap) == (
            theirs.url,
            theirs.meta["_metrics"]["COCO-val2017"]["box_map"],
        )


def test_addresses_are_put_together_as_the_projects_pages_have_them():
    mmdet = "https://download.openmmlab.com/mmdetection/v2.0/"
    expected = {
        "detectron2/retinanet_R_50_FPN_1x": "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/"
        "retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl",
        "mmdet/retinanet_r18_fpn_1x_coco": mmdet
        + "retinanet/retinanet_r18_fpn_1x_coco/retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth",
        "mmdet/retinanet_r50_fpn_amp-1x_coco": mmdet + "fp16/retinanet_r50_fpn_fp16_1x_coco/"
        "retinanet_r50_fpn_fp16_1x_coco_20200702-0dbfb212.pth",
        "mmdet/retinanet_r101-caffe_fpn_ms-3x_coco": mmdet
        + "retinanet/retinanet_r101_caffe_fpn_mstrain_3x_coco/"
        "retinanet_r101_caffe_fpn_mstrain_3x_coco_20210721_063439-88a8a944.pth",
    }
    assert {name: hub.KNOWN[name].address for name in expected} == expected


def test_every_row_is_one_file_of_its_own_whose_name_ends_with_its_digest():
    assert len(hub.KNOWN) == len({hub.original(entry) for entry in hub.KNOWN.values()}) == 22
    for name, entry in hub.KNOWN.items():
        ending, digits = (
            (r"_([0-9a-f]{6})\.pkl", "md5")
            if name.startswith("detectron2/")
            else (r"-([0-9a-f]{8})\.pth", "sha256")
        )
        assert entry.name == name
        assert entry.digest == (digits, re.search(ending + "$", entry.address)[1])
        assert 30 < entry.ap < 45
        assert entry.classes == 80
        assert entry.licence
        assert entry.source.startswith("https://")


def test_only_mmdetections_files_have_a_style():
    for name, entry in hub.KNOWN.items():
        assert entry.style == (
            ("caffe" if "-caffe_" in name else "pytorch") if name.startswith("mmdet/") else None
        )


# ---------------------------------------------------------------------------------------------- it goes well


def test_the_first_call_fetches_and_converts_and_the_second_only_finds(server, publish, home):
    entry = publish(server.address + "/models/good", style="caffe")
    path = hub.fetch(NAME)
    assert path == home / "retinanet" / "torchvision" / f"small-{SHA256[:8]}-{hub.CONVERSION}.safetensors"
    about = {"style": "caffe", "sha256": SHA256, "licence": "CC0", "published_as": NAME, "published_ap": 12.3}
    assert read_weights(path)[1].about == about
    assert hub.fetch(NAME) == path
    assert server.asked == [f"/models/good-{SHA256[:8]}.pth"]
    assert files(home) == [f"checkpoints/good-{SHA256[:8]}.pth", str(path.relative_to(home))]
    hub.original(entry).unlink()  # no longer needed
    assert retinanet.load(NAME, device="cpu").names[:2] == ["person", "bicycle"]


def test_another_conversion_makes_another_file_of_the_same_download(server, publish, monkeypatch):
    publish(server.address + "/good")
    before = hub.fetch(NAME)
    monkeypatch.setattr(hub, "CONVERSION", 99)
    assert hub.fetch(NAME) != before
    assert len(server.asked) == 1


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_that_was_put_there_by_hand_is_verified_and_used(publish, algorithm):
    entry = publish("http://nowhere.invalid/hand", algorithm)
    hub.original(entry).parent.mkdir(parents=True)
    hub.original(entry).write_bytes(BODY)
    assert hub.fetch(NAME).exists()


def test_a_file_without_an_announced_length_is_taken_by_its_checksum(server, publish):
    publish(server.address + "/unmeasured", "md5")
    assert hub.fetch(NAME).exists()


def test_the_proxy_of_the_environment_is_asked(server, publish, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    entry = publish("http://nowhere.invalid/good")
    assert hub.fetch(NAME).exists()
    assert server.asked == [entry.address]


@pytest.mark.parametrize("main_process", [True, False])
def test_a_bar_is_shown_only_by_the_main_process(publish, monkeypatch, main_process):
    entry = publish("http://nowhere.invalid/good")
    asked = []
    monkeypatch.setattr(
        hub, "download", lambda address, path, check, show: asked.append((address, path, show))
    )
    monkeypatch.setattr(hub, "is_main_process", lambda: main_process)
    hub.downloaded(entry)
    assert asked == [(entry.address, hub.original(entry), main_process)]


def test_the_bar_leaves_stdout_to_the_answers(server, tmp_path, capsys):
    online.download(server.address + "/good", tmp_path / "file", lambda path: None, show=True)
    assert (tmp_path / "file").read_bytes() == BODY
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------------------- it does not go well


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("changed", rf"should begin with {SHA256[:8]} and is {OTHER_SHA256}.*retinanet import"),
        ("missing", "the server answered 404 Not Found"),
        ("truncated", "only 999,000 of 1,000,000 bytes came"),
        ("stalled", r"nothing came for 0\.3 s"),
        ("silent", r"no answer within 0\.3 s"),
    ],
)
def test_a_download_that_fails_leaves_nothing_and_says_why(server, publish, home, monkeypatch, kind, reason):
    if kind in ("silent", "stalled"):
        monkeypatch.setattr(online, "READING", 0.3)
    entry = publish(f"{server.address}/{kind}")
    with pytest.raises(CheckpointError, match=reason) as told:
        hub.fetch(NAME)
    assert entry.address in str(told.value)
    assert files(home) == []


def test_without_a_network_the_error_names_address_and_place(publish, home, capsys):
    entry = publish("https://nowhere.invalid/models/file")
    assert main(["predict", NAME, __file__]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"retinanet: {NAME} cannot be fetched: ")
    assert (
        f"fetch {entry.address} elsewhere and put it here: "
        f"{home / 'checkpoints' / entry.address.rsplit('/', 1)[1]}\n" in error
    )


def test_a_file_of_the_user_that_does_not_fit_is_told_and_kept(publish):
    entry = publish("http://nowhere.invalid/hand", "md5")
    path = hub.original(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[:-1])
    with pytest.raises(
        CheckpointError,
        match=rf"truncated, or another file .*md5 should begin with {MD5[:6]} and is .*Delete it",
    ):
        hub.fetch(NAME)
    assert path.read_bytes() == BODY[:-1]


def test_an_interrupted_download_leaves_nothing(server, publish, home, monkeypatch):
    def interrupted(response):
        yield BODY[:1000]
        raise KeyboardInterrupt

    monkeypatch.setattr(httpx.Response, "iter_raw", interrupted)
    publish(server.address + "/good")
    with pytest.raises(KeyboardInterrupt):
        hub.fetch(NAME)
    assert files(home) == []


def test_a_network_is_there_when_somebody_listens_or_a_proxy_is_set(server, monkeypatch):
    port = server.server_address[1]
    assert online.reachable("127.0.0.1", port) is None
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        assert "refused" in online.reachable("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert online.reachable("nowhere.invalid") is None
    monkeypatch.setenv("NO_PROXY", "nowhere.invalid")
    assert online.reachable("nowhere.invalid") is not None


# ----------------------------------------------------------------------------------------- what a name means


def test_what_lies_on_the_disk_wins_over_a_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torchvision").mkdir()
    mine = Path("torchvision/retinanet_resnet50_fpn")
    mine.write_bytes(b"")
    assert resolve_weights(str(mine)) == mine


@pytest.mark.parametrize(
    "model", ["nowhere", "runs/cells", "torchvision", "torchvision/runs/cells", Path("other/name"), ""]
)
def test_anything_else_is_no_published_name(model):
    assert hub.resolve(model) is None


def test_a_slip_in_a_name_is_told_with_its_neighbours():
    with pytest.raises(ConfigError, match="did you mean 'torchvision/retinanet_resnet50_fpn_v2'"):
        resolve_weights("torchvision/retinanet_resnet50_v2")
    with pytest.raises(CheckpointError, match="nor a name of `retinanet models`"):
        resolve_weights("nowhere")
    with pytest.raises(CheckpointError, match="did you mean 'imagenet'"):
        read_pretrained("imagnet")


@pytest.mark.usefixtures("undrawn")
def test_a_training_starts_from_a_published_name(server, publish, scenes, tmp_path):
    publish(server.address + "/good")
    config, init = start_config("tiny", NAME)
    assert config.model == SMALL == init.info.model
    run = retinanet.train(scenes, "tiny", init=NAME, out=tmp_path / "run", **TRAINING)
    assert f"{NAME.split('/')[1]}-{SHA256[:8]}" in (run / "log.txt").read_text()
    assert len(server.asked) == 1


def test_the_list_has_every_name_and_says_what_is_here_and_what_is_untested(server, publish, capsys):
    publish(server.address + "/good", "md5")
    hub.fetch(NAME)
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["", hub.UNTESTED]
    cells = {line.split()[0]: line.split(maxsplit=4) for line in lines[1:-2]}
    assert cells[NAME] == [NAME, "12.3", "80", "converted", "CC0"]
    assert cells["detectron2/retinanet_R_101_FPN_3x"][1:] == ["40.4", "80", "-", "CC BY-SA 3.0"]
    assert list(cells) == list(hub.KNOWN)


def test_the_list_takes_no_other_words(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["models", "torchvision"])
    assert stopped.value.code == 2
    assert "torchvision" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- Hugging Face


def cache(tmp_path, revision, commit):
    """A file as huggingface_hub keeps it."""
    folder = tmp_path / "hf" / "models--owner--name"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "model.safetensors").write_bytes(b"")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    return folder / "snapshots" / commit / "model.safetensors"


@pytest.fixture
def nobody_is_asked(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr(hub, "reachable", fail)


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_cached_copy_is_taken_without_asking(tmp_path):
    main_branch, old = cache(tmp_path, "main", "a" * 40), cache(tmp_path, "v1", "b" * 40)
    assert resolve_weights("hf:owner/name") == main_branch
    assert resolve_weights(Path("hf:owner/name@v1")) == resolve_weights("hf:owner/name@" + "b" * 40) == old


def test_a_repository_is_asked_for_our_file_at_the_revision(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda host, port: None)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda repository, file, revision: f"/{repository}/{file}/{revision}",
    )
    assert hub.resolve("hf:owner/name") == Path("/owner/name/model.safetensors/None")
    assert hub.resolve("hf:owner/name@refs/pr/1") == Path("/owner/name/model.safetensors/refs/pr/1")


def test_without_a_network_the_command_that_fills_the_cache_is_told(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda host, port: f"no route to {host}:{port}")
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    with pytest.raises(
        CheckpointError,
        match=r"no route to huggingface\.co:443.*hf download owner/name model\.safetensors --revision v1",
    ):
        hub.resolve("hf:owner/name@v1")


def test_the_librarys_offline_mode_is_told(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda host, port: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, and the cache has no copy"):
        hub.resolve("hf:owner/name")


@pytest.mark.parametrize(
    ("kind", "meaning"),
    [
        (errors.RepositoryNotFoundError, "there is no owner/name, or it is private"),
        (errors.GatedRepoError, "its owner must let you in"),
        (errors.RevisionNotFoundError, "has no revision 'v1'"),
        (errors.EntryNotFoundError, r"has no model\.safetensors"),
        (ConnectionResetError, "ConnectionResetError: without a word"),
    ],
)
def test_an_error_of_the_library_is_told_in_our_words(monkeypatch, kind, meaning):
    def fail(*_, **__):
        raise kind.__new__(kind)  # their arguments change from release to release

    monkeypatch.setattr(hub, "reachable", lambda host, port: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=f"hf:owner/name@v1 cannot be fetched: .*{meaning}"):
        hub.resolve("hf:owner/name@v1")


@pytest.mark.parametrize(
    "reference", ["hf:", "hf:name", "hf:owner/name/more", "hf:owner/name@", "hf:../name name"]
)
def test_what_names_no_repository_is_told(reference):
    with pytest.raises(ConfigError, match="hf:OWNER/NAME"):
        hub.resolve(reference)


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_name_that_hugging_face_does_not_allow_is_told():
    with pytest.raises(CheckpointError, match="owner/-name"):
        hub.resolve("hf:owner/-name")
