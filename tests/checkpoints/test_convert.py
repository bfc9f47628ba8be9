"""Converting on the tiny release: there and back, and what it refuses."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from show1_jax.checkpoints.network_config import clip_json, vae_json
from show1_jax.checkpoints.networks import abstract_params
from show1_jax.checkpoints.store import load_params, save_params
from show1_jax.cli.convert import main
from show1_jax.convert import load_diffusers
from show1_jax.models.clip import CLIPText, CLIPTextConfig
from show1_jax.models.vae import VAE, VAEConfig
from tests.checkpoints.weights import (
    CLASSES,
    pipeline,
    read_file,
    read_tensors,
    same_params,
    same_tensor,
    write_sharded,
    write_tensors,
)
from tests.conftest import RELEASE

CLIP = "show-1-sr2/text_encoder"
# To show-1-base's, which is converted before them.
EQUAL_ENCODERS = {"show-1-interpolation/text_encoder", "show-1-sr1/text_encoder"}
WEIGHTS = {".bin", ".safetensors"}


def files(folder: Path) -> set[str]:
    """Every file below a folder, by its path in it."""
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


def release_files() -> set[str]:
    return {name for name in files(RELEASE) if "/" in name}


def convert(src: Path, dst: Path, *options: str) -> None:
    assert main([str(src), str(dst), *options]) == 0


# --- the whole release --------------------------------------------------------


@pytest.fixture(scope="module")
def restored(converted_release, tmp_path_factory) -> Path:
    """The converted release converted back."""
    folder = tmp_path_factory.mktemp("restored") / "release"
    convert(converted_release, folder, "--to-torch")
    return folder


def test_the_release_has_the_same_files_in_our_layout(converted_release):
    ours = {
        name
        for name in files(converted_release)
        if "/params/" not in name and not name.endswith(("/torch_files.json", "/params.json"))
    }
    weights = {name for name in release_files() if Path(name).suffix in WEIGHTS}
    indices = {name for name in release_files() if ".index." in name}
    assert ours == release_files() - weights - indices
    for name in ours:
        assert (converted_release / name).read_bytes() == (RELEASE / name).read_bytes(), name
    for folder in {Path(name).parent for name in weights}:
        equal = folder.as_posix() in EQUAL_ENCODERS
        assert (converted_release / folder / "params").is_dir() != equal
        assert (converted_release / folder / "params.json").is_file() == equal
        assert (converted_release / folder / "torch_files.json").is_file()


@pytest.mark.parametrize("name", ["show-1-base/text_encoder", "show-1-sr2/vae"])
def test_stored_dtypes_are_kept(name, converted_release):
    for path, value in flatten_dict(load_params(converted_release / name / "params")).items():
        single = path[-2:] == ("ff_out", "kernel")
        assert value.dtype == (np.float32 if single else np.float16), path


def test_what_comes_back_is_the_release(restored):
    assert files(restored) == release_files()
    for name in release_files():
        ours, theirs = restored / name, RELEASE / name
        if ".index." in name:
            ours, theirs = (json.loads(file.read_text()) for file in (ours, theirs))
            assert list(ours["weight_map"].items()) == list(theirs["weight_map"].items())
            assert ours["metadata"] == theirs["metadata"]
        elif ours.suffix not in WEIGHTS:
            assert ours.read_bytes() == theirs.read_bytes(), name


def test_every_tensor_comes_back_bit_for_bit(restored):
    for folder in sorted({(RELEASE / name).parent for name in release_files()}):
        theirs = read_tensors(folder)
        ours = read_tensors(restored / folder.relative_to(RELEASE))
        assert ours.keys() == theirs.keys()
        for key, expected in theirs.items():
            assert same_tensor(ours[key], expected), (folder, key)


def test_tied_tensors_come_back_as_one(restored):
    file = "show-1-base/text_encoder/pytorch_model-00001-of-00002.bin"
    state = torch.load(restored / file, weights_only=True)
    assert state["shared.weight"].data_ptr() == state["encoder.embed_tokens.weight"].data_ptr()


# --- one small network --------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_dtypes_are_cast(dtype, tmp_path, capsys):
    source = pipeline(tmp_path / "src", CLIP)
    convert(tmp_path / "src", tmp_path / "dst", "--dtype", dtype, "--verify")
    assert capsys.readouterr().out == "src/text_encoder: 58,176 parameters, verified\n"
    expected = {"fp32": np.float32, "bf16": jnp.bfloat16, "fp16": np.float16}[dtype]
    _, stored = load_diffusers(source)
    made = flatten_dict(load_params(tmp_path / "dst/text_encoder/params"))
    for path, value in flatten_dict(stored).items():
        assert made[path].dtype == expected
        np.testing.assert_array_equal(made[path], value.astype(expected))
    # And on the way back.
    convert(tmp_path / "dst", tmp_path / "back", "--to-torch", "--dtype", "fp32")
    back = read_tensors(tmp_path / "back/text_encoder")
    key = "text_model.final_layer_norm.weight"
    assert back[key].dtype == torch.float32
    assert back["text_model.embeddings.position_ids"].dtype == torch.int64


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_come_back_as_they_were(kind, tmp_path):
    tensors = read_tensors(RELEASE / CLIP)
    source = pipeline(tmp_path / "src", CLIP)
    (source / "pytorch_model.bin").unlink()
    write_sharded(source, "model", kind, tensors, ".fp16")
    convert(tmp_path / "src", tmp_path / "dst", "--verify")
    convert(tmp_path / "dst", tmp_path / "back", "--to-torch", "--verify")
    assert files(tmp_path / "back") == files(tmp_path / "src")
    index = f"text_encoder/model.{kind}.index.fp16.json"
    theirs, ours = (json.loads((tmp_path / d / index).read_text()) for d in ("src", "back"))
    assert list(ours["weight_map"].items()) == list(theirs["weight_map"].items())
    assert ours["metadata"]["total_size"] == sum(v.nbytes for v in tensors.values())
    for shard in (1, 2):
        name = f"model.fp16-0000{shard}-of-00002.{kind}"
        back = read_file(tmp_path / "back/text_encoder" / name)
        assert set(back) == {key for key, file in ours["weight_map"].items() if file == name}
        assert all(same_tensor(value, tensors[key]) for key, value in back.items())


def test_old_attention_spelling_is_the_same_network_and_comes_back(tmp_path):
    tensors = read_tensors(RELEASE / "show-1-sr2/vae")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in tensors.items():
        if "attentions" in key:
            for new, name in names.items():
                key = key.replace(f".{new}.", f".{name}.")
        old[key] = value
    assert sum("proj_attn" in key for key in old) == 4
    source = pipeline(tmp_path / "src", "show-1-sr2/vae", old)
    _, params = load_diffusers(source)
    _, expected = load_diffusers(RELEASE / "show-1-sr2/vae")
    assert same_params(flatten_dict(params), flatten_dict(expected))
    convert(tmp_path / "src", tmp_path / "dst", "--verify")
    convert(tmp_path / "dst", tmp_path / "back", "--to-torch", "--verify")
    back = read_tensors(tmp_path / "back/vae")
    assert list(back) == list(old)
    assert all(same_tensor(back[key], value) for key, value in old.items())


def trained(folder: Path, part: str, module, config: dict) -> dict:
    """A checkpoint of our own, that never was PyTorch; returns its parameters."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda v: jnp.asarray(rng.standard_normal(v.shape, np.float32)), abstract_params(module)
    )
    (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({part: CLASSES[part]}))
    (folder / part / "config.json").write_text(json.dumps(config))
    save_params(folder / part / "params", params)
    return params


