"""Measure the LLM judge on labelled records: recall, false positive rate, what it could not say.

    treeplay's settings come from TREEPLAY_LLM_* variables (see docs/llm.md), for example

    python benchmarks/llama_server.py MODEL.gguf --port 8080 &
    TREEPLAY_LLM_BASE_URL=http://127.0.0.1:8080/v1 TREEPLAY_LLM_MODEL=MODEL \\
        python benchmarks/llm_judge.py FILE.jsonl --limit 20 --seed 0

FILE.jsonl holds records ``id, language, cwe, secure, vulnerable`` (one of the last two may be
null). Of the development half (judge/bench/records.py) ``--limit`` records are drawn by ``--seed``
and each is asked for its own CWE. Rates are given with 95 % Wilson intervals, over the programs
that were answered; those that failed are counted beside them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from treeplay.errors import TreeplayError
from treeplay.judge.bench.records import half_of
from treeplay.judge.llm import LlmJudge, llm_from_env_or_config
from treeplay.judge.tools.base import Program
from treeplay.sandbox import Sandbox

Z = 1.959964  # 95 %


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209)."""
    if not count:
        return 0.0, 1.0
    share = hits / count
    middle = share + Z * Z / (2 * count)
    spread = Z * (share * (1 - share) / count + Z * Z / (4 * count * count)) ** 0.5
    below = 1 + Z * Z / count
    return max(0.0, (middle - spread) / below), min(1.0, (middle + spread) / below)


def rate(name: str, hits: int, count: int) -> str:
    if not count:
        return f"  {name:22} -"
    low, high = wilson(hits, count)
    return f"  {name:22} {hits / count:.2f}  [{low:.2f}, {high:.2f}]  ({hits} of {count})"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the LLM judge on labelled records.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=20, help="records of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--language", default="", help="only this one")
    parser.add_argument("--half", choices=("dev", "test"), default="dev")
    parser.add_argument("--any", action="store_true", help="name no CWE in the question")
    parser.add_argument("--cache", type=Path, help="a JSONL file that keeps the answers")
    args = parser.parse_args()
    try:
        config = llm_from_env_or_config()
        if config is None:
            print("error: set TREEPLAY_LLM_BASE_URL and TREEPLAY_LLM_MODEL", file=sys.stderr)
            return 2
        judge = LlmJudge(config, args.cache)
        print(f"{config.model}, mode {config.mode}, prompt {config.prompt_version}")
        for path in args.files:
            measure(judge, path, args)
    except TreeplayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(judge: LlmJudge, path: Path, args: argparse.Namespace) -> None:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    records = [
        one
        for one in records
        if half_of(one) == args.half and args.language in ("", one["language"])
    ]
    random.Random(args.seed).shuffle(records)
    records = records[: args.limit]
    programs, labels = [], []
    for at, record in enumerate(records):
        for label in ("vulnerable", "secure"):
            if record[label] is not None:
                cwe = () if args.any else (record["cwe"],)
                programs.append(Program(record["language"], record[label], cwe))
                labels.append((at, label))
    before, start = judge.usage, time.monotonic()
    results = judge.tool.run(programs, Sandbox())
    took = time.monotonic() - start
    said = dict(zip(labels, results, strict=True))
    answered = {where: bool(one.findings) for where, one in said.items() if not one.failed}
    usage = judge.usage
    asked = usage.requests - before.requests
    print(f"\n{path.name}: {len(records)} records, {len(programs)} programs, seed {args.seed}")
    for name, label in (("recall", "vulnerable"), ("false positive rate", "secure")):
        flagged = [flag for (_, kind), flag in answered.items() if kind == label]
        print(rate(name, sum(flagged), len(flagged)))
    pairs = [
        answered[at, "vulnerable"] and not answered[at, "secure"]
        for at in range(len(records))
        if (at, "vulnerable") in answered and (at, "secure") in answered
    ]
    print(rate("pair accuracy", sum(pairs), len(pairs)))
    print(rate("not answered", len(said) - len(answered), len(said)))
    tokens = usage.prompt_tokens - before.prompt_tokens
    written = usage.completion_tokens - before.completion_tokens
    print(f"  {asked} requests, {tokens} + {written} tokens, {took:.0f} s", end="")
    print(f", {took / len(programs):.1f} s a program" if programs else "")
    reasons: dict[str, int] = {}
    for one in said.values():
        if one.failed:
            reasons[one.failed[:100]] = reasons.get(one.failed[:100], 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])[:5]:
        print(f"  {count} x {reason}")


if __name__ == "__main__":
    sys.exit(main())
