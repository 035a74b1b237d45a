"""The driver's counters, on a GPU: there is nothing to ask elsewhere."""

import pytest
import torch

from hybridgraph.machine.device import describe, measure_rates
from hybridgraph.machine.nvml import GpuMeter

pytestmark = pytest.mark.gpu


def test_a_lap_counts_the_work_since_the_last_one() -> None:
    gpu = describe(torch.device("cuda"))["gpu"]
    meter = GpuMeter(gpu["uuid"])
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    meter.lap()
    for _ in range(400):
        matrix @ matrix
    torch.cuda.synchronize()
    busy = meter.lap()
    meter.close()
    assert busy["energy_j"] * 1e3 / busy["wall_ms"] > 100, "W"
    assert 0 <= busy["power_capped_ms"] <= busy["wall_ms"] * 1.5
    assert 0 < busy["sm_clock_mhz"] <= gpu["max_sm_clock_mhz"]


def test_what_is_sustained_is_at_most_what_a_burst_reaches() -> None:
    rates = measure_rates(torch.device("cuda"), torch.float16)
    assert rates is not None and rates.sustained_flops_per_s is not None
    assert 0.3 * rates.flops_per_s < rates.sustained_flops_per_s <= rates.flops_per_s
