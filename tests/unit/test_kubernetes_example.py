"""examples/kubernetes: valid for Kubernetes' own schemas (bundled, no network); what it says of nsbridge is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from nsbridge.config.load import load
from nsbridge.supervisor.cli.commands.nsbridge import WEB_ADDRESS
from nsbridge.supervisor.containers import engines

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/kubernetes"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((EXAMPLE / "nsbridge.yaml").read_text(encoding="utf-8")))
OLDEST, NEWEST = "1.30", "1.37"  # the field appArmorProfile came with 1.30


def of_kind(kind: str, name: str = "nsbridge") -> dict[str, Any]:
    (found,) = [each for each in DOCUMENTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def container(name: str) -> dict[str, Any]:
    spec = of_kind("DaemonSet")["spec"]["template"]["spec"]
    (found,) = [each for each in spec["containers"] if each["name"] == name]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_document_is_valid(document: dict[str, Any], version: str) -> None:
    """In the strict schemas an unknown key is an error."""
    kubernetes_validate.validate(document, version, strict=True)


def test_validator_finds_a_misspelt_key() -> None:
    broken = of_kind("DaemonSet") | {"spec": of_kind("DaemonSet")["spec"] | {"updateStrategie": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="updateStrategie"):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


def test_capabilities_are_those_of_the_unit() -> None:
    unit = (ROOT / "examples/service/nsbridged.service").read_text(encoding="utf-8")
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    wanted = [name.removeprefix("CAP_") for line in lines for name in line.split()]
    context = container("nsbridged")["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": wanted}
    assert "privileged" not in context
    assert context["readOnlyRootFilesystem"]


def test_configuration_of_the_example_is_right(tmp_path: Path) -> None:
    """nsbridged itself reads it, with its drop-ins."""
    (tmp_path / "nsbridge.d").mkdir()
    for name, directory in (("nsbridge", tmp_path), ("nsbridge-routes", tmp_path / "nsbridge.d")):
        for file, text in of_kind("ConfigMap", name)["data"].items():
            (directory / file).write_text(text, encoding="utf-8")
    config = load(str(tmp_path / "nsbridge.toml"))
    assert {agent.container.kind for route in config.routes for agent in route.agents} == {engines.kubernetes.KIND}
    assert config.daemon.state_dir == "/run/nsbridge"
    assert config.daemon.control.read_group == "adm"


def test_each_drop_in_is_mounted_as_a_file() -> None:
    """nsbridged refuses the directory of a ConfigMap's volume, which all users may write. A subPath mounts a file."""
    mounts = {
        (mount["name"], mount["subPath"]): mount["mountPath"]
        for mount in container("nsbridged")["volumeMounts"]
        if "subPath" in mount
    }
    wanted = {("config", "nsbridge.toml"): "/etc/nsbridge/nsbridge.toml"}
    for file in of_kind("ConfigMap", "nsbridge-routes")["data"]:
        wanted["routes", file] = f"/etc/nsbridge/nsbridge.d/{file}"
    assert mounts == wanted


def test_port_is_that_of_nsbridge_web() -> None:
    port = WEB_ADDRESS[1]
    web = container("web")
    (rule,) = of_kind("NetworkPolicy")["spec"]["ingress"]
    annotations = of_kind("DaemonSet")["spec"]["template"]["metadata"]["annotations"]
    assert [each["containerPort"] for each in web["ports"]] == [port]
    assert f"0.0.0.0:{port}" in web["command"]
    assert [each["port"] for each in rule["ports"]] == [port]
    assert annotations["prometheus.io/port"] == str(port)


def test_web_container_has_no_rights_but_to_look() -> None:
    """Its group is the daemon's read_group, which Debian numbers 4."""
    context = container("web")["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert (context["runAsNonRoot"], context["runAsGroup"], context["allowPrivilegeEscalation"]) == (True, 4, False)
    assert all(mount["readOnly"] for mount in container("web")["volumeMounts"])


def test_containerfile_copies_what_the_package_is_made_of() -> None:
    text = (EXAMPLE / "Containerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    packages = re.findall(r"^TOPS = \((.*)\)$", (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r'"(\w+)"', packages[0])) | {
        ".typecheck",
        "docs/configuration.md",
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
    } == set(copied)
