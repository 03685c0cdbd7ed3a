"""The values of placeholders: a request's parameters, and its conversation in each form.

Takes a ChatRequest, gives JSON values. Does no I/O.
"""

from collections.abc import Mapping, Sequence

from rewrap.structs import struct
from rewrap.types import ChatRequest, JSONObject
from rewrap.upstream.conversation import (
    RoleAndText,
    conversation_of,
    pairs_of,
    session_or_new,
    transcript,
)
from rewrap.upstream.forms import FORMS
from rewrap.upstream.messages import with_system_role
from rewrap.upstream.tables import Table
from rewrap.upstream.template import Template

# fmt: off
CONVERSATION_NAMES = [
    "prompt", "system", "messages", "dialog", "history", "turns", "conversation", "session", "chat", "nothing",
]
PARAMETER_NAMES = [
    "model", "stream", "stop", "user", "session_id", "conversation_id", "temperature", "top_p", "top_k", "min_p",
    "typical_p", "n", "max_tokens", "max_completion_tokens", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "functions", "function_call", "reasoning_effort", "verbosity", "metadata", "store",
    "service_tier", "prediction", "modalities", "audio", "web_search_options", "safety_identifier",
    "prompt_cache_key", "keep_alive",
]
# fmt: on
NAMES = [*CONVERSATION_NAMES, *PARAMETER_NAMES, *FORMS]
ALIASES = (("max_tokens", "max_completion_tokens"), ("user", "safety_identifier"))
NOT_IN_CHAT = {"metadata", "store", "session", "n"}  # n: a shape reads one choice


@struct(frozen=True, slots=True)
class ConversationForms:
    """How one shape writes messages and pairs of turns."""

    message: Template  # of {role} and {content}
    turn: Template  # of {prompt} and {reply}
    roles: Table

    def written(self, turns: Sequence[RoleAndText]) -> list[object]:
        """Each turn as a message of the shape, under the shape's name of its role."""
        return [
            self.message.fill({"role": self.roles.get(role, role), "content": text})
            for role, text in turns
        ]

    def values(self, request: ChatRequest, names: set[str]) -> JSONObject:
        """The conversation in each form that is among `names`."""
        talk = conversation_of(request.messages)
        values: JSONObject = {"nothing": None, "system": talk.system or None, "prompt": talk.prompt}
        if "messages" in names:
            values["messages"] = self.written(talk.messages)
        if "dialog" in names:
            values["dialog"] = self.written(talk.dialog)
        if "history" in names:
            values["history"] = self.written(talk.history)
        if "conversation" in names:
            system = talk.system
            if "system" in names:  # it has a place of its own
                system = ""
            values["conversation"] = transcript(system, talk.dialog)
        if "turns" in names:
            pairs, pending = pairs_of(talk.history)
            filled = [self.turn.fill({"prompt": text, "reply": reply}) for text, reply in pairs]
            values["turns"] = filled
            # Texts without a reply are in no pair: they go with the prompt.
            values["prompt"] = "\n".join([*pending, talk.prompt])
        if "session" in names:
            values["session"] = session_or_new(request)
        return values


def placeholder_values(
    request: ChatRequest,
    names: set[str],
    forms: ConversationForms,
    *,
    omit: Table,
    streams: bool,
) -> JSONObject:
    """The values of `names`; None for those that are absent. `streams`: the product has streams."""
    fields = {
        **request.payload,
        "model": request.model,
        "messages": request.messages,
        "stream": request.stream,
    }
    values = parameter_values(fields)
    values["stream"] = request.stream and streams
    for name, value in omit.items():
        if values.get(name) == value:
            values[name] = None
    values |= forms.values(request, names)
    values |= {name: FORMS[name].value(request) for name in names if name in FORMS}
    if "chat" in names:
        fields["messages"] = with_system_role(request.messages)
        values["chat"] = {name: value for name, value in fields.items() if name not in NOT_IN_CHAT}
    return values


def parameter_values(fields: Mapping[str, object]) -> JSONObject:
    """The parameters under all their names; `stop` is a list."""
    values = dict(fields)
    for names in ALIASES:
        given = [values[name] for name in names if values.get(name) is not None]
        values |= dict.fromkeys(names, next(iter(given), None))
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    return values
