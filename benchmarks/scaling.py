"""How costs grow with slots, context, prompt length and queue length.

Each is predicted to grow no faster than in proportion to what it is drawn over, but for
the queue, whose length is to cost a dispatch next to nothing. The measured points are
compared with that, and drawn.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.step import Measured, loaded
from jaxserver import wiring
from jaxserver.adapters.engine.processor import use_processor
from jaxserver.core import scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.core.schedule import QueuedRequest
from jaxserver.ports.config import DEFAULT_MODEL

Curve = Mapping[int, float]
"""Seconds, over what they are to grow with."""
LABELS = {
    "slots": ("A decode step, 256 tokens in each slot", "slots"),
    "context": ("A decode step of 8 slots", "tokens in each slot"),
    "prompt": ("A prompt's prefill", "tokens of the prompt"),
    "queue": ("The plan of a dispatch", "requests that wait"),
}
"""What costs, and what it is drawn over."""
CHUNK = 128
SLOTS = (1, 4, 8, 16, 32, 64)
CONTEXTS = (128, 256, 512, 1024, 2048)
QUEUES = (1, 16, 64, 256)
MOST_GROWTH = 1.15
"""A cost may grow by so much more than what it is drawn over, for noise."""
MOST_PLAN_SECONDS = 0.002
"""Of a dispatch's plan, however many wait."""


def slots(model: wiring.Model, times: int) -> Curve:
    """A decode step, each row with 256 tokens."""
    return {n: Measured(model, n, 1, times).whole(256) for n in SLOTS}


def context(model: wiring.Model, times: int) -> Curve:
    """A decode step of 8 rows."""
    measured = Measured(model, 8, 1, times)
    return {n: measured.whole(n) for n in CONTEXTS}


def prompt(model: wiring.Model, times: int) -> Curve:
    """The prefill of one prompt, chunk by chunk."""
    measured = Measured(model, 1, CHUNK, times)
    curve, seconds = {}, 0.0
    for held in range(CHUNK, max(CONTEXTS) + 1, CHUNK):
        seconds += measured.whole(held)
        if held in CONTEXTS:
            curve[held] = seconds
    return curve


def queue(model: wiring.Model, times: int) -> Curve:
    """Planning a dispatch while so many wait, be a slot free or not."""
    return {n: max(plan_seconds(n, b, times) for b in (0, 8)) for n in QUEUES}


def plan_seconds(waiting: int, running: int, times: int) -> float:
    """With eight slots."""
    engine = EngineConfig(slots=8, max_len=2048)
    state = scheduler.empty(engine)
    for request_id in range(running + waiting):
        tokens = tuple(range(request_id, request_id + 64))
        queued = QueuedRequest(
            request_id=request_id, tokens=tokens, limit=2048, streaming=True
        )
        state = scheduler.submit(state, queued)
    for _ in range(2 * running):
        _, state = scheduler.plan(state, engine, 0.0)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        scheduler.plan(state, engine, 0.0)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


CURVES: Mapping[str, Callable[[wiring.Model, int], Curve]] = {
    "slots": slots,
    "context": context,
    "prompt": prompt,
    "queue": queue,
}


def too_much(name: str, curve: Curve) -> str | None:
    """What is wrong with a curve, if anything is."""
    if name == "queue":
        worst = max(curve.values())
        return None if worst <= MOST_PLAN_SECONDS else f"{name}: {1000 * worst:.1f} ms"
    for (less, before), (more, after) in itertools.combinations(curve.items(), 2):
        if after / before > MOST_GROWTH * more / less:
            grown = f"{after / before:.1f} times from {less} to {more}"
            return f"{name}: {grown}"
    return None


def predicted(name: str, curve: Curve) -> Curve:
    """What it is to stay below: in proportion to its first point, the queue flat."""
    least = min(curve)
    if name == "queue":
        return dict.fromkeys(curve, MOST_PLAN_SECONDS)
    return {over: curve[least] * over / least for over in curve}


def draw(curves: Mapping[str, Curve], file: Path) -> None:
    """As PNG or SVG, by the file's name."""
    import matplotlib  # noqa: PLC0415  # an extra
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "scaling"}
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (name, curve) in zip(
        figure.subplots(2, 2).flat, curves.items(), strict=True
    ):
        what, over = LABELS[name]
        for points, form, label in (
            (predicted(name, curve), "--", "most that is predicted"),
            (curve, "o-", "measured"),
        ):
            milliseconds = [1000 * seconds for seconds in points.values()]
            axes.plot(list(points), milliseconds, form, label=label)
        axes.set(title=what, xlabel=over, ylabel="milliseconds")
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(list(curve), labels=[f"{n:,}" for n in curve])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.10g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    use_processor()
    model = loaded(args.model, args.quantize)
    curves = {name: measure(model, args.times) for name, measure in CURVES.items()}
    print("| cost over | " + "ms at each |")
    print("|---|---|")
    for name, curve in curves.items():
        points = (f"{over}: {1000 * seconds:.2f}" for over, seconds in curve.items())
        print(f"| {name} | {', '.join(points)} |")
    if args.plot is not None:
        draw(curves, args.plot)
    if args.json is not None:
        args.json.write_text(json.dumps(curves))
    wrong = [told for name, c in curves.items() if (told := too_much(name, c))]
    if wrong:
        raise SystemExit("grows too fast: " + "; ".join(wrong))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL)
    add("--quantize", default="int8")
    add("--times", type=int, default=10)
    add("--plot", type=Path, metavar="FILE", help="draw there; needs matplotlib")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
