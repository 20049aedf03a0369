"""What the repository promises about itself: one configuration, exported code, generated numbers, safe loading."""

import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dualppo

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "outputs" / "published"
sys.path.insert(0, str(ROOT / "tools"))

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
RUNS = [p for p in NOTEBOOKS if p.parent.name == "runs"]
MODULES = sorted(p for p in (ROOT / "dualppo").rglob("*.py") if "__pycache__" not in p.parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def dualppo_index() -> dict:
    """What nbdev wrote about every exported symbol."""
    from dualppo._modidx import d

    return d


def requirements() -> dict[str, list[str]]:
    """Requirement strings by settings key, the library's own first."""
    return {key: value.split() for key, value in settings().items() if key.endswith("requirements")}


def versioned_files() -> list[Path]:
    """Every file that is, or could be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return sorted(p for name in set(listing.stdout.split("\0")) if name and (p := ROOT / name).is_file())


def code_of(path: Path) -> str:
    """Python source of a module, or of a notebook's code cells without their magics."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    lines = "\n".join("".join(c["source"]) for c in cells).splitlines()
    return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in lines)


# ---- one configuration


def test_pyproject_and_settings_agree():
    """nbdev and pip read pyproject.toml, setup.py reads settings.ini: what both name is the same, and little is."""
    document, ini = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")), settings()
    project, nbdev = document["project"], document["tool"]["nbdev"]
    assert project["name"] == ini["lib_name"]
    common = ini.keys() & (project.keys() | nbdev.keys())
    assert common == {"lib_path"}, (
        "one file is enough for a setting: name, version and requirements stand in settings.ini"
    )
    assert nbdev["lib_path"] == ini["lib_path"]
    assert set(project) == {"name", "description", "urls", "dynamic"}, (
        "the rest comes from settings.ini through setup.py"
    )
    assert {"version", "dependencies", "optional-dependencies", "scripts"} <= set(project["dynamic"])


def test_nbdev_reads_what_pyproject_says():
    """nbdev ignores a key that it does not know, and takes the links from [project.urls] alone."""
    from nbdev.config import get_config

    document, cfg = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")), get_config(ROOT)
    links = document["project"]["urls"]
    assert cfg.lib_path == ROOT / "dualppo" and cfg.nbs_path == ROOT / "nbs"
    assert cfg.description == document["project"]["description"] and cfg.version == settings()["version"]
    assert links["Source"] == cfg.git_url and links["Changelog"] == f"{cfg.git_url}/blob/{cfg.branch}/CHANGELOG.md"
    assert dualppo_index()["settings"]["git_url"] == links["Source"], (
        "dualppo/_modidx.py has lost its link: run nbdev-export"
    )
    assert not cfg.doc_host, (
        "nbdev-export would write an address into every module: their hash is part of each published run"
    )


def test_version_is_the_same_everywhere():
    version = settings()["version"]
    assert dualppo.__version__ == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


LOCKS = ("requirements.lock", "requirements-cuda.lock", "requirements-carriers.lock")


def entries(name: str) -> dict[Requirement, list[str]]:
    """What a lock file pins, and the hashes of each."""
    text = (ROOT / name).read_text().replace(" \\\n", " ")
    lines = [line.split("--hash=sha256:") for line in text.splitlines() if not line.startswith("#")]
    return {Requirement(pin): [one.strip() for one in hashes] for pin, *hashes in lines}


def locked() -> dict[str, set[str]]:
    """Name → versions; a marker tells which holds where."""
    pins: dict[str, set[str]] = {}
    for pin in entries("requirements.lock"):
        pins.setdefault(canonicalize_name(pin.name), set()).update(one.version for one in pin.specifier)
    return pins


def test_lock_covers_every_requirement():
    pins = locked()
    assert pins["torch"] == {"2.13.0"}
    for key, needs in requirements().items():
        for need in map(Requirement, needs):
            versions = pins.get(canonicalize_name(need.name))
            assert versions, f"settings.ini asks for {need} in {key}, requirements.lock lacks it: run make lock"
            assert all(map(need.specifier.contains, versions)), f"{key}: {need}, but requirements.lock has {versions}"


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_file_has_its_sha256(name):
    assert entries(name)
    for pin, hashes in entries(name).items():
        assert [one.operator for one in pin.specifier] == ["=="], f"{name}: {pin} is not an exact version"
        assert hashes and all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes), f"{name}: {pin} has no hashes"


