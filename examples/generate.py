"""Generate text with experts in host memory and a draft that speculates.

    python examples/generate.py

runs the bundled pair on the CPU with slots for half of its experts.  Give `from_pretrained` the folders of your own
checkpoints in place of `bundled_pair()`.
"""

from engine import Engine
from engine.checkpoints.bundled import bundled_pair

PROMPT = "def read_lines(path):"


def main() -> None:
    target, draft = bundled_pair()
    with Engine.from_pretrained(target, draft, cache=0.5, gamma=4, device="cpu") as engine:
        print(PROMPT, end="")
        for piece in engine.stream(PROMPT, max_new_tokens=48):
            print(piece.text, end="", flush=True)
        engine.finish()
        metrics, transfers = engine.metrics(), engine.transfers()
    print(f"\n\n{metrics.tpot_ms:.1f} ms per token, {transfers.acceptance:.0%} of drafted tokens accepted")
    print(f"{metrics.hit_rate:.0%} of the needed experts were resident, {metrics.loads_per_token:.1f} loads per token")


if __name__ == "__main__":
    main()
