"""The demo's last word: what placing the experts gained on held-out text, as a table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.comparison import Comparison

BASELINES = ("linear", "round_robin", "eplb")
Means = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Gains:
    """All numbers of the result. placements: the mean metrics of each placement by its name, baselines first."""

    placements: Mapping[str, Means]
    plans: Sequence[str]
    tokens: int
    requests: int
    model: Mapping[str, Any]
    comparison: Comparison
    seconds: Mapping[str, float]

    @classmethod
    def of(
        cls,
        evaluation: Mapping[str, Any],
        plan_names: Mapping[str, str],
        model: Mapping[str, Any],
        comparison: Comparison,
        seconds: Mapping[str, float],
    ) -> "Gains":
        """From what `specmoe evaluate --json` printed; `plan_names` gives the name to show for each plan's file."""
        means = {result["name"]: result["mean"] for result in evaluation["results"]}
        baselines = {name: mean for name, mean in means.items() if name not in plan_names}
        return cls(
            placements=baselines | {shown: means[name] for name, shown in plan_names.items()},
            plans=list(plan_names.values()),
            tokens=evaluation["trace"]["num_tokens"],
            requests=evaluation["trace"]["num_requests"],
            model=model,
            comparison=comparison,
            seconds=seconds,
        )

    def shortfalls(self) -> list[str]:
        """What keeps the demo from having shown its point, one sentence each: nothing, when all is well."""
        linear = self.placements["linear"]["load_imbalance"]
        found = [] if self.comparison.identical else ["the compiled model's output differs from the original's"]
        for plan in self.plans:
            mean = self.placements[plan]
            found += [
                f"{plan} sends {mean['remote_copies_per_token']:.3f} remote copies per token, no fewer than {baseline}"
                for baseline in BASELINES
                if mean["remote_copies_per_token"] >= self.placements[baseline]["remote_copies_per_token"]
            ]
            if mean["load_imbalance"] > linear:
                found.append(f"{plan} has a load imbalance of {mean['load_imbalance']:.3f}, linear's is {linear:.3f}")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "heldout": {"tokens": self.tokens, "requests": self.requests},
            "placements": {name: dict(mean) for name, mean in self.placements.items()},
            "model": dict(self.model),
            "output": {**vars(self.comparison), "identical": self.comparison.identical},
            "seconds": {step: round(seconds, 1) for step, seconds in self.seconds.items()},
        }

    def to_markdown(self) -> str:
        """The result as a Markdown page of a few lines, readable as it is on a terminal."""
        return "\n".join([*self._table(), "", *self._sentences(), ""])

    def _table(self) -> list[str]:
        linear = self.placements["linear"]["remote_copies_per_token"]
        rows = [["placement", "remote copies per token", "beside linear", "served at home", "load imbalance"]]
        for name, mean in self.placements.items():
            copies = mean["remote_copies_per_token"]
            change = f"{copies / linear - 1:+.0%}" if name != "linear" else ""
            home = f"{mean['local_activation_rate']:.0%}"
            rows.append([name, f"{copies:.3f}", change, home, f"{mean['load_imbalance']:.3f}"])
        return _markdown_table(rows)

    def _sentences(self) -> list[str]:
        model, output = self.model, self.comparison
        verdict = "identical" if output.identical else "DIFFERENT"
        return [
            f"Held-out text: {self.tokens:,} tokens in {self.requests:,} requests, 4 ranks, means over layers.",
            f"Model: {model['parameters']:,} parameters, trained on {model['tokens']:,} tokens in "
            f"{model['seconds']:.0f} s; loss {model['heldout_loss']:.2f} nats per token on held-out text "
            f"({model['bits_per_byte']:.2f} bits per byte), unigram entropy {model['unigram_entropy']:.2f}.",
            f"Output of the compiled model on 4 processes: {verdict}; {output.equal_tokens} of {output.all_tokens} "
            f"tokens equal, largest logit difference {output.largest_difference:.1e} (logits up to "
            f"{output.largest_logit:.1f}).",
            "Seconds: " + ", ".join(f"{step} {seconds:.0f}" for step, seconds in self.seconds.items()) + ".",
        ]


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {_padded(row, widths)} |" for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]


def _padded(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        text.rjust(width) if index else text.ljust(width)
        for index, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return " | ".join(cells)
