"""Bodies as hosted endpoints, servers of one's own and proxies send them, and what each is about."""

import json

import pytest

from aurora_rl.endpoint.refusals import Kind, Refusal, read_refusal

#: Status, body, what it is about, and a part of what the error must show.
REFUSALS = [
    # Moderation, which concerns the row whatever the status.
    (
        403,
        {
            "error": {
                "code": 403,
                "message": "Your chosen model requires moderation and your input was flagged",
                "metadata": {"reasons": ["violence"], "flagged_input": "the bloody ..."},
            }
        },
        Kind.MODERATED,
        "violence",
    ),
    (400, {"error": {"code": "content_filter", "message": "The response was filtered"}}, Kind.MODERATED, "filtered"),
    (
        400,
        {"error": {"message": "Input data may contain inappropriate content.", "code": "data_inspection_failed"}},
        Kind.MODERATED,
        "inappropriate content",
    ),
    (401, {"error": {"code": "content_policy_violation", "message": "No."}}, Kind.MODERATED, "No."),
    (500, {"error": {"code": "content_filter", "message": "No."}}, Kind.MODERATED, "No."),
    (403, "Your prompt was blocked.", Kind.MODERATED, "Your prompt was blocked."),
    (403, {"detail": "The image violates our acceptable use policy"}, Kind.MODERATED, "image violates"),
    (451, "", Kind.MODERATED, "no reason"),
    # Keys and rights.
    (401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, Kind.KEY, "Incorrect"),
    (401, "", Kind.KEY, "no reason"),
    (403, {"detail": "Invalid token"}, Kind.KEY, "Invalid token"),
    (403, {"error": {"type": "permission_error", "message": "Not for you"}}, Kind.KEY, "Not for you"),
    (403, {"error": {"message": "Your account has been flagged for unsafe content"}}, Kind.KEY, "account"),
    (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                    "details": [{"reason": "API_KEY_INVALID"}],
                }
            }
        ],
        Kind.KEY,
        "API key not valid",
    ),
    (
        403,
        "<html><head><title>403 Forbidden</title></head><h1>403 Forbidden</h1></html>",
        Kind.UNCLEAR,
        "403 Forbidden",
    ),
    (403, {"detail": "This clip is not for us"}, Kind.BAD_REQUEST, "This clip is not for us"),
    # Addresses and models.
    (404, {"detail": "Not Found"}, Kind.ADDRESS, "Not Found"),
    (404, "<html><h1>404 Not Found</h1><hr>nginx</html>", Kind.ADDRESS, "nginx"),
    (404, {"object": "error", "message": "The model `x-7B.1` does not exist."}, Kind.ADDRESS, "does not exist"),
    (403, {"error": {"message": "no access to it", "code": "model_not_found"}}, Kind.ADDRESS, "no access"),
    (400, {"message": "Invalid model: x"}, Kind.UNCLEAR, "Invalid model"),
    (404, {"error": {"message": "The image could not be found"}}, Kind.BAD_REQUEST, "image could not be found"),
    # Money.
    (402, {"error": {"message": "Insufficient Balance"}}, Kind.MONEY, "Insufficient Balance"),
    (429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, Kind.MONEY, "quota"),
    (429, {"error": {"message": "litellm.RateLimitError: insufficient_quota"}}, Kind.MONEY, "litellm"),
    (400, {"error": {"message": "Your credit balance is too low"}}, Kind.MONEY, "credit balance"),
    # Waiting helps; Gemini's words are those of a full minute, too.
    (429, {"error": {"message": "You exceeded your current quota"}}, Kind.RATE_LIMIT, "current quota"),
    (429, {"detail": "Too Many Requests"}, Kind.RATE_LIMIT, "Too Many"),
    (503, {"error": "Model is overloaded", "error_type": "overloaded"}, Kind.SERVER_ERROR, "overloaded"),
    (502, "<html><body>Bad\x1b[31m Gateway</body></html>", Kind.SERVER_ERROR, "Bad [31m Gateway"),
    # Size.
    (413, "<html>413 Request Entity Too Large</html>", Kind.TOO_LARGE, "Entity"),
    (400, {"error": {"message": "too many tokens", "code": "context_length_exceeded"}}, Kind.TOO_LARGE, "too many"),
    (
        422,
        {"error": "Input validation error: `inputs` tokens are too long", "error_type": "validation"},
        Kind.TOO_LARGE,
        "Input validation error",
    ),
    # What else concerns a row.
    (400, {"error": "bad image"}, Kind.BAD_REQUEST, "bad image"),
    (
        422,
        {"detail": [{"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required", "input": {}}]},
        Kind.BAD_REQUEST,
        "body.messages.0.role: Field required",
    ),
    (
        422,
        {"object": "error", "message": {"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs"}]}, "code": None},
        Kind.BAD_REQUEST,
        "body.top_k: Extra inputs",
    ),
    (400, {"strange": {"form": 7}}, Kind.BAD_REQUEST, '{"strange": {"form": 7}}'),
    (
        400,
        {"error": {"message": "Provider returned error", "metadata": {"raw": "bad"}}},
        Kind.BAD_REQUEST,
        "error; bad",
    ),
    (418, "no JSON {", Kind.BAD_REQUEST, "no JSON {"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), REFUSALS)
def test_a_refusal_is_about_what_its_body_says(status, body, kind, words):
    refusal = read_refusal(status, body if isinstance(body, str) else json.dumps(body))
    assert refusal.kind is kind
    assert words in refusal.words and refusal.words.isprintable()


@pytest.mark.parametrize("body", ["", "null", "[]", "{}", '{"error": null}', '{"detail": []}', '{"detail": [null, 7]}'])
def test_a_body_without_words_is_told_as_one(body):
    assert read_refusal(400, body).kind is Kind.BAD_REQUEST
    assert read_refusal(400, body).words


def test_a_body_nested_beyond_reason_or_of_megabytes_is_read_at_once():
    assert read_refusal(400, '{"error": ' * 100_000).kind is Kind.BAD_REQUEST
    assert read_refusal(400, '{"error": ' * 900 + '"x"' + "}" * 900).kind is Kind.BAD_REQUEST
    assert len(read_refusal(400, json.dumps({"detail": "model " * 1_000_000})).words) <= 4000
    assert len(read_refusal(400, "<" * 1_000_000).words) <= 4000


def test_a_field_is_unknown_where_it_is_named_and_not_for_its_value():
    assert Refusal(422, "body.max_completion_tokens: Extra inputs are not permitted").knows_no("max_completion_tokens")
    assert Refusal(400, "Unrecognized request argument: max_tokens").knows_no("max_tokens")
    assert not Refusal(400, "max_completion_tokens is too large: 9000").knows_no("max_completion_tokens")
    assert not Refusal(422, "body.max_completion_tokens: Extra inputs").knows_no("max_tokens")
