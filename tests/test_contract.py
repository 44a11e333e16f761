"""The committed stubs are those of the committed contract, and rooms import only what they may."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "tetriserve" / "v1"
MAY_IMPORT = {
    "tetriserve": {"tetriserve"},
    "scheduler": {"scheduler", "tetriserve"},
    "executor": {"executor", "tetriserve", "model"},
    "bench": {"bench", "scheduler", "executor", "tetriserve", "model"},
    "model": {"model"},
}
CORE = {
    "profile": set[str](),
    "problem": {"profile"},
    "placement": {"problem", "profile"},
    "orders": {"problem", "profile"},
    "tracking": {"orders", "problem", "profile"},
    "dispatch": {"problem", "profile"},
    "nodes": {"dispatch", "problem", "tracking"},
    "timetable": {"placement", "problem"},
    "forecast": {"policies", "problem"},
    "promises": {"forecast", "policies", "problem", "timetable"},
    "warmth": {"placement"},
    "skipping": set[str](),
    "yielding": set[str](),
    "demand": {"profile", "tracking"},
    "config": set[str](),
    "view": {
        *("config", "demand", "dispatch", "nodes", "placement", "problem", "profile", "skipping"),
        *("tracking", "warmth", "yielding"),
    },
    "flights": {"orders", "tracking", "view"},
    "homes": {"dispatch", "problem", "view"},
    "pledges": {"problem", "promises", "timetable", "tracking", "view"},
    "rounds": {
        *(
            "config",
            "flights",
            "homes",
            "nodes",
            "orders",
            "placement",
            "pledges",
            "problem",
            "profile",
            "skipping",
        ),
        *("tracking", "view", "warmth"),
    },
}


def test_the_stubs_are_fresh(tmp_path):
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "protos", *out, *protos], check=True
    )
    made = {path.name: path.read_text() for path in (tmp_path / "tetriserve" / "v1").iterdir()}
    kept = {path.name: path.read_text() for path in STUBS.glob("*_pb2*.py*")}
    assert made == kept, "run `make protos`"


def imports(path: Path) -> set[str]:
    """Absolute modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        rooms = {name.split(".")[0] for name in imports(path)} & MAY_IMPORT.keys()
        assert rooms <= MAY_IMPORT[room], path


@pytest.mark.parametrize("name", CORE)
def test_the_core_stands_alone(name):
    inner = {
        module.split(".")[1]
        for module in imports(ROOT / "scheduler" / f"{name}.py")
        if module.startswith("scheduler.")
    }
    assert inner <= CORE[name]
    outside = {module.split(".")[0] for module in imports(ROOT / "scheduler" / f"{name}.py")}
    assert not outside & {"asyncio", "grpc", "threading", "time", "torch", "tetriserve"}


def test_policies_know_nothing_of_the_core():
    for path in (ROOT / "scheduler" / "policies").glob("*.py"):
        inner = {module.split(".")[1] for module in imports(path) if module.startswith("scheduler.")}
        assert inner <= {"dispatch", "placement", "policies", "problem", "profile", "timetable", "yielding"}


def test_importing_the_scheduler_or_the_client_brings_no_torch():
    words = "import sys, scheduler.command, tetriserve.cli; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
