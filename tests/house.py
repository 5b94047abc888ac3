"""The shape of the package in numbers: `make house`, or `python tests/house.py PATH` for another checkout.

Lines are physical lines of ``e2e_lib/``; a room is a folder of it, or a module that stands in none.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

# The method of the paper: rooms or modules of this tree and of the flat one before it, to be compared.
METHOD = ("models", "bridge", "training", "inference", "config.py", "data/dialogue.py", "data/examples.py",
          "data/collate.py", "data/photos.py", "data/statistics.py",
          "training.py", "checkpoints.py", "inference.py")
NOT_METHOD = ("bridge/survey.py", "models/tokenizers.py")  # moved out of the method since


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name of every module of ``root/e2e_lib``: its file."""
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
            for path in sorted((root / "e2e_lib").rglob("*.py"))}


def imports_of(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("e2e_lib"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (full if full in modules else node.module for full in names)


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of more than one module in which each imports every other, directly or through others."""
    def reach(start: str) -> set[str]:
        seen, stack = set[str](), [start]
        while stack:
            for name in graph.get(stack.pop(), set()) - seen:
                seen.add(name)
                stack.append(name)
        return seen

    reached = {name: reach(name) for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return [set(group) for group in groups if len(group) > 1]


def main(root: Path) -> None:
    modules = modules_of(root)
    lines = {path.relative_to(root / "e2e_lib").as_posix(): path.read_text().splitlines()
             for path in modules.values()}
    total = sum(map(len, lines.values()))

    def row(name: str, count: int) -> None:
        print(f"{name:24s} {count:6,d} {count / total:6.1%}")

    rooms: Counter[str] = Counter()
    for name, text in lines.items():
        rooms[name.split("/")[0]] += len(text)
    for name, count in rooms.most_common():
        row(name, count)
    row("all", total)
    row("the method", sum(len(text) for name, text in lines.items() if name not in NOT_METHOD
                          and (name in METHOD or name.split("/")[0] in METHOD)))
    for limit in (100, 110):
        row(f"over {limit} characters", sum(len(line) > limit for text in lines.values() for line in text))
    longest = max(lines, key=lambda name: len(lines[name]))
    print(f"longest module           {longest}, {len(lines[longest])} lines")
    groups = cycles({name: set(imports_of(name, path, modules)) for name, path in modules.items()})
    print(f"import cycles            {len(groups)}", *(", ".join(sorted(g)) for g in groups), sep="\n    ")
    if "importlinter" in (root / "pyproject.toml").read_text():
        command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
        output = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout
        for line in output.splitlines():
            if line.endswith("BROKEN") or line.startswith("Contracts:"):
                print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
