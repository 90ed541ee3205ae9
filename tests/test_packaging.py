"""pyproject.toml, environment.yml and constraints.txt name the same packages."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch"}


def requirement(text):
    name, bound = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(>=.*)?", text).groups()
    return CONDA_NAMES.get(name.lower(), name.lower()), bound or ""


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def declared(project):
    extras = project["optional-dependencies"]
    included = re.fullmatch(r"covshift\[(.*)\]", extras["dev"][0]).group(1).split(",")
    texts = [*project["dependencies"], *extras["dev"][1:], *(text for name in included for text in extras[name])]
    return dict(requirement(text) for text in texts)


def test_environment_yml_has_the_packages_and_bounds_of_pyproject(declared, project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    conda = dict(requirement(text) for text in environment["dependencies"] if isinstance(text, str))
    assert conda.pop("python") == project["requires-python"]
    conda.pop("pip")
    assert conda == declared


def test_constraints_pin_every_declared_package_within_its_bound(declared):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    for name, bound in declared.items():
        assert version_key(pins[name]) >= version_key(bound.removeprefix(">=")), name


def version_key(version):
    return tuple(int(part) for part in re.findall(r"\d+", version))


def test_the_version_is_the_same_everywhere(project):
    import covshift

    assert covshift.__version__ == project["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project["version"]
