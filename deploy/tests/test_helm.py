"""The Helm chart: rendered by Helm's own code, and checked against Kubernetes' schemas and our settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from downloader.config import Settings, load_settings

CHART = str(Path(__file__).parents[1] / "helm" / "downloader")
KUBERNETES = ("1.29", "1.34")
"""The oldest that the chart allows, and a new one."""

LEAST = {
    "image": {"repository": "registry.example.org/downloader"},
    "config": {"redis": {"url": "redis://valkey"}},
}
ALL = {
    "image": {"repository": "registry.example.org/downloader", "tag": "1.2.3"},
    "imagePullSecrets": [{"name": "registry"}],
    "config": {
        "redis": {"url": {"env": "REDIS_URL"}, "durability": "aof"},
        "api": {"tokens": [{"name": "shop", "token": {"env": "SHOP_TOKEN"}, "scopes": ["submit", "read"]}]},
        "processor": {"filestorage": {"type": "s3", "bucket": "our-downloads", "region": "eu-west-2"}},
        "backends": {"http": {}, "sqs": {"queues": ["downloads-*"]}},
        "egress": {"downloads": {"allow": ["10.0.0.0/8"]}},
    },
    "secrets": ["downloader-tokens"],
    "files": {"existingClaim": "shared"},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}},
    "api": {"ingress": {"enabled": True, "className": "nginx", "host": "d.example.org", "tlsSecret": "tls"}},
    "processor": {"autoscaling": {"enabled": True, "maxReplicas": 20}},
    "notifier": {"autoscaling": {"enabled": True}},
    "statsToken": {"secret": "downloader-tokens"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"prometheus.io/scrape": "false"},
}


def rendered(values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects by kind and name, as `helm template downloader -n prod` gives them."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="downloader", namespace="prod")
    objects = [
        found
        for name, text in files.items()
        if name.endswith(".yaml")
        for found in yaml.safe_load_all(text)
        if found is not None
    ]
    return {(found["kind"], found["metadata"]["name"]): found for found in objects}


def settings(objects: dict[tuple[str, str], dict[str, Any]], folder: Path, **environ: str) -> Settings:
    file = folder / "config.toml"
    file.write_text(objects["ConfigMap", "downloader"]["data"]["config.toml"])
    return load_settings(file, environ=environ, overrides={})


@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    found = helm.lint(CHART, values, strict=True)
    assert found["errors"] == []
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_kubernetes_takes_each_object(values: dict[str, Any], version: str) -> None:
    strangers = set()
    for (kind, _), found in rendered(values).items():
        if found["apiVersion"].startswith("keda.sh/"):
            strangers.add(kind)
        else:
            kubernetes_validate.validate(found, version, strict=True)
    assert strangers == (set() if values is LEAST else {"ScaledObject", "TriggerAuthentication"})


def test_the_configuration_is_one_that_the_service_takes(tmp_path: Path) -> None:
    read = settings(
        rendered(ALL), tmp_path, REDIS_URL="rediss://elsewhere:6380", SHOP_TOKEN="a-token-of-the-shop"
    )
    assert read.redis.url == "rediss://elsewhere:6380"
    assert read.storage_name == "s3"
    assert [token.name for token in read.api.tokens] == ["shop"]
    assert {"http", "sqs"} == set(read.backends)
    assert settings(rendered(LEAST), tmp_path).redis.url == "redis://valkey"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["/image/repository", "/config/redis"]),
        ({**LEAST, "config": {"redis": {"url": "embedded"}}}, ["/config/redis/url"]),
        ({**LEAST, "procesor": {}}, ["procesor"]),
        ({**LEAST, "terminationGracePeriodSeconds": 10}, ["/terminationGracePeriodSeconds"]),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(helm.HelmError) as refused:
        rendered(values)
    for word in words:
        assert word in str(refused.value)


def test_roles_run_apart_and_a_stop_drains() -> None:
    objects = rendered(LEAST)
    for role in ("api", "processor", "notifier"):
        pod = objects["Deployment", f"downloader-{role}"]["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["args"] == [role, "-c", "/etc/downloader/config.toml"]
        assert container["image"] == "registry.example.org/downloader:0.1.0"
        # preStop's ten seconds count too.
        assert pod["terminationGracePeriodSeconds"] >= Settings().processor.grace + 10
        assert ("lifecycle" in container) == (role == "api")
        assert ("PodDisruptionBudget", f"downloader-{role}") in objects


def pod_of(role: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A role's pod, and its container."""
    pod = rendered(values)["Deployment", f"downloader-{role}"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    return pod, container


@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_a_store_that_is_away_restarts_and_removes_no_api(values: dict[str, Any]) -> None:
    _, container = pod_of("api", values)
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    live = "/health/live"
    assert paths == {"startupProbe": live, "livenessProbe": live, "readinessProbe": "/hb"}
    assert {container[name]["httpGet"]["port"] for name in paths} == {"http"}


def test_the_api_says_that_it_leaves_and_listens_where_the_service_sends() -> None:
    _, container = pod_of("api", LEAST)
    env = {pair["name"]: pair["value"] for pair in container["env"]}
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert f"Path('{env['DOWNLOADER_API__HEARTBEAT_PATH']}').touch()" in command[-1]
    [port] = container["ports"]
    assert env["DOWNLOADER_API__PORT"] == str(port["containerPort"])
    [target] = rendered(LEAST)["Service", "downloader"]["spec"]["ports"]
    assert target["targetPort"] == port["name"] == "http"


@pytest.mark.parametrize("role", ["api", "processor", "notifier"])
def test_a_new_pod_is_ready_before_an_old_one_goes(role: str) -> None:
    strategy = rendered(LEAST)["Deployment", f"downloader-{role}"]["spec"]["strategy"]
    assert strategy["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("role", ["api", "processor", "notifier"])
def test_a_pod_has_no_privileges_and_what_it_was_given(role: str) -> None:
    pod, container = pod_of(role, ALL)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    own = container["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert container["envFrom"] == [{"secretRef": {"name": "downloader-tokens"}}]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    # The image's working directory is /data; the storage's files are below `data_dir`.
    assert mounts["files"] == f"{mounts['data']}/{Settings().data_dir}/files"
    [files] = [volume for volume in pod["volumes"] if volume["name"] == "files"]
    assert files["persistentVolumeClaim"] == {"claimName": "shared"}


def test_they_scale_by_what_waits() -> None:
    objects = rendered(ALL)
    for role, number in (("processor", "downloads.pending"), ("notifier", "callbacks.pending")):
        assert "replicas" not in objects["Deployment", f"downloader-{role}"]["spec"]
        spec = objects["ScaledObject", f"downloader-{role}"]["spec"]
        assert spec["scaleTargetRef"] == {"name": f"downloader-{role}"}
        [trigger] = spec["triggers"]
        assert trigger["authenticationRef"] == {"name": "downloader"}
        metadata = trigger["metadata"]
        assert (metadata["url"], metadata["valueLocation"]) == ("http://downloader.prod.svc:80/stats", number)
    assert objects["ScaledObject", "downloader-processor"]["spec"]["maxReplicaCount"] == 20
    assert ("TriggerAuthentication", "downloader") in objects


def test_a_change_of_the_configuration_replaces_the_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = rendered(values)["Deployment", "downloader-api"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(LEAST) == checksum(LEAST) != checksum(ALL)
