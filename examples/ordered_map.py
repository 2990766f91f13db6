"""Ordered map over an API-like coroutine: many calls in flight, results in the order of the questions.

Some calls are refused at first, as an overloaded service would; they are tried again without holding a place.
"""

from __future__ import annotations

import asyncio
import time

import tournant as tn


class Overloaded(Exception):
    """The service's "try again later"."""


class Service:
    """Stands for a remote API: it answers after 5 to 50 ms and refuses every tenth question once."""

    def __init__(self) -> None:
        self.in_flight = self.most_in_flight = self.refused = 0
        self._seen: set[int] = set()

    async def ask(self, number: int) -> str:
        """Answer one question."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(latency(number))
            if number % 10 == 0 and number not in self._seen:
                self._seen.add(number)
                self.refused += 1
                raise Overloaded(f"question {number}")
            return f"answer {number}"
        finally:
            self.in_flight -= 1


def latency(number: int) -> float:
    return 0.005 + (number * 37 % 10) / 200


questions = list(range(300))
service = Service()
began = time.perf_counter()
answers = tn.map(
    service.ask,
    questions,
    concurrency=50,
    retry=tn.Retry(attempts=4, delay=0.05, on=Overloaded),
)
took = time.perf_counter() - began

print(f"{len(answers)} answers, in order: {answers == [f'answer {n}' for n in questions]}")
print(
    f"most calls in flight: {service.most_in_flight} of 50; refused once and asked again: {service.refused}"
)
print(f"{took:.2f} s; one after the other it is {sum(map(latency, questions)):.1f} s of waiting")
