"""Damages of config files, and what is given on the command line."""

from pathlib import Path

from tests.damage.wreck import DEEP, Damage, Random

# What stands in the function between the good config and its return.
STATEMENTS = (
    "config.keyframes.frames = 'many'",
    "config.keyframes.frames = 2.5",
    "config.keyframes = None",
    "config.keyframes = {}",
    "config.keyframes = 5",
    "del config.keyframes",
    "del config.train",
    "del config.text",
    "del config.mesh",
    "del config.stage",
    "del config.keyframes.steps",
    "del config.train.vae.batch_size",
    "config.translation = []",
    "config.mesh = {'data': 'all'}",
    "config.mesh = {'data': 0.5}",
    "config.mesh = {'rows': 2}",
    "config.mesh = [1, 2]",
    "config.text.t5_tokens = 10**12",
    "config.text.t5_tokens = -1",
    "config.batch_size = -1",
    "config.dtype = 5",
    "config.dtype = None",
    "config.checkpoint = 5",
    "config.stage = 'sound'",
    "config.stage = 5",
    "config.train.vae.learning_rate = float('inf')",
    "config.train.vae.learning_rate = float('nan')",
    "config.train.vae.steps = float('inf')",
    "config.train.vae.steps = None",
    "config.train.vae.batch_size = 'two'",
    "config.train.vae.batch_size = 10**15",
    "config.train.vae.seed = -1",
    "config.train.vae.seed = 2**70",
    "config.train.vae.threads = 'a'",
    "config.train.vae.dataset = 5",
    "config.train.vae.dataset = ''",
    "config.train.vae.dataset = 'a\\0b'",
    "config.train.vae.init = 5",
    "config.train.vae.trainable = None",
    "config.train.vae.b2 = float('nan')",
    "config.train.vae.keep = 'a'",
    "config.train.vae = {}",
    "config.train = {}",
    "config.keyframes.steps = 10**12",
    "config.keyframes.steps = 'a'",
    "config.keyframes.guidance = 'a'",
    "config.keyframes.guidance = float('inf')",
    "config.keyframes.fps = float('nan')",
    "config.keyframes.fps = 'a'",
    "config.keyframes.height = 10**9",
    "config.keyframes.height = -8",
    "config.keyframes.adapters = 5",
    "config.keyframes.adapters = ('nothing',)",
    "config.keyframes.adapters = (5,)",
    "config.keyframes.unet = None",
    "config.keyframes.solver = 'ddim'",
    "config.translation.vae.channels = ()",
    "config.translation.vae.channels = ('a',)",
    "config.translation.vae.norm_groups = 0",
    "config.translation.vae.latent_channels = -1",
    "config.translation.vae.more = 5",
    "config.translation.vae.layers_per_block = 10**6",
    "config.from_noise = 5",
    "config.from_noise = 'a\\0b'",
    "raise ValueError",
    "raise ValueError('two\\nlines')",
    "raise KeyError('a')",
    "raise RuntimeError('no')",
    "raise ImportError('no')",
    "raise ZeroDivisionError",
    "raise AssertionError",
    "raise SystemExit(3)",
    "raise Exception",
    "raise UnicodeDecodeError('utf-8', b'a', 0, 1, 'no')",
    "import nothing_like_it",
    "from show1_jax.configs import nothing_like_it",
    "return get_config(part)",
    "return None",
    "return {'stage': part}",
    "return 5",
    "return type(config)()",
    "config = config.lock(); config.more = 5",
    "open('nothing.txt')",
    "'a' + 5",
    "config.keyframes['a.b'] = 5",
    "config[5] = 5",
    "config.more = object()",
    "config.more = lambda: 5",
    "config.train.vae.more = {1, 2}",
)

GOOD = """from show1_jax.configs import customize
from tests.damage import small


def get_config(part=""):
    config = small.get_config(part)
    with config.ignore_type():
        {}
    return config
"""


def _statement(text: str) -> Damage:
    return lambda path, rng: path.write_text(GOOD.replace("{}", text))


def _file(text: str | bytes) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return damage


