"""A trained player as a model of its own, for whatever serves or trains models.

The adapter is merged into the base model's weights and both are written as one folder of
safetensors, with the tokenizer and a model card that says what was measured of it. (The adapter
alone is ``round-N/adapter``, as PEFT wants it; it needs the same base model, which may be a GGUF
file that PEFT does not read.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from treeplay.config import from_dict, without_places
from treeplay.errors import RunError
from treeplay.policy.model import (
    Dtype,
    adapter_digest,
    hub_commit,
    load_adapter,
    load_policy,
    quiet,
)
from treeplay.policy.prefix import has_prefix, merge
from treeplay.run import read_json, read_manifest, write_text
from treeplay.view import words

MARK = ".treeplay-export"  # in a folder that is being written
CARD = ("spr1_all", "vulnerable", "valid", "inert", "pass1", "secure_pass1")
CARD_GENERAL = ("pass1", "valid")


def export(
    run: Path,
    target: Path,
    number: int | None = None,
    *,
    model: str | None = None,
    dtype: Dtype | None = None,
) -> Path:
    """Write the player of round ``number`` (the last, unless said) of a run folder to ``target``,
    a new folder, whole or not at all; returns it. ``model``: where the base model lies, if
    elsewhere than when the run was played; ``dtype``: what the weights are written in, if not in
    what they were played in.

    Raises :class:`RunError` where the run has no such player, where the player or the base model
    is not that of the run, and where there is something at ``target`` already;
    :class:`treeplay.errors.ModelError` where the base model cannot be loaded.
    """
    manifest = read_manifest(run / "manifest.json")
    name = _player(run, number)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target} is there already; name a new folder with --out")
    target = target.absolute()
    part = target.with_name(target.name + ".part")
    if part.exists() and not (part / MARK).is_file():
        raise RunError(f"{part} is in the way, and is not of an export; name another --out")
    adapter = run / name / "adapter"
    config = from_dict(manifest["config"]).model
    config = replace(config, name=model or config.name, dtype=dtype or config.dtype, device="cpu")
    if model is None and not config.revision:
        config = replace(config, revision=hub_commit(manifest["identities"]["base"]))
    _check(run, manifest, name, adapter_digest(adapter))
    policy = load_policy(config)
    _check(run, manifest, "base", policy.identity)
    whole = merge(policy.model) if config.adapter else policy.model
    whole = load_adapter(whole, adapter, trainable=False)
    if has_prefix(whole):
        raise RunError(
            f"{name} of {run} is a trained prefix (method sven), which is no change of weights; "
            f"use it as it is, with PEFT: {adapter}"
        )
    with quiet(), torch.inference_mode():
        whole = merge(whole)
        shutil.rmtree(part, ignore_errors=True)
        try:
            write_text(part / MARK, "an export that did not end; remove the folder\n")
            whole.save_pretrained(str(part), safe_serialization=True)
            policy.tokenizer.save_pretrained(str(part))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise RunError(f"cannot write {part}: {error}; name another --out") from error
    report = run / "report.json"
    told = read_json(report) if report.is_file() else None
    write_text(part / "README.md", card(manifest, name, told))
    (part / MARK).unlink()
    if target.is_dir():
        target.rmdir()
    part.replace(target)
    return target


def card(manifest: Mapping[str, Any], name: str, report: Mapping[str, Any] | None) -> str:
    """The model card (Markdown) of a player: what it is made of, and what was measured."""
    base, config = manifest["identities"]["base"], without_places(manifest["config"])
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if hub_commit(base):
        head.append(f"base_model: {base.partition('@')[0]}")
    head += ["tags:", "- treeplay", "- code", "- security", "---"]
    body = [
        "",
        f"# {base.partition('@')[0]}, trained by treeplay",
        "",
        f"`{base}` with the player `{name}` of a run of treeplay {manifest['versions']['treeplay']}"
        f" merged into its weights: method `{config['method']}`, {config['rounds']} "
        f"round{'s' * (config['rounds'] != 1)}, seed {config['seed']}. The licence of the base "
        "model goes for this one, too.",
        "",
        *(_measured(report, name) if report else ["It was not evaluated."]),
    ]
    recipe = ["", "The whole configuration:", "", "```json", json.dumps(config, indent=1), "```"]
    return "\n".join([*head, *body, *recipe]) + "\n"


def _measured(report: Mapping[str, Any], name: str) -> list[str]:
    """A table for every suite and split, with the base model beside the player."""
    out = [
        "Percent over all samples; of the first, the 95 % interval over tasks. It says nothing of "
        "weaknesses and languages that were not asked."
    ]
    for place in words.places(report):
        columns = CARD_GENERAL if words.is_general(report, place) else CARD
        rows = [(n, words.find_row(report, n, place)) for n in ("base", name)]
        shown = [(n, row) for n, row in rows if row]
        if not shown:
            continue
        titles = [words.METRIC_WORDS[metric][0] for metric in columns]
        out += [
            "",
            f"**{words.place_name(report, *place)}**, {shown[0][1]['n_tasks']} tasks:",
            "",
            f"| player | {' | '.join(titles)} |",
            "|---" * (len(titles) + 1) + "|",
        ]
        for player, row in shown:
            cells = [words.percent(row[metric]) for metric in columns]
            first = columns[0]
            ends = words.interval(row[f"{first}_low"], row[f"{first}_high"])
            cells[0] = f"{cells[0]} {ends}".rstrip()
            out.append(f"| {player} | {' | '.join(cells)} |")
    return out


def _player(run: Path, number: int | None) -> str:
    """The player asked for. Raises :class:`RunError`."""
    there = sorted(
        int(folder.parent.name[6:])
        for folder in run.glob("round-*/adapter")
        if folder.parent.name[6:].isdigit()
    )
    if not there:
        raise RunError(f"{run} holds no trained player; play it first (treeplay play)")
    if number is None:
        number = there[-1]
    if number not in there:
        names = ", ".join(map(str, there))
        raise RunError(f"{run} holds no player of round {number}; it has those of {names}")
    return f"round-{number}"


def _check(run: Path, manifest: Mapping[str, Any], role: str, identity: str) -> None:
    known = manifest["identities"].get(role, identity)
    if known != identity:
        raise RunError(
            f"{run}: {role} was {known} when the run was played and is {identity} now; put the old "
            "one back" + (", or say with --model where it lies" if role == "base" else "")
        )
