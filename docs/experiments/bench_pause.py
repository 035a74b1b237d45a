import sys, time, statistics as st
from contextlib import closing
from pathlib import Path
from hybridgraph.client import GeneratorClient
from hybridgraph.config import Config
from hybridgraph.prompts import RandomPrompts
from hybridgraph.runner import MeasuringLoop, _collector_frozen
pc = time.perf_counter
class Spy:
    def __init__(self, c): self.c = c; self.rows = []
    def stream(self, r, emit):
        rep = self.c.stream(r, emit); self.rows.append((self.c.last.first_token_ms, rep.device_ms, self.c.last.queue_ms)); return rep
label = sys.argv[2]
with closing(GeneratorClient.connect(Path(sys.argv[1]), script="x")) as c, _collector_frozen():
    for n in (10, 400):
        for pause in (0, 5, 20, 40, 100):
            spy = Spy(c); cfg = Config(pause_ms=pause)
            loop = MeasuringLoop(spy, RandomPrompts(seed=pause, vocab_size=c.info.vocab_size, special_ids=()), cfg, "x")
            k = 20 if pause > 50 else 60
            s = loop.row("p99", n, k)[k // 4:]; rows = spy.rows[k // 4:]
            m = [st.mean(x.ttft_ms for x in s), *(st.mean(x) for x in zip(*rows))]
            print(label, n, pause, "ttft %.3f server %.3f device %.3f queue %.3f | ipc %.3f host %.3f" % (*m, m[0] - m[1], m[1] - m[2]), "p95 %.3f" % sorted(x.ttft_ms for x in s)[-3], flush=True)
