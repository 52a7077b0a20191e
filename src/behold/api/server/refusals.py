"""Fields that would change the answer and cannot be honoured: refused by name, unless their value asks for nothing.

Every other unknown field (user, store, metadata …) is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from behold.api.server.errors import ApiError

# name: (values that ask for nothing, what to do instead)
Rules = Mapping[str, tuple[tuple[object, ...], str]]

_NO_TOOLS = "this server calls no tools; leave it out"
_ONE_TOKEN_A_STEP = "each answer is chosen token by token, without a search; leave it out, or ask for several with n"
_STRUCTURED = 'use response_format, or structured_outputs: {"regex": …} and the like'
_TEXT_ONLY = "answers are text only"

SAMPLING: Rules = {
    "tools": (([],), _NO_TOOLS),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "logit_bias": (({},), "single tokens cannot be made likelier; leave it out"),
    "bad_words": (([],), "words cannot be forbidden here; leave it out"),
    "allowed_token_ids": (([],), _STRUCTURED),
    "logits_processors": (([],), "no code from a request is run"),
    "mm_processor_kwargs": (({},), 'how a picture is prepared is up to the checkpoint; use "detail" of the picture'),
    "chat_template": ((), "the checkpoint's own chat template is used; give it variables with chat_template_kwargs"),
    "documents": (([],), "put the text of documents into a message"),
    "best_of": ((1,), _ONE_TOKEN_A_STEP),
    "num_beams": ((1,), _ONE_TOKEN_A_STEP),
    "use_beam_search": ((False,), _ONE_TOKEN_A_STEP),
    "length_penalty": ((1, 1.0), _ONE_TOKEN_A_STEP),
    "early_stopping": ((False,), _ONE_TOKEN_A_STEP),
    "include_stop_str_in_output": ((False,), "an answer ends before its stop string"),
    "skip_special_tokens": ((True,), "special tokens are never part of an answer's text"),
    "add_special_tokens": ((False,), "the chat template writes all special tokens"),
    "truncate_prompt_tokens": ((), "a prompt is read whole or refused; send fewer messages"),
    "prompt_logprobs": ((), "probabilities are given for the answer only"),
    "echo": ((False,), "the answer does not repeat the prompt"),
    "guided_json": ((), _STRUCTURED),
    "guided_regex": ((), _STRUCTURED),
    "guided_choice": ((), _STRUCTURED),
    "guided_grammar": ((), _STRUCTURED),
}
_LENGTH: Rules = {"verbosity": (("medium",), "say in a message how long the answer should be, or limit its tokens")}
CHAT: Rules = {
    **SAMPLING,
    "functions": (([],), _NO_TOOLS),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "audio": ((), _TEXT_ONLY),
    "modalities": (([], ["text"]), _TEXT_ONLY),
    "prediction": ((), "no predicted text is used; leave it out"),
    "web_search_options": ((), "this server searches nothing"),
    "reasoning_effort": (("none",), "the effort cannot be set; templates that know it take chat_template_kwargs"),
    **_LENGTH,
}
_STATELESS = "nothing is stored here; send the whole conversation as input"
RESPONSES: Rules = {
    **SAMPLING,
    "previous_response_id": ((), _STATELESS),
    "conversation": ((), _STATELESS),
    "background": ((False,), "an answer is given at once; ask with stream for it piece by piece"),
    "prompt": ((), "there are no stored prompts; send it as instructions and input"),
    "reasoning": (
        ({}, {"effort": None}, {"effort": "none"}, {"effort": None, "summary": None}),
        "the effort cannot be set; templates that know it take chat_template_kwargs",
    ),
    "truncation": (("disabled",), "a conversation is read whole or refused; send fewer items"),
    "n": ((1,), "this endpoint gives one answer; /v1/chat/completions gives several"),
}
# Of the object `text` in a body of /v1/responses.
TEXT = _LENGTH


def refuse(given: Mapping[str, object], rules: Rules, *, inside: str = "") -> None:
    """Raise for the first field of `given` (nulls left out) that `rules` refuse. inside: the field that holds them.

    Raises:
        ApiError: 400 with the field's name.
    """
    for name, (neutral, advice) in rules.items():
        if name in given and given[name] not in neutral:
            param = f"{inside}.{name}" if inside else name
            text = f"{param} cannot be honoured with this value: {advice}"
            raise ApiError(400, text, param=param, code="unsupported_parameter")
