"""The released Show-1 cascade, every number of it.

    python -m show1_jax.convert RELEASED_FOLDERS checkpoints/show1
    python sample.py --config configs/show1.py --checkpoint checkpoints/show1 \
        --prompt "a panda besides the waterfall is holding a sign that says show 1"

    python train.py --config configs/show1.py:keyframes --workdir runs/show1 \
        --config.checkpoint=checkpoints/show1 --config.train.keyframes.init=keyframes

Expect 8 keyframes of 64x40, 29 frames of them, 256x160 and 576x320, at 7.5
frames a second. The paper reports 178 s and 15 GB on an A100 in PyTorch (table
5); this implementation has not been run with the released weights.

When sampling, a checkpoint's own `config.json` files decide what its networks
are; where they differ from this file, that is said. Settings marked
RECONSTRUCTED are not published and follow from the released code and weights.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

COSINE = {"kind": "cosine"}


def pixel_unet(**changes: Any) -> dict[str, Any]:
    """The denoiser of the keyframes, with changes."""
    return {
        "in_channels": 3,
        "out_channels": 6,  # the noise and its learned variance
        "channels": (320, 640, 960, 1280),
        "layers": (3, 3, 3, 3),
        "attention": (False, True, True, True),
        "attention_head_dim": (64, 64, 64, 64),
        "spatial_heads": "width",
        "temporal_heads": "number",
        "space": "pixel",
        "text_dim": 4096,
        "text_projection_dim": 1280,
        "text_pooling_heads": 64,
        "time_embed_dim": 1280,
        "activation": "gelu",
        "scale_shift": True,
    } | changes


def super_resolution_unet(**changes: Any) -> dict[str, Any]:
    """What the two pixel upscalers share: they are told the noise level of their condition."""
    return (
        pixel_unet(
            in_channels=6,  # the noisy frames and the upsampled ones
            attention=(False, False, False, True, True),
            attention_head_dim=(64, 64, 64, 64, 64),
            noise_level=True,
            time_embedding_activation="gelu",
            skip_time_activation=True,
            output_scale=1.4142271248762552,
            mid_output_scale=1.4142271248762552,
        )
        | changes
    )


def pixel_solver(threshold_max: float, **changes: Any) -> dict[str, Any]:
    """DPM-Solver++ 2M with cosine betas and dynamic thresholding."""
    return {
        "kind": "dpm_solver",
        "schedule": COSINE,
        "spacing": "linspace",
        "threshold": 0.95,
        "threshold_max": threshold_max,
    } | changes


def training(**changes: Any) -> dict[str, Any]:
    """How a part is trained, with changes. Nobody has published what Show-1 was trained with."""
    return {
        # moving_shapes, a folder of shards (.tar) or of clips, or names of shards; several, each
        # perhaps PATH=WEIGHT, are mixed.
        "dataset": ("moving_shapes",),
        "clips": 20_000,  # of moving_shapes
        # Of other datasets, ranges of metadata: {"duration": (2.0, 60.0), "width": (320, None)}.
        "filters": {},
        "clip_seconds": 0.0,  # each stretch of a file of so many seconds is a clip; 0 for one
        "data_dir": "~/tensorflow_datasets",
        "init": "",  # a part, or a folder with config.json and params/; "" for random parameters
        "trainable": "all",  # or temporal, temporal_attention, temporal_attention_qkv
        "steps": 100_000,
        # On fewer chips than clips raise accumulate: parts of a batch, one after the other.
        "batch_size": 256,
        "accumulate": 1,
        "learning_rate": 1e-4,
        "warmup_steps": 1000,
        "weight_decay": 0.01,
        "b2": 0.99,
        "clip_norm": 1.0,
        "ema_decay": 0.9999,
        "dtype": "auto",  # what networks compute in, as below; parameters are fp32
        "seed": 0,
        "threads": 8,
        "workers": 0,  # processes that make batches; 0 for threads alone
        "log_every": 100,
        "validate_every": 1000,
        "validation_batches": 8,
        "validation_batch_size": 16,
        "sample_every": 5000,
        "save_every": 1000,
        "keep": 2,  # checkpoints
    } | changes


def denoising(**changes: Any) -> dict[str, Any]:
    """What the denoisers' trainings have besides."""
    return (
        training(
            remat="nothing_saveable",  # what a layer keeps for the backward pass; "" for all
            dropout=True,
            caption_dropout=0.1,
            # step: each step encodes its captions; cache: all are encoded before, on disk; auto:
            # cache if they take 8 GiB at most, which is 13,600 captions for T5-XXL.
            text="auto",
            objective=objective(variance_weight=0.001),
        )
        | changes
    )


def objective(**changes: Any) -> dict[str, Any]:
    """The squared error of the prediction, with changes; see `diffusion/losses.py`."""
    return {
        "timesteps": (0, 1000),
        "shift": 1.0,  # more than 1 for more of the noisy timesteps
        "min_snr": config_dict.placeholder(float),  # 5.0 is usual
        "variance_weight": 0.0,
        "motion": "",  # "vmc" or "deviation": of what differs between frames alone
    } | changes


