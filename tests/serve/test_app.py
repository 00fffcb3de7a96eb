"""The API: what requests get, in which words they are refused, and who may ask."""

import base64
import encodings
import gzip
import io
import json
import threading

import pytest
import torch
from PIL import Image

from retinanet.data.scenes import scene
from retinanet.inference.detector import Detector
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess
from retinanet.model.retinanet import RetinaNet
from retinanet.serve.upload import unpacked
from retinanet.view.draw import save

FORM = {"content-type": "multipart/form-data; boundary=x"}
RED, DIM = (255, 0, 0), (140, 20, 10)


def files(*contents):
    return [("files", (name, content)) for name, content in contents]


def metric(client, name):
    """A value of /metrics, by its name with labels."""
    lines = dict(
        line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")
    )
    return float(lines.get(name, 0))


def test_the_bytes_of_a_picture_get_its_detections(client, picture):
    answer = client().post("/predict", content=picture(RED, (40, 20)))
    assert answer.status_code == 200
    red = {"class_name": "red", "category_id": 10, "score": 1.0, "box": [0.0, 0.0, 40.0, 20.0]}
    image = {"name": "image", "width": 40, "height": 20, "detections": [red]}
    assert answer.json() == {"threshold": 0.5, "images": [image]}


def test_files_of_a_form_are_answered_in_their_order(client, picture):
    sent = files(
        ("b.png", picture((0, 0, 255))), ("a.jpg", picture((0, 255, 0), kind="JPEG")), ("b.png", picture(RED))
    )
    images = client().post("/predict", files=sent).json()["images"]
    assert [image["name"] for image in images] == ["b.png", "a.jpg", "b.png"]
    assert [image["detections"][0]["class_name"] for image in images] == ["blue", "green", "red"]


def test_the_threshold_is_the_models_own_unless_told(client, picture):
    ask = client()
    counts = {
        query: len(ask.post(f"/predict{query}", content=picture(DIM)).json()["images"][0]["detections"])
        for query in QUERIES
    }
    assert counts == QUERIES


QUERIES = {"": 1, "?threshold=0": 3, "?threshold=0.05": 2, "?threshold=0.56": 0, "?threshold=1": 0}
"""Detections of the scores 140/255, 20/255 and 10/255."""


@pytest.mark.parametrize("value", ["1.1", "-0.1", "nan", "inf", "much"])
def test_a_threshold_that_is_no_score_is_refused_in_words(client, picture, value):
    answer = client().post(f"/predict?threshold={value}", content=picture())
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("threshold: Input should be")


def test_a_text_file_named_jpg_is_refused_in_words(client):
    answer = client().post("/predict", files=files(("notes.jpg", b"buy milk")))
    reason = "notes.jpg: not a JPEG, PNG, TIFF, BMP, WebP, GIF, PNM, JPEG 2000, AVIF or HEIC image"
    assert (answer.status_code, answer.json()) == (
        422,
        {"detail": reason, "images": [{"name": "notes.jpg", "error": reason}]},
    )


def in_base64(content):
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    "body",
    [
        lambda text: json.dumps({"image": text}),
        lambda text: json.dumps({"image": f"data:image/png;base64,{text}"}, indent=1),
        lambda text: json.dumps({"image": text}).replace("/", "\\/").replace("=", "\\u003d"),
        lambda text: json.dumps({"image": "\n".join(text[at : at + 76] for at in range(0, len(text), 76))}),
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"{text}\n",
        lambda text: f"data:;base64,{text}".replace("+", "-").replace("/", "_").rstrip("="),
    ],
)
def test_an_image_in_base64_is_read(client, picture, body):
    noisy = Image.effect_noise((40, 20), 90).convert("RGB")  # its base64 has every letter
    stream = io.BytesIO()
    noisy.save(stream, "PNG")
    ask = client()
    wanted = ask.post("/predict?threshold=0", content=stream.getvalue())
    answer = ask.post("/predict?threshold=0", content=body(in_base64(stream.getvalue())))
    assert answer.status_code == 200 and answer.json() == wanted.json()


@pytest.mark.parametrize(
    "body",
    [
        '{"image": "%s", "threshold": 0.3}',
        '{"images": ["%s"]}',
        '{"instances": [{"b64": "%s"}]}',
        '["%s"]',
        '"%s"',
        "{}",
        '{"image": 7}',
        '{"image": "%s"',
    ],
)
def test_other_json_is_told_the_form_that_is_read(client, picture, body):
    answer = client().post("/predict", content=body.replace("%s", in_base64(picture())))
    assert answer.status_code == 422
    assert 'JSON is read as {"image": "the file in base64"}' in answer.json()["detail"]


