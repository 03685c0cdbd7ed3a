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

    def text_in(message: JSONObject) -> str:
        texts: list[str] = []
        for part in parts_of(message):
            texts.append(part["text"] if is_text(part) else mark(part))
        return "\n".join([text for text in texts if text])

    talk = conversation_of(request.messages, text_in)
    return transcript(talk.system, talk.dialog)


def tgi_inputs(request: ChatRequest) -> str:
    """A prompt with images in Markdown."""

    def mark(part: JSONObject) -> str:
        url = image_url_of(part)
        if not url:
            return ""
        return f"![]({url})"

    return prompt_with(request, mark)


def tgi_grammar(request: ChatRequest) -> JSONObject | None:
    """`{"type": "json" or "regex", "value"}`."""
    response_format = request.payload.get("response_format")
    if format_type(request.payload) == "regex" and isinstance(response_format, dict):
        return {"type": "regex", "value": response_format.get("pattern")}
    schema = json_schema(request)
    if schema is None:
        return None
    return {"type": "json", "value": schema}


def llama_prompt(request: ChatRequest) -> object:
    """A text; with images, `{"prompt_string", "multimodal_data": ["base64"]}`."""
    found = [image_data_of(part) for part in content_parts(request.messages)]
    data = [image.base64 for image in found if image is not None]
    if not data:
        return prompt_with(request, lambda part: "")

    def mark(part: JSONObject) -> str:
        if image_data_of(part) is None:
            return ""
        return MEDIA_MARK

    return {"prompt_string": prompt_with(request, mark), "multimodal_data": data}


def json_schema(request: ChatRequest) -> JSONObject | None:
    """The schema of the reply; that of any object for the format `json_object`."""
    if format_type(request.payload) == "json_object":
        return ANY_OBJECT
    return schema_of(request.payload)
