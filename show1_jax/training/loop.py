"""Training runs: from a config to a trained part in the checkpoint folder."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from show1_jax.checkpoints.export import export_copy, export_network, export_scheduler, network_json
from show1_jax.checkpoints.released import PIPELINES, StageFolder, find_stages, t5_folder
from show1_jax.data.text_cache import EMPTY
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.errors import LESS_MEMORY, InputError, Preempted, fitting
from show1_jax.media import to_uint8, write_mp4, write_png
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.parallel import hosts
from show1_jax.parallel.mesh import batch_parts, make_mesh
from show1_jax.parallel.sharding import (
    fsdp_hint,
    own_rows,
    put_array,
    put_batch,
    put_padded,
    put_rows,
    shardings,
)
from show1_jax.paths import local_path
from show1_jax.text.tokenizers import LENGTH
from show1_jax.training import data
from show1_jax.training.initialise import fresh_params, new_paths, start_from
from show1_jax.training.metrics import Metrics, Stopwatch, peak_memory, progress_line
from show1_jax.training.optimizer import averaged, learning_rate, make_optimizer
from show1_jax.training.run import RunFolder
from show1_jax.training.settings import check
from show1_jax.training.step import TrainState, compile_step, init_state
from show1_jax.training.tasks import (
    PARTS,
    Task,
    compute_dtype,
    image_config,
    make_task,
    pixels,
    solver_config,
)
from show1_jax.training.trainable import merge, split

CHECKPOINT = "checkpoint"
SAMPLED = 4  # clips of a sheet of samples

# What may differ between a network and the one that it starts from.
KIN = ("in_channels", "temporal", "temporal_heads", "input_transformer_head_dim", "scaling_factor")


def train(
    config: ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None
) -> None:
    """Trains the part that `config.stage` names, or all of them one after the other.

    A run that was interrupted goes on from its last checkpoint, and ends as if
    it had not been, on whatever mesh of however many processes. Each part ends
    up in WORKDIR/checkpoint, ready for `sample.py`.

    Args:
      config: as in `configs/show1.py`.
      workdir: of the runs; each part has a folder in it.
      devices: to lay out as `config.mesh` says; None for all.

    Raises:
      InputError: if a setting is wrong, something cannot be read or written, or
        a loss is not finite.
      Preempted: if SIGTERM or Ctrl-C came; a checkpoint of the last step is complete.
    """
    workdir = local_path(workdir)
    if "train" not in config:
        raise InputError("the config has no section train: there is nothing to train")
    if config.stage and config.stage not in PARTS:
        raise InputError(f"there is no part {config.stage!r} to train; take {', '.join(PARTS)}")
    mesh = make_mesh(config.mesh, devices)
    parts = [config.stage] if config.stage else PARTS
    for part in parts:
        check(config.train[part], f"train.{part}", batch_parts(mesh))
    for part in parts:
        with jax.set_mesh(mesh):
            run = Run(config, part, workdir)
            with fitting(part, LESS_MEMORY):
                run.train()
        hosts.say(f"{part} is trained: {run.target}")
        if run.told_to_end and part != parts[-1]:
            raise Preempted(f"{part} was the last for now: the same command goes on")


class Run:
    """One part's training."""

    def __init__(self, config: ConfigDict, part: str, workdir: Path):
        """Checks the settings and opens the dataset; nothing is trained yet."""
        if part == "image":
            config = image_config(config)
        self.config, self.part, self.workdir = config, part, workdir
        # An image network is no part of the cascade: it makes a checkpoint of its own.
        self.target = workdir / part / CHECKPOINT if part == "image" else workdir / CHECKPOINT
        self.settings = settings = config.train[part]
        inputs: dict[str, str] = {}
        vae, vae_params = self._vae(inputs)
        saved = workdir / part / "checkpoints"
        if settings.init and not (saved.is_dir() and any(saved.iterdir())):
            self._initial_network(settings.init)  # says now what is wrong with it
        self.task = make_task(config, part, vae)
        network_json(self.task.module)  # refuses now what could not be exported in the end
        _check_size(self.task, part, 1 if vae is None else vae.config.downscale)
        text = None
        self.constants: dict[str, Any] = {} if vae is None else {"vae": vae_params}
        with hosts.first_alone(f"{part} data"):
            builder, read, captions = data.open_dataset(settings)
            inputs["dataset"] = builder.info.full_name
            if self.task.encoder:
                clean = config.text.clean_captions
                folder = self._encoder_folder()
                # CLIP has a position for each of its tokens.
                tokens = config.text.t5_tokens if self.task.encoder == "t5" else LENGTH
                text = data.open_text(settings, captions, folder, clean, tokens)
                inputs["text_encoder"] = data.encoder_fingerprint(folder.folder, clean)
            arguments = (settings, builder, read, self.task.spec, text)
            self.validation = data.validation_batches(*arguments)
        if text is not None:
            self.constants["empty"] = put_array(np.asarray(text(EMPTY), np.float32))
        self.optimizer = make_optimizer(settings)
        self.key = jax.random.key(settings.seed)
        with contextlib.ExitStack() as stack:
            self.folder = RunFolder(workdir / part, config, part, inputs)
            stack.callback(self.folder.close)
            self.batches = data.training_batches(*arguments)
            stack.pop_all()

    def train(self) -> None:
        """Trains to the end, from wherever the run was."""
        self.told_to_end = False
        with contextlib.closing(self.folder), contextlib.closing(self.batches):
            target = jax.eval_shape(self._start)
            count = sum(leaf.size for leaf in jax.tree.leaves((target.trained, target.frozen)))
            hosts.say(f"{self.part}: {count:,} parameters, {self.settings.steps:,} steps")
            if hint := fsdp_hint((target.trained, target.frozen)):
                hosts.say(f"{self.part}: {hint}")
            restored = self.folder.restore(target)
            if restored is None:
                state = self._first_state()
            else:
                state, positions = restored
                index, rows = jax.process_index(), len(own_rows(self.settings.batch_size))
                self.batches.set_state(position(positions, jax.process_count(), index, rows))
                hosts.say(f"{self.part} goes on from step {int(state.step):,}")
            if int(state.step) < self.settings.steps:
                metrics = Metrics(self.folder.folder, int(state.step), hosts.first())
                with contextlib.closing(metrics), hosts.Preemption() as preemption:
                    state = self._loop(state, metrics, preemption)
                    self.told_to_end = preemption.due()  # too late to stop before the end
            params = merge(averaged(state.optimizer), state.frozen)
            if jax.process_count() > 1:
                params = hosts.fetch(params)
            with hosts.own_devices():
                if hosts.first():
                    self._export(params)
            hosts.wait(f"{self.part} is exported")

    def _loop(
        self, state: TrainState, metrics: Metrics, preemption: hosts.Preemption
    ) -> TrainState:
        settings, watch = self.settings, Stopwatch()
        step_function = compile_step(
            self.task.prepare, self.task.loss, self.optimizer, settings.accumulate, self.key,
            shardings(state),
        )  # fmt: skip
        rate = learning_rate(settings)
        losses: list[float] = []
        pending, begun = None, int(state.step)
        for step in range(begun + 1, settings.steps + 1):
            begin = time.perf_counter()
            batch = put_rows(_used(next(self.batches)), settings.batch_size)
            watch.waited(time.perf_counter() - begin)
            state, pending_next = step_function(state, self.constants, batch)
            if step == begun + 1:
                watch = Stopwatch()  # that was compiling
            # Looked at one step late, so that the device always has the next step to do.
            if pending is not None:
                losses.append(self._finite(step - 1, pending))
            pending = pending_next

            last = step == settings.steps
            stopped = preemption.due() and not last
            saved = last or stopped or not step % settings.save_every
            if saved or not step % settings.log_every:
                losses.append(self._finite(step, pending))
                gradient, pending = float(pending["grad_norm"]), None
            if last or not step % settings.log_every:
                numbers = {
                    "loss": float(np.mean(losses)),
                    "grad_norm": gradient,
                    "learning_rate": float(rate(step - 1)),
                    **watch.read(settings.batch_size),
                    "peak_bytes": peak_memory(),
                }
                losses = []
                metrics.write(step, numbers)
                hosts.say(progress_line(self.part, step, settings.steps, numbers))
            begin = time.perf_counter()
            if saved:
                rows = len(own_rows(settings.batch_size))
                own = {"rows": rows, "iterator": self.batches.get_state()}
                self.folder.save(state, hosts.gather(own))
            if stopped:
                self.folder.wait()
            # Only when all is safe: they compile and run programs of their own.
            if last or not step % settings.validate_every:
                metrics.write(step, {"validation_loss": self.validate(state)})
            if stopped:
                raise Preempted(f"{self.part} is saved at step {step:,}: the same command goes on")
            if last or not step % settings.sample_every:
                self._sample(state, step, metrics)
            watch.left_out(time.perf_counter() - begin)
        self.folder.wait()
        return state

    def _finite(self, step: int, metrics: dict[str, jax.Array]) -> float:
        loss = float(metrics["loss"])
        if np.isfinite(loss) and np.isfinite(metrics["grad_norm"]):
            return loss
        self.folder.wait()
        raise InputError(
            f"the loss of {self.part} is not finite at step {step} (loss {loss}, gradient "
            f"{float(metrics['grad_norm'])}): the last checkpoint is kept; go on from it with a "
            "lower learning_rate or clip_norm, or begin again in dtype float32"
        )

    def validate(self, state: TrainState) -> float:
        """The loss of the averaged parameters on the validation batches, always of one noise."""
        params = merge(averaged(state.optimizer), state.frozen)
        key = jax.random.key(0)
        losses = []
        for i, batch in enumerate(map(_used, self.validation)):
            given = (jax.random.fold_in(key, i), self.constants, put_padded(batch))
            losses.append(self._validation_loss(params, *given, len(batch["video"])))
        return float(np.mean(losses))

    @functools.cached_property
    def _validation_loss(self) -> Any:
        def loss(params: Any, key: jax.Array, constants: Any, batch: Any, count: int) -> jax.Array:
            """Of the first clips; those that pad the batch draw after them."""
            prepared = self.task.prepare(key, constants, batch)
            return self.task.validation_loss(params, prepared)[:count].mean()

        return jax.jit(loss, static_argnums=4)

    def _sample(self, state: TrainState, step: int, metrics: Metrics) -> None:
        """Writes clips of the validation split (above) and what the part makes of them (below).

        All processes make them, with the parameters split as training has them; the first writes.
        """
        params = merge(averaged(state.optimizer), state.frozen)
        batch = {name: array[:SAMPLED] for name, array in _used(self.validation[0]).items()}
        count, at_once = len(batch["video"]), batch_parts(jax.sharding.get_mesh())
        given = (batch, np.arange(count, dtype=np.uint32))
        made: list[np.ndarray] = []
        # One clip a device at a time: its memory holds the state as well.
        for begin in range(0, count, at_once):
            own = jax.tree.map(lambda x, i=begin: x[i : i + at_once], given)
            made += list(hosts.fetch(self.task.sample(params, self.constants, *put_padded(own))))
        if not hosts.first():
            return
        sheet = np.concatenate([np.asarray(pixels(batch)), np.stack(made[:count])], axis=2)
        video = to_uint8(np.concatenate(list(sheet), axis=2))
        folder = self.folder.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{step:08}.png", np.concatenate(list(video), axis=0))
        if len(video) > 1:
            write_mp4(folder / f"{step:08}.mp4", video, self.task.spec.fps or 1)
        metrics.picture(step, "samples", np.concatenate(list(video), axis=0))

    def _fresh_params(self) -> Any:
        return fresh_params(self.task.module, jax.random.fold_in(self.key, 2**31 - 1))

    def _start(self, source: Any = None, where: str = "") -> TrainState:
        """The state before the first step, with another network's parameters if given."""
        params = self._fresh_params()
        if source is not None:
            params = start_from(params, source, where)
        return init_state(self.optimizer, *split(params, self.settings.trainable))

    def _first_state(self) -> TrainState:
        """The state before the first step, from other parameters if the config says so."""
        settings, source, where = self.settings, None, ""
        if settings.init:
            folder, name = self._initial_network(settings.init)
            module, where = folder.module(name, jnp.float32), str(folder.folder / name)
            _check_kinship(module, self.task.module, where)
            source = folder.params(name, module, jnp.float32)
            hosts.say(f"{self.part} starts from {where}")
        fresh = jax.eval_shape(self._fresh_params)
        frozen = flatten_dict(split(fresh, settings.trainable)[1], sep="/")
        if new := [path for path in new_paths(fresh, source or {}) if path in frozen]:
            raise InputError(
                f"train.{self.part}.trainable is {settings.trainable!r}, which would freeze "
                f"what init does not give, {new[0]} for one: take all, or another init"
            )
        start = functools.partial(self._start, where=where)
        target = shardings(jax.eval_shape(start, source))
        return jax.jit(start, out_shardings=target)(source)

    def _initial_network(self, init: str) -> tuple[StageFolder, str]:
        """Where the network to start from is: a part's, or in a folder of its own."""
        if init == "image" != self.part:
            trained = self.workdir / init / CHECKPOINT
            folder, name = StageFolder(trained / PIPELINES["keyframes"][0]), "unet"
            if not folder.has(name):
                raise InputError(
                    f"train.{self.part}.init=image needs {folder.folder / name}: train image "
                    'first, or give the folder of a network, or "" for random parameters'
                )
        elif init in PARTS:
            stage, name = ("translation", "vae") if init == "vae" else (init, "unet")
            # Not from what an earlier run here made of itself: the same command starts the same.
            own, wanted = init != self.part, f"train.{self.part}.init={init}"
            folder = self._stage_folder(stage, name, wanted, own)
        else:
            path = local_path(init)
            folder, name = StageFolder(path.parent), path.name
            if not folder.has(name):
                raise InputError(f"train.{self.part}.init: {folder.folder / name} has no params/")
        return folder, name

    def _stage_folder(self, stage: str, name: str, wanted: str, own: bool = True) -> StageFolder:
        """The folder of a stage that has a network: trained here, or in the config's checkpoint."""
        for stages in self._checkpoints(own):
            if stage in stages and stages[stage].has(name):
                return stages[stage]
        raise InputError(
            f"{wanted} needs {stage}/{name}, which is neither in {self.workdir / CHECKPOINT} nor "
            "in the config's checkpoint: train it first, or give --config.checkpoint"
        )

    def _checkpoints(self, own: bool = True) -> Iterator[dict[str, StageFolder]]:
        trained = self.workdir / CHECKPOINT
        if own and any(trained.glob("*/model_index.json")):
            yield find_stages(trained)
        if self.config.get("checkpoint"):
            yield find_stages(local_path(self.config.checkpoint))

    def _encoder_folder(self) -> StageFolder:
        if self.task.encoder == "clip":
            return self._stage_folder("translation", "text_encoder", "the text of translation")
        for stages in self._checkpoints():
            if any(
                stage.has("text_encoder") for name, stage in stages.items() if name != "translation"
            ):
                return t5_folder(stages)
        raise InputError("no T5 text_encoder/ to read captions with: give --config.checkpoint")

    def _vae(self, inputs: dict[str, str]) -> tuple[VAE | None, Any]:
        if self.part != "translation":
            return None, None
        folder = self._stage_folder("translation", "vae", "translation")
        vae = folder.module("vae", compute_dtype(self.settings))
        assert isinstance(vae, VAE)
        params = folder.params("vae", vae, jnp.float32)
        inputs["vae"] = f"{data.params_fingerprint(params)} {vae.config.scaling_factor}"
        return vae, params

    def _export(self, params: Any) -> None:
        """Puts the part into the checkpoint that `sample.py` reads, with all it needs there."""
        target, module = self.target, self.task.module
        if isinstance(module, VAE):
            self._export_vae(target, module, params)
            return
        assert isinstance(module, UNet)
        stage, section = "keyframes" if self.part == "image" else self.part, self.config[self.part]
        folder = StageFolder(target / PIPELINES[stage][0])
        # Written anew, the same parameters would look like others to `sample.py`.
        if (
            not _holds(folder, "unet", params)
            or folder.module("unet", jnp.float32).config != module.config
        ):
            export_network(target, stage, module, params)
        if self.part == "image":
            return  # to start from, not to sample from
        export_scheduler(target, stage, "scheduler", solver_config(section.solver))
        if "noise_schedule" in section:
            noising = SolverConfig("ddpm", NoiseSchedule(**section.noise_schedule))
            export_scheduler(target, stage, "image_noising_scheduler", noising)
        folder = self._encoder_folder()
        if folder.folder.parent != target:  # else another stage there has it: T5-XXL is large
            for name in ("text_encoder", "tokenizer"):
                export_copy(target, stage, folder.folder / name)
        if stage == "translation":
            vae = self._stage_folder("translation", "vae", "translation")
            export_copy(target, stage, vae.folder / "vae")

    def _export_vae(self, target: Path, vae: VAE, params: Any) -> None:
        """Puts the autoencoder there, unless it is there: translation is trained on that one."""
        folder = StageFolder(target / PIPELINES["translation"][0])
        if _holds(folder, "vae", params):
            return
        if folder.has("vae") and folder.has("unet"):
            hosts.say(f"translation in {target} was trained on another autoencoder: train it again")
        export_network(target, "translation", self._scaled(vae, params), params)

    def _scaled(self, vae: VAE, params: Any) -> VAE:
        """The autoencoder with the factor that gives the validation clips' latents variance 1."""
        encode = jax.jit(functools.partial(vae.apply, method="encode"))
        moments = [
            encode({"params": params}, pixels(put_batch(_used(batch)))) for batch in self.validation
        ]
        variance = np.mean([jnp.var(mean) + jnp.exp(logvar).mean() for mean, logvar in moments])
        fields = dict(self.config.translation.vae) | {
            "scaling_factor": round(float(variance) ** -0.5, 5)
        }
        return vae.clone(config=VAEConfig(**fields))


