"""The package as it is installed: a wheel and an editable install, both used from outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import mlflow_relabel_audit

ROOT = Path(__file__).resolve().parents[1]
IGNORED = {"__pycache__"}
PROBE = """
import importlib.metadata, importlib.resources, json, pathlib, sys
import mlflow_relabel_audit

def walk(folder, prefix=""):
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            yield from walk(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.read_text(encoding="utf-8")

templates = dict(walk(importlib.resources.files("mlflow_relabel_audit.templates")))
from mlflow_relabel_audit.reports.environment import environment
for name in templates:
    if not name.endswith(".py"):
        environment().get_template(name)
json.dump(
    {
        "templates": templates,
        "module": mlflow_relabel_audit.__file__,
        "typed": importlib.resources.files("mlflow_relabel_audit").joinpath("py.typed").is_file(),
        "version": importlib.metadata.version("mlflow-relabel-audit"),
        "mlflow": "mlflow" in sys.modules,
    },
    sys.stdout,
)
"""


def files_under(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not IGNORED & set(path.parts) and path.suffix != ".pyc"
    }


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, in an environment that does not know the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a build reads, copied, so that building leaves nothing in the checkout and reads nothing stale."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in (mlflow_relabel_audit.__name__, "templates"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*IGNORED))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def bare(tmp_path):
    """An environment that sees the dependencies of the tests but not this package, and an empty directory."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    (own,) = home.glob("lib/python*/site-packages")
    # Path files in the folder named here, such as an editable install of this package, are not read.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    return home / "bin" / "python", empty


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_every_template_is_found_from_elsewhere(how, source, wheel, bare):
    python, empty = bare
    requirement = [wheel] if how == "wheel" else ["-e", source]
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", *requirement, cwd=empty)
    found = json.loads(run(python, "-c", PROBE, cwd=empty))
    home = python.parents[1] if how == "wheel" else source
    assert Path(found["module"]).is_relative_to(home)
    assert set(found["templates"]) == files_under(source / "templates")
    assert {name for name in found["templates"] if name.endswith(".html")}
    for name, text in found["templates"].items():
        assert text == (source / "templates" / name).read_text(encoding="utf-8")
    assert found["typed"]
    assert found["version"] == mlflow_relabel_audit.__version__
    assert not found["mlflow"]
    assert "Usage: mlflow-relabel" in run(python.parent / "mlflow-relabel", "--help", cwd=empty)


@pytest.mark.slow
def test_wheel_holds_the_whole_package_and_nothing_else(source, wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = mlflow_relabel_audit.__name__
    modules = {f"{package}/{name}" for name in files_under(source / package)}
    templates = {f"{package}/templates/{name}" for name in files_under(source / "templates")}
    assert names == modules | templates


def test_importing_the_package_is_cheap():
    code = "import sys, mlflow_relabel_audit; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(run(sys.executable, "-c", code, cwd=ROOT).split())
    assert not loaded & {"mlflow", "numpy", "pandas", "sklearn", "click", "jinja2", "matplotlib"}


def test_numbers_alone_never_import_mlflow():
    code = "import sys; from mlflow_relabel_audit import Auditor; print('mlflow' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "False"


def test_public_names_resolve_and_keep_their_meaning():
    code = (
        "import mlflow_relabel_audit as package\n"
        "import mlflow_relabel_audit.audit\n"
        "from mlflow_relabel_audit.audit import AuditResult\n"
        "from mlflow_relabel_audit import audit\n"
        "assert callable(audit) and package.audit is audit, audit\n"
        "assert all(hasattr(package, name) for name in package.__all__)\n"
        "assert set(package.__all__) <= set(dir(package))\n"
    )
    run(sys.executable, "-c", code, cwd=ROOT)


def test_unknown_names_are_named():
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        mlflow_relabel_audit.audits  # noqa: B018
