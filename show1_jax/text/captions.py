"""Tokens of captions, for data pipelines, whose worker processes need nothing heavier than this."""

from os import PathLike

import numpy as np

from show1_jax.text.cleaning import cleaner
from show1_jax.text.tokenizers import tokenizer


class TokenizedCaptions:
    """Converts captions to tokens; it can be sent to other processes."""

    def __init__(self, encoder: str, folder: str | PathLike[str], tokens: int, clean: bool):
        """Reads a tokenizer.

        Args:
          encoder: "t5" or "clip".
          folder: of the tokenizer.
          tokens: of each caption.
          clean: whether captions are cleaned as DeepFloyd's are.

        Raises:
          InputError: if the tokenizer is missing or damaged.
        """
        self._arguments = (encoder, folder, tokens, clean)
        self._tokenize, self._clean = tokenizer(encoder, folder, tokens), cleaner(clean)

    def __reduce__(self) -> tuple[type, tuple[str, str | PathLike[str], int, bool]]:
        """Pickles where the tokenizer is; the other process reads it again."""
        return TokenizedCaptions, self._arguments

    def __call__(self, caption: str) -> np.ndarray:
        """Int32 `(2, tokens)`: the tokens of a caption, and their mask."""
        return np.concatenate(self._tokenize([self._clean(caption)]))
