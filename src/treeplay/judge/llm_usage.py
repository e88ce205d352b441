"""What asking a model has cost so far, and the end of the budget."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from treeplay.judge.llm_config import LlmConfig

CHARS_PER_TOKEN = 3  # for a prompt that is not counted yet; code has 3 to 4


@dataclass(frozen=True)
class Usage:
    """Counts since the judge was made. ``cost``: US dollars, None when no prices are set.

    ``requests``: sent, retries too. ``estimated``: of these, how many had their tokens estimated,
    because the server gave no counts or no whole reply. ``cached``: answers that cost nothing.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    cost: float | None = None
    estimated: int = 0
    cached: int = 0


class Ledger:
    """Counts, and lets a request go only when it fits into the budget at its worst.

    The worst is the prompt's estimated length and the longest answer; what others in flight may
    still take counts as spent. Whoever does not fit waits until they have been settled.
    """

    def __init__(self, config: LlmConfig) -> None:
        self._config = config
        self._free = threading.Condition()
        self._reserved: list[tuple[int, int]] = []
        self._usage = Usage(cost=self._price(0, 0))

    @property
    def usage(self) -> Usage:
        with self._free:
            return self._usage

    def reserve(self, prompt_chars: int) -> bool:
        """Set the worst case of one request aside; False when the budget does not hold it."""
        mine = _tokens(prompt_chars), self._config.max_tokens
        with self._free:
            while not self._fits([*self._reserved, mine]):
                if not self._reserved:
                    return False
                self._free.wait()
            self._reserved.append(mine)
            return True

    def release(self, prompt_chars: int) -> None:
        with self._free:
            self._reserved.remove((_tokens(prompt_chars), self._config.max_tokens))
            self._free.notify_all()

    def sent(self) -> None:
        with self._free:
            self._usage = replace(self._usage, requests=self._usage.requests + 1)

    def cached(self, count: int) -> None:
        with self._free:
            self._usage = replace(self._usage, cached=self._usage.cached + count)

    def used(self, prompt: int | None, completion: int | None, chars: tuple[int, int]) -> None:
        """Count one reply; ``chars`` of prompt and answer stand in for counts that are None."""
        guessed = prompt is None or completion is None
        prompt = _tokens(chars[0]) if prompt is None else prompt
        completion = _tokens(chars[1]) if completion is None else completion
        with self._free:
            old = self._usage
            total = old.prompt_tokens + prompt, old.completion_tokens + completion
            self._usage = replace(
                old,
                prompt_tokens=total[0],
                completion_tokens=total[1],
                cost=self._price(*total),
                estimated=old.estimated + guessed,
            )

    def _fits(self, reserved: list[tuple[int, int]]) -> bool:
        prompt = self._usage.prompt_tokens + sum(one for one, _ in reserved)
        completion = self._usage.completion_tokens + sum(one for _, one in reserved)
        most, cost = self._config.max_tokens_total, self._price(prompt, completion)
        if most and prompt + completion > most:
            return False
        return not self._config.max_cost or cost is None or cost <= self._config.max_cost

    def _price(self, prompt: int, completion: int) -> float | None:
        if self._config.price_in is None or self._config.price_out is None:
            return None
        return (prompt * self._config.price_in + completion * self._config.price_out) / 1e6


def _tokens(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)
