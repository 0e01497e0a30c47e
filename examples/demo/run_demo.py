"""The whole pipeline on a model trained here: `python run_demo.py --work FOLDER`.

Trains a small mixture-of-experts model on the standard library's text, then runs the real commands one by one. The
model and the profiles are reused by the next run unless something that they depend on has changed.
"""

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import specmoe
from demo.commands import CommandRunner, DemoError
from demo.comparison import Comparison, compare
from demo.gains import Gains
from demo.reuse import Reuse, digest_of, digest_of_sources
from demo.settings import Settings

HERE = Path(__file__).resolve().parent
EP_SIZE = "4"
EXTRA_SLOTS = "2"
PLAN_NAMES = {"experts.plan": "specmoe", "replicas.plan": f"specmoe, {EXTRA_SLOTS} replica slots a rank"}
PROMPTS = (
    "def __init__(self, name",
    "Return a new",
    "LOAD_GLOBAL 1 (NULL + ",
    "If the expression is",
    "0x0041 -> LATIN CAPITAL LETTER A",
    "U+1E40 Ṁ LATIN CAPITAL LETTER",
)
NEW_TOKENS = "24"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's steps, in the order of `run`; all files lie in `work`."""

    work: Path
    run_command: CommandRunner
    reuse: Reuse

    def run(self) -> Gains:
        """Every step; raises `DemoError` where one fails."""
        model_digest = self.train()
        self.profile("fit", "profile", model_digest)
        self.profile("heldout", "heldout", model_digest)
        evaluation = self.solve_and_evaluate()
        self.compile()
        comparison = self.generate()
        return Gains.of(
            json.loads(evaluation),
            PLAN_NAMES,
            json.loads((self.work / "training.json").read_text(encoding="utf-8")),
            comparison,
            self.run_command.seconds,
        )

    def train(self) -> str:
        """Make `text/` and `model/`, or keep them; returns the digest of what they were made from."""
        digest = digest_of(Settings().digest(), digest_of_sources(HERE), platform.python_version())
        _heading("Train a small mixture-of-experts model")
        if self.reuse.has("model", digest, [self.work / "model", self.work / "text", self.work / "training.json"]):
            print("model/ is there already")
            return digest
        self.reuse.forget("model")
        self.run_command.show("train", "python", str(HERE / "train_model.py"), ".")
        self.reuse.remember("model", digest)
        return digest

    def profile(self, name: str, split: str, model_digest: str) -> None:
        """Make `NAME.profile` from one split of the text, or keep it."""
        digest = digest_of(model_digest, split, digest_of_sources(Path(specmoe.__file__).parent / "profiler"))
        _heading(f"Record its routing on the {split} text")
        if self.reuse.has(f"{name}-profile", digest, [self.work / f"{name}.profile"]):
            print(f"{name}.profile is there already")
            return
        self.reuse.forget(f"{name}-profile")
        text = ("--data", f"text/{split}.jsonl", "--domain-column", "domain")
        self.run_command.show("profile", "specmoe", "profile", "model", *text, "-o", f"{name}.profile", "--force")
        self.reuse.remember(f"{name}-profile", digest)

    def solve_and_evaluate(self) -> str:
        """Make both plans and replay the held-out text under them; returns the evaluation as JSON."""
        _heading("Place the experts on 4 ranks, without and with replicas")
        solve = ("specmoe", "solve", "fit.profile", "--ep-size", EP_SIZE, "--force")
        self.run_command.show("solve", *solve, "-o", "experts.plan")
        self.run_command.show("solve", *solve, "--extra-slots", EXTRA_SLOTS, "-o", "replicas.plan")
        _heading("Replay the held-out text under the plans, and under what engines do today")
        evaluate = ("specmoe", "evaluate", *PLAN_NAMES, "--profile", "heldout.profile")
        self.run_command.show("evaluate", *evaluate)
        return self.run_command.capture("evaluate", *evaluate, "--json")

    def compile(self) -> None:
        """Compile the checkpoint by the plan with replicas, and prove it equivalent."""
        _heading("Compile the checkpoint, and prove it equivalent")
        self.run_command.show("reshard", "specmoe", "reshard", "model", "replicas.plan", "-o", "compiled", "--force")
        self.run_command.show("verify", "specmoe", "verify", "compiled", "--against", "model")

    def generate(self) -> Comparison:
        """Generate on four processes and compare with the unmodified model on one."""
        _heading("Generate on 4 processes, and compare with the unmodified model")
        prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
        generate = ["specmoe", "generate", "compiled", *prompts, "--max-new-tokens", NEW_TOKENS, "--json"]
        launcher = ["torchrun", "--standalone", "--nproc-per-node", EP_SIZE, "--no-python"]
        printed = self.run_command.capture(
            "generate", *launcher, *generate, "--logits", "logits.safetensors", "--force"
        )
        for item in json.loads(printed)["completions"]:
            print(f"  {item['prompt']!r} -> {item['text']!r}")
        return compare(self.work / "model", printed, self.work / "logits.safetensors", int(NEW_TOKENS))


def main() -> None:
    """Run the demo, print and write its result; exit with 1 when a step fails or the result falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="where all files go")
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    demo = Demo(work=work, run_command=CommandRunner(folder=work), reuse=Reuse(folder=work / "made-from"))
    try:
        gains = demo.run()
    except DemoError as error:
        sys.exit(f"\nThe demo failed: {error}")
    _heading("What was gained")
    print(gains.to_markdown())
    (work / "RESULT.md").write_text(gains.to_markdown(), encoding="utf-8")
    (work / "RESULT.json").write_text(json.dumps(gains.to_json(), indent=1), encoding="utf-8")
    if shortfalls := gains.shortfalls():
        sys.exit(f"The demo failed: {'; '.join(shortfalls)}")


def _heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
