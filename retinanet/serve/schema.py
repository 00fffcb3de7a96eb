"""What the API takes and gives, as it is written in /openapi.json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from ..structures import BOX_DIGITS, SCORE_DIGITS, Detections

UPLOAD = {"type": "string", "format": "binary"}

BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "files": {
                        "type": "array",
                        "items": UPLOAD,
                        "minItems": 1,
                        "description": "one or several images",
                    }
                },
                "required": ["files"],
                "additionalProperties": False,
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {
                        "type": "string",
                        "contentEncoding": "base64",
                        "description": "one image in base64, or a data URI of it",
                    }
                },
                "required": ["image"],
                "additionalProperties": False,
            }
        },
        "application/octet-stream": {
            "schema": {**UPLOAD, "description": "the bytes of one image; any other content type will do"}
        },
    },
}


class Detection(BaseModel):
    """An object in an image."""

    class_name: str
    category_id: int = Field(description="the id that the training data used for the class")
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(
        description="left, top, right, bottom in pixels of the upright image"
    )


class Answer(BaseModel):
    """What was found in an image, best first."""

    name: str
    width: int
    height: int
    detections: list[Detection]


class Failure(BaseModel):
    """An image without an answer."""

    name: str
    error: str


class Prediction(BaseModel):
    """The images of a request, in its order; an image that cannot be read has an error instead."""

    threshold: float
    images: list[Answer | Failure]


class Problem(BaseModel):
    """Why there is no answer, in words."""

    detail: str
    images: list[Failure] | None = Field(
        None, description="when no image of the request has an answer: each with its reason"
    )


class Category(BaseModel):
    """A class of the model."""

    name: str
    category_id: int


class About(BaseModel):
    """The model and what a request may hold."""

    version: str
    classes: list[Category]
    threshold: float = Field(description="the score of best F1 in validation: what /predict uses without one")
    max_images: int
    max_bytes: int
    max_pixels: int


class Health(BaseModel):
    """Whether answers can be expected."""

    status: str


SCRAPED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/plain": {"schema": {"type": "string"}}},
        "description": "Prometheus' text format.",
    }
}

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The token is missing or wrong."},
    403: {
        "model": Problem,
        "description": "Another site's page asks, or the server is called by a name that it does not know.",
    },
}

PREDICT_ERRORS: dict[int | str, dict[str, Any]] = ERRORS | {
    400: {"model": Problem, "description": "The form cannot be parsed."},
    408: {"model": Problem, "description": "The request did not arrive whole in time."},
    413: {"model": Problem, "description": "Too many bytes or images."},
    415: {"model": Problem, "description": "The body is compressed."},
    422: {
        "model": Problem,
        "description": "No image, none that can be read, a threshold that is no score, or an unknown word.",
    },
    500: {"model": Problem, "description": "The server failed on the only image."},
    503: {
        "model": Problem,
        "description": "As much to do as the server takes.",
        "headers": {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}},
    },
}


def answer(name: str, size: tuple[int, int], found: Detections, ids: list[int]) -> dict[str, Any]:
    """An `Answer` as it is sent; size is (height, width)."""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    detections = [
        {
            "class_name": found.names[label],
            "category_id": ids[label],
            "score": round(score, SCORE_DIGITS),
            "box": [round(side, BOX_DIGITS) for side in box],
        }
        for label, score, box in rows
    ]
    return {"name": name, "width": size[1], "height": size[0], "detections": detections}