@pytest.mark.parametrize(
    ("part", "module", "write", "file"),
    [
        (
            "text_encoder",
            CLIPText(CLIPTextConfig(40, 16, 32, 2, 2, 9)),
            clip_json,
            "model.safetensors",
        ),
        (
            "vae",
            VAE(VAEConfig(channels=(8, 16), layers_per_block=1, norm_groups=4)),
            vae_json,
            "diffusion_pytorch_model.safetensors",
        ),
    ],
)
def test_a_network_trained_here_goes_out_and_comes_back(part, module, write, file, tmp_path):
    params = trained(tmp_path / "ours", part, module, write(module.config))
    convert(tmp_path / "ours", tmp_path / "torch", "--to-torch", "--verify")
    assert files(tmp_path / "torch") == {
        "model_index.json",
        f"{part}/config.json",
        f"{part}/{file}",
    }
    loaded, exported = load_diffusers(tmp_path / "torch" / part)
    assert loaded == module
    assert same_params(flatten_dict(exported), flatten_dict(params))
    convert(tmp_path / "torch", tmp_path / "again", "--verify")
    again = load_params(tmp_path / "again" / part / "params")
    assert same_params(flatten_dict(again), flatten_dict(params))


def test_a_single_pipeline_and_a_folder_of_them_convert_alike(tmp_path):
    pipeline(tmp_path / "many/one", CLIP)
    # Neither a pipeline nor part of one.
    (tmp_path / "many/notes").mkdir()
    (tmp_path / "many/notes/read.me").touch()
    convert(tmp_path / "many", tmp_path / "all")
    convert(tmp_path / "many/one", tmp_path / "single")
    for name in ("model_index.json", "text_encoder/config.json", "text_encoder/torch_files.json"):
        alike = (tmp_path / "single" / name, tmp_path / "all/one" / name)
        assert alike[0].read_bytes() == alike[1].read_bytes()
    assert [f.name for f in (tmp_path / "all").iterdir()] == ["one"]
    single = load_params(tmp_path / "single/text_encoder/params")
    together = load_params(tmp_path / "all/one/text_encoder/params")
    assert same_params(flatten_dict(single), flatten_dict(together))


