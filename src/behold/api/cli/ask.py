"""`behold ask IMAGE… QUESTION`: one question, one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from behold.api.cli.asked import Asked, read_words
from behold.api.cli.options import (
    DebugOption,
    FormChoice,
    JsonOption,
    ModelChoice,
    PictureChoice,
    QuietOption,
    SamplingChoice,
    takes,
)
from behold.api.cli.printing import print_answer
from behold.api.cli.terminal import reported

if TYPE_CHECKING:
    from behold.chat.policy import MediaPolicy
    from behold.types import Message


@takes(choice=ModelChoice, pictures=PictureChoice, sampling=SamplingChoice, form=FormChoice)
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE… QUESTION",
            show_default=False,
            help="Pictures (files, http(s) addresses, - for standard input), then the question. Without a picture, "
            "one that is piped in is used; without that, it is a question about nothing but words.",
        ),
    ],
    *,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: the log probability of each token, and of this many others.")
    ] = None,
    choice: ModelChoice,
    pictures: PictureChoice,
    sampling: SamplingChoice,
    form: FormChoice,
) -> None:
    """Answer a question about one picture, several, or none.

    The answer streams to standard output; progress and timings go to standard error.
    """
    if logprobs is not None and not json:
        raise typer.BadParameter("log probabilities are part of the JSON output; add --json", param_hint="--logprobs")
    with reported(debug=debug, hint=choice.hint):
        # A broken picture or schema is told before a model is fetched or loaded.
        wanted = form.keywords()
        message = _message(read_words(words), pictures.policy)
        vlm = choice.open()
        options = sampling.keywords()
        options["logprobs"] = logprobs
        params = vlm.params({**options, **wanted})
        if params.num_beams > 1:
            print_answer(vlm.complete([message], params), vlm, json=json, quiet=quiet)
        else:
            print_answer(vlm.open_stream([message], params), vlm, json=json, quiet=quiet)


def _message(asked: Asked, policy: MediaPolicy) -> Message:
    from behold.api.turns import user_message

    return user_message(asked.images, asked.question, policy=policy)
