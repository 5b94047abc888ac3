"""What a fresh clone relies on: pins, the files that repeat them, the Makefile, and what ships."""

import ast
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
run_benchmarks = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "run.py"))["main"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = PYPROJECT["project"]["dependencies"]
TEST = PYPROJECT["project"]["optional-dependencies"]["test"]
NO_DEPS = PYPROJECT["tool"]["e2e"]["no-deps"]
EXTRAS = [pin for extra in ("parquet", "cluster", "quantized") for pin in PYPROJECT["project"]["optional-dependencies"][extra]]
versions = runpy.run_path(str(ROOT / "tests" / "versions.py"))
PYTHONS = versions["supported"](PYPROJECT["project"]["requires-python"])
OPTIONAL = {"torchvision"}  # used where it works, see e2e_lib/evaluation/fidelity.py


def pins(requirements):
    """Canonical name → version; every requirement must be ``name==version``, each name once."""
    versions = {}
    for requirement in map(Requirement, requirements):
        name, specifiers = canonicalize_name(requirement.name), list(requirement.specifier)
        assert [s.operator for s in specifiers] == ["=="] and "*" not in specifiers[0].version, f"{requirement}: not an exact pin"
        assert not requirement.marker and not requirement.extras and not requirement.url, f"{requirement}: more than a name and a version"
        assert name not in versions, f"{name} is pinned twice"
        versions[name] = specifiers[0].version
    return versions


def repository_files():
    """The files that git has or would take."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("this is no git checkout, or git is missing")
    return sorted({ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()})


# Pins


def test_every_pin_is_exact_and_stands_once():
    assert pins([*RUNTIME, *TEST, *NO_DEPS])["torch"]
    assert pins(PYPROJECT["build-system"]["requires"])


def test_what_is_installed_is_what_is_pinned():
    for name, version in pins([*RUNTIME, *TEST, *NO_DEPS]).items():
        assert importlib.metadata.version(name).partition("+")[0] == version, f"{name}: run `make setup`"  # torch's may end in +cpu


def test_environment_yml_carries_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert conda == ["python=3.11", "pip"]
    assert pins(pip) == pins([*RUNTIME, *TEST])


def test_environment_yml_says_what_pip_cannot_be_told_there():
    (command,) = re.findall(r"^# +pip install --no-deps (.+) -e \.$", (ROOT / "environment.yml").read_text(), re.M)
    assert pins(command.split()) == pins(NO_DEPS)


def test_what_no_deps_leaves_out_is_listed():
    for name in pins(NO_DEPS):
        needed = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        names = {canonicalize_name(r.name) for r in needed if not r.marker or r.marker.evaluate({"extra": ""})}
        assert names - OPTIONAL <= pins(RUNTIME).keys()


# Versions of Python


def test_every_file_says_the_same_versions_of_python():
    assert (PYTHONS[0], PYTHONS[-1]) == ("3.11", "3.13")
    makefile = (ROOT / "Makefile").read_text()
    (low, high) = re.findall(r"\(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)", makefile)[0]
    assert [f"3.{low}", f"3.{high}"] == [PYTHONS[0], PYTHONS[-1]] and f"for p in {' '.join(f'python{v}' for v in PYTHONS)};" in makefile
    words = f"{', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}"
    assert f"Python {words} is needed" in makefile and f"You need Python {words}," in (ROOT / "README.md").read_text()
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0] and PYPROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    assert sys.version_info[:2] in [tuple(map(int, version.split("."))) for version in PYTHONS]


def stand_in_python(path, version):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{'echo ' + version if version else 'exit 127'}\n")
    path.chmod(0o755)


def test_versions_runs_those_that_start_and_says_which_are_missing(tmp_path, monkeypatch, capfd):
    (tmp_path / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.11,<3.14"\n')
    programs, installed = tmp_path / "programs", tmp_path / "installed"
    stand_in_python(programs / "python3.11", "3.11")
    stand_in_python(programs / "python3.12", "")  # as pyenv leaves one
    stand_in_python(installed / "3.12.9" / "bin" / "python", "3.12")
    (programs / "make").write_text(f"#!/bin/sh\necho \"$*\" >> {tmp_path}/log\ncase \"$*\" in *3.12*) exit $(cat {tmp_path}/code);; esac\n")
    (programs / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(shutil, "which", lambda name: str(programs / name) if (programs / name).exists() else None)
    for code, outcome in ((0, "passed"), (1, "FAILED")):
        (tmp_path / "code").write_text(str(code))
        assert versions["main"](["tests/bridge"], tmp_path, installed) == code
        assert capfd.readouterr().out.splitlines()[-3:] == ["Python 3.11: passed", f"Python 3.12: {outcome}", "Python 3.13: not on this machine"]
    first, second = (tmp_path / "log").read_text().splitlines()[:2]
    assert first == f"test VENV=.venvs/3.11 PYTHON={programs}/python3.11 TESTS=tests/bridge"
    assert second == f"test VENV=.venvs/3.12 PYTHON={installed}/3.12.9/bin/python TESTS=tests/bridge"
    (tmp_path / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.13,<3.14"\n')
    assert versions["main"]([], tmp_path, installed) == 1  # none ran
    assert all((ROOT / name).exists() for name in versions["QUICK"])


# Imports


def imported(source):
    """The top-level names that Python source imports, relative imports aside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def python_of(path):
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


@pytest.mark.parametrize("folder, suffix, allowed", [
    ("e2e_lib", "py", [*RUNTIME, *NO_DEPS, *EXTRAS]), ("notebooks", "ipynb", [*RUNTIME, *NO_DEPS]), ("tests", "py", [*RUNTIME, *NO_DEPS, *{*TEST, *EXTRAS}])])
def test_every_import_is_a_dependency(folder, suffix, allowed):
    distributions, allowed_names = importlib.metadata.packages_distributions(), pins(allowed).keys()
    paths = list((ROOT / folder).rglob(f"*.{suffix}"))
    own = {"e2e_lib", "tests"} | OPTIONAL | {path.stem for path in paths if folder == "tests"}
    for path in paths:
        for name in set(imported(python_of(path))) - set(sys.stdlib_module_names) - own:
            found = {canonicalize_name(d) for d in distributions.get(name, [name])}
            assert found & allowed_names, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not list for {folder}/"


def test_each_room_imports_only_rooms_it_may():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_shape_of_the_package_can_be_counted():
    done = subprocess.run([sys.executable, "tests/house.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^all +[\d,]+ 100.0%$", done.stdout, re.M) and "Contracts:" in done.stdout


def test_benchmarks_run_by_name_or_all_and_are_then_saved(tmp_path, capfd):
    for name in ("one", "two"):
        (tmp_path / f"bench_{name}.py").write_text(f"import sys\nprint('{{\"benchmark\": \"{name}\", \"flags\": %d}}' % len(sys.argv))\n")
    assert run_benchmarks(["two", "--json"], tmp_path, tmp_path) == 0
    assert json.loads(capfd.readouterr().out) == {"benchmark": "two", "flags": 2} and not (tmp_path / "mini").exists()
    assert run_benchmarks([], tmp_path, tmp_path) == 0
    assert [row["benchmark"] for row in json.loads((tmp_path / "mini" / "benchmarks.json").read_text())["measured"]] == ["one", "two"]
    assert run_benchmarks(["three"], tmp_path, tmp_path) == 1
    assert "no benchmark is called three; there are: one, two" in capfd.readouterr().err


# What is in the repository and in the package


def test_no_file_names_a_registry_host_or_a_machines_path():
    # In pieces, so that this file does not find itself.
    hosts = ["pypi" + r"\.org", "python" + r"hosted\.org", "registry" + r"\.npmjs", "deb" + r"\.debian", "conda" + r"\.anaconda"]
    folders = r"(?<![\w.$~})*-])/(?:work|root|home/\w+|Users/\w+)" + "/"
    private = re.compile("|".join([*hosts, folders]))
    found = []
    for path in repository_files():
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights
        found += [f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}: {hit.group()}" for hit in private.finditer(text)]
    assert not found


def test_weights_are_small_and_never_pickled():
    folder = ROOT / "e2e_lib" / "weights"
    shipped = [path for path in repository_files() if folder in path.parents]
    if not shipped:
        pytest.skip("no pretrained parts are shipped yet")
    assert {path.suffix for path in shipped} <= {".safetensors", ".json", ".txt"}
    assert sum(path.stat().st_size for path in shipped) <= 15_000_000


def test_the_package_carries_every_file_it_needs():
    package = ROOT / "e2e_lib"
    shipped = {path for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["e2e_lib"] for path in package.glob(pattern)}
    assert not [str(path) for path in repository_files() if package in path.parents and path.suffix != ".py" and path not in shipped]
    modules = [path for path in repository_files() if package in path.parents and path.suffix == ".py"]
    assert not [str(path) for path in modules if not (path.parent / "__init__.py").exists()]


# The Makefile, run with a stand-in for Python that notes what it is asked to do

STAND_IN = """#!/bin/sh
case "$*" in
-c*) exec {python} "$@";;
esac
echo "$*" >> {log}
case "$*" in
"-m venv"*)
    rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python
    echo "#!$PWD/.venv/bin/python" > .venv/bin/pip;;
*editable*)
    if [ -e broken ]; then echo 'no space left' >&2; exit 1; fi
    for name in e2e lint-imports; do
        printf "#!/bin/sh\\necho $name \\"\\$@\\" >> {log}\\n" > .venv/bin/$name; chmod +x .venv/bin/$name
    done;;
esac
"""
VENV = "-m venv --clear .venv"
PIP = "-m pip install --quiet --no-input --disable-pip-version-check"
INSTALLS = [f"{PIP} {next(pin for pin in RUNTIME if pin.startswith('torch=='))}", f"{PIP} --no-deps {NO_DEPS[0]}",
            f"{PIP} --no-warn-conflicts --editable .[test]"]
TARGETS = {
    "setup": ["e2e doctor"], "reproduce": ["e2e reproduce --profile mini"], "compare": ["e2e compare --profile mini"],
    "test": ["-m pytest -q -n 3 --dist worksteal"], "fuzz": ["-m pytest -q -n 2 -m fuzz"],
    "kills": ["-m pytest -q tests/download/test_photos.py tests/training/test_saving.py -k kills"],
    "cluster": [f"{PIP} --no-warn-conflicts --editable .[cluster]", "-m pytest -q tests/download/test_cluster.py"],
    "browser": [f"{PIP} --no-warn-conflicts --editable .[browser]", "-m pytest -q -m browser tests/window/test_browser.py"],
    "versions": ["tests/versions.py"],
    "slides": ["-m nbconvert --to slides --no-input --output-dir build/slides --SlidesExporter.reveal_scroll=True "
               "--SlidesExporter.preprocessors=e2e_lib.lessons.slides.SlideTypes notebooks/02_straight_through_gumbel.ipynb notebooks/03_vocabulary_matrix.ipynb"],
    "mutants": ["tests/mutants/run.py"],
    "bench": ["tests/benchmarks/run.py"],
    "lint": ["-m ruff check e2e_lib tests", "-m mypy e2e_lib", "lint-imports --no-cache --no-logo"],
    "house": ["tests/house.py"], "clean": []}

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


class Clone:
    """A folder with the repository's Makefile and a stand-in for Python 3.11."""

    def __init__(self, folder):
        self.folder, self.log, self.python = folder / "a clone", folder / "log", folder / "python"
        (self.folder / ".ci").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", ".ci/run"):
            shutil.copy(ROOT / name, self.folder / name)
        self.python.write_text(STAND_IN.format(python=sys.executable, log=self.log))
        self.python.chmod(0o755)
        (folder / "programs").mkdir()
        (folder / "programs" / "npm").write_text("#!/bin/sh\n")
        (folder / "programs" / "npm").chmod(0o755)

    def run(self, command, python=None):
        """The finished process, and what Python, pip and e2e were asked to do, in order."""
        self.log.write_text("")
        environment = {"PATH": f"{self.folder.parent / 'programs'}:{os.environ['PATH']}", "PYTHON": str(python or self.python), "CI": "true"}
        done = subprocess.run(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done, self.log.read_text().splitlines()

    def make(self, *arguments, **options):
        return self.run(["make", *arguments], **options)


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


@needs_make
def test_setup_installs_torch_first_and_every_install_gets_the_pip_arguments(clone):
    done, calls = clone.make("setup", "PIP_ARGS=--extra-index-url there")
    expected = [call.replace(PIP, f"{PIP} --extra-index-url there") for call in INSTALLS]
    assert (done.returncode, calls) == (0, [VENV, *expected, "e2e doctor"]) and not done.stderr
    assert f"Installing {INSTALLS[0].split()[-1]}: " in done.stdout and f"Installing {NO_DEPS[0]} and everything else" in done.stdout


@needs_make
def test_each_target_runs_what_it_says_and_make_alone_explains_them(clone):
    done, calls = clone.make()
    assert done.returncode == 0 and not calls and not (clone.folder / ".venv").exists()
    assert re.findall(r"^make (\w+)", done.stdout, re.M) == list(TARGETS)
    assert clone.make("setup")[0].returncode == 0
    for target, expected in TARGETS.items():
        done, calls = clone.make(target)
        assert (done.returncode, calls) == (0, expected)
    assert clone.make("reproduce", "PROFILE=smoke")[1] == ["e2e reproduce --profile smoke"]
    assert clone.make("bench", "BENCH=bridge --fast")[1] == ["tests/benchmarks/run.py bridge --fast"]


@needs_make
def test_clean_keeps_committed_results(clone):
    for name in ("data/x", "runs/x", "results/smoke/x", "results/mini/x", "figures/smoke/x"):
        (clone.folder / name).mkdir(parents=True)
    clone.make("clean")
    assert sorted(path.name for path in clone.folder.iterdir() if path.is_dir()) == [".ci", "figures", "results"]
    assert (clone.folder / "results/mini/x").exists() and not (clone.folder / "results/smoke").exists()


@needs_make
def test_the_environment_follows_its_pins_its_folder_and_interrupted_installs(clone):
    (clone.folder / "broken").touch()
    done, calls = clone.make("setup")
    assert done.returncode != 0 and calls == [VENV, *INSTALLS] and "no space left" in done.stderr
    (clone.folder / "broken").unlink()
    assert clone.make("setup")[1] == [*INSTALLS, "e2e doctor"]
    later = (clone.folder / ".venv/.installed").stat().st_mtime + 10
    os.utime(clone.folder / "pyproject.toml", (later, later))
    assert clone.make("setup")[1] == [*INSTALLS, "e2e doctor"]
    os.utime(clone.folder / "pyproject.toml", (0, 0))
    clone.folder = clone.folder.rename(clone.folder.parent / "moved")
    assert clone.make("setup")[1] == [VENV, *INSTALLS, "e2e doctor"]
    assert clone.make("setup")[1] == ["e2e doctor"]


@needs_make
@pytest.mark.parametrize("python", ["no-such-python", "false"])  # missing, or there but none of them
def test_without_a_python_that_fits_it_says_what_to_do(clone, python):
    done, calls = clone.make("reproduce", python=python)
    assert done.returncode != 0 and not calls and not (clone.folder / ".venv").exists()
    assert f"Python 3.11, 3.12 or 3.13 is needed, and {python} is missing" in done.stderr and "PYTHON=" in done.stderr


def test_binder_installs_what_make_does_but_for_the_tests(clone):
    shutil.copytree(ROOT / "binder", clone.folder / "binder")
    (clone.folder / ".venv" / "bin").mkdir(parents=True)  # for the stand-in, which leaves commands there
    (clone.folder.parent / "programs" / "python").symlink_to(clone.python)
    done, calls = clone.run(["bash", "-c", f"cd / && bash '{clone.folder}/binder/postBuild'"])
    bare = [call.replace("--no-cache-dir ", "") for call in calls]
    assert done.returncode == 0 and bare == [*INSTALLS[:2], f"{PIP} --editable .", "-m e2e_lib doctor"]
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())
    assert environment["dependencies"] == [f"python={PYTHONS[0]}", "pip"] and os.access(ROOT / "binder" / "postBuild", os.X_OK)


def test_the_citation_says_what_the_package_does():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PYPROJECT["project"]["version"], PYPROJECT["project"]["license"])
    assert citation["authors"] == [{"name": "the authors of this repository"}] and "the authors of this repository" in (ROOT / "LICENSE").read_text()
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2408.08650" and paper["authors"][0]["family-names"] == "Guo"


@needs_make
def test_ci_runs_make_test_from_anywhere(clone):
    done, calls = clone.run(["sh", "-c", f"cd / && '{clone.folder}/.ci/run'"])
    assert (done.returncode, calls) == (0, [VENV, *INSTALLS, *TARGETS["test"]])


def test_ci_runs_what_the_readme_says():
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README yet")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S))
    command = (ROOT / ".ci/run").read_text().splitlines()[-1]
    assert re.search(rf"^(?:\$ )?{re.escape(command)}\b", blocks, re.M)
