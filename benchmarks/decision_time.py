"""Time of one decision from a packet of 1,000 layers with 4 seeds each; the limit is 100 ms.

python benchmarks/decision_time.py
"""

from __future__ import annotations

import statistics
import time

from esper.messages import EpochRecord, HealthSignal, LayerMetrics, SeedState, Slot, SystemStatePacket
from esper.tamiyo.grow_on_plateau import GrowOnPlateau
from esper.tamiyo.plateau import PlateauDetector
from esper.tamiyo.strategy import SeedStrategy

LAYERS, SEEDS, EPOCHS, REPEATS = 1000, 4, 50, 50


def packet() -> SystemStatePacket:
    slot = Slot("features", 64, 64)
    layers = {
        f"blocks.{i}.linear": LayerMetrics(
            gradient_norm=1.0,
            activation_variance=1.0,
            seed_health=(1.0,) * SEEDS,
            kind="linear",
            seed_states=(SeedState.DORMANT,) * SEEDS,
            parallel_slots=(slot,) * SEEDS,
            series_slots=(slot,) * SEEDS,
            signals=tuple(
                HealthSignal(0.0, 1.0, (i * SEEDS + s) % 97 / 97, 0.0, 0.0, 1.0) for s in range(SEEDS)
            ),
        )
        for i in range(LAYERS)
    }
    history = tuple(EpochRecord(i, 0.5, 0.5 + 0.001 * (i % 2), 0.8) for i in range(EPOCHS))
    return SystemStatePacket(
        epoch=EPOCHS - 1,
        global_step=1,
        loss=0.5,
        accuracy=0.8,
        layer_metrics=layers,
        held_out_loss=0.5,
        total_epochs=2 * EPOCHS,
        history=history,
    )


def main() -> None:
    policy, state = GrowOnPlateau(PlateauDetector(), SeedStrategy()), packet()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        decision = policy.decide(state)
        times.append((time.perf_counter() - start) * 1e3)
    assert decision is not None, "the packet shows a plateau; a benchmark of no decision measures nothing"
    worst = max(times)
    print(f"decision with {LAYERS} layers, {LAYERS * SEEDS} seeds, {EPOCHS} epochs of history")
    print(f"  median {statistics.median(times):6.2f} ms   worst of {REPEATS} {worst:6.2f} ms   limit 100 ms")
    print(f"  ratio to the limit {worst / 100:.3f}")


if __name__ == "__main__":
    main()