def test_other_formats_of_weights_are_left_out(tmp_path):
    source = pipeline(tmp_path / "src", CLIP)
    for name in ("model.fp16.safetensors", "tf_model.h5", "flax_model.msgpack", "model.onnx"):
        (source / name).touch()
    (source / "model.safetensors.index.fp16.json").write_text("{}")
    (source / "notes.txt").write_text("kept")
    convert(tmp_path / "src", tmp_path / "dst")
    assert {f.name for f in (tmp_path / "dst/text_encoder").iterdir()} == {
        "config.json",
        "notes.txt",
        "params",
        "torch_files.json",
    }


def test_missing_parents_of_the_new_folder_are_made(tmp_path):
    pipeline(tmp_path / "src", CLIP)
    convert(tmp_path / "src", tmp_path / "a/b/dst")
    assert (tmp_path / "a/b/dst/text_encoder/params").is_dir()


# --- what is refused ----------------------------------------------------------


def refusal(src: Path, dst: Path, *options: str) -> str:
    """The one line of a conversion that must fail and leave nothing behind."""
    root = src.parent
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file()}
    folders = {folder for folder in root.rglob("*") if folder.is_dir()}
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main([str(src), str(dst), *options]) == 1
    *waiting, line = said.getvalue().splitlines()
    # Where it takes long, other lines say that it is being checked.
    assert all(each.startswith("checking ") for each in waiting)
    assert line.startswith("error: ")
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file()} == before
    assert {folder for folder in root.rglob("*") if folder.is_dir()} == folders
    return line


