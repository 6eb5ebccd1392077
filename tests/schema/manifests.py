"""The manifests of packaging/: against the schemas of Kubernetes and compose, against each other, and against the program.

Run by `make test-schema`, whose environment has the schemas. The flags of vLLM are checked by `make test-vllm`.
"""

import copy
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

import kubernetes_validate
import pytest
import yaml

SOURCE = pathlib.Path(__file__).resolve().parents[2]
PACKAGING = SOURCE / "packaging"
KUBERNETES = PACKAGING / "kubernetes"
PROGRAM = pathlib.Path(os.environ.get("QR_BUILD") or SOURCE / "build") / "qwen-rerank"
COMPOSE = sorted((PACKAGING / "docker").glob("compose*.yaml"))
VERSIONS = ["1.30", kubernetes_validate.latest_version()]  # the oldest whose fields are used, and the newest known


def documents(name):
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


KUSTOMIZATION = documents("kustomization.yaml")[0]
RESOURCES = [d for name in KUSTOMIZATION["resources"] for d in documents(name)]
(SECRET,) = documents("secret.example.yaml")


def resource(kind, name):
    (found,) = [r for r in RESOURCES if r["kind"] == kind and r["metadata"]["name"] == name]
    return found


def pod(name):
    return resource("Deployment", name)["spec"]["template"]


def container(name):
    (only,) = pod(name)["spec"]["containers"]
    return only


def profile_file():
    return resource("ConfigMap", "qwen-rerank")["data"]["config.yaml"]


def profile():
    return yaml.safe_load(profile_file())["profiles"]["kubernetes"]


def variables(container):
    return {v["name"]: v.get("value") for v in container.get("env", [])}


def sleep_of(container):
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    return int(seconds)


def vllm_flags(args):
    return dict(re.fullmatch(r"(--[a-z-]+)(?:=(.*))?", a).groups() for a in args)


# ---- schemas


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_schemas(version):
    assert len(RESOURCES) >= 11
    for r in [*RESOURCES, SECRET]:
        kubernetes_validate.validate(r, version, strict=True)


def test_the_schema_check_finds_mistakes():
    """It must see a misspelt field, deep inside, and a value of another type."""
    spec = pod("vllm")["spec"]
    for change in ({"terminationGracePeriod": 60}, {"terminationGracePeriodSeconds": "60"}):
        broken = copy.deepcopy(resource("Deployment", "vllm"))
        broken["spec"]["template"]["spec"] = spec | change
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda p: p.name)
def test_compose_schema(path, tmp_path):
    check = [pathlib.Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = yaml.safe_load(path.read_text())
    broken["services"]["rerank"]["restarts"] = "always"
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(broken))
    assert subprocess.run([*check, tmp_path / "compose.yaml"], capture_output=True).returncode == 1


def test_the_kustomization_has_every_file():
    files = {p.name for p in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    images = {image["name"] for image in KUSTOMIZATION["images"]}
    assert images == {c["image"] for r in RESOURCES if r["kind"] in ("Deployment", "Job") for c in r["spec"]["template"]["spec"]["containers"]}


# ---- each other


def test_selectors_and_names_agree():
    templates = {r["metadata"]["name"]: r["spec"]["template"]["metadata"]["labels"] for r in RESOURCES if r["kind"] == "Deployment"}
    selectors = [r["spec"]["selector"] for r in RESOURCES if r["kind"] == "Service"]
    selectors += [r["spec"]["selector"]["matchLabels"] for r in RESOURCES if r["kind"] in ("Deployment", "PodDisruptionBudget")]
    policy = resource("NetworkPolicy", "vllm")["spec"]
    selectors += [policy["podSelector"]["matchLabels"], policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]]
    assert len(selectors) == 8 and all(s in templates.values() for s in selectors)
    scaled = resource("HorizontalPodAutoscaler", "qwen-rerank")["spec"]["scaleTargetRef"]
    assert scaled["name"] in templates
    for r in RESOURCES:
        if r["kind"] not in ("Deployment", "Job"):
            continue
        spec = r["spec"]["template"]["spec"]
        volumes = {v["name"]: v for v in spec["volumes"]}
        for c in spec["containers"]:
            assert {m["name"] for m in c["volumeMounts"]} == set(volumes)
            for v in c["env"]:
                key = v.get("valueFrom", {}).get("secretKeyRef")
                assert key is None or (key["name"] == SECRET["metadata"]["name"] and key["key"] in SECRET["stringData"])
        for v in volumes.values():
            if "persistentVolumeClaim" in v:
                resource("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"])
            if "configMap" in v:
                resource("ConfigMap", v["configMap"]["name"])
            assert v.get("secret", {}).get("secretName", SECRET["metadata"]["name"]) == SECRET["metadata"]["name"]


def test_vllm_is_found_by_its_name():
    service, (port,) = resource("Service", "vllm")["spec"], container("vllm")["ports"]
    assert service["clusterIP"] == "None"  # a name with one address would leave the balance to chance
    flags = vllm_flags(container("vllm")["args"])
    assert int(flags["--port"]) == port["containerPort"] == service["ports"][0]["port"]
    assert profile()["vllm_options"]["urls"] == [f"http://vllm:{port['containerPort']}"]