def test_the_locks_are_used_by_their_hashes():
    made = (ROOT / "Makefile").read_text()
    for name in LOCKS:
        (line,) = [line for line in made.splitlines() if f"-r {name}" in line]
        assert f"--require-hashes --no-deps -r {name}" in line or f"-d $(CARRIERS) -r {name}" in line, line
        assert "--require-hashes" in line


def test_one_lock_serves_all_platforms():
    """The files of a package with compiled code are those of Linux and macOS, not only of the machine that locked."""
    hashes = {canonicalize_name(pin.name): found for pin, found in entries("requirements.lock").items()}
    assert all(len(hashes[name]) > 8 for name in ("torch", "numpy", "pandas", "scipy", "safetensors"))
    assert not any(canonicalize_name(pin.name) in locked() for pin in entries("requirements-cuda.lock"))


def test_lock_names_no_host_and_no_option():
    for name in LOCKS:
        for line in (ROOT / name).read_text().splitlines():
            said = re.sub(r"^ +--hash=sha256:[0-9a-f]{64}( \\)?$", "", line)
            assert said.startswith("#") or not re.search(r"://|^\s*-|@ |file:", said), f"{name}: {line}"


def test_carriers_are_never_installed():
    for pin in entries("requirements-carriers.lock"):
        assert canonicalize_name(pin.name) not in locked(), "its requirements would break pip check"