@pytest.mark.parametrize(
    "text",
    ["no base64!", "A", "data:image/png,raw", "data:image/png;charset=x,AAAA", "\\ud800", "\\q", "\x07"],
)
def test_what_is_no_base64_is_told(client, text):
    answer = client().post("/predict", content=f'{{"image": "{text}"}}')
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("the image is no whole base64; or send the file's bytes")


def test_an_image_in_base64_has_the_limits_of_any_other(client, picture):
    ask = client(max_bytes=2000, max_pixels=100)
    large = ask.post("/predict", content=json.dumps({"image": "A" * 2000}))
    assert (large.status_code, large.json()["detail"][:35]) == (413, "a request may hold 2000 bytes at th")
    pixels = ask.post("/predict", content=json.dumps({"image": in_base64(picture())}))
    assert pixels.status_code == 422 and "more than the limit of 100" in pixels.json()["detail"]


def test_the_copies_of_base64_count_as_bytes_that_are_held():
    taken = []
    unpacked(json.dumps({"image": "AAAA" * 25}).encode(), taken.append)
    assert taken == [2 * (100 + len('{"image": ""}'))]
    assert unpacked(b"\xff\xd8\xff{", taken.append) == b"\xff\xd8\xff{" and len(taken) == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_body_is_refused_by_its_name(client, picture, coding):
    answer = client().post("/predict", content=picture(), headers={"content-encoding": coding})
    assert answer.status_code == 415 and f"compressed ({coding})" in answer.json()["detail"]
    assert answer.headers["accept-encoding"] == "identity"


def test_what_is_compressed_without_saying_so_is_told(client, picture):
    ask, packed = client(), gzip.compress(picture())
    answer = ask.post("/predict", content=packed)
    assert answer.status_code == 415 and "compressed by gzip" in answer.json()["detail"]
    answer = ask.post("/predict", files=files(("a.png", packed)))
    assert answer.status_code == 422 and "a.png: compressed by gzip; unpack" in answer.json()["detail"]


@pytest.mark.parametrize(
    "query", ["conf=0.5", "threshold=0.3&iou=0.5", "Threshold=0.3", "threshhold=0.3", "="]
)
def test_an_unknown_word_in_the_address_is_told_the_known_one(client, picture, query):
    answer = client().post(f"/predict?{query}", content=picture())
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("is unknown; the only word is threshold: /predict?threshold=0.5")


def test_a_bad_picture_does_not_hurt_the_others_of_its_request(client, picture):
    answer = client().post(
        "/predict", files=files(("a.png", picture()), ("b.png", b""), ("c.png", picture()[:-20]))
    )
    assert answer.status_code == 200
    good, empty, cut = answer.json()["images"]
    assert good["detections"] and empty == {"name": "b.png", "error": "b.png: the file is empty"}
    assert cut["error"].startswith("c.png: cannot be read:")


def test_when_the_detector_fails_only_the_culprit_is_told(client, picture):
    ask, poison = client(), ("poison.png", picture((13, 14, 15)))
    assert ask.post("/predict", files=files(poison)).status_code == 500
    answer = ask.post("/predict", files=files(("a.png", picture()), poison))
    assert answer.status_code == 200
    assert answer.json()["images"][0]["detections"][0]["class_name"] == "red"
    assert "the server failed" in answer.json()["images"][1]["error"]


NO_BOUNDARY = {"content-type": "multipart/form-data"}
HALF = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nxyz'


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b""}, 422, "send its bytes as the body"),
        ({"files": files(*[(f"{n}.png", b"x") for n in range(4)])}, 413, "one request may hold 3 images"),
        ({"content": b"x" * 5001}, 413, "5000 bytes at the most"),
        ({"content": iter([b"x" * 3000] * 2)}, 413, "5000 bytes at the most"),
        ({"files": files(("a.png", b"x" * 5001))}, 413, "5000 bytes at the most"),
        (
            {"data": {"threshold": "0.3"}, "files": files(("a.png", b"x"))},
            422,
            "'threshold' of the form is not",
        ),
        ({"content": b"--x--\r\n", "headers": FORM}, 422, "the form holds no file"),
        ({"content": b"x", "headers": NO_BOUNDARY}, 400, "the form cannot be read"),
        ({"content": HALF, "headers": FORM}, 400, "ends before its last"),
        ({"content": b"nothing like it", "headers": FORM}, 400, "cannot be read"),
    ],
)
def test_what_is_no_request_gets_a_sentence_that_helps(client, request_, status, words):
    answer = client(max_bytes=5000, max_images=3).post("/predict", **request_)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_pixels_are_limited_before_anything_is_decoded(client, picture):
    ask = client(max_pixels=1000)
    answer = ask.post("/predict", content=picture(size=(40, 26)))
    assert answer.status_code == 422
    assert "40 x 26 pixels are more than the limit of 1000" in answer.json()["detail"]
    assert ask.post("/predict", content=picture(size=(40, 25))).status_code == 200


