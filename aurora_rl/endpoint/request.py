"""The body of one request, with the fields that this endpoint knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurora_rl.endpoint.arguments import MAX_TOKENS_FIELDS, EndpointArguments


def request_body(
    args: EndpointArguments, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None, schema_name: str
) -> dict[str, Any]:
    """Return the `openai` package's arguments for one request; without a schema the reply may have any form."""
    body: dict[str, Any] = {"model": args.model, "messages": messages, "extra_body": args.extra_fields()}
    if body["extra_body"].keys().isdisjoint(MAX_TOKENS_FIELDS):
        body[args.max_tokens_field or MAX_TOKENS_FIELDS[0]] = args.max_tokens
    if args.temperature is not None:
        body["temperature"] = args.temperature
    if schema is not None and args.response_format == "json_schema":
        json_schema = {"name": schema_name, "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    elif schema is not None and args.response_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def with_max_tokens(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request whose limit of tokens has the older name of this field."""
    tried, other = MAX_TOKENS_FIELDS
    return {other if name == tried else name: value for name, value in body.items()}
