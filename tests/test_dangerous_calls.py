"""The package unpickles nothing, evaluates nothing, and gives no text to a shell."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "nar_scale"
FORBIDDEN = {
    *(
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "subprocess.getoutput",
        "torch.load",
        "yaml.unsafe_load",
        "yaml.full_load",
    ),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.load"),
    "shutil.unpack_archive",
}
UNPACKING = {"extractall", "extract"}  # of any archive
SAFE_LOADERS = {"_Loader"}  # of nar_scale/config/yaml_text.py, a SafeLoader


def name_of(node):
    if isinstance(node, ast.Attribute):
        inner = name_of(node.value)
        return f"{inner}.{node.attr}"  # of something without a name, such as a call, ".attr"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source):
    """Calls of a module that run what they read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = name_of(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN or (isinstance(node.func, ast.Attribute) and node.func.attr in UNPACKING):
            yield name
        shell, pickles = keywords.get("shell"), keywords.get("allow_pickle")
        if any(isinstance(value, ast.Constant) and value.value is True for value in (shell, pickles)):
            yield name
        if name == "yaml.load" and name_of(keywords.get("Loader")) not in SAFE_LOADERS:
            yield name


def test_what_is_looked_for_is_found():
    source = (
        "eval(x); torch.load(f); tar.extractall(d); run(c, shell=True); np.load(f, allow_pickle=True); yaml.load(t)"
    )
    assert len(list(dangers(source))) == 6
    assert not list(
        dangers("model.eval(); json.loads(x); np.load(f, allow_pickle=False); yaml.load(t, Loader=_Loader)")
    )


def test_no_module_runs_what_it_reads():
    found = {
        str(path.relative_to(PACKAGE)): list(dangers(path.read_text()))
        for path in sorted(PACKAGE.rglob("*.py"))
        if list(dangers(path.read_text()))
    }
    assert found == {}