@pytest.mark.parametrize(
    ("charset", "name", "told"),
    [
        ("utf-8", b"caf\xc3\xa9.png", "café.png"),
        ("ISO-8859-1", b"caf\xe9.png", "café.png"),
        ("utf-8", b"a\xe2\x80\xaeb.png", "ab.png"),
        ("latin-1", b"", "image 1"),
    ],
)
def test_names_come_back_as_they_were_as_far_as_they_can_be_written(client, charset, name, told, picture):
    head = b'--x\r\nContent-Disposition: form-data; name="f"; filename="' + name + b'"\r\n\r\n'
    kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = client().post("/predict", content=head + picture() + b"\r\n--x--\r\n", headers=kind)
    assert answer.json()["images"][0]["name"] == told


@pytest.mark.parametrize(
    "charset", ["undefined", "unicode_escape", "rot13", "no-such-charset-at-all", "idna"]
)
def test_charsets_that_forms_do_not_have_are_refused_and_not_remembered(client, charset, picture):
    kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    head = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
    known = set(encodings._cache)
    answer = client().post("/predict", content=head + picture() + b"\r\n--x--\r\n", headers=kind)
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        f"the form cannot be read: its charset is {charset!r}; take utf-8",
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert set(encodings._cache) == known


def test_a_full_queue_sends_back_and_recovers(client, colours, picture, until):
    colours.go.clear()
    ask = client(queue=2, max_images=2)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask.post("/predict", content=picture())))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: ask.app.state.batcher.held == 2)
    refused = ask.post("/predict", content=picture())
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "send this again in" in refused.json()["detail"]
    assert metric(ask, "retinanet_queue_length") == 2
    colours.go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert ask.post("/predict", content=picture()).status_code == 200
    assert metric(ask, "retinanet_queue_length") == 0


def test_metrics_tell_what_happened(client, picture):
    ask = client()
    ask.post("/predict", files=files(("a.png", picture()), ("b.png", picture()), ("c.png", b"")))
    ask.post("/predict", content=b"no image")
    ask.get("/nowhere")
    assert metric(ask, 'retinanet_requests_total{path="/predict",status="200"}') == 1
    assert metric(ask, 'retinanet_requests_total{path="/predict",status="422"}') == 1
    assert metric(ask, 'retinanet_requests_total{path="other",status="404"}') == 1
    assert metric(ask, 'retinanet_images_total{outcome="answered"}') == 2
    assert metric(ask, 'retinanet_images_total{outcome="unreadable"}') == 2
    assert metric(ask, "retinanet_batch_size_sum") == 2
    assert metric(ask, 'retinanet_stage_seconds_count{stage="decode"}') == 4
    assert metric(ask, 'retinanet_request_seconds_count{path="/predict"}') == 2


def test_the_model_is_introduced(client):
    about = client(max_bytes=7, max_images=8, max_pixels=9).get("/model").json()
    assert [about[name] for name in ("threshold", "max_bytes", "max_images", "max_pixels")] == [0.5, 7, 8, 9]
    assert about["classes"][1] == {"name": "green", "category_id": 20}


def test_health_is_that_of_the_detector(client):
    ask = client()
    assert ask.get("/healthz").json() == {"status": "ok"}
    ask.app.state.batcher.close()
    sick = ask.get("/healthz")
    assert sick.status_code == 503 and "stopped" in sick.json()["detail"]


def test_the_page_loads_nothing_from_elsewhere_and_every_answer_has_its_headers(client):
    ask = client()
    for path in ("/", "/page.css", "/page.js", "/healthz", "/model", "/nowhere", "/openapi.json"):
        answer = ask.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    for path in ("/", "/page.css", "/page.js"):
        addresses = {
            word
            for word in ask.get(path).text.split("http")[1:]
            if not word.startswith("://www.w3.org/2000/svg")
        }
        assert not addresses
    assert ask.get("/docs").status_code == 404


