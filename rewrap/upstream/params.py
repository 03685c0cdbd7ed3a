"""Changes to a request that one upstream needs: other names, defaults, dropped parameters, other roles."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from rewrap.structs import struct
from rewrap.types import ChatRequest, JSONObject


@struct(frozen=True, slots=True)
class Params:
    """The `params` of a backend in the file of backends; `model` is the upstream's name of the model."""

    rename: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    drop: Sequence[str] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    model: str = ""

    def applied(self, request: ChatRequest) -> tuple[ChatRequest, list[str]]:
        """The request for this upstream, and the names of the parameters that it lacks."""
        if not (self.rename or self.defaults or self.drop or self.roles or self.model):
            return request, []
        payload, dropped = self.renamed(request.payload)
        for name in self.drop:
            if payload.pop(name, None) is not None:
                dropped.append(name)
        for name, value in self.defaults.items():
            if payload.get(name) is None:
                payload[name] = value
        changed = replace(
            request,
            payload=payload,
            messages=[self.with_role(message) for message in request.messages],
            model=self.model or request.model,
            body=b"",
        )
        return changed, dropped

    def renamed(self, payload: JSONObject) -> tuple[JSONObject, list[str]]:
        """A payload under the upstream's names, and the names that had no place.

        If the client sends both names with different values, the upstream's own name counts.
        """
        present = {name: value for name, value in payload.items() if value is not None}
        dropped = [name for name in self.drop if present.pop(name, None) is not None]
        result = {name: value for name, value in present.items() if name not in self.rename}
        for name, new_name in self.rename.items():
            if name not in present:
                continue
            value = present[name]
            if result.setdefault(new_name, value) != value:
                dropped.append(name)
        return result, dropped

    def with_role(self, message: JSONObject) -> JSONObject:
        role = message.get("role")
        if not isinstance(role, str) or role not in self.roles:
            return message
        return message | {"role": self.roles[role]}
