"""Training runs: from a config to a trained part in the checkpoint folder."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.checkpoints.export import network_json
from show1_jax.checkpoints.networks import fresh_params
from show1_jax.data.text_cache import EMPTY
from show1_jax.errors import LESS_MEMORY, InputError, Preempted, out_of_memory_as_error
from show1_jax.media import to_uint8, write_mp4, write_png
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.parallel import hosts
from show1_jax.parallel.heartbeats import Heartbeat
from show1_jax.parallel.mesh import batch_parts, description
from show1_jax.parallel.sharding import (
    fsdp_hint,
    own_rows,
    put_array,
    put_batch,
    put_padded,
    put_rows,
    shardings,
)
from show1_jax.paths import as_path
from show1_jax.stages import Part, Stage
from show1_jax.training import data, sheet, text
from show1_jax.training.goodput import Stopwatch
from show1_jax.training.initialise import new_paths, start_from
from show1_jax.training.metrics import Metrics, peak_memory, progress_line
from show1_jax.training.networks import Networks, check_kinship
from show1_jax.training.optimizer import averaged, learning_rate, make_optimizer
from show1_jax.training.placement import part_mesh
from show1_jax.training.run import RunFolder
from show1_jax.training.step import Recipe, TrainState, compile_step, init_state
from show1_jax.training.tasks import Task, compute_dtype, make_task, pixels
from show1_jax.training.trainable import merge, split

SAMPLED = 4  # clips of a sheet of samples


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
    workdir = as_path(workdir)
    if "train" not in config:
        raise InputError("the config has no section train: there is nothing to train")
    parts = [stages.part(config.stage)] if config.stage else list(stages.parts().values())
    meshes = [part_mesh(config, part, devices) for part in parts]
    for part, mesh in zip(parts, meshes, strict=True):
        with jax.set_mesh(mesh):
            run = Run(config, part, workdir)
            with out_of_memory_as_error(part.name, LESS_MEMORY):
                run.train()
        hosts.say(f"{part.name} is trained: {run.networks.target}")
        if run.told_to_end and part is not parts[-1]:
            raise Preempted(f"{part.name} was the last for now: the same command goes on")


class Run:
    """One part's training."""

    def __init__(self, config: ConfigDict, part: type[Part], workdir: Path):
        """Checks the settings and opens the dataset; nothing is trained yet."""
        self.watch = Stopwatch()
        self.name = name = part.name
        self.settings = settings = config.train[name]
        own = part.from_config(config)
        self.networks = Networks(config, own, workdir)
        inputs: dict[str, str] = {}
        self.constants: dict[str, Any] = {}
        modules: dict[str, Any] = {}
        for other in own.networks:
            if other != own.trained:
                module, params = self.networks.frozen(other, compute_dtype(settings))
                modules[other], self.constants[other] = module, params
                scale = getattr(module.config, "scaling_factor", "")
                inputs[other] = f"{data.params_fingerprint(params)} {scale}"
        if isinstance(own, Stage):
            own = own.with_networks(modules)
        saved = workdir / name / "checkpoints"
        if settings.init and not (saved.is_dir() and any(saved.iterdir())):
            self.networks.initial(settings.init)  # says now what is wrong with it
        self.task = make_task(own, settings)
        network_json(self.task.module)  # refuses now what could not be exported in the end
        _check_size(self.task)
        captions = lookup = None
        dataset = data.open_dataset(settings, f"train.{name}")
        inputs["dataset"] = dataset.name
        if own.encoder:
            with hosts.first_alone(f"{name} text encoder"):
                self.networks.make_encoders(dataset.captions())
                encoder = (own.encoder, self.networks.encoder())
            texts = dataset.captions()
            captions = text.read_captions(settings, config.text, *encoder, texts)
            inputs["text_encoder"] = captions.fingerprint
            lookup = self._lookup(captions)
        arguments = (settings, dataset, self.task.spec, lookup)
        self.validation = data.validation_batches(*arguments)
        self.optimizer = make_optimizer(settings)
        self.key = jax.random.key(settings.seed)
        with contextlib.ExitStack() as stack:
            self.folder = RunFolder(workdir / name, config, own, inputs)
            stack.callback(self.folder.close)
            self.batches = data.training_batches(*arguments)
            stack.pop_all()

    def _lookup(self, captions: text.Captions) -> text.Lookup:
        """What the pipeline makes of a caption; steps have what they need for it afterwards."""
        lookup = captions.lookup(self.settings.data_dir)
        self.constants["empty"] = put_array(lookup(EMPTY))
        if captions.encoder is not None:
            self.constants["text_encoder"] = captions.params()
            self.task = make_task(self.task.part, self.settings, captions.encoder)
            hosts.say(f"{self.name}: each step encodes its captions")
        return lookup

    def train(self) -> None:
        """Trains to the end, from wherever the run was."""
        self.told_to_end = False
        with contextlib.closing(self.folder), contextlib.closing(self.batches):
            target = jax.eval_shape(self._start)
            count = sum(leaf.size for leaf in jax.tree.leaves((target.trained, target.frozen)))
            hosts.say(f"{self.name}: {count:,} parameters, {self.settings.steps:,} steps")
            if (mesh := jax.sharding.get_mesh()).size > 1:
                hosts.say(f"{self.name}: {mesh.size} devices: {description(mesh.shape)}")
            if hint := fsdp_hint((target.trained, target.frozen)):
                hosts.say(f"{self.name}: {hint}")
            restored = self.folder.restore(target)
            if restored is None:
                state = self._first_state()
            else:
                state, positions = restored
                index, rows = jax.process_index(), len(own_rows(self.settings.batch_size))
                self.batches.set_state(position(positions, jax.process_count(), index, rows))
                hosts.say(f"{self.name} goes on from step {int(state.step):,}")
            if int(state.step) < self.settings.steps:
                metrics = Metrics(self.folder.folder, int(state.step), hosts.first())
                self.watch.go_on(metrics.earlier, int(state.step))
                heartbeat = Heartbeat(lambda: self.watch.kind, lambda: self.watch.waited)
                with hosts.Preemption() as preemption, heartbeat.beating(self.name):
                    state = self._loop(state, metrics, preemption, heartbeat)
                    self.told_to_end = preemption.due()  # too late to stop before the end
            params = merge(averaged(state.optimizer), state.frozen)
            if jax.process_count() > 1:
                params = hosts.fetch(params)
            with hosts.own_devices():
                if hosts.first():
                    self.networks.export(self.task.module, params, self._scaled)
            hosts.wait(f"{self.name} is exported")
            hosts.say(f"{self.name}: {self.watch.sentence()}")

    def _loop(
        self,
        state: TrainState,
        metrics: Metrics,
        preemption: hosts.Preemption,
        heartbeat: Heartbeat,
    ) -> TrainState:
        settings, watch = self.settings, self.watch
        recipe = Recipe(self.task.prepare, self.task.loss, self.optimizer, settings.accumulate)
        step_function = compile_step(recipe, self.key, shardings(state))
        rate = learning_rate(settings)
        losses: list[float] = []
        pending, begun = None, int(state.step)
        for step in range(begun + 1, settings.steps + 1):
            first = step == begun + 1
            if not first:
                watch.enter("data")
                watch.count()
            batch = put_rows(_used(next(self.batches)), settings.batch_size)
            watch.enter("compiling" if first else "training")
            heartbeat.step(step)
            state, pending_next = step_function(state, self.constants, batch)
            # Looked at one step late, so that the device always has the next step to do.
            if pending is not None:
                losses.append(self._finite(step - 1, pending))
            pending = pending_next

            if first:
                # Compiling took a while: whoever waits sees that it works.
                loss = self._finite(step, pending)
                watch.enter("training")
                hosts.say(f"{self.name} has made its first step: loss {loss:.4f}")
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
                hosts.say(progress_line(self.name, step, settings.steps, numbers))
            if saved:
                watch.enter("saving")
                rows = len(own_rows(settings.batch_size))
                own = {"rows": rows, "iterator": self.batches.get_state()}
                self.folder.save(state, hosts.gather(own))
            if stopped:
                self.folder.wait()
            # Only when all is safe: they compile and run programs of their own.
            watch.enter("validation")
            if last or not step % settings.validate_every:
                metrics.write(step, {"validation_loss": self.validate(state)})
            if stopped:
                hosts.say(f"{self.name}: {watch.sentence()}")
                raise Preempted(f"{self.name} is saved at step {step:,}: the same command goes on")
            if last or not step % settings.sample_every:
                self._sample(state, step, metrics)
        watch.enter("saving")
        self.folder.wait()
        return state

    def _finite(self, step: int, metrics: dict[str, jax.Array]) -> float:
        loss = float(metrics["loss"])
        if np.isfinite(loss) and np.isfinite(metrics["grad_norm"]):
            return loss
        self.folder.wait()
        raise InputError(
            f"the loss of {self.name} is not finite at step {step} (loss {loss}, gradient "
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
        """Writes clips of the validation split, and what the part makes of their conditions.

        All processes make them, with the parameters split as training has them; the first writes.
        """
        params = merge(averaged(state.optimizer), state.frozen)
        whole = self.validation[0]
        batch = {name: array[:SAMPLED] for name, array in _used(whole).items()}
        names = whole.get("caption", [""] * SAMPLED)[: len(batch["video"])]
        count, at_once = len(batch["video"]), batch_parts(jax.sharding.get_mesh())
        given = (batch, np.arange(count, dtype=np.uint32))
        made: list[np.ndarray] = []
        # One clip a device at a time: its memory holds the state as well.
        for begin in range(0, count, at_once):
            own = jax.tree.map(lambda x, i=begin: x[i : i + at_once], given)
            made += list(hosts.fetch(self.task.sample(params, self.constants, *put_padded(own))))
        if not hosts.first():
            return
        truth = to_uint8(np.asarray(pixels(batch)))
        result = to_uint8(np.stack(made[:count]))
        captions = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
        drawn = sheet.picture(truth, result, captions)
        folder = self.folder.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{step:08}.png", drawn)
        if truth.shape[1] > 1:
            clips = sheet.video(truth, result)
            write_mp4(folder / f"{step:08}.mp4", clips, self.task.spec.fps or 1)
        metrics.picture(step, "samples", drawn)

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
            folder, name = self.networks.initial(settings.init)
            module, where = folder.module(name, jnp.float32), str(folder.folder / name)
            check_kinship(module, self.task.module, where)
            source = folder.params(name, module, jnp.float32)
            hosts.say(f"{self.name} starts from {where}")
        fresh = jax.eval_shape(self._fresh_params)
        frozen = flatten_dict(split(fresh, settings.trainable)[1], sep="/")
        if new := [path for path in new_paths(fresh, source or {}) if path in frozen]:
            raise InputError(
                f"train.{self.name}.trainable is {settings.trainable!r}, which would freeze "
                f"what init does not give, {new[0]} for one: take all, or another init"
            )
        start = functools.partial(self._start, where=where)
        target = shardings(jax.eval_shape(start, source))
        return jax.jit(start, out_shardings=target)(source)

    def _scaled(self, vae: VAE, params: Any) -> VAE:
        """The autoencoder with the factor that gives the validation clips' latents variance 1."""
        encode = jax.jit(functools.partial(vae.apply, method="encode"))
        moments = [
            encode({"params": params}, pixels(put_batch(_used(batch)))) for batch in self.validation
        ]
        variance = np.mean([jnp.var(mean) + jnp.exp(logvar).mean() for mean, logvar in moments])
        fields = dataclasses.asdict(vae.config) | {
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


def _used(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch the devices need."""
    return {name: batch[name] for name in ("video", "text") if name in batch}


def _check_size(task: Task) -> None:
    """Raises InputError for clips that the network cannot halve."""
    module, spec = task.module, task.spec
    if isinstance(task.part, Stage):
        multiple = task.part.size_multiple(module)
    else:
        multiple = module.config.downscale  # type: ignore[union-attr]
    if spec.height % multiple or spec.width % multiple:
        raise InputError(
            f"{task.part.name} is trained on {spec.width}x{spec.height}, but needs a width and "
            f"height that are multiples of {multiple}"
        )
