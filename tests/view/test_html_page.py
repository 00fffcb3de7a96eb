"""The page is well-formed, whole in one file, and shows what it is given as text, never as markup."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from retinanet.view.html import write_page


def picture(form: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(file, form)
    return file.getvalue()


def parsed(path: Path) -> ElementTree.Element:
    """The page as XML: stricter than any browser, an unescaped letter or an open tag raises."""
    return ElementTree.fromstring(path.read_text(encoding="utf-8").replace("<!DOCTYPE html>", "").strip())


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "sheet.jpg").write_bytes(picture("JPEG", (80, 20)))
    path = tmp_path / "out" / "index.html"
    write_page(
        path,
        title='AP <0.6> & "more"',
        intro="First paragraph,\nstill the first.\n\nSecond, with <script>alert(1)</script>.",
        numbers=[("AP on 100 unseen scenes", "0.612"), ("images & seconds", "21")],
        images=[
            ("Curves <so far>", picture("PNG")),
            ("Detections", tmp_path / "sheet.jpg"),
            ("A drawing that failed", tmp_path / "nowhere.jpg"),
        ],
        commands=[("Train on yours", 'retinanet train "my data" --out runs/x && echo <done>')],
    )
    return path


def test_the_text_is_escaped_and_complete(page: Path):
    root = parsed(page)
    assert root.findtext(".//title") == root.findtext(".//h1") == 'AP <0.6> & "more"'
    paragraphs = [p.text for p in root.findall("./body/main/p")]
    assert paragraphs == ["First paragraph, still the first.", "Second, with <script>alert(1)</script>."]
    assert [(card.findtext("dt"), card.findtext("dd")) for card in root.iter("div")] == [
        ("AP on 100 unseen scenes", "0.612"),
        ("images & seconds", "21"),
    ]
    assert root.findtext(".//code") == 'retinanet train "my data" --out runs/x && echo <done>'


def test_the_pictures_are_embedded_with_type_and_size(page: Path, tmp_path: Path):
    images = list(parsed(page).iter("img"))
    assert [(i.get("width"), i.get("height"), i.get("alt")) for i in images] == [
        ("40", "30", "Curves <so far>"),
        ("80", "20", "Detections"),
    ]
    for image, kind, content in zip(
        images, ("png", "jpeg"), (picture("PNG"), (tmp_path / "sheet.jpg").read_bytes()), strict=True
    ):
        head, data = image.get("src", "").split(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data) == content


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(page: Path):
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "http" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "prefers-color-scheme: dark" in text


def test_a_page_without_pictures_numbers_or_commands_is_a_page(tmp_path: Path):
    write_page(tmp_path / "bare.html", "Bare", "", [], [], [])
    root = parsed(tmp_path / "bare.html")
    assert root.findtext(".//h1") == "Bare"
    assert root.find(".//h2") is None
