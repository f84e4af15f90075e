"""The options of ``moeray generate`` and ``moeray chat``: what they take, and what help says."""

from enum import StrEnum
from typing import Annotated

import typer

DEFAULT_TARGET = "127.0.0.1:50051"
MAX_ID = 2**32 - 1
"""What fits the wire; which ids are tokens, the server knows."""


class Effort(StrEnum):
    low = "low"
    medium = "medium"
    high = "high"


Target = Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.")]
EffortOption = Annotated[Effort, typer.Option(help="How long the model is asked to think.")]
Budget = Annotated[
    int | None, typer.Option(min=0, help="Hard limit on tokens in analysis; 0 answers at once.")
]
MaxOutput = Annotated[
    int | None, typer.Option(min=16, help="Limit on generated tokens. Default: the server's.")
]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, max=2.0, help="Softmax temperature; 0 is greedy.")
]
ShowAnalysis = Annotated[bool, typer.Option("--show-analysis", help="Show the chain of thought.")]
TopP = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Nucleus.")]
TopK = Annotated[
    int | None, typer.Option(min=0, max=MAX_ID, help="Only so many likeliest tokens; 0 is all.")
]
MinP = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Least probability relative to the likeliest token."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(min=0.0, max=2.0, help="On tokens of prompt and output; 1 is none.")
]
PresencePenalty = Annotated[
    float | None, typer.Option(min=-2.0, max=2.0, help="On tokens of the output.")
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(min=-2.0, max=2.0, help="On tokens of the output, for each time.")
]
LogitBias = Annotated[
    list[str] | None, typer.Option(metavar="ID=VALUE", help="Added to a token's logit. Repeatable.")
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Same seed, same tokens.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer. Repeatable.")]
StopTokenId = Annotated[
    list[int] | None,
    typer.Option(min=0, max=MAX_ID, help="Token that ends the answer. Repeatable."),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on until the limit on tokens.")]
MinOutput = Annotated[
    int, typer.Option(min=0, max=MAX_ID, help="Do not end before so many tokens.")
]
Answers = Annotated[int, typer.Option(min=1, max=16, help="How many answers.")]
Logprobs = Annotated[
    int | None,
    typer.Option(min=0, max=20, help="Show how likely tokens were, and so many likeliest."),
]
CacheSalt = Annotated[
    str, typer.Option(help="Share cached prompts only with requests of this salt.")
]
Timeout = Annotated[float | None, typer.Option(min=0.0, help="Deadline in seconds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as one JSON object.")]


def read_logit_bias(pairs: list[str]) -> dict[int, float]:
    """From token id to bias. Raises typer.BadParameter."""
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise typer.BadParameter(
                f"{pair!r} is not ID=VALUE", param_hint="--logit-bias"
            ) from None
        if not 0 <= int(token) <= MAX_ID:
            raise typer.BadParameter(f"{token} is no token id", param_hint="--logit-bias")
    return biases
