"""Renamed, added and dropped parameters of an upstream."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rewrap.types import ChatRequest


@dataclass(frozen=True, slots=True)
class Params:
    """What an upstream wants otherwise: names of parameters, values of absent ones, what it does not take, names of roles."""

    rename: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    model: str = ""  # the upstream's own name of the model

    def applied(self, chat: ChatRequest) -> tuple[ChatRequest, list[str]]:
        """The chat as this upstream takes it, and the names of what was dropped."""
        if not (self.rename or self.defaults or self.drop or self.roles or self.model):
            return chat, []
        given = {name: value for name, value in chat.payload.items() if value is not None}
        dropped = [name for name in self.drop if given.pop(name, None) is not None]
        payload = {name: value for name, value in given.items() if name not in self.rename}
        for name, to in self.rename.items():
            if name in given and payload.setdefault(to, given[name]) != given[name]:
                dropped.append(
                    name
                )  # both were given, and they differ: the upstream's own name counts
        dropped += [name for name in self.drop if payload.pop(name, None) is not None]
        for name, value in self.defaults.items():
            if payload.get(name) is None:
                payload[name] = value
        messages = [{**m, "role": self.roles.get(m["role"], m["role"])} for m in chat.messages]
        model = self.model or chat.model
        return replace(chat, payload=payload, messages=messages, model=model, body=b""), dropped
