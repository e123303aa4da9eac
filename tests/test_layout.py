"""The shape of the house: rooms, imports that go one way, files that can be read, how it installs."""

import ast
import re
import sys

import pytest
from conftest import ROOT

from minilatent.methods import METHODS

PACKAGE = ROOT / "minilatent"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
# A module imports only what stands before it; a new module needs a place here. First the core, in the order
# in which it is read: the root of the package, with the rooms tasks/, backbones/ and methods/.
CORE = """
    config files machine
    tasks.answers tasks.words tasks.graph tasks.published tasks.template tasks.redraw tasks
    backbones backbones.chat backbones.hf_tokenizer tokenizer batch
    model cache fast masks latent losses decode unroll evaluate
    checkpoint optim
    methods.method methods.cot_sft methods.no_cot methods.pause methods.looped methods.icot
    methods.coconut methods.sim_cot methods.codi
    methods.latent_sft methods.latent_sft_hidden methods.grpo methods.latent_rl
    methods.colar methods.colar_rl methods
    parallel trainer
    backbones.lora backbones.pretrained run
""".split()
STUDY = """
    study study.measures study.evaluation study.interventions study.trace study.figures
""".split()
TOOLS = "tools tools.benchmark tools.export tools.playground".split()
ORDER = CORE + STUDY + TOOLS
# An RL stage or an ablation may import the method whose subclass it is.
SUBCLASSES = {
    "methods.colar_rl": "methods.colar",
    "methods.latent_sft_hidden": "methods.latent_sft",
    "methods.sim_cot": "methods.coconut",
    "methods.looped": "methods.no_cot",
}
SHARED = {"methods.method", "methods.grpo"}
PATH = "methods.method model masks latent losses decode batch trainer".split()


def module_of(path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PATHS = {module_of(path): path for path in FILES}
ALL = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in [*FILES, *SCRIPTS]]


def text(path) -> str:
    return path.read_text(encoding="utf-8")


def lines(*modules: str) -> int:
    return sum(len(text(PATHS[module]).splitlines()) for module in modules)


def imports(path) -> set[str]:
    """The package's modules that a file imports, at its top or anywhere in it."""
    package = list(path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:  # `from . import x` names a module, `from .x import y` need not
                longer = ".".join([*base, alias.name])
                found.add(longer if longer in PATHS else ".".join(base))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]:
                if name.split(".")[0] == "minilatent":
                    found.add(name.partition(".")[2])
    return found - {""}


# --- imports ------------------------------------------------------------------------------------------------


def test_every_module_has_its_place_and_every_place_its_module():
    assert sorted(ORDER) == sorted(module for module in PATHS if module)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_one_way_and_the_core_imports_nothing_of_study_and_tools(module):
    for other in imports(PATHS[module]):
        assert ORDER.index(other) < ORDER.index(module), f"{module} imports {other}, which stands below it"


def test_the_check_above_sees_the_imports_that_there_are():
    assert {"latent", "masks", "checkpoint", "methods.method"} <= imports(PATHS["methods.latent_sft"])
    assert {"methods", "tasks", "backbones.lora"} <= imports(PATHS["run"])
    assert "methods.colar" in imports(PATHS["methods.colar_rl"])


def test_methods_never_import_one_another():
    """What two need is in the core or in grpo.py. A subclass imports its base."""
    methods = {module for module in PATHS if module.startswith("methods.")}
    for module in methods - {"methods"}:
        assert imports(PATHS[module]) & (methods - SHARED) <= {SUBCLASSES.get(module)}, module


def test_only_the_trainer_and_the_door_know_of_several_processes():
    assert {module for module in PATHS if "parallel" in imports(PATHS[module])} == {"trainer", "run"}


def test_batch_alone_writes_the_markers_of_thinking():
    """Others only compare with them. (A chat template is a prompt, too, for other people's code.)"""
    writes_think, writes_end = set(), set()
    for module in CORE:
        for node in ast.walk(ast.parse(text(PATHS[module]))):
            if isinstance(node, ast.Attribute) and node.attr == "think":
                writes_think.add(module)
            if isinstance(node, ast.List):
                if any(isinstance(e, ast.Attribute) and e.attr == "end_think" for e in node.elts):
                    writes_end.add(module)
    assert writes_think == {"tokenizer", "batch", "backbones.chat"} and writes_end == {"batch"}


@pytest.mark.parametrize("path", ALL)
def test_nothing_loads_by_guess_and_nothing_runs_what_it_loads(path):
    """strict=False drops tensors without a word; pickle and eval run whatever a file says."""
    forbidden = r"strict=False|import pickle|pickle\.|torch\.load\(|(?<![\w.])(eval|exec)\("
    assert not re.search(forbidden, text(path))


# --- what is read in one sitting ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(text(path).splitlines()) <= 400
    assert text(path).startswith(('"""', 'r"""')), "a file begins by saying what it is"


