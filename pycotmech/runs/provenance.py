"""How results were made, and how that is compared when a run is continued.

A folder keeps two groups of facts. Its identity is what a later run must agree with to continue it: arguments, digests of the
prompts and of the model, versions. What else a reader wants to know (notes on the model, what ran each op, threads, the plan,
the date) decides nothing. `provenance_of` puts both together under names that are the same for every kind of folder.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pycotmech import __version__
from pycotmech.files.text import printable

if TYPE_CHECKING:
    from pycotmech.model import Model

DERIVED = ("weights", "config", "prompts")
"""Entries of an identity that are known only after the model is loaded."""

DECIDING_VERSIONS = ("pycotmech", "torch", "transformers")
"""Entries of an identity that hold versions: another version of these packages may compute other numbers."""

_IN_NO_NUMBER = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}


def versions() -> dict[str, str]:
    """The version of everything that could change a number."""
    import numpy
    import torch
    import transformers

    return {
        "pycotmech": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "machine": platform.platform(),
    }


def deciding_versions() -> dict[str, str]:
    """The versions that belong to an identity, of `DECIDING_VERSIONS`."""
    now = versions()
    return {name: now[name] for name in DECIDING_VERSIONS}


def model_identity(model: Model, *, verify: bool = False) -> dict[str, str]:
    """What a loaded model adds to an identity: digests of all weights, and of what its configuration decides.

    verify: whether to read every weight even if the digest is known from the path, size and time of the model's files.
    Cost: every weight is read once, unless the digest is known (`pycotmech.model.digests`).
    """
    settings: dict[str, Any] = cast(Any, model.hf.config).to_dict()
    decided = {k: v for k, v in settings.items() if k not in _IN_NO_NUMBER}
    config = hashlib.sha256(json.dumps(decided, sort_keys=True, default=str).encode())
    from pycotmech.model.digests import weights_digest  # which loads PyTorch

    weights = weights_digest(model.hf, model.weight_files, verify=verify)
    return {"weights": f"sha256:{weights[:32]}", "config": f"sha256:{config.hexdigest()[:32]}"}


def facts_of(model: Model, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What a folder keeps of how it was made, beyond its identity, as JSON values. arguments: as the run was given them."""
    import torch

    from pycotmech.ops import describe

    where = "cuda" if model.device.type == "cuda" else "cpu"
    facts = {
        "model": {
            "name": model.name,
            "description": repr(model),
            "notes": list(model.notes),
            "dtype": str(model.cfg.dtype).removeprefix("torch."),
            "device": str(model.device),
            "sizes": {
                "n_layers": model.cfg.n_layers,
                "n_heads": model.cfg.n_heads,
                "d_model": model.cfg.d_model,
                "parallel": model.cfg.parallel,
            },
        },
        "versions": versions(),
        "ops": {name: places[where] for name, places in describe().items()},
        "threads": torch.get_num_threads(),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
    }
    return json.loads(json.dumps(facts, default=str))


def provenance_of(identity: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how results were made, under names that are the same for every kind of folder; what is not known is left out.

    model, description, notes, sizes; weights, config, prompts (digests); dtype, device, threads, ops; versions; seed,
    arguments, plan; created. identity, about: as a folder keeps them.
    """
    of_model = about.get("model")
    of_model = of_model if isinstance(of_model, Mapping) else {}
    made = {
        "model": of_model.get("name") or identity.get("model"),
        "description": of_model.get("description"),
        "notes": of_model.get("notes", about.get("notes")) or None,
        "sizes": of_model.get("sizes"),
        **{name: identity.get(name) for name in DERIVED},
        "dtype": of_model.get("dtype") or identity.get("dtype"),
        "device": of_model.get("device") or identity.get("device"),
        "threads": about.get("threads"),
        "ops": about.get("ops"),
        "versions": about.get("versions") or {n: identity[n] for n in DECIDING_VERSIONS if n in identity} or None,
        "seed": identity.get("seed"),
        "arguments": about.get("settings") or {k: v for k, v in identity.items() if k not in (*DERIVED, *DECIDING_VERSIONS)},
        "plan": about.get("plan"),
        "created": about.get("created"),
    }
    return {name: value for name, value in made.items() if value is not None}


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns what differs between two identities, in words: settings, prompts and weights first, then versions.

    Entries in `DERIVED` count only if `now` has them. Versions count only if both have them: folders of earlier versions
    hold fewer.
    """
    settings, others = [], []
    for name in dict.fromkeys((*stored, *now)):
        if stored.get(name) == now.get(name) or (name in DERIVED and name not in now):
            continue
        if name in DECIDING_VERSIONS and not (name in stored and name in now):
            continue
        words = f"{printable(name)} was {_shown(stored.get(name))}, now {_shown(now.get(name))}"
        (others if name in DECIDING_VERSIONS else settings).append(words)
    return settings, others


def agrees(stored: Mapping[str, Any], now: Mapping[str, Any], *, accept_version: bool = False) -> bool:
    """Whether two identities are of the same results; with `accept_version` their versions may differ."""
    settings, others = differences(stored, now)
    return not settings and (accept_version or not others)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return printable(",".join(map(str, value)) if isinstance(value, list) else value)
