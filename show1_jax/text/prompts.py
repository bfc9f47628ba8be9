"""Prompts as the stages are told them: embeddings of the prompts and of the negative prompts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from show1_jax.errors import InputError
from show1_jax.stages import Stage
from show1_jax.text.cleaning import cleaner

Embed = Callable[[str, Sequence[str]], np.ndarray]
"""Makes a text encoder's name and texts into embeddings `(texts, tokens, width)`."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Embeddings `(tokens, width)`: of prompts by encoder, of negative prompts by stage."""

    prompts: Mapping[str, Mapping[str, np.ndarray]]
    negative: Mapping[str, np.ndarray]

    def pairs(self, stage: Stage, prompts: Sequence[str]) -> np.ndarray:
        """What guidance needs: `(2, batch, tokens, width)`, the negative prompt's first."""
        own, negative = self.prompts[stage.encoder], self.negative[stage.name]
        return np.stack([[negative, own[prompt]] for prompt in prompts], axis=1)


def encode_prompts(
    embed: Embed, stages: Sequence[Stage], prompts: Sequence[str], clean_captions: bool
) -> Texts:
    """Encodes prompts with the encoders that stages need.

    Args:
      embed: runs an encoder.
      stages: the stages to run.
      prompts: the texts.
      clean_captions: whether prompts are cleaned as DeepFloyd cleaned captions.

    Raises:
      InputError: if a prompt is no text.
    """
    for prompt in prompts:
        check_text(prompt)
    clean = cleaner(clean_captions)
    cleaned = {prompt: clean(prompt) for prompt in prompts}
    found: dict[str, dict[str, np.ndarray]] = {}
    negative: dict[str, np.ndarray] = {}
    for encoder in dict.fromkeys(stage.encoder for stage in stages):
        own = [stage for stage in stages if stage.encoder == encoder]
        wanted = [*cleaned.values(), *(stage.negative_prompt for stage in own)]
        texts = list(dict.fromkeys(wanted))
        by_text = dict(zip(texts, embed(encoder, texts), strict=True))
        found[encoder] = {prompt: by_text[text] for prompt, text in cleaned.items()}
        negative |= {stage.name: by_text[stage.negative_prompt] for stage in own}
    return Texts(found, negative)


def check_text(prompt: str) -> None:
    """Raises InputError if a prompt cannot be encoded."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError(
            "its prompt is no text: it has bytes or surrogates that are not valid Unicode"
        ) from None
