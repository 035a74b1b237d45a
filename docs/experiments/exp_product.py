import ctypes, math, torch
from dataclasses import dataclass
from pathlib import Path
from hybridgraph.forward.kernels import product
from hybridgraph.forward.kernels.product import *
product.SOURCE = Path(__file__).with_name("exp.cu")
_old_prelude = product._prelude
@dataclass(frozen=True)
class X(product.Tile):
    defs: tuple = ()
    outer: int = 1
    next_splits: int = 0
    limit: int = 12
    @property
    def stages(self): return min(self.limit, RING_BYTES // self.stage_bytes)
def prelude(epilogue, tile, dtype):
    d = "".join(f"#define {k}\n" for k in getattr(tile, "defs", ()))
    return d + _old_prelude(epilogue, tile, dtype)
product._prelude = prelude
class Partial(Epilogue):
    _fields_ = (("out", ctypes.c_void_p), ("width", ctypes.c_int), ("num_tokens", ctypes.c_int))
def xlaunch(rows, weight, pairs, epilogue, tile, nxt=None):
    from cuda.bindings import driver
    num_tokens, columns = rows.shape
    units = math.ceil(weight.shape[0] / UNIT)
    values = (
        product._weight_map(weight.data_ptr(), weight.shape, weight.dtype, pairs),
        product._tensor_map(rows.data_ptr(), rows.dtype, (columns, num_tokens), (rows.stride(0),), (BLOCK_K, tile.box_tokens)),
        num_tokens, math.ceil(columns / BLOCK_K), math.ceil(pairs.part / UNIT), epilogue,
        0 if nxt is None else nxt.data_ptr(), 0 if nxt is None else nxt.shape[0], 0 if nxt is None else nxt.shape[1] * 2, max(1, tile.next_splits),
    )
    types = (None, None, ctypes.c_int, ctypes.c_int, ctypes.c_int, None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    config = driver.CUlaunchConfig()
    config.gridDimX = math.ceil(math.ceil(units / tile.warpgroups) / tile.sharing) * tile.sharing
    config.gridDimY, config.gridDimZ = tile.splits * tile.outer, math.ceil(num_tokens / tile.tokens)
    config.blockDimX, config.blockDimY, config.blockDimZ = 128 * (tile.warpgroups + 1), 1, 1
    config.sharedMemBytes = tile.shared_bytes
    config.hStream = torch.cuda.current_stream(rows.device).cuda_stream
    config.attrs = product._attributes(tile, True)
    config.numAttrs = len(config.attrs)
    kernel = product._kernel(type(epilogue).__name__, tile, rows.dtype, rows.device.index)
    product._check(driver.cuLaunchKernelEx(config, kernel, (values, types), 0))