# ---- the package is what the notebooks export


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A copy of the project after nbdev-export and nbdev-clean, so that the checkout itself stays as it is."""
    copy = tmp_path_factory.mktemp("export")
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "dualppo").mkdir()
    shutil.copy(ROOT / "dualppo" / "__init__.py", copy / "dualppo")
    for command in ("nbdev-export", "nbdev-clean"):
        done = subprocess.run([Path(sys.executable).parent / command], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return copy


def test_modules_are_exactly_what_the_notebooks_export(exported):
    fresh = sorted(p.relative_to(exported / "dualppo").as_posix() for p in (exported / "dualppo").rglob("*.py"))
    assert sorted(p.relative_to(ROOT / "dualppo").as_posix() for p in MODULES) == fresh, (
        "a module without a notebook, or the reverse: run nbdev-export"
    )
    _, changed, missing = filecmp.cmpfiles(ROOT / "dualppo", exported / "dualppo", fresh, shallow=False)
    assert not changed + missing, f"dualppo/{changed + missing}: edit the notebook, then run nbdev-export"


def test_notebooks_are_clean(exported):
    names = [p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS]
    _, changed, missing = filecmp.cmpfiles(ROOT / "nbs", exported / "nbs", names, shallow=False)
    assert not changed + missing, f"nbs/{changed + missing}: run nbdev-clean"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebook_keeps_no_execution_counts_and_no_errors(path):
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] == "code":
            outputs = cell["outputs"]
            assert cell["execution_count"] is None, f"cell {number}: run nbdev-clean"
            assert not any(out.get("execution_count") for out in outputs), f"cell {number}: run nbdev-clean"
            assert not any(out["output_type"] == "error" for out in outputs), f"cell {number} shows an error"


def test_results_and_notebooks_name_no_folder_of_a_machine():
    folder = re.compile(rf"(?<![\w./])/(?:home|root|tmp|mnt|Users)/\w|{re.escape(str(ROOT))}|/site-packages/")
    for path in versioned_files():
        if path.suffix == ".ipynb" or path.is_relative_to(PUBLISHED) and path.suffix != ".png":
            assert not (found := folder.search(path.read_text(encoding="utf-8"))), f"{relative(path)} names {found[0]}"


def test_cleaning_keeps_what_papermill_and_the_pages_need(exported):
    """The checkout alone proves nothing: two files equally stripped are equal."""
    for path in RUNS:
        cells = json.loads((exported / path.relative_to(ROOT)).read_text(encoding="utf-8"))["cells"]
        assert [c for c in cells if "parameters" in c["metadata"].get("tags", [])], f"{relative(path)} lost its tag"
    index = json.loads((exported / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    shown = [
        out["metadata"] for c in index["cells"] for out in c.get("outputs", []) if "image/png" in out.get("data", {})
    ]
    assert {"image/png": {"width": 640}} in shown, "index.ipynb lost the width of its picture"


def test_each_run_template_has_one_parameters_cell():
    assert RUNS, "nbs/runs holds the papermill templates"
    assert (ROOT / "nbs" / "runs" / ".notest").is_file(), "tools/notebooks.py would run the templates"
    for path in RUNS:
        cells = json.loads(path.read_text())["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        assert len(tagged) == 1, f"{relative(path)} has {len(tagged)} cells tagged `parameters`; papermill fills one"
        assert not any("default_exp" in "".join(c["source"]) for c in cells), f"{relative(path)} must export nothing"


# ---- data and weights from elsewhere must not be able to run code

# The few places that may do what others may not, and why.
ALLOWED = {
    (
        "dualppo/methods/rows.py",
        "importlib.import_module",
    ): "imports the modules of its own folder, whose names pkgutil lists",
    (
        "dualppo/runs/execution.py",
        "importlib.import_module",
    ): "two modules of the package, by names that stand there; imported where a run needs them",
    (
        "dualppo/text/download.py",
        "urllib.request.urlopen",
    ): "fetches the one archive, whose sha256 is pinned and checked before it is unpacked",
    (
        "dualppo/text/encoders.py",
        "snapshot_download",
    ): "fetches the encoder where its package is not installed, at a pinned commit, each file's sha256 checked; "
    "or the one that the user names, whose commit and sha256 the card keeps",
    (
        "dualppo/show/doctor.py",
        "socket.create_connection",
    ): "asks whether a host answers, sends nothing and reads nothing",
}
FETCHES = (
    r"(.*\.)?(urlopen|urlretrieve|snapshot_download|hf_hub_download|load_state_dict_from_url|download_url_to_file)"
    r"|(requests|httpx|aiohttp|hub|torch\.hub)\..*|socket\.create_connection"
)
UNPICKLES = (
    r"(c?[pP]ickle|_pickle|dill|cloudpickle|joblib|marshal|shelve|jsonpickle)\.(load|loads|open|decode|Unpickler)"
)


def unsafe_calls(source: str, path: str = "") -> list[str]:
    """Calls in `source` through which a file or a string could run code, or something unverified could be fetched."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and re.fullmatch(
            r"c?[pP]ickle|_pickle|dill|cloudpickle|joblib|marshal|shelve", node.module or ""
        ):
            found.append(f"from {node.module} import: unpickling runs whatever the file says")
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if re.fullmatch(r"(builtins\.)?(eval|exec|compile|__import__)|code\.interact|runpy\..*", called):
            found.append(f"{called}(): runs a string")
        elif (
            called.endswith("import_module")
            and (path, called) not in ALLOWED
            and not (node.args and isinstance(node.args[0], ast.Constant))
            and path.startswith("dualppo/")
        ):
            found.append(f"{called}(): a name from data would be imported, that is, run")
        elif re.fullmatch(UNPICKLES, called):
            found.append(f"{called}(): unpickling runs whatever the file says")
        elif called.endswith("read_pickle") or keywords.get("allow_pickle", "False") != "False":
            found.append(f"{called}(): unpickling runs whatever the file says")
        elif called == "torch.load" and keywords.get("weights_only") != "True":
            found.append("torch.load() without weights_only=True unpickles: use safetensors")
        elif "trust_remote_code" in keywords:
            found.append("trust_remote_code: runs code from a hub")
        elif keywords.get("shell", "False") != "False" or re.fullmatch(
            r"os\.(system|popen|spawn\w+)|subprocess\.get(status)?output|commands\..*|asyncio\.create_subprocess_shell",
            called,
        ):
            found.append(f"{called}(): a shell runs it, and a file name could be a command")
        elif re.fullmatch(
            r"yaml\.(load|load_all|unsafe_load\w*|full_load\w*)", called
        ) and "SafeLoader" not in ast.unparse(node):
            found.append(f"{called}(): YAML tags make objects: use safe_load")
        elif re.search(r"\.extract(all)?$", called) or called.endswith("unpack_archive"):
            found.append(f"{called}(): members could be written anywhere: use extract_safely")
        elif (
            path.startswith(("dualppo/", "nbs/", "tools/"))
            and (path, called) not in ALLOWED
            and re.fullmatch(FETCHES, called)
        ):
            found.append(f"{called}(): fetches what nobody has verified: use download_official, or pin a sha256")
        elif (
            path.startswith("dualppo/")
            and called.endswith("from_pretrained")
            and keywords.get("local_files_only") != "True"
        ):
            found.append(f"{called}() without local_files_only=True may fetch what nobody has verified")
    return found