@pytest.fixture
def src(tmp_path):
    """A good pipeline, to be spoilt."""
    pipeline(tmp_path / "src", CLIP)
    return tmp_path / "src"


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_command_prints_one_line_and_fails(src, tmp_path):
    file = src / "text_encoder/pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:20_000])
    done = subprocess.run(
        [sys.executable, "-m", "show1_jax.convert", str(src), str(tmp_path / "dst")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stdout == ""
    # Where importing PyTorch takes long, other lines say that it is being checked.
    *waiting, line = done.stderr.splitlines()
    assert all(each.startswith("checking ") for each in waiting)
    assert line.startswith(f"error: {file} is truncated")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_no_model_index(src, tmp_path):
    (src / "model_index.json").unlink()
    line = refusal(src, tmp_path / "dst")
    assert "nor a folder in it has a model_index.json; give a released folder" in line
    assert "is not a folder" in refusal(src / "text_encoder/config.json", tmp_path / "dst")
    assert "is not a folder" in refusal(tmp_path / "nowhere", tmp_path / "dst")


def test_one_of_several_folders_without_model_index(tmp_path):
    for name in ("a", "b"):
        pipeline(tmp_path / "many" / name, CLIP)
    (tmp_path / "many/b/model_index.json").unlink()
    line = refusal(tmp_path / "many", tmp_path / "dst")
    assert f"{tmp_path / 'many/b'} has networks but no model_index.json" in line


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "model_index.json cannot be read as JSON"),
        ("[]", "model_index.json is not a JSON object"),
        ('{"unet": ["diffusers", "VQModel"]}', "unet is of the unknown class VQModel"),
        ('{"vae": ["diffusers", "AutoencoderKL"]}', "vae is missing, but model_index.json"),
        ('{"text_encoder": []}', "model_index.json: text_encoder is"),
        ('{"text_encoder": ["transformers"]}', "model_index.json: text_encoder is"),
        ('{"text_encoder": ["transformers", ["CLIPTextModel"]]}', "text_encoder is"),
    ],
)
def test_model_index_that_makes_no_sense(src, tmp_path, index, message):
    (src / "model_index.json").write_text(index)
    assert message in refusal(src, tmp_path / "dst")


def test_config_that_makes_no_sense(src, tmp_path):
    file = src / "text_encoder/config.json"
    good = file.read_text()
    file.write_text(good[:-20])
    assert f"{file} cannot be read as JSON" in refusal(src, tmp_path / "dst")
    file.write_bytes(b"\xff\xfe\x00")
    assert f"{file} cannot be read as JSON" in refusal(src, tmp_path / "dst")
    file.write_text(good)
    edit(file, model_type="bert")
    assert f"{file}: 'bert' is not one of UNet3DConditionModel" in refusal(src, tmp_path / "dst")
    file.unlink()
    assert f"{file} does not exist" in refusal(src, tmp_path / "dst")


def test_unknown_key_of_a_denoiser(tmp_path):
    network = pipeline(tmp_path / "src", "show-1-interpolation/unet")
    edit(network / "config.json", novelty=1)
    line = refusal(tmp_path / "src", tmp_path / "dst")
    assert f"{network / 'config.json'}: unknown configuration key(s) novelty" in line


def test_tensors_that_do_not_fit(src, tmp_path):
    tensors = read_tensors(src / "text_encoder")
    bias, scale = (f"text_model.final_layer_norm.{name}" for name in ("bias", "weight"))
    tensors["novelty"] = tensors.pop(bias)
    tensors[scale] = tensors[scale][:5].clone()
    write_tensors(src / "text_encoder/pytorch_model.bin", tensors)
    line = refusal(src, tmp_path / "dst")
    assert f"missing: {bias}; unexpected: novelty; misshapen: {scale} (5,) instead of (32,)" in line


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_shards(kind, damage, src, tmp_path):
    tensors = read_tensors(src / "text_encoder")
    (src / "text_encoder/pytorch_model.bin").unlink()
    write_sharded(src / "text_encoder", "model", kind, tensors)
    file = src / f"text_encoder/model-00002-of-00002.{kind}"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-5_000])
    else:
        file.unlink()
    line = refusal(src, tmp_path / "dst")
    assert str(file) in line
    assert damage in line


def test_overflow_of_fp16(src, tmp_path):
    tensors = {
        k: v.float() if v.is_floating_point() else v
        for k, v in read_tensors(src / "text_encoder").items()
    }
    key = "text_model.final_layer_norm.bias"
    tensors[key][3] = 1e6
    write_tensors(src / "text_encoder/pytorch_model.bin", tensors)
    line = refusal(src, tmp_path / "dst", "--dtype", "fp16")
    assert f"{key} has values that are too large for float16; use bf16 or fp32" in line
    convert(src, tmp_path / "dst")
    line = refusal(tmp_path / "dst", tmp_path / "back", "--to-torch", "--dtype", "fp16")
    assert "final_norm/bias has values that are too large for float16" in line


