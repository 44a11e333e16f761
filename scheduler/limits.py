"""What a request may ask for: checked at submission, so that nothing fails in the middle of a group."""

import math
import re
import uuid

from tetriserve.v1 import scheduler_pb2, types_pb2

ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
MAX_PROMPT_CHARACTERS = 10_000
MAX_DEADLINE_S = 30 * 24 * 3600.0
MAX_WEIGHT = 1e6
MAX_LORA_SCALE = 10.0


def check_image(image: types_pb2.ImageSpec, model: scheduler_pb2.ModelInfo) -> None:
    """Raises ValueError that names the field and what is allowed."""
    multiple, side = model.size_multiple, model.max_side
    for name, pixels in (("width", image.width), ("height", image.height)):
        if not 0 < pixels <= side or pixels % multiple:
            raise ValueError(
                f"image.{name}: {pixels} is not allowed; multiples of {multiple} up to {side} are"
            )
    if model.max_pixels and image.width * image.height > model.max_pixels:
        raise ValueError(
            f"image.width: {image.width}x{image.height} is not allowed; at most {model.max_pixels} pixels are"
        )
    if not 1 <= image.steps <= model.max_steps:
        raise ValueError(f"image.steps: {image.steps} is not allowed; 1 to {model.max_steps} is")
    for name, text in (("prompt", image.prompt), ("negative_prompt", image.negative_prompt)):
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise ValueError(
                f"image.{name}: {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
            )
    if image.HasField("guidance") and not 0 <= image.guidance <= 100:
        raise ValueError(f"image.guidance: {image.guidance} is not allowed; 0 to 100 is")
    _check_lora(image, model)


def _check_lora(image: types_pb2.ImageSpec, model: scheduler_pb2.ModelInfo) -> None:
    if image.lora and image.lora not in model.loras:
        there_are = (
            f"there are {', '.join(model.loras)}" if model.loras else "the executors have no --lora-dir"
        )
        raise ValueError(f"image.lora: {image.lora!r} is not known; {there_are}")
    if image.HasField("lora_scale") and not -MAX_LORA_SCALE <= image.lora_scale <= MAX_LORA_SCALE:
        raise ValueError(
            f"image.lora_scale: {image.lora_scale:g} is not allowed; "
            f"{-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g} is"
        )


def checked(request: types_pb2.Request, model: scheduler_pb2.ModelInfo) -> types_pb2.Request:
    """The request with its id and steps filled in. Raises ValueError that names the field."""
    request = types_pb2.Request.FromString(request.SerializeToString())
    request.id = request.id or uuid.uuid4().hex[:12]
    if not ID.fullmatch(request.id):
        raise ValueError(
            "id: 1 to 64 letters, digits, '.', '_' and '-' are allowed, the first of them not a '.'"
        )
    request.image.steps = request.image.steps or model.default_steps
    check_image(request.image, model)
    if request.HasField("deadline"):
        seconds = request.deadline.ToNanoseconds() / 1e9
        if not 0 < seconds <= MAX_DEADLINE_S:
            raise ValueError(
                f"deadline: {seconds:g} s is not allowed; more than 0 and at most {MAX_DEADLINE_S:g} s is"
            )
    if request.HasField("weight") and not (
        math.isfinite(request.weight) and 0 < request.weight <= MAX_WEIGHT
    ):
        raise ValueError(
            f"weight: {request.weight:g} is not allowed; more than 0 and at most {MAX_WEIGHT:g} is"
        )
    if request.on_late not in types_pb2.OnLate.values():
        raise ValueError(f"on_late: {request.on_late} is not allowed; RUN or DROP is")
    return request
