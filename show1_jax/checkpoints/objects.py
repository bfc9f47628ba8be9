"""Orbax in buckets: importing this lets it write to `s3://` as to `gs://`, and give up in time.

Orbax knows the layout of checkpoints without renames, and TensorStore both kinds of buckets, but
Orbax takes `s3://` for a folder on a disk. TensorStore repeats requests of its own.

Hidden state: how many of them have been told.
"""

import os
from typing import Any

import tensorstore
from absl import logging
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

SCHEMES = ("gs://", "s3://")
RETRIES = 5
READ_SECONDS = "6"  # without a byte; with all retries that is less than a minute


def let_orbax_reach_buckets() -> None:
    """Lets Orbax write to S3 as to GCS, and lets TensorStore give up within a minute."""
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", READ_SECONDS)
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    patience = {"max_retries": RETRIES, "initial_delay": "500ms", "max_delay": "8s"}
    for context in (
        tensorstore_utils._BASE_TS_CONTEXT,
        tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT,
    ):
        context.update({f"{name}_request_retries": patience for name in ("gcs", "s3")})
    gcs = gcs_utils.get_kvstore_for_gcs

    def key_value_store(path: str) -> dict[str, Any]:
        if not path.startswith("s3://"):
            return gcs(path)
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return {"driver": "s3", "bucket": bucket, "path": key, **_s3_settings()}

    def normalized(path: str) -> str:
        scheme, separator, rest = path.partition("://")
        return f"{scheme}://{os.path.normpath(rest)}" if separator else os.path.normpath(path)

    gcs_utils._GCS_PATH_PREFIX = SCHEMES
    gcs_utils.get_kvstore_for_gcs = key_value_store
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(SCHEMES)
    tensorstore_utils._normalize_path = normalized


def _s3_settings() -> dict[str, Any]:
    """What s3fs takes from the environment, for TensorStore."""
    settings: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        settings["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        settings["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:
        settings["aws_credentials"] = {"type": "environment"}
    return settings


_told = 0


def tell_retries() -> None:
    """Logs it if TensorStore has repeated requests since the last call."""
    global _told
    total = 0
    for name in ("gcs", "s3"):
        found = tensorstore.experimental_collect_matching_metrics(
            f"/tensorstore/kvstore/{name}/retries"
        )
        total += sum(value["value"] for each in found for value in each["values"])
    if total > _told:
        logging.warning(
            "arrays: a bucket did not answer as it should; %d requests repeated (%d so far)",
            *(total - _told, total),
        )
        _told = total


let_orbax_reach_buckets()