def test_the_new_folder_exists(src, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst/precious").touch()
    assert f"{tmp_path / 'dst'} exists already; give a new folder" in refusal(src, tmp_path / "dst")
    assert f"{src} exists already" in refusal(src, src)


def test_the_new_folder_cannot_be_made(src, tmp_path):
    (tmp_path / "file").touch()
    for dst in (tmp_path / "file/dst", tmp_path / "file/a/dst"):
        assert f"{dst} cannot be written" in refusal(src, dst)


def test_the_wrong_direction(src, tmp_path):
    line = refusal(src, tmp_path / "dst", "--to-torch")
    assert "text_encoder has no Orbax checkpoint params/; it may be PyTorch already" in line
    convert(src, tmp_path / "dst")
    line = refusal(tmp_path / "dst", tmp_path / "again")
    assert "text_encoder has a params/: it is converted already" in line


def test_verification_of_another_precision_is_refused_at_once(src, tmp_path):
    convert(src, tmp_path / "dst")
    line = refusal(tmp_path / "dst", tmp_path / "back", "--to-torch", "--dtype", "fp32", "--verify")
    assert "--verify compares stored precisions; remove --dtype" in line


def test_without_torch_the_extra_is_named(src, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    line = refusal(src, tmp_path / "dst")
    assert "pip install 'show1-jax[convert]', or use a .safetensors file" in line


# --- damaged checkpoints of our own -------------------------------------------


@pytest.fixture
def ours(src, tmp_path):
    convert(src, tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
@pytest.mark.parametrize("origin", [True, False])
def test_parameters_that_do_not_fit(change, origin, ours, tmp_path):
    folder = ours / "text_encoder"
    params = load_params(folder / "params")
    if change == "missing":
        del params["final_norm"]["bias"]
    elif change == "unexpected":
        params["final_norm"]["novelty"] = jnp.zeros(3)
    else:
        params["final_norm"]["bias"] = jnp.zeros(3)
    shutil.rmtree(folder / "params")
    save_params(folder / "params", params)
    if not origin:
        (folder / "torch_files.json").unlink()
    line = refusal(ours, tmp_path / "dst", "--to-torch")
    assert "is of another network: 1 parameters differ" in line
    assert "final_norm/" in line


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"index": null, "files": [], "buffers": {}}',
     '{"index": null, "files": {}, "buffers": {}}',
     '{"index": null, "files": {"text_model.final_layer_norm.bias": "model.bin"}, "buffers": {}}',
     '{"index": null, "files": 3, "buffers": {}}',
     '{"index": null, "files": {"text_model.final_layer_norm.bias": 3}, "buffers": 3}',
     '{"index": null, "files": {"text_model.novelty": "model.bin"}, "buffers": {}}'],
)  # fmt: skip
def test_a_damaged_list_of_torch_files(content, ours, tmp_path):
    (ours / "text_encoder/torch_files.json").write_text(content)
    assert "torch_files.json" in refusal(ours, tmp_path / "dst", "--to-torch")


@pytest.mark.parametrize(
    "name",
    ["../evil.bin", "OUTSIDE/evil.bin", "a/b.bin", "..", "config.json", ".bin", "evil.sh",
     "a\\b.bin", "", 3, None],
)  # fmt: skip
@pytest.mark.parametrize("place", ["file", "index"])
def test_torch_files_are_written_beside_their_config(name, place, ours, tmp_path):
    (tmp_path / "outside").mkdir()
    name = name.replace("OUTSIDE", str(tmp_path / "outside")) if isinstance(name, str) else name
    file = ours / "text_encoder/torch_files.json"
    origin = json.loads(file.read_text())
    if place == "file":
        origin["files"] |= {next(iter(origin["files"])): name}
    elif name is None:
        return  # no index
    else:
        origin["index"] = name.replace(".bin", ".json") if isinstance(name, str) else name
    file.write_text(json.dumps(origin))
    assert f"{file} has the file name " in refusal(ours, tmp_path / "dst", "--to-torch")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("shape", [[2**40], [-1], [], [2.5], 77, [True]])