@pytest.mark.parametrize(
    "planted",
    [
        "pickle.load(f)",
        "from pickle import loads",
        "joblib.load(f)",
        "eval(text)",
        "exec(code)",
        "builtins.eval(t)",
        "__import__(name)",
        "importlib.import_module(name)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "AutoModel.from_pretrained(n)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=yes)",
        "run(c, shell=True)",
        "run(c, shell=flag)",
        "os.system(c)",
        "os.popen(c)",
        "yaml.load(t)",
        "yaml.load(t, Loader=yaml.Loader)",
        "yaml.unsafe_load(t)",
        "tar.extractall(p)",
        "shutil.unpack_archive(p)",
        "urllib.request.urlopen(u)",
        "requests.get(u)",
        "snapshot_download(n)",
        "torch.hub.load(r, n)",
        "urlretrieve(u)",
    ],
)
def test_the_unsafe_call_check_finds_a_planted_one(planted):
    assert len(unsafe_calls(planted, "dualppo/planted.py")) == 1


def test_the_unsafe_call_check_lets_harmless_code_pass():
    harmless = (
        "model.eval(); torch.load(p, weights_only=True); re.compile(x); pickletools.genops(b); yaml.safe_load(t); "
        "yaml.load(t, Loader=yaml.SafeLoader); import_module('h5py'); run(c, shell=False); "
        "AutoModel.from_pretrained(n, local_files_only=True); frame.str.extractor(x)"
    )
    assert not unsafe_calls(harmless, "dualppo/planted.py")


def test_no_unsafe_loading_anywhere():
    sources = [p for p in versioned_files() if p.suffix in {".py", ".ipynb"}]
    found = [
        f"{relative(path)}: {what}"
        for path in sources
        for what in unsafe_calls(
            code_of(path),
            relative(path)
            .replace("nbs/workshop/40c_download.ipynb", "dualppo/text/download.py")
            .replace("nbs/text/02_encoders.ipynb", "dualppo/text/encoders.py")
            .replace("nbs/methods/40_methods.ipynb", "dualppo/methods/rows.py")
            .replace("nbs/workshop/41d_execution.ipynb", "dualppo/runs/execution.py")
            .replace("nbs/workshop/43c_doctor.ipynb", "dualppo/show/doctor.py"),
        )
    ]
    assert not found, "\n".join(found)
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name, _ in ALLOWED}
    assert all(f"{called}(" in texts[name] for name, called in ALLOWED), "an exception nobody needs any more"


def test_the_lock_file_can_be_audited():
    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "--requirement requirements.lock --disable-pip --no-deps" in security and len(locked()) > 100


# ---- what the library needs


def imported_names(path: Path) -> set[str]:
    """Top-level names of the absolute imports in `path`, late ones included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_library_imports_only_what_it_declares():
    declared = {
        canonicalize_name(Requirement(need).name)
        for key, needs in requirements().items()
        if key != "dev_requirements"
        for need in needs
    }
    provided = packages_distributions()
    for path in MODULES:
        for name in imported_names(path) - set(sys.stdlib_module_names) - {"dualppo"}:
            owners = {canonicalize_name(owner) for owner in provided.get(name, [name])}
            assert owners & declared, f"{relative(path)} imports {name}, which settings.ini does not ask for"


def bound_names(statement: ast.stmt) -> list[str]:
    """Names that a top-level statement of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        nodes = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        return [node.id for node in nodes if isinstance(node.ctx, ast.Store)]
    return []


def test_no_public_name_is_defined_twice():
    """What a name means does not depend on the module that a reader happens to look at."""
    places: dict[str, set[str]] = {}
    for path in MODULES:
        if path.name != "_modidx.py":
            for statement in ast.parse(code_of(path)).body:
                for name in bound_names(statement):
                    places.setdefault(name, set()).add(relative(path))
    twice = {name: sorted(of) for name, of in places.items() if len(of) > 1 and not name.startswith("_")}
    assert not twice, f"name one of each so that it says what it is: {twice}"


