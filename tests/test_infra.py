"""What `infra/` and the Makefile promise, checked without a cluster.

Every manifest is read by a real parser and held against its schema: Kubernetes' own for its kinds and for the
pods inside KubeRay's, Ray's own for the cluster launcher. KubeRay's fields are listed here (its schemas are
on no package index). Nothing is applied and no image is built: that needs a cluster and an engine.
"""

import importlib
import os
import re
import subprocess
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (INFRA / "constraints.txt").read_text().splitlines() if "==" in line)
KUBERNETES = "1.34"

# KubeRay 1.6: the fields of each object that are used or could be; a misspelled one is in none of these.
CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"}
CLUSTER |= {"autoscalerOptions", "suspend", "gcsFaultToleranceOptions", "headServiceAnnotations"}
HEAD = {"rayStartParams", "template", "serviceType", "enableIngress", "headService"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"}
WORKERS |= {"rayStartParams", "template", "scaleStrategy", "suspend"}
JOB = {
    "entrypoint",
    "runtimeEnvYAML",
    "jobId",
    "submissionMode",
    "rayClusterSpec",
    "clusterSelector",
    "metadata",
}
JOB |= {
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "backoffLimit",
    "suspend",
}
JOB |= {
    "submitterPodTemplate",
    "submitterConfig",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "deletionStrategy",
}
SPEC = {"RayCluster": CLUSTER, "RayJob": JOB, "RayCronJob": {"schedule", "suspend", "jobTemplate"}}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((INFRA / "kubernetes").glob("*.yaml")):
        for index, document in enumerate(yaml.safe_load_all(path.read_text())):
            yield f"{path.name}:{index}:{document['kind']}", document


MANIFESTS = dict(documents())
RAY = {name: each for name, each in MANIFESTS.items() if each["apiVersion"] == "ray.io/v1"}
PLAIN = {
    name: each for name, each in MANIFESTS.items() if name not in RAY and each["kind"] != "Kustomization"
}


def job(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("jobTemplate", spec)


def cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    return job(manifest).get("rayClusterSpec", manifest["spec"])


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("name", PLAIN)
def test_kubernetes_kinds_fit_their_schema(name: str):
    kubernetes_validate.validate(PLAIN[name], KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY)
def test_ray_kinds_have_known_fields_and_valid_pods(name: str):
    manifest = RAY[name]
    assert set(manifest["spec"]) <= SPEC[manifest["kind"]]
    if manifest["kind"] != "RayCluster":
        assert set(job(manifest)) <= JOB
    assert set(cluster(manifest)) <= CLUSTER
    head, *workers = groups(manifest)
    assert set(head) <= HEAD
    for group in workers:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(manifest):
        pod = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "x"},
            "template": group["template"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_all_three_ways_to_run_ray_are_here():
    assert sorted(each["kind"] for each in RAY.values()) == ["RayCluster", "RayCronJob", "RayJob"]


def test_every_node_has_one_image_and_one_ray():
    images = {
        c["image"] for each in RAY.values() for g in groups(each) for c in g["template"]["spec"]["containers"]
    }
    images.add(launcher()["docker"]["image"])
    assert images == {f"discdiff:{PROJECT['version']}"}
    assert {cluster(each)["rayVersion"] for each in RAY.values()} == {PINS["ray"]}


def test_ray_demands_a_token_everywhere():
    for each in RAY.values():
        assert cluster(each)["authOptions"] == {"mode": "token", "secretName": "discdiff-ray"}
    assert "--env RAY_AUTH_MODE=token" in launcher()["docker"]["run_options"]
    assert re.search(r"^ENV .*RAY_AUTH_MODE=token", dockerfile(), re.MULTILINE)


@pytest.mark.parametrize(("headers", "code"), [({}, 401), ({"Authorization": "Bearer another"}, 403)])
def test_job_api_refuses_who_has_no_token(ray_cluster: Any, headers: dict[str, str], code: int):
    """On a real cluster, started as the image starts it."""
    jobs = f"{ray_cluster.dashboard}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(jobs, headers=headers))
    refusal.value.close()
    assert refusal.value.code == code
    ours = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(jobs, headers=ours)) as answer:
        assert answer.status == 200


def test_no_pod_runs_as_root():
    pods = [group["template"]["spec"] for each in RAY.values() for group in groups(each)]
    pods += [
        each["spec"]["template"]["spec"] for each in PLAIN.values() if "template" in each.get("spec", {})
    ]
    assert len(pods) == 8
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_no_secret_is_written_in_a_file():
    assert not [name for name, each in MANIFESTS.items() if each["kind"] == "Secret"]
    for each in PLAIN.values():
        for container in each.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            for variable in container.get("env", ()):
                assert (
                    not re.search("PASSWORD|TOKEN|SECRET", variable["name"])
                    or "secretKeyRef" in variable["valueFrom"]
                )
    for service in compose()["services"].values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or re.fullmatch(r"\$\{\w+:\?.+\}", value)


def test_the_tracking_server_answers_to_the_name_it_is_called_by():
    """MLflow refuses a Host header that is not on its list."""
    uri = MANIFESTS["settings.yaml:0:ConfigMap"]["data"]["MLFLOW_TRACKING_URI"]
    deployment = MANIFESTS["mlflow.yaml:2:Deployment"]["spec"]["template"]["spec"]["containers"][0]
    for command in (deployment["command"], compose()["services"]["mlflow"]["command"]):
        hosts = next(argument for argument in command if argument.startswith("--allowed-hosts="))
        assert uri.removeprefix("http://") in hosts.partition("=")[2].split(",")


def test_services_lead_to_pods():
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in PLAIN.values()
        if "template" in each.get("spec", {})
    ]
    services = [each for each in PLAIN.values() if each["kind"] == "Service"]
    assert services
    for service in services:
        assert service["spec"]["selector"] in labels