def test_a_buffer_of_no_possible_shape(shape, ours, tmp_path):
    file = ours / "text_encoder/torch_files.json"
    origin = json.loads(file.read_text())
    assert origin["buffers"]
    origin["buffers"] = dict.fromkeys(origin["buffers"], shape)
    file.write_text(json.dumps(origin))
    line = refusal(ours, tmp_path / "dst", "--to-torch")
    assert "torch_files.json does not list this network's tensors" in line


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", "..", ""])
def test_parts_are_folders_of_their_pipeline(name, src, tmp_path):
    name = name.replace("/outside", str(tmp_path / "outside")) if name[:1] == "/" else name
    shutil.copytree(src / "text_encoder", tmp_path / "outside")
    (src / "a" / "b").mkdir(parents=True)
    edit(src / "model_index.json", **{name: CLASSES["text_encoder"]})
    line = refusal(src, tmp_path / "dst")
    assert f"a part has the name {name!r}, but names must consist of" in line


def test_links_out_of_a_checkpoint_are_not_followed(src, tmp_path):
    (tmp_path / "private").write_text("secret")
    (src / "text_encoder/notes.txt").symlink_to("../../private")
    line = refusal(src, tmp_path / "dst")
    assert (
        f"notes.txt is a link to {tmp_path / 'private'}, outside of the checkpoint; replace it"
        in line
    )
    # Nor those of folders.
    (src / "text_encoder/notes.txt").unlink()
    shutil.move(src / "text_encoder", tmp_path / "elsewhere")
    (src / "text_encoder").symlink_to(tmp_path / "elsewhere")
    assert "outside of the checkpoint; replace it with a copy" in refusal(src, tmp_path / "dst")


def test_links_within_a_checkpoint_and_into_the_hubs_cache_are_followed(src, tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "0123"
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir(parents=True)
    for file in [path for path in src.rglob("*") if path.is_file()]:
        link = snapshot / file.relative_to(src)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, blobs / file.name)
        link.symlink_to(blobs / file.name)
    (snapshot / "text_encoder/notes.txt").symlink_to("../model_index.json")
    convert(snapshot, tmp_path / "dst")
    assert not any(path.is_symlink() for path in (tmp_path / "dst").rglob("*"))
    assert (tmp_path / "dst/text_encoder/notes.txt").is_file()


def test_a_damaged_orbax_checkpoint(ours, tmp_path):
    (ours / "text_encoder/params/_METADATA").write_text("{")
    line = refusal(ours, tmp_path / "dst", "--to-torch")
    assert "text_encoder/params cannot be restored: " in line


def test_tied_tensors_in_different_shards_go_back(tmp_path):
    tensors = read_tensors(RELEASE / "show-1-base" / "text_encoder")
    embedding = "encoder.embed_tokens.weight"
    # The tie's second name goes to the second shard.
    tensors[embedding] = tensors.pop(embedding)
    folder = tmp_path / "src" / "text_encoder"
    folder.mkdir(parents=True)
    shutil.copy(RELEASE / "show-1-base" / "text_encoder" / "config.json", folder)
    index = {"_class_name": "x", "text_encoder": ["transformers", "T5EncoderModel"]}
    (tmp_path / "src" / "model_index.json").write_text(json.dumps(index))
    write_sharded(folder, "pytorch_model", "bin", tensors)
    convert(tmp_path / "src", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "--to-torch", "--verify")
    back = read_tensors(tmp_path / "back" / "text_encoder")
    assert back.keys() == tensors.keys()
    assert all(same_tensor(back[key], tensor) for key, tensor in tensors.items())
