"""Variants of the hot path, interleaved in one generator."""
import sys, time, json, statistics as st, subprocess, tempfile, os, random
from contextlib import contextmanager
from pathlib import Path
clock = time.perf_counter_ns
L = (10, 150, 400)
NV = 5

def server(path, dump):
    import torch, ctypes
    from hybridgraph.engine import HybridEngine
    from hybridgraph import server as S, timing as T, engine as E
    from hybridgraph.errors import UserError
    from hybridgraph.ipc.address import listen
    V = [0]
    rc = S.Server._receive
    def receive(self, c, m):
        if hasattr(m, "seed"): V[0] = m.seed // 1000
        rc(self, c, m)
    S.Server._receive = receive
    class Ev:
        def __init__(self, timing):
            self.a = torch.cuda.Event(enable_timing=timing); self.b = torch.Event("cuda", enable_timing=timing)
        def record(self, dev):
            if V[0] >= 2: self.b.record()
            else: self.a.record(torch.cuda.current_stream(dev))
        def wait(self):
            if V[0] >= 2: 
                q = self.b.query
                while not q(): pass
            elif V[0] == 1:
                q = self.a.query
                while not q(): pass
            else: self.a.synchronize()
    class Timer:
        def __init__(self, d): self.d = d; self.e = Ev(True), Ev(True)
        def start(self): self.e[0].record(self.d)
        def stop(self): self.e[1].record(self.d)
        def elapsed_ms(self):
            if V[0] >= 2:
                return self.e[0].b.elapsed_time(self.e[1].b)
            self.e[1].a.synchronize(); return self.e[0].a.elapsed_time(self.e[1].a)
    class Mark:
        def __init__(self, d): self.d = d; self.e = Ev(False)
        def mark(self): self.e.record(self.d)
        def wait(self): self.e.wait()
    E.DeviceTimer, E.DeviceMark = Timer, Mark
    turn0 = HybridEngine._turn
    class Lean:
        def __init__(self, e): self.e = e
        def __enter__(self):
            e = self.e
            if e._closed: raise UserError("closed")
            self.prev = torch.cuda._exchange_device(0)
            t = e._pool.turn
            if t._depth == 0: t._taken.acquire()
            t._depth += 1
        def __exit__(self, *_):
            t = self.e._pool.turn
            t._depth -= 1
            if t._depth == 0: t._taken.release()
            torch.cuda._maybe_exchange_device(self.prev)
    hold0, one0 = HybridEngine.hold, HybridEngine._one_answer
    from contextlib import nullcontext
    def hold(self): return Lean(self) if V[0] >= 3 else hold0(self)
    def one(self): return nullcontext() if V[0] >= 3 else one0(self)
    HybridEngine.hold, HybridEngine._one_answer = hold, one
    ans0 = HybridEngine.answer
    HybridEngine.answer = lambda self, r: self._answer(r) if V[0] >= 3 else ans0(self, r)
    def opened(progress):
        e = HybridEngine.from_pretrained("llama-2-7b", load_format="dummy", forward="fused", ops="fused", precapture=L, async_capture=False, progress=progress)
        from cuda.bindings import runtime
        with torch.cuda.device(0):
            lib = ctypes.CDLL("libcudart.so.13")
            s = torch.cuda.current_stream().cuda_stream
            for n in L:
                key, g = e._pool.cache.look_up(n)
                raw = g._graph.raw_cuda_graph_exec()
                def f1(): g._graph.replay()
                def f2(): runtime.cudaGraphLaunch(raw, s)
                def f3(): lib.cudaGraphLaunch(ctypes.c_void_p(int(raw)), ctypes.c_void_p(s))
                ev = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
                for name, f in (("torch", f1), ("bindings", f2), ("ctypes", f3)):
                    t, w, d = [], [], []
                    for _ in range(60):
                        time.sleep(0.003)
                        torch.cuda.synchronize()
                        ev[0].record()
                        a = clock(); f(); t.append(clock() - a); ev[1].record(); torch.cuda.synchronize(); w.append(clock() - a); d.append(ev[0].elapsed_time(ev[1]))
                    b = []
                    for _ in range(20):
                        time.sleep(0.003)
                        torch.cuda.synchronize()
                        f(); ev[0].record(); f(); ev[1].record(); torch.cuda.synchronize(); b.append(ev[0].elapsed_time(ev[1]))
                    print(n, name, "launch call %.1f us, wall %.3f device %.3f, behind another %.3f" % (st.median(t)/1e3, st.median(w)/1e6, st.median(d), st.median(b)), "nodes", g.num_nodes, flush=True)
        # ops wrapper: raw launch
            orig = e._pool.plan
            from dataclasses import replace
            raws = {n: e._pool.cache.look_up(n)[1]._graph.raw_cuda_graph_exec() for n in L}
            fast = {n: (lambda r=ctypes.c_void_p(int(raws[n])), s=ctypes.c_void_p(s): lib.cudaGraphLaunch(r, s)) for n in L}
            def plan(n):
                p = orig(n)
                return replace(p, run=fast[n]) if V[0] >= 4 else p
            e._pool.plan = plan
        return e
    with listen(Path(path)) as listener:
        S.serve(listener, opened)

def main():
    from hybridgraph.client import GeneratorClient
    from hybridgraph.records import Request
    d = tempfile.mkdtemp(); path = d + "/socket"; dump = d + "/dump"
    os.chmod(d, 0o700)
    p = subprocess.Popen([sys.executable, __file__, "server", path, dump])
    while not os.path.exists(path): time.sleep(0.1)
    c = GeneratorClient.connect(Path(path), script="x")
    r = random.Random(1)
    for pause in (0.005, 0.0):
        for n in L:
            t = {v: [] for v in range(NV)}
            dev = {v: [] for v in range(NV)}
            for i in range(30):
                for v in range(NV):
                    for k in range(5):
                        ids = [r.randrange(3, 32000) for _ in range(n)]
                        if pause: time.sleep(pause)
                        q = Request(prompt_ids=ids, max_new_tokens=1, temperature=0.7, seed=i + 1000 * v)
                        at = []
                        t0 = clock()
                        rep = c.stream(q, lambda _: at.append(clock()))
                        if k: t[v].append((at[0] - t0) / 1e6); dev[v].append(rep.device_ms)
            print(pause, n, "ttft mean/median/dev by variant:", "  ".join("%.3f %.3f %.3f" % (st.mean(t[v]), st.median(t[v]), st.mean(dev[v])) for v in t), flush=True)
    c.close()
    p.terminate(); p.wait()

if __name__ == "__main__":
    server(*sys.argv[2:]) if len(sys.argv) > 1 else main()
