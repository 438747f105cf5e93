"""Rows of benchmarks as the summaries take them."""

from __future__ import annotations


def share(before: float, after: float, images: int = 10) -> dict:
    return {"before": before, "after": after, "images": images}


def row(method: str, concept: str, seed: int, acc_e: float, attack: float = 0.1, acc_ir: float = 0.95, **more) -> dict:
    return {
        "key": f"{method}-{concept}-{seed}",
        "method": method,
        "concept": concept,
        "seed": seed,
        "kind": "entity",
        "acc_e": share(1.0, acc_e),
        "acc_g": share(0.9, 0.05),
        "acc_ir": share(0.96, acc_ir),
        "acc_ir_seen": share(0.97, 0.97),
        "attacks": {"prefix": share(0.95, attack)},
        "parts": {},
        "drift": {"perceptual": 0.1, "psnr": 20.0, "images": 10},
        "seconds": 100.0 + seed,
        "model": "m",
        "behaviour": 2,
        "threads": 2,
        "counts": {"images": 10},
        **more,
    }


ROWS = [
    row("eraseanything", "car", 0, 0.0),
    row("eraseanything", "car", 1, 0.2),
    row("eraseanything", "owl", 0, 0.02),
    row("esd", "car", 0, 0.0, attack=0.3, acc_ir=0.5),
    row("gem", "car", 0, 0.0, attack=0.02, acc_ir=0.99),
]


def result(name: str, rows: list[dict]) -> dict:
    machine = {"cores": 2, "machine": "x86_64", "gpu": None, "torch": "2"}
    return {"name": name, "date": "2026-01-01", "command": f"scripts/bench.py {name}", "machine": machine, "rows": rows}
