"""Conversations with images as one prompt, for llama.cpp and Text Generation Inference.

Pure functions. Sources: github.com/ggml-org/llama.cpp, tools/server/README.md, and
huggingface.co/docs/text-generation-inference.
"""

from collections.abc import Callable

from rewrap.types import ChatRequest, JSONObject
from rewrap.upstream.conversation import conversation_of, transcript
from rewrap.upstream.messages import (
    content_parts,
    format_type,
    image_data_of,
    image_url_of,
    is_text,
    parts_of,
    schema_of,
)

MEDIA_MARK = "<__media__>"
ANY_OBJECT: JSONObject = {"type": "object"}


def prompt_with(request: ChatRequest, mark: Callable[[JSONObject], str]) -> str:
    """The conversation as one text; `mark` stands for each part that is no text."""

    def text(message: JSONObject) -> str:
        parts = parts_of(message)
        texts = [part["text"] if is_text(part) else mark(part) for part in parts]
        return "\n".join([text for text in texts if text])

    talk = conversation_of(request.messages, text)
    return transcript(talk.system, talk.dialog)


def tgi_inputs(request: ChatRequest) -> str:
    """A prompt with images in Markdown."""

    def mark(part: JSONObject) -> str:
        url = image_url_of(part)
        return f"![]({url})" if url else ""

    return prompt_with(request, mark)


def tgi_grammar(request: ChatRequest) -> JSONObject | None:
    """`{"type": "json" or "regex", "value"}`."""
    response_format = request.payload.get("response_format")
    if format_type(request.payload) == "regex" and isinstance(response_format, dict):
        return {"type": "regex", "value": response_format.get("pattern")}
    schema = json_schema(request)
    return {"type": "json", "value": schema} if schema is not None else None


def llama_prompt(request: ChatRequest) -> object:
    """A text; with images, `{"prompt_string", "multimodal_data": ["base64"]}`."""
    found = [image_data_of(part) for part in content_parts(request.messages)]
    data = [image.base64 for image in found if image is not None]
    if not data:
        return prompt_with(request, lambda part: "")
    text = prompt_with(request, lambda part: MEDIA_MARK if image_data_of(part) else "")
    return {"prompt_string": text, "multimodal_data": data}


def json_schema(request: ChatRequest) -> JSONObject | None:
    """The schema of the reply; that of any object for the format `json_object`."""
    if format_type(request.payload) == "json_object":
        return ANY_OBJECT
    return schema_of(request.payload)
