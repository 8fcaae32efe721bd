"""Packages that judges need and that the light core does without."""

import importlib
import warnings
from types import ModuleType

from vitalk.errors import UserError


def need(module: str) -> ModuleType:
    """Import ``module``; its own deprecation warnings stay unheard.

    Raises UserError where it, or something that it needs, is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise UserError(f"evaluation needs {package}, which is not installed; pip install 'vitalk[eval]'") from None
