"""Arguments of an endpoint: its address, its requests and retries, as options of a command or keys of a config."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from aurora_rl.endpoint.addresses import check_address
from aurora_rl.endpoint.replies import Usage

RESPONSE_FORMATS = ("json_schema", "json_object", "none")
MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens")


@dataclasses.dataclass
class EndpointArguments:
    """The model that is asked, and the limits of its requests.

    Attributes:
        model: name of the model at the endpoint.
        base_url: address that ends with `/v1`; by default OPENAI_BASE_URL, or else OpenAI's.
        api_key_env: environment variable with the key.
        response_format: field of a request that demands the form of the reply: "json_schema", "json_object" for
            endpoints that only know JSON, "none" for those that know neither.
        max_tokens: largest number of tokens of a reply, reasoning included.
        max_tokens_field: name of this limit in a request: "max_completion_tokens" or, for Mistral and some local
            servers, "max_tokens"; by default the first, and the second once the endpoint has refused the first.
        temperature: sampling temperature; None for the endpoint's default.
        extra_body: further fields of each request as JSON, such as `{"top_k": 20}`.
        concurrency: number of questions that are asked at the same time.
        timeout_s: seconds that the endpoint may take for one reply.
        max_attempts: largest number of requests for one question, not counting those refused by 429.
        max_rate_limits: largest number of requests for one question that are refused by 429.
        backoff_s: first pause after a failure, in seconds; it doubles with each further one.
        max_backoff_s: longest pause in seconds, unless the endpoint asks for a longer one.
        input_price: price of a million prompt tokens.
        output_price: price of a million completion tokens.
    """

    model: str | None = dataclasses.field(default=None, metadata={"help": "Name of the model at the endpoint."})
    base_url: str | None = dataclasses.field(
        default=None, metadata={"help": "Address of the endpoint, such as http://localhost:8000/v1."}
    )
    api_key_env: str = dataclasses.field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoint's key."}
    )
    response_format: str = dataclasses.field(
        default="json_schema",
        metadata={"help": f"How the form of a reply is asked for: {', '.join(RESPONSE_FORMATS)}."},
    )
    max_tokens: int = dataclasses.field(
        default=2048, metadata={"help": "Largest number of tokens of a reply, reasoning included."}
    )
    max_tokens_field: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": f"Field of a request for max_tokens: {' or '.join(MAX_TOKENS_FIELDS)}; by default what works."
        },
    )
    temperature: float | None = dataclasses.field(
        default=None, metadata={"help": "Sampling temperature; by default the endpoint's own."}
    )
    extra_body: str | None = dataclasses.field(
        default=None, metadata={"help": "Further fields of each request, as JSON."}
    )
    concurrency: int = dataclasses.field(default=16, metadata={"help": "Number of questions asked at the same time."})
    timeout_s: float = dataclasses.field(
        default=300.0, metadata={"help": "Seconds that the endpoint may take for one reply."}
    )
    max_attempts: int = dataclasses.field(
        default=6, metadata={"help": "Largest number of requests for one question, without those refused by 429."}
    )
    max_rate_limits: int = dataclasses.field(
        default=50, metadata={"help": "Largest number of requests for one question that are refused by 429."}
    )
    backoff_s: float = dataclasses.field(
        default=1.0, metadata={"help": "First pause after a failed request, in seconds."}
    )
    max_backoff_s: float = dataclasses.field(
        default=60.0, metadata={"help": "Longest pause between two requests for a question, in seconds."}
    )
    input_price: float | None = dataclasses.field(default=None, metadata={"help": "Price of a million prompt tokens."})
    output_price: float | None = dataclasses.field(
        default=None, metadata={"help": "Price of a million completion tokens."}
    )

    def __post_init__(self) -> None:
        if self.response_format not in RESPONSE_FORMATS:
            raise ValueError(f"response_format is {self.response_format!r}: choose from {', '.join(RESPONSE_FORMATS)}")
        if self.max_tokens_field not in (None, *MAX_TOKENS_FIELDS):
            raise ValueError(
                f"max_tokens_field is {self.max_tokens_field!r}: choose from {', '.join(MAX_TOKENS_FIELDS)}"
            )
        for name in ("max_tokens", "concurrency", "max_attempts", "max_rate_limits", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("only one of input_price and output_price is given: a cost needs both")
        self.extra_fields()
        check_address(self.base_url, name="base_url")
        if self.base_url is None:  # the client reads this variable
            check_address(os.environ.get("OPENAI_BASE_URL"), name="OPENAI_BASE_URL")

    def extra_fields(self) -> dict[str, Any]:
        """Parse `extra_body`; a `ValueError` if it is not a JSON object."""
        fields = json.loads(self.extra_body) if isinstance(self.extra_body, str) else self.extra_body or {}
        if not isinstance(fields, dict):
            raise ValueError(f"extra_body is {self.extra_body!r}: expected a JSON object")
        return fields

    def cost(self, usage: Usage) -> float | None:
        """Return the cost of tokens, in the currency of the prices; None without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        return (usage.prompt_tokens * self.input_price + usage.completion_tokens * self.output_price) / 1e6
