"""A server (vLLM, SGLang) in the place of local sampling: is it the right model, and which adapter.

The local model stays in memory; it scores and is trained. The server samples, and before its first
row its tokenizer and weights are compared with the local model's. Each round's adapter is loaded
under a name of its own, and the one before is taken off.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from treeplay.endpoint import INSTALL, Again, Endpoint, Refused, installed, read_key, stays_here
from treeplay.errors import ModelError
from treeplay.policy.model import ModelConfig, Policy, adapter_digest
from treeplay.policy.sample import Done, Request, Row, Sample, SampleConfig, Sampler, Told
from treeplay.policy.server_config import SECTION, ServerConfig, check_server
from treeplay.policy.server_sample import sample_on_server
from treeplay.policy.server_wire import FORMS

# Tabs, digits, accents, an arrow outside the basic alphabet: what tokenizers disagree about.
PROBE = 'def f(x, y=12345):\n\treturn "é→" + str(x)  # TODO:  two  spaces\n\n\nclass A:\n    '
PROBE_TOKENS = 16
PROBE_TOP, PROBE_SHARE = 5, 0.75


class Server:
    """An endpoint that samples for one run. ``folder`` is the run folder: adapters are named
    after it and lie in it. ``say`` gets what a person should know once; ``under`` is
    ``model.adapter``. Nothing is sent yet.

    Raises :class:`ModelError` where the packages for it are not installed and
    :class:`ConfigError` where the settings are wrong or the key's variable is not set.
    """

    def __init__(
        self,
        config: ServerConfig,
        folder: Path,
        say: Callable[[str], None],
        under: str | None = None,
    ) -> None:
        check_server(config, under)
        if not installed():
            raise ModelError(f"{SECTION} needs packages that are not installed; {INSTALL}")
        self.config, self.form = config, FORMS[config.api]
        self._say = say
        self._endpoint = Endpoint(
            config.root,
            read_key(config.api_key_env, SECTION),
            timeout_s=config.timeout_s,
            retries=config.retries,
            concurrency=config.concurrency,
        )
        self.host = self._endpoint.host
        # Two runs in folders of one name must not take each other's adapters away.
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
        self._prefix = re.sub(r"[^A-Za-z0-9_.-]", "-", f"treeplay-{folder.resolve().name}-{place}-")
        self._checked: set[str] = set()
        self._swept = False
        self._loaded = ""
        if not stays_here(config.base_url):
            plain = ", unencrypted" if config.base_url.startswith("http:") else ""
            say(
                f"warning: prompts leave this machine: tasks, golden answers and sampled code are "
                f"sent to {self.host}{plain}"
            )

    def close(self) -> None:
        """Take this run's adapter off the server, and hang up."""
        if self._loaded:
            self._unload(self._loaded)
            self._loaded = ""
        self._endpoint.close()

    def sampler(self, policy: Policy, adapter: Path | None = None, player: str = "") -> Sampler:
        """A drop-in for :func:`treeplay.policy.sample.sample` that asks the server.

        ``policy`` is what the server is to be: its tokenizer and weights are compared with the
        server's before the first row. ``adapter`` is the LoRA folder that ``policy`` has on it and
        ``player`` its name ("round-1"). Nothing is sent before the sampler is called, which raises
        :class:`ModelError`.
        """
        digest = adapter_digest(adapter) if adapter else ""
        name = f"{self._prefix}{player}-{digest}" if adapter else self.config.name

        def draw(
            requests: Sequence[Request],
            config: SampleConfig,
            stop_ids: frozenset[int],
            done: Done | None = None,
            told: Told | None = None,
        ) -> list[list[Sample]]:
            if adapter:  # asked for every time: a server may have been started anew
                self._load(adapter, name)
            if name not in self._checked:
                self._check(policy, name)
                self._checked.add(name)
            with self._in_words("cannot sample"):
                return sample_on_server(
                    self._endpoint,
                    self.config,
                    name,
                    vocabulary(policy),
                    requests,
                    config,
                    stop_ids,
                    done,
                    told,
                )

        return draw

    def _check(self, policy: Policy, name: str) -> None:
        """Refuse a server whose tokenizer is another one, or whose greedy choices the local model
        finds unlikely (other weights)."""
        with self._in_words("cannot be compared with the local model"):
            theirs = self._tokens(PROBE)
            ours = list(policy.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
            if theirs is not None and theirs != ours:
                raise ModelError(
                    f"{SECTION}: {self.host} has another tokenizer than {policy.identity} (a probe "
                    f"of {len(ours)} tokens differs); serve the model that model.name names"
                )
            greedy = SampleConfig(temperature=0, max_tokens=PROBE_TOKENS)
            request = Request(tuple(ours), (Row(len(ours), 0),))
            ((made,),) = sample_on_server(
                self._endpoint,
                self.config,
                name,
                vocabulary(policy),
                [request],
                greedy,
                policy.stop_ids,
            )
        share = agreement(policy.model, tuple(ours), made.ids)
        if share < PROBE_SHARE:
            raise ModelError(
                f"{SECTION}: {self.host} serves other weights than {policy.identity}: of "
                f"{len(made.ids)} greedy tokens only {share:.0%} are among the local model's "
                f"{PROBE_TOP} likeliest; serve the model that model.name names"
            )

    def _tokens(self, text: str) -> list[int] | None:
        """The server's ids of a text; None where it does not tell."""
        body = {"model": self.config.name, "prompt": text, "add_special_tokens": False}
        try:
            tokens = self._endpoint.ask("/tokenize", body, _json).get("tokens")
        except Refused as error:
            if error.status in (404, 405, 501):
                return None
            raise
        return tokens if isinstance(tokens, list) else None

    def _load(self, adapter: Path, name: str) -> None:
        if self._loaded != name:
            for old in self._ours():
                if old != name:
                    self._unload(old)
        place = self._place(adapter, name)
        try:
            self._endpoint.ask(self.form.load, {"lora_name": name, "lora_path": place}, b"".join)
        except Refused as error:
            if "already" not in str(error):
                raise ModelError(self._no_adapter(error, place)) from None
        self._loaded = name

    def _no_adapter(self, error: Refused, place: str) -> str:
        if re.fullmatch(r"HTTP (404|405|501)(: (Not Found|Method Not Allowed))?", str(error)):
            return (
                f"{SECTION}: {self.host} cannot load adapters while it runs, so it can only "
                f"sample from the untrained model; {self.form.adapters_how}"
            )
        return (
            f"{SECTION}: {self.host} did not load the adapter {place} ({error}); "
            f"{self.form.adapters_how}, and set {SECTION}.share to a folder that it can read"
        )

    def _place(self, adapter: Path, name: str) -> str:
        """Where the server finds the adapter; copied there first where a folder is shared."""
        if not self.config.share:
            return str(adapter.resolve())
        share = Path(self.config.share).expanduser().resolve()
        target = share / name
        try:
            if not target.is_dir():
                part = share / f"{name}.tmp"
                shutil.copytree(adapter, part, dirs_exist_ok=True)
                part.rename(target)
        except OSError as error:
            raise ModelError(
                f"{SECTION}: cannot copy the adapter to {target} ({error.strerror}); set "
                f"{SECTION}.share to a folder that can be written"
            ) from error
        there = self.config.share_there
        return str(PurePosixPath(there) / name) if there else str(target)

    def _ours(self) -> list[str]:
        """Adapters of this run on the server; those of a killed process are found once."""
        known = [self._loaded] if self._loaded else []
        if self._swept:
            return known
        self._swept = True
        try:
            models = self._endpoint.ask("/v1/models", None, _json).get("data")
        except Refused:
            return known
        names = [one.get("id") for one in models or () if isinstance(one, dict)]
        return [n for n in names if isinstance(n, str) and n.startswith(self._prefix)]

    def _unload(self, name: str) -> None:
        """Best effort: an adapter too many takes memory, no more."""
        try:
            self._endpoint.ask(self.form.unload, {"lora_name": name}, b"".join, hurry=True)
        except Refused as error:
            if error.status not in (400, 404):
                self._say(f"{SECTION}: the adapter {name} stays on {self.host} ({error})")

    @contextmanager
    def _in_words(self, trouble: str) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            again = "" if error.status in (400, 422) else "; go on with --resume when it is mended"
            raise ModelError(f"{SECTION}: {self.host} {trouble}: {error}{again}") from None


def open_server(config: ModelConfig, folder: Path, say: Callable[[str], None]) -> Server | None:
    """The server that ``config`` names, for the run in ``folder``; None where it names none."""
    if not config.server.base_url:
        return None
    return Server(config.server, folder, say, config.adapter)


def vocabulary(policy: Policy) -> int:
    """How many token ids the model has an embedding for."""
    return int(policy.model.get_input_embeddings().weight.shape[0])


def agreement(model: Any, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """The share of ``ids`` that are among the model's likeliest tokens behind ``prompt`` and the
    ids before them. Rounding and a good quantisation keep it near 1; other weights do not."""
    if not ids:
        return 1.0
    device = next(iter(model.parameters())).device
    with torch.inference_mode():
        logits_TV = model(
            input_ids=torch.tensor([prompt + ids[:-1]], device=device), logits_to_keep=len(ids)
        ).logits[0]
    top_TK = logits_TV.topk(min(PROBE_TOP, logits_TV.shape[1]), dim=-1).indices
    hit_T = (top_TK == torch.tensor(ids, device=device)[:, None]).any(-1)
    return float(hit_T.float().mean())


def _json(pieces: Iterator[bytes]) -> dict[str, Any]:
    try:
        found = json.loads(b"".join(pieces))
    except (ValueError, RecursionError):
        raise Again("the reply is not JSON") from None
    if not isinstance(found, dict):
        raise Again("the reply is not a JSON object")
    return found