def position(positions: list[dict[str, Any]], count: int, index: int, rows: int) -> Any:
    """Where a process's data goes on.

    Args:
      positions: of each of the processes that saved them: the state of its
        "iterator", and how many "rows" of each batch that gave.
      count: how many processes go on.
      index: which of them this is.
      rows: of each batch are this one's.

    Raises:
      InputError: if they cannot be shared out anew.
    """
    if len(positions) == count and positions[index]["rows"] == rows:
        return positions[index]["iterator"]
    if any(each["iterator"].keys() != {"next_index"} for each in positions):
        raise InputError(
            f"the run was trained by {len(positions)} processes with workers, each with "
            f"{positions[0]['rows']} clips of a batch: go on with as many"
        )
    batches = positions[0]["iterator"]["next_index"] // positions[0]["rows"]
    return {"next_index": batches * rows}


def _holds(folder: StageFolder, name: str, params: Any) -> bool:
    """Whether a network is in a folder with these parameters."""
    if not folder.has(name):
        return False
    there = folder.params(name, folder.module(name, jnp.float32), jnp.float32)
    return data.params_fingerprint(there) == data.params_fingerprint(params)


def _used(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch the devices need."""
    return {name: batch[name] for name in ("video", "text") if name in batch}


def _check_size(task: Task, part: str, downscale: int) -> None:
    """Refuses clips that the network cannot halve."""
    module = task.module
    multiple = (
        module.config.downscale
        if isinstance(module, VAE)
        else module.config.size_multiple * downscale
    )
    if task.spec.height % multiple or task.spec.width % multiple:
        raise InputError(
            f"{part} is trained on {task.spec.width}x{task.spec.height}, but needs a width and "
            f"height that are multiples of {multiple}"
        )


def _check_kinship(source: Any, module: UNet | VAE, where: str) -> None:
    """Refuses parameters that mean something else in a network, whatever their shapes."""
    ours, theirs = (dataclasses.asdict(each.config) for each in (module, source))
    different = [
        f"{key} is {theirs.get(key)} there and {value} here"
        for key, value in ours.items()
        if key not in KIN and theirs.get(key) != value
    ]
    if different:
        raise InputError(f"{where} is no start for this network: {'; '.join(different)}")
