"""Optional packages: one that is missing is named together with the extra that brings it."""

from importlib.util import find_spec

__all__ = ["require"]


def require(what: str, extra: str, *packages: str) -> None:
    """Raise a readable ``ModuleNotFoundError`` if ``what`` cannot work because a package is not installed.

    Parameters
    ----------
    what : str
        The module or function that needs the packages, as its user calls it.
    extra : str
        The extra of lowrank-sp that installs them.
    *packages : str
        Names as they are imported.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{what} needs {', '.join(missing)}: pip install 'lowrank-sp[{extra}]'", name=missing[0]
        )
