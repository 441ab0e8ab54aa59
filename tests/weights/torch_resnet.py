"""The ResNets of torchvision and timm, in PyTorch, from their own network files.

Neither package can be imported whole: torchvision's operators are compiled for another build of
PyTorch, and timm's requirements are not installed. Their network files need neither.
"""

import functools
import importlib
import importlib.util
import pathlib
import sys
import types
import warnings

import pytest

torch = pytest.importorskip("torch")
# What imports more than is there when it is imported itself.
_HOLLOW = ("torchvision", "torchvision.models", "torchvision.ops", "timm", "timm.models")


def _hollow(name: str) -> types.ModuleType:
    """A package without its `__init__`, in which its modules are found all the same."""
    root, *inside = name.split(".")
    found = importlib.util.find_spec(root)
    if found is None:
        pytest.skip(f"{root} is not there; `make oracles` installs it")
    package = types.ModuleType(name)
    package.__path__ = [str(pathlib.Path(found.submodule_search_locations[0], *inside))]
    return package


@functools.cache
def _networks() -> dict[str, types.ModuleType]:
    packages = {name: _hollow(name) for name in _HOLLOW}
    packages["timm.data"] = types.ModuleType("timm.data")  # of which mean and std are asked
    packages["timm.data"].IMAGENET_DEFAULT_MEAN = (0.485, 0.456, 0.406)
    packages["timm.data"].IMAGENET_DEFAULT_STD = (0.229, 0.224, 0.225)
    packages["timm"].__version__ = "1.0.15"
    before = dict(sys.modules)
    sys.modules.update(packages)
    try:
        with warnings.catch_warnings(action="ignore"):  # about PyTorch's own future
            return {
                library: importlib.import_module(f"{library}.models.resnet")
                for library in ("torchvision", "timm")
            }
    finally:
        for name in sys.modules.keys() - before.keys():
            if name.partition(".")[0] in ("torchvision", "timm"):
                del sys.modules[name]


def torch_resnet(library: str, name: str, classes: int = 10, seed: int = 1):
    """A network of "torchvision" or "timm" with random weights, nothing at 0 or 1; in eval mode."""
    torch.manual_seed(seed)
    make = getattr(_networks()[library], name)
    net = make(num_classes=classes)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(0, 0.1)
    return net.eval()


def arrays_of(net) -> dict:
    """Its state dict as arrays."""
    return {name: tensor.detach().numpy().copy() for name, tensor in net.state_dict().items()}


def load_into(net, arrays) -> None:
    """Loads arrays as a state dict, which must have all names and no other, and shapes."""
    net.load_state_dict({name: torch.tensor(x) for name, x in arrays.items()}, strict=True)