@pytest.mark.parametrize("method", METHODS)
def test_the_reading_path_of_a_method_is_at_most_1500_lines(method):
    """Its file and what it stands on. (An RL method comes after the one that it starts from, with
    grpo.py.)"""
    module = METHODS[method].__module__.removeprefix("minilatent.")
    assert lines(module, *PATH) <= 1500


def test_the_package_is_at_most_8000_lines():
    """What is only there for the results of this repository stands in results/."""
    assert lines(*PATHS) <= 8000


def all_python() -> list:
    paths = [*SCRIPTS]
    for folder in ("minilatent", "tests", "tutorials", "results"):
        paths += sorted((ROOT / folder).rglob("*.py"))
    return [path for path in paths if not re.fullmatch(r"lab\d\.py", path.name)]  # a student's


def test_no_line_of_python_is_longer_than_110_columns():
    long = []
    for path in all_python():
        for number, line in enumerate(text(path).splitlines(), 1):
            if len(line) > 110:
                long.append(f"{path.relative_to(ROOT)}:{number}")
    assert not long


def in_the_locales_encoding(source: str) -> list[int]:
    """The lines with calls that read or write text and do not say how it is encoded."""
    found = []
    for node in ast.walk(ast.parse(source)):
        function = getattr(node, "func", None)
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = getattr(getattr(function, "value", None), "id", "")
        if not isinstance(node, ast.Call) or any(k.arg in ("encoding", None) for k in node.keywords):
            continue
        given = {k.arg: k.value for k in node.keywords}
        values = [v.value for v in [*node.args, *given.values()] if isinstance(v, ast.Constant)]
        binary = any(isinstance(v, str) and re.fullmatch(r"[rwaxt+]*b[rwaxt+]*", v) for v in values)
        opens = name in ("open", "fdopen") and (owner, name) != ("os", "open") and not binary
        speaks = owner == "subprocess" and bool({"text", "universal_newlines"} & set(given))
        if opens or speaks or name in ("read_text", "write_text") and isinstance(function, ast.Attribute):
            found.append(node.lineno)
    return found


def test_text_is_utf8_whatever_the_locale():
    """cp1252, GBK and C read other people's files wrongly, or not at all."""
    lines = {f"{p.relative_to(ROOT)}:{n}" for p in all_python() for n in in_the_locales_encoding(text(p))}
    assert not lines


@pytest.mark.parametrize(
    "call, named",
    [
        ("open(p)", False),
        ("open(p, 'w')", False),
        ("open('b', 'rb')", True),
        ("p.open()", False),
        ("p.open('wb')", True),
        ("open(p, encoding='utf-8')", True),
        ("p.read_text()", False),
        ("p.write_text(s)", False),
        ("p.write_text(s, encoding='utf-8')", True),
        ("subprocess.run(c, text=True)", False),
        ("subprocess.run(c)", True),
        ("os.open(p, 0)", True),
    ],
)
def test_the_check_above_sees_what_it_is_to_see(call, named):
    assert (in_the_locales_encoding(call) == []) is named


# --- how it installs ----------------------------------------------------------------------------------------


def requirements(listed: list[str]) -> dict[str, str]:
    """Name -> version, of lines as pip reads them."""
    stripped = [line.partition("#")[0].strip() for line in listed]
    found = [re.match(r"([\w-]+)(.*)", line) for line in stripped if line]
    return {match[1].replace("-", "_"): match[2] for match in found}


TXT = requirements(text(ROOT / "requirements.txt").splitlines())


def test_pyproject_installs_what_requirements_txt_lists_with_the_base_model():
    """requirements.txt pins the torch that was tested, so that pip takes its small CPU build;
    pyproject.toml takes any that works, so that an installed one (Colab's) is not replaced."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads(text(ROOT / "pyproject.toml"))
    ours = requirements(project["project"]["dependencies"])
    assert set(ours) == set(TXT) - {"pytest"} and project["project"]["requires-python"] == ">=3.10"
    assert ours["torch"] == ">=2.11" and TXT["torch"].startswith("==2.")
    assert {name: version for name, version in TXT.items() if version} == {"torch": TXT["torch"]}
    setuptools = project["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["include"] == ["minilatent*"]
    installed = {
        path for pattern in setuptools["package-data"]["minilatent"] for path in PACKAGE.glob(pattern)
    }
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert installed == others and len(others) == 7
    for path in FILES:  # each folder with modules in it is a package
        assert (path.parent / "__init__.py").exists()


def test_requirements_txt_lists_all_that_the_package_imports():
    listed = set(TXT)
    optional = {"math_verify", "transformers"}
    come_along = {"huggingface_hub"}  # with tokenizers and datasets
    imported = set()
    for path in [*FILES, *SCRIPTS]:
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    ours = {"minilatent"} | set(sys.stdlib_module_names)
    assert imported - ours - optional - come_along <= listed
    assert listed - imported == {"numpy", "pytest"}  # numpy is behind Tensor.numpy()
