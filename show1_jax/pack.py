"""Videos of a sampling as WebDataset shards, which `config.train.PART.dataset` reads again.

OUT/shards/00000.tar    000000000.mp4, .txt (the prompt), .json, 000000001.mp4, …
"""

import io
import json
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from etils.epath import Path

from show1_jax.errors import InputError, why
from show1_jax.files import written_on_disk
from show1_jax.outputs import Outputs

FOLDER = "shards"
ITEMS = 1000  # of a shard
AT_ONCE = 16  # items read


def pack(outputs: Outputs, stage: str) -> Path:
    """Writes shards of all items; the same items make the same bytes.

    Args:
      outputs: has prompts and seeds, as after `merge`, and the stage's result of each item.
      stage: whose clips, or images, are packed.

    Returns:
      The folder of the shards.

    Raises:
      InputError: if something cannot be read or written.
    """
    folder, count = outputs.folder / FOLDER, len(outputs.prompts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as readers:
            for first in range(0, count, ITEMS):
                path = folder / f"{first // ITEMS:05d}.tar"
                with written_on_disk(path) as partial, tarfile.open(partial, "w") as shard:
                    for start in range(first, min(first + ITEMS, count), AT_ONCE):
                        items = range(start, min(start + AT_ONCE, first + ITEMS, count))
                        clips = (outputs.shown(item, stage)[0] for item in items)
                        contents = readers.map(lambda path: path.read_bytes(), clips)
                        for item, content in zip(items, contents, strict=True):
                            _add(shard, outputs, item, stage, content)
    except OSError as error:
        path = Path(error.filename or folder)
        raise InputError(f"{path} cannot be packed: {why(error)}") from None
    return folder


def _add(shard: tarfile.TarFile, outputs: Outputs, item: int, stage: str, content: bytes) -> None:
    """Adds an item's members, one after the other."""
    prompt = outputs.prompts[item]
    about = {"caption": prompt, "seed": outputs.seeds[item], "stage": stage}
    members: Iterable[tuple[str, bytes]] = (
        (outputs.shown(item, stage)[0].suffix, content),
        (".txt", prompt.encode()),
        (".json", json.dumps(about).encode()),
    )
    for ending, data in members:
        info = tarfile.TarInfo(f"{item:09d}{ending}")
        info.size = len(data)
        shard.addfile(info, io.BytesIO(data))