def get_config(stage: str = "") -> ConfigDict:
    """The whole cascade; `stage` is the part to train, "" for all in order."""
    return ConfigDict(
        {
            "stage": stage,
            "checkpoint": "",
            # What networks compute in: float32, bfloat16, float16 (sampling on GPUs; T5 takes
            # bfloat16 then), or auto: float16 on GPUs, bfloat16 on TPUs and for training, and
            # float32 on CPUs, which take twice as long and more memory in bfloat16.
            "dtype": "auto",
            # low: sampling takes as little of a device's memory as it can, and longer; normal; or
            # auto, which is low on devices with less than 6 GiB. Not of the samples of training.
            "memory": "auto",
            # Prompts that the page offers.
            "examples": (
                "a panda taking a selfie",
                "a burning lamborghini driving on rainbow",
                "a blue tiger in the grass in the sunset, surrounded by butterflies",
            ),
            "batch_size": 1,  # prompts sampled together; rounded up to what the mesh divides
            # Devices along each axis; see parallel/mesh.py. One -1 stands for all that are left, of
            # several, training chooses by what it trains (parallel/layout.py), and sampling takes
            # the first. `slices` are groups of devices that a slower network joins, which `data`
            # is split over; -1 for as many as the devices tell of.
            "mesh": {"slices": -1, "data": -1, "fsdp": -1, "frames": -1, "tensor": 1},
            "text": {
                "t5": {
                    "vocab_size": 32128,
                    "d_model": 4096,
                    "d_kv": 64,
                    "d_ff": 10240,
                    "num_layers": 24,
                    "num_heads": 64,
                },
                "clip": {
                    "vocab_size": 49408,
                    "width": 1024,
                    "ff_width": 4096,
                    "num_layers": 23,
                    "num_heads": 16,
                },
                "t5_tokens": 77,  # of each prompt; the rest of a longer one is cut
                # DeepFloyd's caption cleaner; the published script only lower-cases.
                "clean_captions": False,
                # Whether training makes random text encoders, which know the words of the dataset's
                # captions, instead of those of `checkpoint`. One part alone takes those it finds.
                "random": False,
            },
            "from_noise": "",  # of a stage to start from, a file that `sample.py --invert` made
            "keyframes": {
                "unet": pixel_unet(),
                "solver": pixel_solver(1.5, lambda_min_clipped=-5.1),
                "frames": 8,
                "height": 40,
                "width": 64,
                "fps": 2.0,
                "steps": 75,
                "guidance": 9.0,
                # The published script leaves the dropout of the temporal
                # convolutions on while sampling. Not meant, so off here.
                "dropout": False,
                "adapters": (),  # FILE or FILE=WEIGHT; what `train.py` makes of a clip
            },
            "interpolation": {
                "unet": pixel_unet(in_channels=7),  # RECONSTRUCTED but for the channels
                "solver": pixel_solver(1.5, lambda_min_clipped=-5.1),  # RECONSTRUCTED
                "frames_per_gap": 5,  # both keyframes included: 8 become 29
                "fps": 7.5,
                "steps": 75,
                "guidance": 4.0,
            },
            "first_frame": {
                "unet": super_resolution_unet(
                    temporal=False,
                    temporal_heads="width",
                    channels=(160, 320, 640, 960, 1280),
                    layers=(2, 2, 3, 5, 5),
                ),
                "solver": {
                    "kind": "ddpm",
                    "schedule": COSINE,
                    "variance": "learned_range",
                    "threshold": 0.95,
                    "threshold_max": 1.0,
                },
                "noise_schedule": COSINE,
                "noise_level": 150,
                "steps": 70,
                "guidance": 4.0,
            },
            "super_resolution": {
                "unet": super_resolution_unet(
                    channels=(128, 256, 512, 768, 768),
                    layers=(2, 2, 3, 4, 2),
                    text_projection_dim=768,
                    time_embed_dim=768,
                ),
                "solver": pixel_solver(1.0),  # RECONSTRUCTED
                "noise_schedule": COSINE,
                "height": 160,
                "width": 256,
                "window": 8,  # frames at a time; the last of one is the first of the next
                "noise_level": 250,
                "fps": 7.5,
                "steps": 125,
                "guidance": 7.0,
            },
            "translation": {
                "unet": {
                    "in_channels": 4,
                    "out_channels": 4,
                    "channels": (320, 640, 1280, 1280),
                    "layers": (2, 2, 2, 2),
                    "attention": (True, True, True, False),
                    # RECONSTRUCTED: 5 to 20 heads of width 64, as Show-1's class reads it.
                    "attention_head_dim": (5, 10, 20, 20),
                    "spatial_heads": "number",
                    "temporal_heads": "number",
                    "space": "latent",
                    "input_transformer_head_dim": 64,
                    "text_dim": 1024,
                    "time_embed_dim": 1280,
                },
                # How sampling reads a checkpoint's attention_head_dim: "released" is as the
                # class does that the checkpoint names; "number" and "width" insist.
                "head_reading": "released",
                "vae": {
                    "channels": (128, 256, 512, 512),
                    "layers_per_block": 2,
                    "latent_channels": 4,
                    "scaling_factor": 0.18215,
                },
                "solver": {
                    "kind": "dpm_solver",
                    "schedule": {
                        "kind": "scaled_linear",
                        "beta_start": 0.00085,
                        "beta_end": 0.012,
                    },
                    "spacing": "linspace",
                    "steps_offset": 1,
                },
                "height": 320,
                "width": 576,
                "strength": 0.8,  # of 50 steps the last 40 are executed
                "negative_prompt": "low resolution, blur",
                "vae_frames": 1,  # frames encoded or decoded at a time
                "fps": 7.5,
                "steps": 50,
                "guidance": 15.0,
            },
            "train": {
                "vae": training(
                    height=320,
                    width=576,
                    kl_weight=1e-6,
                    gradient_weight=1.0,
                    squared_weight=4.0,
                ),
                "image": denoising(batch_size=512, dropout=False),
                "keyframes": denoising(init="image"),
                "interpolation": denoising(init="keyframes", max_noise_level=200),
                # Upscalers learn every noise level that they may be told of.
                "first_frame": denoising(max_noise_level=1000),
                "super_resolution": denoising(max_noise_level=1000),
                # The expert of timesteps 0 to 900.
                "translation": denoising(frames=8, objective=objective(timesteps=(0, 900))),
            },
        }
    )
