"""Kill and stop parts of a real cluster under load, and judge every stream.

    python -m tests.chaos.run --faults 100 --streams 32 --seed 1 \\
        --kinds rank,leader,gateway,router --signal KILL

Starts ``moeray serve`` with a small random model, records the answers of a cluster without faults,
keeps the streams open, strikes at random moments, waits for the rebuild each time, and prints a
table. Exit status 0: no violation, no leak, every fault healed, and all bounds on time kept.
"""

import argparse
import asyncio
import json
import math
import signal
import sys
from pathlib import Path

from tests.chaos.campaign import Plan, drawn, run_campaign
from tests.chaos.processes import Kind
from tests.integration.serving import CACHE, Server
from tests.random_model import ensure_random_model


def main() -> int:
    options = _options()
    kinds = [Kind(name) for name in options.kinds.split(",")]
    signals = [signal.Signals[f"SIG{name}"] for name in options.signal.split(",")]
    plan = Plan(
        strikes=drawn(options.faults, kinds, signals, options.seed),
        streams=options.streams,
        seed=options.seed,
        limit_s=60 * options.minutes,
        engines=options.engines,
        ranks=options.ranks,
        gateways=options.gateways,
    )
    model = ensure_random_model(CACHE)
    with Server("--model", str(model), *plan.arguments()) as server:
        report = asyncio.run(run_campaign(server, plan, lambda line: print(line, flush=True)))
    failures = report.failures(judge_times=not options.no_time_bounds)
    print(report.table())
    for failure in failures:
        print(f"FAILED {failure}")
    if options.json:
        options.json.write_text(json.dumps({**report.as_data(), "failures": failures}, indent=1))
    print("passed" if not failures else f"failed: {len(failures)}")
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="rank,leader,gateway,router")
    parser.add_argument("--signal", default="KILL", help="KILL, STOP, or both by comma")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="then begin no new fault")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--no-time-bounds", action="store_true", help="report times, judge none")
    return parser.parse_args()


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main())
