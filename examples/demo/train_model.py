"""Make the demo's text and model in a folder: `python train_model.py FOLDER`."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.make_model import make_model, write_corpus
from demo.settings import Settings


def main() -> None:
    """Write `FOLDER/text/*.jsonl`, `FOLDER/model/` and `FOLDER/training.json`; exit with 1 unless the model learned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    (folder / "text").mkdir(parents=True, exist_ok=True)

    print("cutting the standard library into requests of six domains", flush=True)
    corpus = write_corpus(folder / "text", Settings())
    for split, requests in corpus.items():
        print(f"  {split}: {len(requests):,} requests, {sum(len(request.text) for request in requests):,} characters")
    made = make_model(corpus, folder / "model", Settings())
    (folder / "training.json").write_text(json.dumps(made.to_json(), indent=1), encoding="utf-8")

    training, learned = made.training, made.learned
    speed = training.tokens / training.seconds
    print(
        f"{made.parameters:,} parameters, {training.tokens:,} tokens in {training.seconds:.0f} s, {speed:,.0f} a second"
    )
    if training.stopped_by_time:
        print(f"this machine is slow: training ended after {len(training.losses)} steps")
    print(
        f"held-out loss {learned.heldout_loss:.3f} nats per token ({learned.bits_per_byte:.2f} bits per byte); "
        f"the unigram entropy is {learned.unigram_entropy:.3f}"
    )
    print("by domain: " + ", ".join(f"{domain} {loss:.2f}" for domain, loss in learned.loss_by_domain.items()))
    print("busiest expert over the mean, per layer: " + _short(learned.busiest_expert))
    print("what an expert tells about the domain, in nats, per layer: " + _short(learned.domain_information))
    if not learned.has_learned:
        sys.exit("the model has not learned: its loss is not well under the unigram entropy")


def _short(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
