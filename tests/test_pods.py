"""The recipes of examples/pods: what they start exists, and they start it as they say.

Schedulers are played by scripts: no cluster is asked.
"""

import os
import re
import subprocess

import pytest

from show1_jax.generate import parse_shard
from tests.test_docs import ROOT, commands, faults

PODS = ROOT / "examples" / "pods"
SCRIPTS = sorted(PODS.glob("*.sh"))
RECIPES = [*SCRIPTS, *sorted(PODS.glob("*.yaml"))]
# What all programs that are not there do: they tell what they were given, and end with $STATUS.
PLAYED = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$LOG"
exit "${STATUS:-0}"
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
# A queued resource: $STATE is where it is told, and $END what it is after a command on it.
GCLOUD = """#!/usr/bin/env bash
echo "gcloud $4 $*" >>"$LOG"
case "$4" in
describe) cat "$STATE" ;;
create) echo ACTIVE >"$STATE" ;;
delete) rm "$STATE" ;;
ssh)
    [[ "$*" == *train.sh* ]] || exit 0
    end=$(head -1 "$END") && sed -i 1d "$END"
    [ "$end" = done ] || { echo "$end" >"$STATE" && exit 255; }
    ;;
esac
"""
PIP = """#!/usr/bin/env bash
while [ "$1" != --wheel-dir ]; do shift; done
touch "$2/show1_jax-1-py3-none-any.whl"
"""


@pytest.fixture
def play(tmp_path):
    """Runs a command in a clone with an environment, on a machine whose programs are played."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "pods").symlink_to(PODS)
    for folder in ("bin", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    played = dict.fromkeys(("show1-train", "show1-sample", "scontrol", "xpk"), PLAYED)
    for name, content in (played | {"srun": SRUN, "gcloud": GCLOUD, "pip": PIP}).items():
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    log = tmp_path / "log"

    def run(*command, **environment):
        log.write_text("")
        settings = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "BUCKET": "gs://bucket",
            "LOG": str(log),
            "SLURM_CPUS_PER_TASK": "8",
            **environment,
        }
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
        return done.returncode, log.read_text().splitlines()

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def as_page(recipe: str) -> str:
    """The commands of a recipe, those in comments and in quotes too, as a page of the docs."""
    text = recipe.replace("\\\n", " ").replace('"', "")
    text = "".join(text.replace("$1", name) for name in ("train", "sample"))
    text = re.sub(r"(?=\bbash \S+\.sh\b)|^ *#+ *", "\n", text, flags=re.M)
    return f"```sh\n{text}\n```\n"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_programs_have_the_flags_that_a_recipe_gives_them(recipe):
    page = as_page(recipe.read_text())
    assert {program for program, _ in commands(page)} <= {("train.py",), ("sample.py",)}
    assert list(commands(page))
    assert faults(page) == []


def test_wrong_flags_of_recipes_are_found():
    recipe = 'xpk --x show1-$1 --command "exec bash a/$1.sh --coordinated=auto"\n'
    recipe += "#     bash a/sample.sh --shards 3\nexec show1-train \\\n    --config.tain=3\n"
    assert set(faults(as_page(recipe))) == {
        "train.py has no flag --coordinated",
        "sample.py has no flag --coordinated",
        "sample.py has no flag --shards",
        "train.py: the config has no key tain",
    }


def shard(log):
    """Index and number of the only shard that was made."""
    (command,) = (line for line in log if line.startswith("show1-sample "))
    return parse_shard(re.search(r"--shard (\S+)", command)[1])


def test_an_array_makes_every_shard(play):
    script = PODS / "slurm_sample.sh"
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)\n", script.read_text()).groups())
    for task in (first, last):
        status, log = play("bash", script, SLURM_ARRAY_TASK_ID=str(task))
        assert status == 0
        assert shard(log) == (task, last + 1)
    assert first == 0


def test_a_job_makes_every_shard(play):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((PODS / "kubernetes_sample.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert (job["completionMode"], job["template"]["spec"]["restartPolicy"]) == ("Indexed", "Never")
    environment = {each["name"]: each["value"] for each in container["env"]}
    for pod in (0, job["completions"] - 1):
        command = container["command"] + container["args"]
        status, log = play(*command, JOB_COMPLETION_INDEX=str(pod), **environment)
        assert status == 0
        assert shard(log) == (pod, job["completions"])


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (143, True)])
def test_a_job_that_was_told_to_end_is_queued_again(play, status, again):
    script = PODS / "slurm_train.sh"
    ended, log = play("bash", script, STATUS=str(status), SLURM_JOB_ID="7")
    assert ended == status
    assert log[0].startswith("show1-train ")
    assert log[1:] == (["scontrol requeue 7"] if again else [])


@pytest.mark.parametrize(("status", "count"), [(0, 2), (143, 1)])
def test_sampling_follows_training_that_has_ended(play, status, count):
    ended, log = play("bash", PODS / "one_host.sh", STATUS=str(status))
    assert (ended, len(log)) == (status, count)


@pytest.mark.parametrize(
    ("ends", "status", "steps"),
    [
        ("done", 0, "create ssh delete"),
        ("SUSPENDED\ndone", 0, "create ssh delete create ssh delete"),
        ("ACTIVE", 1, "create ssh"),
    ],
)
def test_a_slice_that_was_taken_away_is_requested_anew(play, tmp_path, ends, status, steps):
    (tmp_path / "end").write_text(f"{ends}\n")
    ended, log = play(
        *("bash", PODS / "tpu_vm.sh", "train"),
        PAUSE="0", STATE=str(tmp_path / "state"), END=str(tmp_path / "end"),
    )  # fmt: skip
    assert ended == status
    told = [line for line in log if re.match("gcloud (create|delete)|gcloud ssh .*train.sh", line)]
    assert [line.split()[1] for line in told] == steps.split()


def test_xpk_is_given_one_command(play):
    environment = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "IMAGE": "i"}
    status, (line,) = play("bash", PODS / "gke_xpk.sh", "sample", **environment)
    assert status == 0
    assert line.startswith("xpk workload create --workload show1-sample ")
    assert line.endswith("--command exec bash examples/pods/sample.sh --coordinator=auto")


@pytest.mark.parametrize("script", ["gke_xpk.sh", "tpu_vm.sh", "train.sh", "sample.sh"])
def test_scripts_say_what_they_lack(script, play, tmp_path):
    assert play("bash", PODS / script, BUCKET="")[0] != 0
    if script in ("gke_xpk.sh", "tpu_vm.sh"):
        environment = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "IMAGE": "i"}
        assert play("bash", PODS / script, "trian", **environment) == (2, [])
