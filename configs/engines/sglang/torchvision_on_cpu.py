"""Lets torchvision's CUDA wheel, the only one in the registry, be imported beside a CPU build of torch.

It registers fakes for two operators that its CUDA library would have defined; here they are declared when torchvision is first imported.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

OPERATORS = ("nms", "qnms")
libraries: list[object] = []


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Finds nothing; acts once, before torchvision is looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Declare the operators when `name` is torchvision."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in OPERATORS:
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            libraries.append(library)
        return None


sys.meta_path.insert(0, DeclareOperators())
