"""Host time of a request with cold caches, on a CPU: python cold_host.py TREE -> us from arrival to the forward, and behind it"""
import sys, os, time, random, statistics as st, socket
tree = os.path.abspath(sys.argv[1]); sys.path.insert(0, tree)
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from hybridgraph import server as S
from hybridgraph.engine import HybridEngine
from hybridgraph.ipc.address import listen
from hybridgraph.ipc.connections import Hub
from hybridgraph.ipc.messages import HELLO, Generate, Token, encode
from hybridgraph.records import Request
from hybridgraph.signals import StopSignals
clock = time.perf_counter_ns
junk = np.zeros(8 << 20, dtype=np.int64)
def thrash():
    junk.sum(); end = clock() + 200_000
    while clock() < end: pass
at = {}
e = HybridEngine.from_pretrained("tiny-llama", load_format="dummy", dtype="float32", device="cpu", forward="fused", ops="fused", precapture=(10, 150, 400), async_capture=False)
def run(length):
    at["forward"] = clock()
def wait(**k):
    thrash(); at["done"] = clock()
for m in e._ready: m.wait = wait
e._static.run_prefill = run
e._ops.__class__._choose = lambda *a: None
hs = Hub.send
def send(self, c, m):
    if isinstance(m, Token): at["done0"] = at["done"]
    hs(self, c, m)
    if isinstance(m, Token): at["sent"] = clock()
Hub.send = send
with listen() as listener, StopSignals() as stop:
    s = S.Server(listener, stop, print, 100.0, 2.0)
    s._engine = e
    c = socket.socket(socket.AF_UNIX); c.connect(str(listener.path)); c.sendall(encode(HELLO))
    for _ in range(3): s._hub.poll(0.0)
    import gc; gc.collect(); gc.freeze()
    import json
    print("ready", flush=True)
    for line in sys.stdin:
        n, count = json.loads(line)
        a, b, cl = [], [], []
        for i in range(count):
            r = Request(prompt_ids=[random.randrange(3, 2000) for _ in range(n)], max_new_tokens=1, temperature=0.7, seed=i)
            thrash(); t = clock(); f = encode(Generate.of(i, r)); cl.append(clock() - t)
            c.sendall(f); thrash()
            t0 = clock()
            s._hub.poll(0.0)
            job = s._line.next(); s._serve(e, job)
            a.append(at["forward"] - t0); b.append(at["sent"] - at["done0"])
            c.recv(1 << 16)
        print(json.dumps([cl, a, b]), flush=True)
    s.close()
