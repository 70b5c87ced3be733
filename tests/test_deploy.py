"""The deployment files agree with the code, with each other, and with what their own linters say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aiapi.settings import ENV

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
#: Names that the image, the stores or PostgreSQL's client (PGPASSWORD) read, not the platform.
STORES = {"POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "PGPASSWORD", "REDIS_PASSWORD"}
OTHERS = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "API_MEMORY", *STORES}
#: The secrets that a process is given, under the names of its variables, by docker compose and Kubernetes.
CONNECTIONS = {"DATABASE_URL", "REDIS_URL", "CACHE_URL"}
ALERTS = {"ALERT_WEBHOOK_URL", "ALERT_WEBHOOK_SECRET", "EMAIL_URL"}
SECRETS = {
    "api": {*CONNECTIONS, "SECRET_KEY", "API_KEY_PEPPERS", "OPENAI_API_KEY", *ALERTS, "METRICS_TOKEN"},
    "worker": {*CONNECTIONS, "OPENAI_API_KEY", *ALERTS},
    "prepare": {*CONNECTIONS, "SECRET_KEY", "API_KEY_PEPPERS", "OPENAI_API_KEY", "ADMIN_PASSWORD"},
}
MANIFESTS = {"api": "deployment", "worker": "worker", "prepare": "job"}
#: Where further secrets of providers go: only to processes that ask providers.
ASK_PROVIDERS = {"api", "worker"}
MEGABYTES = {"m": 1, "mb": 1, "Mi": 1, "g": 1024, "gb": 1024}


def test_it_pins_every_requirement() -> None:
    for path in ROOT.glob("requirements*.txt"):
        loose = [str(r) for r in requirements(path) if [s.operator for s in r.specifier] != ["=="]]
        assert loose == [], path.name


def test_it_installs_what_it_pins_with_all_that_this_needs() -> None:
    """`pip check` can't tell: what requirements-local.txt names is installed without its needs, on purpose."""
    optional = {"requirements-fast.txt"}  # installed where a compiler is
    for path in ROOT.glob("requirements*.txt"):
        if path.name not in optional:
            follow = path.name != "requirements-local.txt"
            assert list(unmet(requirements(path), set(), follow=follow)) == [], path.name


def test_it_writes_a_dockerfile_that_hadolint_accepts() -> None:
    assert run_tool(str(Path(sys.executable).parent / "hadolint"), "Dockerfile") == ""


def test_it_runs_the_image_as_a_numeric_user_that_is_not_root() -> None:
    users = instructions("USER")
    assert users, "without USER the image runs as root"
    assert all(int(part) > 0 for part in users[-1].split(":")), "Kubernetes' runAsNonRoot needs numbers"


def test_it_bakes_no_secret_and_no_unknown_name_into_the_image() -> None:
    names = set(re.findall(r"(\w+)=", " ".join(instructions("ENV"))))
    assert names - OTHERS <= set(ENV.declared)
    assert not [name for name in names & set(ENV.declared) if ENV.declared[name].secret]


def test_it_copies_into_the_image_only_what_is_named() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert all((ROOT / line[1:]).exists() for line in lines if line.startswith("!"))


def test_it_copies_into_the_image_every_folder_that_the_settings_name() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    folders = [*settings.STATICFILES_DIRS, *(folder for engine in settings.TEMPLATES for folder in engine["DIRS"])]
    apps = [app.split(".")[0] for app in settings.INSTALLED_APPS if (ROOT / app.split(".")[0]).is_dir()]
    assert {Path(folder).name for folder in folders} | set(apps) <= allowed


def test_it_writes_a_compose_file_that_the_specification_accepts() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    told = run_tool(sys.executable, "-m", "check_jsonschema", *schema, "docker-compose.yml")
    assert told.startswith("ok")


def test_it_passes_only_known_settings_through_compose() -> None:
    passed = {name for process in SECRETS for name in compose()["services"][process]["environment"]}
    read_by_compose = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert (passed | read_by_compose) - OTHERS - {"REDISCLI_AUTH"} <= set(ENV.declared)


