"""vitalk: vision transformers that see, speech models that talk, small enough for the machine you have.

>>> from vitalk import Eye
>>> Eye.load().see("picture.jpg")
[('cat', 0.97), ...]

Importing vitalk imports neither torch nor timm. Once both vitalk and timm are imported, in whatever order,
``timm.create_model`` knows the models of vitalk: ``vitalk_eye`` and whatever a module in a system's folder
decorates with ``@register_model``; only those modules (and their packages) are imported for it.
"""

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from vitalk.deploy.runtime import Eye
    from vitalk.speech.voice import Voice

__all__ = ["Eye", "Voice", "__version__"]
# onnxruntime tells its makers that it is used, from the moment it is imported, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_LAZY = {"Eye": "vitalk.deploy.runtime", "Voice": "vitalk.speech.voice"}
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vitalk' has no attribute {name!r}")


@wrapt.when_imported("timm")
def _register_backbones(_timm: ModuleType) -> None:
    from vitalk.catalog import SYSTEMS

    import_module("vitalk.vision.eye")
    for system in SYSTEMS:
        for path in sorted(system.folder.glob("*.py")):
            if "@register_model" in path.read_text(encoding="utf-8"):
                import_module(f"{system.package}.{path.stem}")


# Were timm first imported halfway through one of our modules, the backbones would be built on that half. So these
# packages, whose modules need torch anyway, see to it that timm (and with it the backbones) comes before them.
@wrapt.when_imported("vitalk.nn")
@wrapt.when_imported("vitalk.vision")
@wrapt.when_imported("vitalk.systems")
def _timm_first(_package: ModuleType) -> None:
    import_module("timm")
