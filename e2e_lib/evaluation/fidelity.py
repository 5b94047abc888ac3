"""torch-fidelity without torchvision, which it imports though nothing used here calls it, and which has no
build for every torch. Stand-ins take its place for the import and are gone afterwards: nothing else
(transformers, above all, which asks whether torchvision is there) gets to see them."""

import sys
import warnings
from types import ModuleType
from typing import Any

import torch  # before there are stand-ins  # noqa: F401

NAMES = [f"torchvision{name}" for name in ("", ".datasets", ".transforms", ".transforms.functional")]


class StandIn(ModuleType):
    """A module that has a stand-in of its submodule, or else an empty class, for every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


_real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "torchvision"}
sys.modules.update({name: StandIn(name) for name in NAMES})
try:
    with warnings.catch_warnings():  # torch-fidelity changes the warning filters of the whole process
        from torch_fidelity import metric_fid, metric_isc, metric_kid
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
finally:
    for _name in NAMES:
        del sys.modules[_name]
    sys.modules.update(_real)

__all__ = ["FeatureExtractorInceptionV3", "metric_fid", "metric_isc", "metric_kid"]