@pytest.mark.parametrize("name", SECRETS)
def test_it_lets_every_setting_through_compose_but_the_address(name: str) -> None:
    environment = compose()["services"][name]["environment"]
    assert {name for name, setting in ENV.declared.items() if not setting.secret} <= set(environment)
    for setting, value in environment.items():
        if setting in ENV.declared and setting not in {"ENVIRONMENT", "HOST", "PORT", *CONNECTIONS}:
            assert value.startswith(f"${{{setting}:")
    assert (environment["HOST"], environment["PORT"]) == ("0.0.0.0", 8000)  # noqa: S104


def test_it_gives_each_process_of_compose_the_secrets_that_it_needs_and_no_other() -> None:
    services = compose()["services"]
    for name, secrets in SECRETS.items():
        assert {each for each in services[name]["environment"] if is_secret(each)} == secrets
    further = {name: service["env_file"] for name, service in services.items() if "env_file" in service}
    assert further == {name: [{"path": "further.env", "required": False}] for name in ASK_PROVIDERS}
    users = {
        password: {name for name, service in services.items() if f"${{{password}" in json.dumps(service)}
        for password in ("POSTGRES_PASSWORD", "REDIS_PASSWORD")
    }
    assert users["POSTGRES_PASSWORD"] == {*SECRETS, "postgres"}
    assert users["REDIS_PASSWORD"] == {*SECRETS, "redis-state", "redis-cache"}


@pytest.mark.parametrize("name", SECRETS)
def test_it_gives_each_pod_the_secrets_that_it_needs_and_no_other(name: str) -> None:
    pod = container(MANIFESTS[name])
    named = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in pod["env"]}
    assert set(named) == SECRETS[name]
    assert all((secret["name"], secret["key"]) == ("ai-api", each) for each, secret in named.items())
    further = [{"secretRef": {"name": "ai-api-further", "optional": True}}] if name in ASK_PROVIDERS else []
    assert pod["envFrom"] == [{"configMapRef": {"name": "ai-api"}}, *further]
    assert set(named) <= set(manifest("secret.example")["stringData"])


def test_it_asks_for_a_password_at_each_redis_of_compose() -> None:
    for name in ("redis-state", "redis-cache"):
        service = compose()["services"][name]
        command = service["command"]
        assert command[command.index("--requirepass") + 1].startswith("${REDIS_PASSWORD")
        assert service["environment"] == {"REDISCLI_AUTH": "${REDIS_PASSWORD}"}
        assert service["healthcheck"]["test"] == ["CMD-SHELL", "redis-cli ping | grep -q PONG"]


def test_it_bounds_the_memory_of_each_container() -> None:
    services = compose()["services"]
    bounds = {name: megabytes(service["mem_limit"]) for name, service in services.items()}
    for name, spare in (("redis-state", 2), ("redis-cache", 1.5)):  # a fork that rewrites the file; buffers
        command = services[name]["command"]
        assert megabytes(command[command.index("--maxmemory") + 1]) * spare <= bounds[name]
    for name in MANIFESTS.values():
        limits = container(name)["resources"]
        assert megabytes(limits["requests"]["memory"]) <= megabytes(limits["limits"]["memory"]) <= bounds["api"]


def test_it_pins_every_image_by_its_whole_version() -> None:
    own = {service["image"] for service in compose()["services"].values() if "image" in service}
    bases = {line.split()[0] for line in instructions("FROM")}
    images = {image.partition(":")[::2] for image in own | bases}
    assert {name for name, _ in images} == {"ai-api", "postgres", "redis", "python"}
    parts = {"postgres": 2}  # its versions have two
    for name, tag in images:
        assert re.fullmatch(rf"\d+(\.\d+){{{parts.get(name, 3) - 1}}}(-slim)?(-bookworm)?", tag), (name, tag)


