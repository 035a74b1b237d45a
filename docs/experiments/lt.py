"""cublasLt through ctypes, with a choice of algorithms."""
import ctypes as C, torch
L = C.CDLL("libcublasLt.so.13")
def ck(s):
    if s: raise RuntimeError(f"cublasLt {s}")
H = C.c_void_p(); ck(L.cublasLtCreate(C.byref(H)))
F32 = {torch.float16: 2, torch.bfloat16: 14, torch.float32: 0}
WS = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
class Heur(C.Structure):
    _fields_ = [("algo", C.c_uint64 * 8), ("ws", C.c_size_t), ("state", C.c_int), ("waves", C.c_float), ("r", C.c_int * 4)]
def layout(dt, rows, cols, ld, row=False):
    p = C.c_void_p(); ck(L.cublasLtMatrixLayoutCreate(C.byref(p), C.c_int(F32[dt]), C.c_uint64(rows), C.c_uint64(cols), C.c_int64(ld)))
    if row:
        o = C.c_int32(1); ck(L.cublasLtMatrixLayoutSetAttribute(p, 1, C.byref(o), C.c_size_t(4)))
    return p
def desc():
    p = C.c_void_p(); ck(L.cublasLtMatmulDescCreate(C.byref(p), 68, 0))
    t = C.c_int32(1); ck(L.cublasLtMatmulDescSetAttribute(p, 3, C.byref(t), C.c_size_t(4)))
    return p
class Mm:
    """[n,k] x weight [m,k]^T -> out [n,m]; beta 0 or 1."""
    def __init__(self, m, n, k, dt=torch.float16, beta=0.0, count=16, swap=False):
        self.d = desc()
        if swap:  # D^T row-major: A = rows (n x k), B = weight
            self.A, self.B, self.D = layout(dt, k, n, k), layout(dt, k, m, k), layout(dt, n, m, m, True)
        else:
            self.A, self.B, self.D = layout(dt, k, m, k), layout(dt, k, n, k), layout(dt, m, n, m)
        self.swap = swap
        pref = C.c_void_p(); ck(L.cublasLtMatmulPreferenceCreate(C.byref(pref)))
        w = C.c_uint64(32 << 20); ck(L.cublasLtMatmulPreferenceSetAttribute(pref, 1, C.byref(w), C.c_size_t(8)))
        self.res = (Heur * count)(); got = C.c_int()
        ck(L.cublasLtMatmulAlgoGetHeuristic(H, self.d, self.A, self.B, self.D, self.D, pref, count, self.res, C.byref(got)))
        self.got = got.value
        self.alpha, self.beta = C.c_float(1), C.c_float(beta)
    def describe(self, i):
        out = []
        for a in (0, 1, 2, 4, 5, 6, 7, 8):
            v = C.c_int64(0); wr = C.c_size_t()
            s = L.cublasLtMatmulAlgoConfigGetAttribute(C.byref(self.res[i].algo), a, C.byref(v), C.c_size_t(2 if a in (7, 8) else 4), C.byref(wr))
            out.append(v.value if s == 0 else None)
        return "id{} tile{} splitk{} swz{} cust{} stg{} inner{} cl{} waves{:.2f}".format(*out, self.res[i].waves)
    def __call__(self, rows, weight, out, i):
        a, b = (rows, weight) if self.swap else (weight, rows)
        P = lambda t: C.c_void_p(t.data_ptr())
        ck(L.cublasLtMatmul(H, self.d, C.byref(self.alpha), P(a), self.A, P(b), self.B, C.byref(self.beta), P(out), self.D, P(out), self.D,
            C.byref(self.res[i].algo), P(WS), C.c_size_t(32 << 20), C.c_void_p(torch.cuda.current_stream().cuda_stream)))