def test_no_module_takes_what_another_keeps_to_itself():
    """A name that begins with an underscore is its module's own."""
    taken = [
        f"{relative(path)}: {alias.name} of {node.module}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if re.match("_[a-z]", alias.name)
    ]
    assert not taken, f"make it public under a name that says what it is, or leave it: {taken}"


def test_every_file_beside_the_modules_is_in_the_package():
    (patterns,) = re.findall(
        r'package_data=\{cfg\["lib_path"\]: (\[.*?\])\}', (ROOT / "setup.py").read_text(encoding="utf-8")
    )
    packaged = {relative(path) for pattern in json.loads(patterns) for path in (ROOT / "dualppo").glob(pattern)}
    beside = {relative(p) for p in versioned_files() if p.is_relative_to(ROOT / "dualppo") and p.suffix != ".py"}
    assert not beside - packaged, f"setup.py packages no {beside - packaged}"


# ---- README


PAGES = ("README.md", "RESULTS.md", "GUIDE.md")


def page(name: str = "README.md") -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_is_read_in_a_few_minutes():
    lines = page().splitlines()
    assert len(lines) <= 120 and next(i for i, line in enumerate(lines) if "make reproduce" in line) < 50


def test_the_guide_names_modules_that_there_are():
    named = re.findall(r"^\| `[0-9a-f]{2}`.*\| ([^|]+) \|$", page("GUIDE.md"), flags=re.M)
    modules = {name for column in named for name in re.findall(r"`(\w+)`", column)}
    assert len(modules) > 40 and modules <= {path.stem for path in MODULES}


def test_numbers_on_pages_are_generated():
    from readme import blocks, filled, generated

    assert set(blocks(page())) == {"questions"} and not blocks(page("GUIDE.md"))
    assert set(blocks(page("RESULTS.md"))) == {
        "tables",
        "machine",
        "findings",
        "ledger",
        "molma",
        "molma_findings",
        "pictures",
    }
    sections = generated(PUBLISHED)
    for name in PAGES:
        assert page(name) == filled(page(name), sections), f"{name} is not what outputs/published gives: make readme"


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_no_hand_typed_result(name):
    prose = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->|```.*?```", "", page(name), flags=re.DOTALL)
    prose = re.sub(r"Python 3\.11 or 3\.12|CC-BY(-SA)?-\d\.0|Apache-2\.0", "", prose)
    assert not re.findall(r"\d+(?:\.\d+)?\s?%|(?<![\w./])\d*\.\d+", prose), "results stand between the markers only"


@pytest.mark.parametrize("name", PAGES)
def test_links_of_pages_resolve(name):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page(name)):
        assert (ROOT / target).exists(), f"{name} links to {target}, which does not exist"


def test_readme_example_trains_a_policy(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", page(), flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d", done.stdout), "the example prints what the policy achieves"


def test_index_shows_the_published_tables():
    from dualppo.papers.tables import shown_folder, tables_folder

    shown = (ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8")
    tables = sorted(tables_folder(PUBLISHED, shown_folder(PUBLISHED)).glob("table?.md"))
    assert {"table2", "table3"} <= {path.stem for path in tables}, "outputs/published/tables lacks a table"
    for path in tables:
        for line in filter(None, path.read_text(encoding="utf-8").splitlines()):
            quoted = json.dumps(line, ensure_ascii=False)[1:-1]
            assert quoted in shown, f"nbs/index.ipynb is older than {relative(path)}: make readme"


# ---- size


def test_only_embeddings_are_large():
    features = dict.fromkeys(("dualppo/assets/wow.safetensors", "outputs/registered/wow.safetensors"), 21)
    others = {"dualppo/assets/pairs.safetensors": 6, "dualppo/assets/pictograms.safetensors": 3}
    for path in versioned_files():
        megabytes = path.stat().st_size / 1e6
        limit = (features | others).get(relative(path), 1.5)
        assert megabytes <= limit, f"{relative(path)} has {megabytes:.1f} MB, more than {limit}"