def test_it_lets_pods_reach_the_collector_and_the_mail_server() -> None:
    rules = manifest("networkpolicy")["spec"]["egress"]
    ports = {port["port"] for rule in rules for port in rule["ports"] if port["protocol"] == "TCP"}
    assert ports >= {443, 4318, 465, 587}


@pytest.mark.parametrize("name", ["SECRET_KEY", "API_KEY_PEPPERS", "POSTGRES_PASSWORD", "REDIS_PASSWORD"])
def test_it_stops_compose_with_the_mend_when_a_secret_is_missing(name: str) -> None:
    assert re.search(rf"\$\{{{name}:\?put it into \.env", (ROOT / "docker-compose.yml").read_text())


def test_it_publishes_no_port_of_compose_but_the_api_on_loopback() -> None:
    published = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])
    assert compose()["networks"]["inside"] == {"internal": True}


def test_it_starts_compose_services_in_the_order_of_their_health() -> None:
    services = compose()["services"]
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            one_shot = services[name]["restart"] == "no"
            assert condition["condition"] == ("service_completed_successfully" if one_shot else "service_healthy")
            assert one_shot or services[name].get("healthcheck", {}).get("test") or name == "api"


def test_it_keeps_state_and_lets_go_of_cached_answers() -> None:
    state = " ".join(compose()["services"]["redis-state"]["command"])
    cache = " ".join(compose()["services"]["redis-cache"]["command"])
    assert "--appendonly yes --appendfsync everysec" in state
    assert "--maxmemory-policy noeviction" in state
    assert "--appendonly no" in cache
    assert re.search(r"--maxmemory \d+mb --maxmemory-policy allkeys-lru", cache)
    assert set(compose()["volumes"]) == {"postgres", "redis-state"}


def test_it_names_only_management_commands_that_exist() -> None:
    text = "\n".join(path.read_text() for path in [ROOT / "Dockerfile", *deployment_files()])
    named = set(re.findall(r"manage\.py(?:\", \"|, | )([a-z_]+)", text))
    assert named >= {"serve", "migrate", "bootstrap", "worker", "collectstatic"}
    assert named <= set(get_commands())


def test_it_gives_heroku_and_railway_the_settings_and_paths_that_exist() -> None:
    app, railway = (json.loads((ROOT / name).read_text()) for name in ("app.json", "railway.json"))
    assert set(app["env"]) <= set(ENV.declared)
    assert set(app["formation"]) == {"web", "worker"} == set(yaml_of("heroku.yml")["run"])
    assert railway["deploy"]["healthcheckPath"] == "/health/ready"
    worker = json.loads((ROOT / "deploy" / "railway" / "worker.json").read_text())  # railway.json says `serve`
    assert worker["deploy"]["startCommand"] == "python manage.py worker"
    assert "healthcheckPath" not in worker["deploy"], "it serves no HTTP"
    assert "/deploy/railway/worker.json" in (ROOT / "docs" / "deployment.md").read_text()
    assert {"release", "web", "worker"} == set(yaml.safe_load((ROOT / "Procfile").read_text()))


