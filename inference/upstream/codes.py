"""What providers' error codes mean: whose fault it is, and the status that an error without one stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The caller's fault: the request is wrong, or too long, and any other deployment would say the same.
CALLERS_CODES = frozenset(
    (
        "array_above_max_length", "array_below_min_length", "bio_policy", "content_filter", "content_policy_violation",
        "context_length_exceeded", "decimal_above_max_value", "decimal_below_min_value", "empty_array",
        "empty_image_file", "failed_to_download_image", "image_content_policy_violation", "image_file_not_found",
        "image_file_too_large", "image_parse_error", "image_too_large", "image_too_small", "integer_above_max_value",
        "integer_below_min_value", "invalid_base64", "invalid_base64_image", "invalid_encrypted_content",
        "invalid_function_parameters", "invalid_image", "invalid_image_format", "invalid_image_mode",
        "invalid_image_url", "invalid_json_schema", "invalid_prompt", "invalid_type", "invalid_value",
        "max_tokens_exceeded", "misalignment_policy_violation", "missing_required_parameter",
        "string_above_max_length", "string_below_min_length", "unknown_parameter", "unsupported_image_media_type",
        "unsupported_parameter", "unsupported_value",
    )
)  # fmt: skip
#: The operator's credit there is used up: the code or the type of an error, beside the status 402.
CREDIT_CODES = frozenset(
    {
        "billing_hard_limit_reached",
        "billing_not_active",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "insufficient_quota",
    }
)
#: The operator's affair with the provider, by the status that they come with: callers don't see these codes.
OPERATORS_CODES = {
    **dict.fromkeys(CREDIT_CODES, 429),
    "access_terminated": 403,
    "account_deactivated": 403,
    "invalid_api_key": 401,
    "invalid_organization": 401,
    "model_not_found": 404,
    "unsupported_country_region_territory": 403,
}
#: What a provider says by a type alone when the request is wrong: OpenAI's word, and vLLM's.
CALLERS_TYPES = ("invalid_request_error", "BadRequestError")


def status_of(error: Mapping[str, Any]) -> int:
    """Return the status that an error object stands for which came in an answer of status 200; 500 where none is seen.

    Some providers' `code` is that status itself.
    """
    code = str(error.get("code"))
    if code in CALLERS_CODES:
        return 400
    if code in OPERATORS_CODES:
        return OPERATORS_CODES[code]
    if code == "rate_limit_exceeded":
        return 429
    if code.isdecimal() and len(code) == 3 and int(code) >= 400:
        return int(code)
    return 400 if error.get("type") in CALLERS_TYPES else 500
