"""Makes the tiny cascade's T5: a tokenizer for captions of moving shapes, and a random encoder.

    python -m show1_jax.shapes.text_encoder CHECKPOINT

writes CHECKPOINT/show-1-base/tokenizer and text_encoder.

The encoder is never trained. Its vocabulary is a few dozen words, which random embeddings in 64
dimensions distinguish as well as learned ones; the denoisers learn what they mean. Because it is
frozen, embeddings are computed once, like those of T5-XXL.

All unknown words have the embedding of an article, so that they do not change the meaning of the
words around them. (Of "bluebird", the tokenizer knows "blue", and the rest counts as an article.)

The embedded checkpoint has the rows of an earlier, larger vocabulary, so a new encoder has another
embedding for the comma.
"""

import io
import json
import sys
from pathlib import Path

import jax
import sentencepiece

from show1_jax.checkpoints.export import export_text_encoder
from show1_jax.checkpoints.networks import fresh_params
from show1_jax.errors import InputError
from show1_jax.models.t5 import T5Config, T5Encoder
from show1_jax.shapes.scenes import TEMPLATES, caption, combinations
from show1_jax.stages import STAGES

SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}


def tokenizer_files() -> dict[str, bytes]:
    """Trains a SentencePiece model on all captions; returns the files of the tokenizer by name."""
    captions = [caption(c, i) for c in combinations() for i in range(len(TEMPLATES))]
    words = sorted({word.strip(",") for text in captions for word in text.split()})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        model_type="unigram",
        vocab_size=256,
        hard_vocab_limit=False,
        user_defined_symbols=[f"\u2581{word}" for word in words],  # one token each
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=2,
    )
    settings = {
        "eos_token": "</s>",
        "extra_ids": 0,
        "model_max_length": 77,
        "pad_token": "<pad>",
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    return {
        "spiece.model": model.getvalue(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n",
    }


def make(checkpoint: Path) -> None:
    """Writes the tokenizer and the encoder into a checkpoint, and replaces older ones.

    Raises:
      InputError: if they cannot be written.
    """
    files = tokenizer_files()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=files["spiece.model"])
    module = T5Encoder(T5Config(vocab_size=pieces.get_piece_size(), **SIZES))
    params = fresh_params(module, jax.random.key(0))
    rows = params["token_embedding"]["embedding"]
    article = rows[pieces.piece_to_id("\u2581the")]
    params["token_embedding"]["embedding"] = rows.at[pieces.unk_id()].set(article)
    export_text_encoder(checkpoint, STAGES[0].name, module, params, files)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        make(Path(sys.argv[1]))
    except InputError as error:
        sys.exit(f"error: {error}")