def test_it_writes_manifests_that_kubernetes_accepts() -> None:
    manifests = [str(path) for path in KUBERNETES if path.name != "kustomization.yaml"]
    told = run_tool(str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", *manifests)
    assert told.count(" passed ") == len(manifests)


def test_it_lists_in_kustomize_every_manifest_but_those_applied_by_hand() -> None:
    listed = set(manifest("kustomization")["resources"])
    assert {path.name for path in KUBERNETES} - listed == {"kustomization.yaml", "secret.example.yaml", "job.yaml"}


def test_it_gives_kubernetes_only_known_settings() -> None:
    names = set(manifest("configmap")["data"]) | set(manifest("secret.example")["stringData"])
    assert names <= set(ENV.declared)
    assert not [name for name in manifest("configmap")["data"] if ENV.declared[name].secret]
    assert not any(manifest("secret.example")["stringData"].values()), "the example holds no secret"


def test_it_names_the_same_ports_and_paths_everywhere() -> None:
    port = int(instructions("EXPOSE")[-1])
    api = container("deployment")
    assert api["ports"] == [{"name": "http", "containerPort": port}]
    assert api["startupProbe"]["httpGet"] == api["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": "http"}
    assert api["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert manifest("service")["spec"]["ports"][0]["targetPort"] == "http"
    annotations = manifest("deployment")["spec"]["template"]["metadata"]["annotations"]
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == (str(port), "/metrics")
    assert manifest("networkpolicy")["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
    assert compose()["services"]["api"]["ports"][0].endswith(f":{port}")
    assert f"PORT={port}" in " ".join(instructions("ENV"))


def test_it_selects_the_pods_that_it_makes() -> None:
    for name in ("deployment", "worker"):
        spec = manifest(name)["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("name", ["deployment", "worker", "job"])
def test_it_gives_pods_the_image_s_user_and_nothing_to_write_on(name: str) -> None:
    pod = manifest(name)["spec"]["template"]["spec"]
    user, group = (int(part) for part in instructions("USER")[-1].split(":"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (user, group)
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_it_lets_open_requests_end_before_anything_kills_the_server() -> None:
    graceful = int(ENV.declared["GRACEFUL_TIMEOUT"].default)
    pod = manifest("deployment")["spec"]["template"]["spec"]
    pre_stop = int(container("deployment")["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= graceful + pre_stop + 5
    assert int(compose()["services"]["api"]["stop_grace_period"].removesuffix("s")) >= graceful + 5


def requirements(path: Path) -> list[Requirement]:
    """Parse the requirements of a file, without its comments."""
    lines = (line.split(" #")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def unmet(wanted: Iterable[Requirement], seen: set[str], *, follow: bool) -> Iterator[str]:
    """Yield each requirement that is not installed as asked, and where `follow` says so what those need themselves."""
    for requirement in wanted:
        mark = f"{canonicalize_name(requirement.name)}{sorted(requirement.extras)}"
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement} is asked for, {found} is installed"
        elif follow and mark not in seen:
            seen.add(mark)
            needs = [Requirement(text) for text in metadata.requires(requirement.name) or []]
            extras = requirement.extras or {""}
            chosen = [n for n in needs if not n.marker or any(n.marker.evaluate({"extra": e}) for e in extras)]
            yield from unmet(chosen, seen, follow=follow)


def instructions(name: str) -> list[str]:
    """List the arguments of an instruction of the Dockerfile, in order, with continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def compose() -> Any:
    return yaml_of("docker-compose.yml")


def manifest(name: str) -> Any:
    return yaml_of(f"deploy/kubernetes/{name}.yaml")


def container(name: str) -> Any:
    """Return the one container of a manifest's pods."""
    (only,) = manifest(name)["spec"]["template"]["spec"]["containers"]
    return only


def is_secret(name: str) -> bool:
    """Return whether a variable of the platform holds a secret."""
    return name in ENV.declared and ENV.declared[name].secret


def megabytes(bound: str) -> int:
    """Return how many MB such a bound is as 384m, 1gb or 768Mi; of one that can be set, its default."""
    number, unit = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)(\w+)\}?", bound).groups()  # type: ignore[union-attr]
    return int(number) * MEGABYTES[unit]


def yaml_of(path: str) -> Any:
    """Parse a file of one YAML document."""
    return yaml.safe_load((ROOT / path).read_text())


def deployment_files() -> list[Path]:
    """List the files besides the Dockerfile that start processes."""
    names = ("docker-compose.yml", "Procfile", "heroku.yml", "railway.json")
    return [*(ROOT / name for name in names), *KUBERNETES, *(ROOT / "deploy" / "railway").glob("*.json")]


def run_tool(*command: str) -> str:
    """Run a linter in the project's folder, fail with what it says, and return that."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