def test_lengths_and_names_of_the_model_agree():
    flags, p = vllm_flags(container("vllm")["args"]), profile()
    assert int(flags["--max-model-len"]) == p["limits"]["max_length"] + 1
    assert flags["--served-model-name"] == p["vllm_options"]["model"]
    download = resource("Job", "download-model")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert container("vllm")["command"][-1] == p["model_id"] == download[-1]


def test_there_is_time_to_stop():
    front, vllm = pod("qwen-rerank")["spec"], pod("vllm")["spec"]
    drain = profile()["server"]["drain_timeout_s"]
    assert front["terminationGracePeriodSeconds"] > sleep_of(container("qwen-rerank")) + drain
    shutdown = int(vllm_flags(container("vllm")["args"])["--shutdown-timeout"])
    assert vllm["terminationGracePeriodSeconds"] > sleep_of(container("vllm")) + shutdown
    assert sleep_of(container("vllm")) >= 15 + 5  # names are resolved every 15 s, and cached for 5


def test_front_ends_have_no_rights():
    spec, security = pod("qwen-rerank")["spec"], container("qwen-rerank")["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    assert f"--uid {spec['securityContext']['runAsUser']}" in (SOURCE / "Dockerfile").read_text()
    assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert "nvidia.com/gpu" not in container("qwen-rerank")["resources"]["requests"]


# ---- the program


def run(*args, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWEN_RERANK_")}
    return subprocess.run([PROGRAM, *args], capture_output=True, text=True, timeout=60, env=env | variables)


def settings(**variables):
    done = run("config", "show", "--json", **variables)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return {s["name"]: (s["value"], s["origin"]) for s in json.loads(done.stdout)["settings"]}


def test_the_program_takes_the_profile(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(profile_file())
    env = variables(container("qwen-rerank"))
    mounted = {m["mountPath"] for m in container("qwen-rerank")["volumeMounts"]}
    assert env["QWEN_RERANK_CONFIG"] in mounted
    shown = settings(**env | {"QWEN_RERANK_CONFIG": str(path)})
    assert shown["backend"][0] == "vllm" and "http://vllm:8000" in shown["vllm-url"][0] and "config.yaml" in shown["vllm-url"][1]
    assert int(shown["port"][0]) == container("qwen-rerank")["ports"][0]["containerPort"] and shown["host"][0] == "*"
    for name, key in (("api-key-file", "clients"), ("vllm-api-key-file", "vllm")):
        folder, _, file = shown[name][0].rpartition("/")
        assert folder in mounted and file == key and key in SECRET["stringData"]


def test_service_links_would_break_the_front_ends():
    """Why enableServiceLinks is false: for the service "qwen-rerank", Kubernetes would set this."""
    assert resource("Service", "qwen-rerank") and pod("qwen-rerank")["spec"]["enableServiceLinks"] is False
    done = run("config", "show", QWEN_RERANK_PORT="tcp://10.0.0.1:80")
    assert done.returncode == 2 and "QWEN_RERANK_PORT" in done.stderr


@pytest.mark.parametrize("path", COMPOSE, ids=lambda p: p.name)
def test_the_program_takes_the_variables_of_compose(path):
    text = path.read_text()
    for service in yaml.safe_load(text)["services"].values():
        found = {k: v for k, v in (service.get("environment") or {}).items() if k.startswith("QWEN_RERANK_")}
        # As compose does with variables that are not set.
        settings(**{k: re.sub(r"\$\{\w+:-(.*)\}", r"\1", v) for k, v in found.items()})


def test_two_servers_of_compose_have_one_name():
    services = yaml.safe_load((PACKAGING / "docker" / "compose.vllm.yaml").read_text())["services"]
    servers, front = [s for name, s in services.items() if name.startswith("vllm-")], services["rerank"]["environment"]
    assert len(servers) == 2
    gpus = [s["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for s in servers]
    assert gpus == [["0"], ["1"]]
    for s in servers:
        (alias,), flags = s["networks"]["default"]["aliases"], vllm_flags(s["command"])
        assert front["QWEN_RERANK_VLLM_URL"] == f"http://{alias}:{flags['--port']}"
        assert front["QWEN_RERANK_VLLM_MODEL"] == flags["--served-model-name"]
        assert s["entrypoint"][-1] == front["QWEN_RERANK_MODEL_ID"] and flags["--max-model-len"] == "8193"


def test_every_variable_exists():
    known = set(re.findall(r"QWEN_RERANK_[A-Z_]+", run("config", "docs").stdout))
    own = {"QWEN_RERANK_PUBLISH", "QWEN_RERANK_DOWNLOAD"}  # of compose.yaml itself
    assert len(known) > 50
    for path in [*COMPOSE, *KUBERNETES.glob("*.yaml"), *(PACKAGING / "docker").glob("Dockerfile*"), SOURCE / "Dockerfile"]:
        assert set(re.findall(r"QWEN_RERANK_[A-Z_]+", path.read_text())) <= known | own, path


def test_probes_are_answered():
    command = [PROGRAM, "serve", "--model", "builtin", "--port", "0", "--log-level", "info"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        ready = next(line for line in process.stderr if "ready on" in line)
        url = re.search(r"http://\S+?:\d+", ready).group()
        for probe in ("livenessProbe", "readinessProbe"):
            path = container("qwen-rerank")[probe]["httpGet"]["path"]
            assert urllib.request.urlopen(url + path, timeout=60).status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        process.stderr.close()
