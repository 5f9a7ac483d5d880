"""The blueprints that ship keep their identity: kernels on record were compiled from them."""

from __future__ import annotations

from pathlib import Path

from esper.blueprint import load_blueprints

ROOT = Path(__file__).resolve().parents[2]
IDS = {
    "bottleneck_conv": "blueprint_186b1d681cd1e256",
    "bottleneck_mlp": "blueprint_d81463a50df3037f",
    "convnext": "blueprint_af2a6c9a139ed8a9",
    "cross": "blueprint_35021f603ba6b9b8",
    "depthwise_separable": "blueprint_8a48a928eef098df",
    "dilated": "blueprint_f7aa60b974d52bf7",
    "dilated_time": "blueprint_50f2fa79b238f6dc",
    "fourier_mixing": "blueprint_05730784e1b2364a",
    "gated_attention": "blueprint_d7d31ece8f10e5a7",
    "ghost": "blueprint_0a2b5ecea4b57772",
    "global_context": "blueprint_3646283cc0aaf40c",
    "grouped_shuffle": "blueprint_e8a20eb6d00e47f3",
    "highway": "blueprint_879aacefc3099591",
    "inception": "blueprint_6bec259d1cac8913",
    "inverted_bottleneck": "blueprint_62b61ae84c2997ac",
    "low_rank": "blueprint_3d9a8d8510aa151b",
    "mixed_depthwise": "blueprint_641eb0e2914234c2",
    "non_local": "blueprint_584756d283f61d25",
    "pointwise": "blueprint_2c2c09640a0182e1",
    "residual_conv": "blueprint_0da44558455544ff",
    "residual_mlp": "blueprint_eddcac9d1871a25c",
    "rms_linear": "blueprint_5f98d5353660d25f",
    "self_attention": "blueprint_82c2567dcf7ca0db",
    "siren": "blueprint_2cbb8ee985467146",
    "squeeze_excite": "blueprint_b32efeab638f4784",
    "swiglu": "blueprint_a10b2fcd3dc9726e",
    "time_conv": "blueprint_3ecc695a4f273d9f",
}


def test_shipped_blueprints_keep_their_ids() -> None:
    files = sorted((ROOT / "blueprints").glob("*.yaml"))
    assert {b.name: b.blueprint_id for file in files for b in load_blueprints(file)} == IDS


def test_no_two_that_ship_have_the_same_graph() -> None:
    files = sorted((ROOT / "blueprints").glob("*.yaml"))
    graphs = [b.graph_id for file in files for b in load_blueprints(file)]
    assert len(set(graphs)) == len(graphs) == len(IDS)
