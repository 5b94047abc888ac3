"""Polynomial programming (notebook 02): a benchmark of gradient estimators whose optimum is known."""

from pathlib import Path

import torch
from torch.nn import functional as F

from e2e_lib.bridge.estimators import ESTIMATORS
from e2e_lib.experiments.evaluate import Echo
from e2e_lib.repro import files, results
from e2e_lib.repro.randomness import generator
from e2e_lib.versions import versions

TARGET = 0.45
CASES = (("decoupled", 1.0), ("gumbel", 1.0), ("gumbel", 0.1), ("soft", 0.1), ("reinmax", 1.0))
FILE = Path("estimators", "polynomial.json")


def polynomial(name: str, temperature: float, *, steps: int, learning_rate: float = 0.02,
               exponent: float = 1.5, latents: int = 128, batch: int = 64, seed: int = 0) -> list[float]:
    """Binary latents x learn to minimise the mean of |x - 0.45|^p; the optimum 0.45^p is x = 0 throughout.

    Returns its exact expectation before each of ``steps`` steps of Adam and after the last. A step evaluates
    the objective of ``batch`` rows, whatever the estimator (REINFORCE's come in groups of 16)."""
    rng, logits = generator(seed, "polynomial", name), torch.zeros(latents, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], learning_rate)
    rows = batch // 16 if name == "reinforce" else batch
    ends, values = (torch.tensor([0.0, 1.0]) - TARGET).abs() ** exponent, []
    for step in range(steps + 1):
        values.append(float((F.softmax(logits.detach(), -1) @ ends).mean()))
        if step < steps:
            loss = ESTIMATORS[name](lambda x: (x[..., 1] - TARGET).abs().pow(exponent).mean(-1),
                                    logits.expand(rows, latents, 2), temperature, rng)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    return values


def measure(echo: Echo, *, steps: int = 8000, learning_rate: float = 1e-3, seed: int = 0) -> Path:
    """Where ``polynomial`` ends with each estimator after long training; writes ``results/`` + ``FILE``."""
    path = results.RESULTS / FILE
    settings = {"steps": steps, "learning_rate": learning_rate, "seed": seed,
                "numbers": versions("gradients")}
    if results.is_up_to_date(path, settings, echo):
        return path
    rows = []
    for name, temperature in CASES:
        end = polynomial(name, temperature, steps=steps, learning_rate=learning_rate, seed=seed)[-1]
        rows.append({"estimator": name, "temperature": temperature, "end": end})
        echo(f"polynomial programming, {name} at {temperature:g}: {end:.4f}")
    return files.write_json(path, {"command": "e2e ablate", "arguments": settings, "rows": rows})


def long_polynomial() -> dict[tuple[str, float], float]:
    """What ``measure`` wrote, by (name, τ). Raises ResultsError if that is missing."""
    rows = results.load_json(results.RESULTS / FILE)["rows"]
    return {(row["estimator"], row["temperature"]): row["end"] for row in rows}
