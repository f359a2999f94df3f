"""Result files, and what they say of how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ph_l2o.files import short_revision

Content = Mapping[str, Any]
Files = Mapping[str, Content]  # by name, without ending


def load(folder: Path) -> dict[str, Any]:
    """All result files of a folder, in the order of their names."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def made(contents: Sequence[Content], command: str) -> str:
    """How files of one kind were made, as far as they say.

    Args:
        contents: The files; what they all say is said once.
        command: What makes them, for files that were written before files said so.
    """
    return "\n\n".join(dict.fromkeys(_made(content, command) for content in contents))


def _made(content: Content, command: str) -> str:
    words = [f"Made by `{content.get('command', command)}`"]
    machine = content.get("machine")
    if isinstance(machine, str):  # of evaluate.py, which does not measure time
        versions = content["versions"]
        words.append(f"on {machine}, torch {versions['torch']}, Python {versions['python']}")
    elif machine:
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        words.append(f"on {machine['words']}, {threads}, torch {machine['torch']}, Python {machine['python']}")
    if revision := content.get("git_revision"):
        words.append(f"at {short_revision(revision)}")
    if baselines := content.get("made", {}).get("baselines", {}).get("machine"):
        made = content["made"]["baselines"]
        words.append(
            f"baselines on {baselines}, torch {made['versions']['torch']}, at {short_revision(made['git_revision'])}"
        )
    missing = [name for name, key in (("machine", "machine"), ("revision", "git_revision")) if not content.get(key)]
    unknown = f" The file does not name its {' and '.join(missing)}." if missing else ""
    return f"{', '.join(words)}.{unknown}"
