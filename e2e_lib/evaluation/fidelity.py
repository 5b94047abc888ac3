"""torch-fidelity, with or without torchvision.

torch-fidelity imports torchvision at its top, though only its readers of image folders and two of its feature extractors,
none of them used here, ever call it. torchvision has no build for every torch (a CPU-only one, say), and a torchvision
that does not match torch fails on import. So: a torchvision that works is used; otherwise stand-ins take its place
while torch-fidelity is imported, and are gone again afterwards. Nothing else (transformers, above all, which
asks whether torchvision is there) gets to see them.

    from e2e_lib.evaluation.fidelity import torch_fidelity
"""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType


def _loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}


def _torchvision_works() -> bool:
    before = _loaded()
    try:
        importlib.import_module("torchvision.transforms.functional")
        importlib.import_module("torchvision.datasets")
        return True
    except Exception:  # absent is an ImportError; a build for another torch may fail in any way, often a RuntimeError
        for name in _loaded().keys() - before.keys():  # a failed import leaves its finished parts behind
            del sys.modules[name]
        return False


def _stand_ins() -> dict[str, ModuleType]:
    """The few names of torchvision that torch-fidelity touches while it is imported."""
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: ModuleType(name, "A stand-in, only for importing torch-fidelity.") for name in names}
    for name in names[1:]:
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, modules[name])
    for dataset in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(modules["torchvision.datasets"], dataset, type(dataset, (), {}))
    return modules


@contextlib.contextmanager
def _torchvision_or_stand_ins() -> Iterator[None]:
    if _torchvision_works():
        yield
        return
    before = _loaded()
    sys.modules.update(_stand_ins())
    try:
        yield
    finally:
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(before)


with _torchvision_or_stand_ins(), warnings.catch_warnings():  # torch-fidelity changes the warning filters of the whole process
    import torch_fidelity

__all__ = ["torch_fidelity"]
