"""Reads settings as YAML: a number is a number, a key stands once, and a mistake is one line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nas.errors import UserError


class _Loader(yaml.SafeLoader):
    """Reads YAML with 1e-3 as a number, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
                              list("-+.0123456789"))


def parsed(text: str, where: str) -> Any:
    """Parses a user's YAML; raises UserError naming ``where`` and the line that is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark and "\n" in text else ""
        raise UserError(f"{where}:{line} is not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    except (ValueError, TypeError, RecursionError, AttributeError, OverflowError) as error:
        raise UserError(f"{where}: is not YAML: {type(error).__name__}") from None
