"""What the damaged inputs are made from. Each is made when it is first asked for, and once.

    python -m tests.damage.good checkpoint FOLDER

makes one of those that the project's own programs do not make.
"""

import csv
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np

from tests import programs

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "tests" / "release"
CONFIG = Path(__file__).with_name("small.py")
FPS = 7.5
CAPTIONS = [f"a small red circle moving {way}" for way in ("left", "right", "up", "down")]


class Good:
    """Good inputs in a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Path:
        """Where `name` is: a method of this class, or a folder of `tests/release`."""
        if name.startswith("release/"):
            return RELEASE / name.removeprefix("release/")
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            path = self.folder / name
            if not path.exists():
                getattr(self, name)(path)
        return path

    def checkpoint(self, path: Path) -> None:
        """Keyframes, interpolation and translation, of random parameters."""
        self._run("tests.damage.good", "checkpoint", path)

    def adapters(self, path: Path) -> None:
        """Two adapters for that checkpoint: low-rank changes, and differences."""
        self._run("tests.damage.good", "adapters", path, self("checkpoint"))

    def converted(self, path: Path) -> None:
        """A released pipeline in this project's layout."""
        self._run("show1_jax.convert", self("release/show-1-interpolation"), path)

    def outputs(self, path: Path) -> None:
        """Two prompts' keyframes and what is between them."""
        prompts = (f"--prompt={text}" for text in CAPTIONS[:2])
        self._run(*sample(self("checkpoint")), *prompts, "--stages=keyframes", f"--out={path}")

    def judged(self, path: Path) -> None:
        """What the evaluation keeps."""
        flags = ("--count=1", "--stages=keyframes", f"--sheet={self.folder}/sheet.png")
        self._run("show1_jax.shapes", *sample(self("checkpoint"))[1:], *flags, f"--out={path}")

    def run(self, path: Path) -> None:
        """A training run of two steps, its data beside it."""
        self._run(*train("vae", path / "work", path / "data", self("clips")))

    def text(self, path: Path) -> None:
        """A training run of one step that embeds captions, its data beside it."""
        flags = [f"--config.checkpoint={self('checkpoint')}", "--config.train.keyframes.steps=1"]
        self._run(*train("keyframes", path / "work", path / "data", self("clips")), *flags)

    def noise(self, path: Path) -> None:
        """A folder with the noise of keyframes."""
        from show1_jax.stages.inversion import Noise, save_noise

        path.mkdir()
        noise = np.random.default_rng(0).normal(size=(1, 3, 4, 6, 3)).astype(np.float32)
        save_noise(path / "keyframes.noise.npz", Noise("keyframes", noise, 2))

    def clips(self, path: Path) -> None:
        """A folder of captioned clips."""
        from show1_jax.media import write_mp4

        path.mkdir()
        rng = np.random.default_rng(0)
        with (path / "captions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "caption"])
            for number, caption in enumerate(CAPTIONS):
                frames = np.repeat(rng.integers(0, 256, (24, 4, 6, 3), np.uint8), 8, axis=1)
                write_mp4(path / f"{number}.mp4", np.repeat(frames, 8, axis=2), FPS)
                writer.writerow([f"{number}.mp4", caption])

    def prompts(self, path: Path) -> None:
        """A folder with both kinds of files of prompts."""
        path.mkdir()
        (path / "prompts.txt").write_text("".join(f"{text}\n" for text in CAPTIONS[:2]))
        lines = (json.dumps({"prompt": text}) + "\n" for text in CAPTIONS[:2])
        (path / "prompts.jsonl").write_text("".join(lines))

    def config(self, path: Path) -> None:
        """A folder with a config file."""
        path.mkdir()
        shutil.copy(CONFIG, path / "small.py")

    def _run(self, *command: object) -> None:
        environment = os.environ | {"HOME": str(self.folder)}
        done = programs.run(*command, cwd=self.folder, environment=environment)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")


def sample(checkpoint: object, config: Path = CONFIG) -> tuple[object, ...]:
    """`sample.py` with small networks."""
    return ROOT / "sample.py", f"--config={config}", f"--checkpoint={checkpoint}"


def train(part: str, workdir: Path, data: Path, clips: Path) -> tuple[object, ...]:
    """`train.py` of one part, on a folder of clips."""
    section = f"--config.train.{part}"
    flags = (f"{section}.dataset={clips}", f"{section}.data_dir={data}")
    return ROOT / "train.py", f"--config={CONFIG}:{part}", f"--workdir={workdir}", *flags


def _checkpoint(folder: Path) -> None:
    import jax

    from show1_jax.checkpoints.export import export_copy, export_network, export_scheduler
    from show1_jax.checkpoints.networks import fresh_params, network, read_json
    from show1_jax.checkpoints.store import save_params
    from show1_jax.configs import tiny
    from show1_jax.models.unet import UNet, UNetConfig
    from show1_jax.models.vae import VAE, VAEConfig
    from show1_jax.stages.stage import solver_config
    from tests.damage.small import get_config

    config, key = get_config(), jax.random.key(0)
    for stage in ("keyframes", "interpolation", "translation"):
        unet = UNet(UNetConfig(**config[stage].unet))
        export_network(folder, stage, unet, fresh_params(unet, key))
        export_scheduler(folder, stage, "scheduler", solver_config(config[stage].solver))
    for name in ("text_encoder", "tokenizer"):
        export_copy(folder, "keyframes", tiny.CHECKPOINT / "show-1-base" / name)
    vae = VAE(VAEConfig(**config.translation.vae))
    export_network(folder, "translation", vae, fresh_params(vae, key))
    # CLIP's is not trained here, and so not exported.
    released, target = RELEASE / "show-1-sr2", folder / "show-1-sr2"
    shutil.copytree(released / "tokenizer", target / "tokenizer")
    (target / "text_encoder").mkdir()
    path = released / "text_encoder" / "config.json"
    shutil.copy(path, target / "text_encoder")
    clip = network(read_json(path), str(path)).module
    save_params(target / "text_encoder" / "params", fresh_params(clip, key))


def _adapters(folder: Path, checkpoint: Path) -> None:
    import jax
    import jax.numpy as jnp

    from show1_jax.adapters.customize import changes
    from show1_jax.adapters.files import Adapter, base_fingerprint, save_adapter
    from show1_jax.adapters.lora import new_lora
    from show1_jax.checkpoints.released import find_stages
    from show1_jax.training.trainable import split

    stage = find_stages(checkpoint)["keyframes"]
    params = stage.params("unet", stage.module("unet", jnp.float32), jnp.float32)
    base = base_fingerprint(params)
    lora = jax.tree.map(np.asarray, new_lora(params, "temporal", 2, jax.random.key(0)))
    low = Adapter(changes({}, lora), base, about={"prompts": "a"}, timesteps=(150, 1000))
    chosen = jax.tree.map(np.asarray, split(params, "temporal_attention")[0])
    more = jax.tree.map(lambda leaf: leaf + np.float32(0.25), chosen)
    save_adapter(folder / "lora.safetensors", low)
    save_adapter(folder / "whole.safetensors", Adapter(changes(chosen, more), base))


if __name__ == "__main__":
    {"checkpoint": _checkpoint, "adapters": _adapters}[sys.argv[1]](*map(Path, sys.argv[2:]))