def test_kustomization_lists_what_stands_and_not_what_runs():
    listed = yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in (INFRA / "kubernetes").glob("*.yaml")}
    assert set(listed) == there - {"kustomization.yaml", "rayjob.yaml", "raycronjob.yaml"}


@pytest.mark.parametrize("name", [name for name, each in RAY.items() if each["kind"] != "RayCluster"])
def test_entrypoints_are_commands_that_exist(name: str):
    """Parsed by the job's own command line, which refuses an option that it does not know; nothing is run."""
    import typer

    python, flag, module, *arguments = job(RAY[name])["entrypoint"].split()
    assert (python, flag) == ("python", "-m")
    app = importlib.import_module(module).main
    context = typer.main.get_command(app).make_context(module, arguments)
    assert context.params["workers"] * context.params["cpus"] <= 2 * 4
    assert "DISCDIFF_ROOT" in MANIFESTS["settings.yaml:0:ConfigMap"]["data"]


def launcher() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "cluster.yaml").read_text())


def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def dockerfile() -> str:
    return (INFRA / "Dockerfile").read_text()


def test_launcher_fits_rays_own_schema():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launcher()))
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config(launcher() | {"max_worker": 3}))


def test_image_is_pinned_and_not_root():
    froms = re.findall(r"^FROM (\S+)", dockerfile(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", froms[0])
    assert set(froms[1:]) == {"base"}
    assert re.findall(r"^USER (\S+)", dockerfile(), re.MULTILINE) == ["ray"]
    for service in compose()["services"].values():
        assert re.search(r":\d+\.\d+", service["image"])


def test_every_requirement_has_a_pin_within_its_range():
    extras = PROJECT["optional-dependencies"]
    groups = [PROJECT["dependencies"], extras["pipelines"], extras["dev"]]
    requirements = [Requirement(text) for group in groups for text in group]
    assert len(requirements) > 20
    for requirement in requirements:
        assert requirement.specifier.contains(PINS[requirement.name]), requirement
    assert next(iter(PINS)) == "torch"


def test_a_submitted_folder_holds_the_code_and_nothing_else(tmp_path: Path):
    """With and without Ray reading .gitignore: no history, no environment, no data, no results."""
    from ray._private.runtime_env.packaging import create_package

    source = tmp_path / "checkout"
    heavy = (".git", ".venv", ".venv-python3.12", "runs", "data", "mlruns", "tests", "build", ".pytest_cache")
    code = (
        "discdiff/data/store.py",
        "discdiff/__init__.py",
        "pipelines/runs.py",
        "jobs/train.py",
        "pyproject.toml",
    )
    for name in (*(f"{folder}/weights.bin" for folder in heavy), "mlflow.db", "x.part", *code):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        (source / name).write_text((ROOT / name).read_text())
    for number, include_gitignore in enumerate((True, False)):
        package = tmp_path / f"{number}.zip"
        create_package(str(source), package, include_gitignore=include_gitignore)
        with zipfile.ZipFile(package) as archive:
            names = {name for name in archive.namelist() if not name.endswith("/")}
        assert names == {*code, ".gitignore", ".rayignore"}


def make(*arguments: str) -> str:
    """The commands that make would run, whatever the make was told that runs these tests."""
    settings = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in settings and not name.startswith("MAKE")
    }
    ran = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_make_demo_and_its_settings():
    assert "-m jobs.experiment --preset smoke" in make("demo")
    assert "--tune" not in make("demo")
    assert "-m jobs.experiment --preset smoke --tune" in make("demo", "TUNE=1")


def test_make_test_runs_every_check_after_the_bootstrap():
    commands = make("test")
    order = ["bootstrap.py", "ruff format --check", "ruff check", "pyright", "lint-imports", "-m pytest"]
    positions = [commands.index(command) for command in order]
    assert positions == sorted(positions)


def test_another_python_gets_another_environment():
    assert ".venv-python3.12/bin/python -m pytest" in make("test", "PYTHON=python3.12")
    assert "\n.venv/bin/python -m pytest" in make("test")


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "make test" in script.read_text()