CONFIGS: dict[str, Damage] = {text: _statement(text) for text in STATEMENTS} | {
    "no syntax": _file(GOOD.replace("{}", "(")),
    "no indentation": _file(GOOD.replace("{}", "\n x\n   y")),
    "tabs": _file(GOOD.replace("{}", "pass\n\tpass")),
    "NUL": _file(GOOD + "\0"),
    "latin": _file(GOOD.encode() + b"# \xe9\n"),
    "another coding": _file(b"# -*- coding: nothing -*-\n" + GOOD.encode()),
    "no function": _file("config = 5\n"),
    "no function but a class": _file("class get_config: pass\n"),
    "number as function": _file("get_config = 5\n"),
    "no argument": _file("def get_config():\n    return 5\n"),
    "arguments": _file("def get_config(a, b):\n    return 5\n"),
    "import of nothing": _file("import nothing_like_it\n"),
    "import of itself": _file("from small import *\n"),
    "error": _file("1 / 0\n"),
    "exit": _file("raise SystemExit\n"),
    "nested": _file("x = " + "(" * 500 + ")" * 500 + "\n"),
    "very nested": _file("x = " + "-" * DEEP + "1\n"),
    "generator": _file("def get_config(part=''):\n    yield 5\n"),
}

SAMPLING = (
    "--steps=0", "--steps=-1", "--steps=99999999999", "--steps=1001", "--steps=nan",
    "--steps=x=2", "--guidance=nan", "--guidance=inf", "--guidance=-1e308",
    "--guidance=keyframes=x", "--seeds=0-99999999999", "--seeds=a", "--seeds=", "--seeds=\u0663",
    "--stages=", "--stages=sound", "--stages=keyframes,keyframes", "--prompts=", "--prompts=/",
    "--prompt=", "--prompt=\udcff", "--prompt=" + "a " * 50_000, "--checkpoint=/dev/null",
    "--checkpoint=", "--checkpoint=/", "--checkpoint=\udcff", "--adapter==",
    "--adapter=/dev/null", "--adapter=/", "--adapter=x=inf", "--from-noise=/dev/null",
    "--from-noise=/", "--invert=/dev/null", "--invert=/", "--config=/dev/null", "--config=/",
    "--config=", "--config.keyframes.frames=0", "--config.keyframes.frames=99999999999",
    "--config.keyframes.fps=nan", "--config.keyframes.fps=inf",
    "--config.keyframes.height=99999999996", "--config.batch_size=99999999999",
    "--config.mesh.data=0", "--config.mesh.data=99999999999", "--config.text.t5_tokens=0",
    "--config.text.t5_tokens=99999999999", "--config.text.clean_captions=x",
    "--config.keyframes.adapters=5", "--config.keyframes.adapters=('a',)",
    "--config.keyframes.adapters=(1,)", "--config.keyframes={}", "--config.keyframes=",
    "--config.keyframes.unet.layers=()", "--config.dtype=float99", "--config.text=5",
    "--nothing", "x",
)  # fmt: skip
TRAINING = (
    "--config.train.vae.steps=0", "--config.train.vae.steps=99999999999999999999",
    "--config.train.vae.seed=-1", "--config.train.vae.seed=99999999999999999999",
    "--config.train.vae.learning_rate=nan", "--config.train.vae.learning_rate=1e300",
    "--config.train.vae.height=0", "--config.train.vae.height=-8", "--config.train.vae.height=7",
    "--config.train.vae.batch_size=99999999998",
    "--config.train.vae.validation_batch_size=99999999999", "--config.train.vae.dataset=",
    "--config.train.vae.dataset=/", "--config.train.vae.dataset=/dev/null",
    "--config.train.vae.data_dir=/dev/null", "--config.train.vae.init=/",
    "--config.train.vae.dtype=float99", "--config.train.vae.trainable=legs",
    "--config.train.vae.workers=-1", "--config.train.vae.keep=0",
    "--config.translation.vae.channels=()", "--config.translation.vae.channels=(0,)",
    "--config.translation.vae.channels=('a',)", "--config.translation.vae.norm_groups=3",
    "--config.translation.vae.latent_channels=0", "--config.translation.vae.layers_per_block=-1",
    "--config.translation.fps=0.0", "--config.translation.fps=nan", "--workdir=/dev/null/x",
    "--workdir=", "--curve", "--aot=x", "--json",
)  # fmt: skip
FLAGS = [("sample", flag) for flag in SAMPLING] + [("train", flag) for flag in TRAINING]