def test_the_description_names_every_answer_and_the_token(client):
    described = client(token="t").get("/openapi.json").json()
    assert [path for path, ways in described["paths"].items() if "security" in next(iter(ways.values()))] == [
        "/predict",
        "/model",
        "/metrics",
    ]
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    predict = described["paths"]["/predict"]["post"]
    assert set(predict["responses"]) == {"200", "400", "401", "403", "408", "413", "415", "422", "500", "503"}
    assert set(predict["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
        "application/octet-stream",
    }
    problem = predict["responses"]["422"]["content"]["application/json"]["schema"]
    assert problem == {"$ref": "#/components/schemas/Problem"}
    assert described["components"]["schemas"]["Detection"]["properties"]["box"]["minItems"] == 4


@pytest.mark.parametrize("path", ["/predict", "/model", "/metrics"])
def test_a_token_is_wanted_where_one_is_set(client, path, picture):
    ask = client(token="open sesame".replace(" ", "-"))
    method, body = ("POST", picture()) if path == "/predict" else ("GET", None)
    for header in (
        None,
        "open-sesame",
        "Bearer",
        "Bearer open",
        "Basic open-sesame",
        "Bearer öpen-sesame".encode(),
    ):
        answer = ask.request(
            method, path, content=body, headers={} if header is None else {"Authorization": header}
        )
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert (
        ask.request(method, path, content=body, headers={"Authorization": "Bearer open-sesame"}).status_code
        == 200
    )
    assert ask.get("/").status_code == ask.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "127.0.0.1:8000", 200),
        ({}, "LOCALHOST:1", 200),
        ({}, "[::1]:8000", 200),
        ({}, "evil.example", 403),
        ({}, "127.0.0.1.evil.example:8000", 403),
        ({}, "", 403),
        ({}, "[", 403),
        ({"hosts": ("cells.example",)}, "cells.example", 200),
        ({"host": "0.0.0.0", "auth": False}, "anything.example", 200),
        ({"host": "0.0.0.0", "auth": False, "hosts": ("cells.example",)}, "evil.example", 403),
        ({"token": "t"}, "anything.example", 200),
    ],
)
def test_a_foreign_name_is_not_answered_on_loopback(client, settings, host, status):
    headers = {"Host": host, "Authorization": "Bearer t"}
    assert client(**settings).get("/model", headers=headers).status_code == status


PROXIED = {"Origin": "http://cells.example", "Host": "127.0.0.1:8000"}
"""What comes of a browser on plain HTTP through a proxy that sends a Host of its own: such pages get no
Sec-Fetch-Site."""


@pytest.mark.parametrize(
    ("headers", "hosts", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, (), 200),
        ({"Sec-Fetch-Site": "none"}, (), 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://seen.outside.a.proxy.example"}, (), 200),
        ({"Origin": "http://127.0.0.1:8000"}, (), 200),
        ({"Sec-Fetch-Site": "cross-site"}, (), 403),
        ({"Sec-Fetch-Site": "same-site"}, (), 403),
        ({"Origin": "http://evil.example"}, (), 403),
        ({"Origin": "http://127.0.0.1:9000"}, (), 403),
        ({"Origin": "null"}, (), 403),
        (PROXIED, (), 403),
        (PROXIED, ("Cells.example",), 200),
        (PROXIED | {"Origin": "http://cells.example:8080"}, ("cells.example",), 200),
        (PROXIED | {"Host": "cells.example"}, ("cells.example",), 200),
        (PROXIED | {"Origin": "http://evil.example"}, ("cells.example",), 403),
        (PROXIED | {"Origin": "http://127.0.0.1:9000"}, ("cells.example",), 403),
        (PROXIED | {"Sec-Fetch-Site": "cross-site"}, ("cells.example",), 403),
        ({"Origin": "null"}, ("cells.example",), 403),
    ],
)
def test_a_page_of_another_site_cannot_make_it_work(client, headers, hosts, status, picture):
    assert client(hosts=hosts).post("/predict", content=picture(), headers=headers).status_code == status


def test_a_real_model_answers_as_predict_does(client, tmp_path):
    torch.manual_seed(0)
    network = RetinaNet(3, "resnet18", "group", channels=32, num_convs=1)
    torch.nn.init.normal_(network.class_subnet[-1].weight, std=0.2)  # scores apart from each other
    detector = Detector(
        network, Preprocess(scale=64), Postprocess(max_detections=10), ["a", "b", "c"], [7, 8, 9]
    )
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        pixels = torch.from_numpy(scene(number, ((64, 96), (64, 128))[number % 2]).image).permute(2, 0, 1)
        save(path, pixels)
    sent = files(*[(path.name, path.read_bytes()) for path in paths])
    images = client(detector).post("/predict?threshold=0", files=sent).json()["images"]
    for image, wanted in zip(images, detector.predict(paths), strict=True):
        assert len(image["detections"]) == len(wanted) > 0
        assert {one["category_id"] for one in image["detections"]} <= {7, 8, 9}
        assert [one["class_name"] for one in image["detections"]] == [name for name, _, _ in wanted]
        torch.testing.assert_close(
            torch.tensor([one["box"] for one in image["detections"]]), wanted.boxes, atol=6e-3, rtol=0
        )
        torch.testing.assert_close(
            torch.tensor([one["score"] for one in image["detections"]]), wanted.scores, atol=6e-5, rtol=0
        )
