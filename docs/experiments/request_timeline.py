"""Where a request's time goes outside of its replay. python timeline.py server PATH | client PATH"""
import sys, time, json, statistics as st, subprocess, tempfile, os, random
from pathlib import Path
clock = time.perf_counter_ns
L = (10, 150, 400)

def server(path, dump):
    import torch
    from hybridgraph.engine import HybridEngine
    from hybridgraph import server as S
    from hybridgraph.ipc.address import listen
    from hybridgraph import engine as E
    stamps, rows = {}, []
    def stamp(name): stamps[name] = clock()
    def wrap(cls, name, before=None, after=None):
        f = getattr(cls, name)
        def g(*a, **k):
            if before: stamp(before)
            r = f(*a, **k)
            if after: stamp(after)
            return r
        setattr(cls, name, g)
    def opened(progress):
        e = HybridEngine.from_pretrained("llama-2-7b", load_format="dummy", forward="fused", ops="fused", precapture=L, async_capture=False, progress=progress)
        ev = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        timer = e._timer
        start = timer.start
        def s(): stamp("start0"); start(); stamp("start1")
        timer.start = s
        place = e._ops.place
        class Ops:
            def __getattr__(self, n): return getattr(OPS, n)
            def place(self, request, length, b):
                stamp("planned")
                OPS.place(request, length, b)
                stamp("placed")
            def choose(self, *a):
                stamp("replayed"); OPS.choose(*a); stamp("chosen")
        OPS = e._ops
        e._ops = Ops()
        for m in e._ready:
            w = m.wait
            def wait(w=w, **k):
                w(**k)
                if "waited" not in stamps: stamp("waited")
            m.wait = wait
        e._ev = ev
        return e
    wrap(S.Server, "_receive", before="received")
    wrap(S.Server, "_enqueue", before="decoded", after="enqueued")
    wrap(HybridEngine, "check", after="checked")
    wrap(HybridEngine, "_answer", after="made")
    wrap(HybridEngine, "answer", before="asked", after="begun")
    wrap(HybridEngine, "_ids", before="held")
    wrap(S.Server, "_answer", before="answer")
    from hybridgraph.ipc.messages import Token
    from hybridgraph.ipc.connections import Hub
    hs = Hub.send
    def send(self, c, m):
        hs(self, c, m)
        if isinstance(m, Token): stamp("sent")
    Hub.send = send
    served = HybridEngine._served
    def sv(self, length, plan):
        served(self, length, plan)
        s = dict(stamps); stamps.clear()
        s["length"] = length
        s["dev"] = self.report.device_ms
        rows.append(s)
    HybridEngine._served = sv
    with listen(Path(path)) as listener:
        S.serve(listener, opened)
    json.dump(rows, open(dump, "w"))

def main():
    from hybridgraph.client import GeneratorClient
    from hybridgraph.records import Request
    d = tempfile.mkdtemp(); path = d + "/socket"; dump = d + "/dump"
    os.chmod(d, 0o700)
    p = subprocess.Popen([sys.executable, __file__, "server", path, dump])
    while not os.path.exists(path): time.sleep(0.1)
    c = GeneratorClient.connect(Path(path), script="x")
    ch = c._link.channel
    sa = ch.send_frame
    sent = []
    def sf(f): sa(f); sent.append(clock())
    ch.send_frame = sf
    out = []
    r = random.Random(1)
    for pause in (0.005, 0.0):
        for n in L:
            for i in range(120):
                ids = [r.randrange(3, 32000) for _ in range(n)]
                if pause > 0: time.sleep(pause)
                if pause < 0:
                    end = clock() + 5e6
                    while clock() < end: pass
                q = Request(prompt_ids=ids, max_new_tokens=1, temperature=0.7, seed=i)
                at = []
                sent.clear()
                t0 = clock()
                c.stream(q, lambda t: at.append(clock()))
                out.append(dict(c0=t0, c1=sent[0], c2=at[0], pause=pause, i=i))
    c.close()
    p.terminate(); p.wait()
    rows = json.load(open(dump))
    assert len(rows) == len(out), (len(rows), len(out))
    names = ["c0","c1","received","decoded","checked","enqueued","answer","asked","begun","held","start0","start1","planned","placed","replayed","chosen","waited","sent","c2"]
    for pause in (0.005, 0.0):
        for n in L:
            sel = [{**a, **b} for a, b in zip(out, rows) if b["length"] == n and a["pause"] == pause and a["i"] >= 20]
            med = lambda f: st.median(f(s) for s in sel)
            print(pause, n, "ttft %.3f dev %.3f" % (med(lambda s: (s["c2"]-s["c0"])/1e6), med(lambda s: s["dev"])), "us:", " ".join("%s %.0f" % (b, med(lambda s: (s[b]-s[a])/1e3)) for a, b in zip(names, names[1:])))

if __name__ == "__main__":
    server(*sys.argv[2:]) if len(sys.argv) > 1 else main()
