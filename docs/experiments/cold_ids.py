import sys, time, random, statistics as st, struct
sys.path.insert(0, ".")
from array import array
import numpy as np, msgspec
from hybridgraph.ipc.messages import Generate, encode, decode_to_server, Message
from hybridgraph.records import Request, check_request
clock = time.perf_counter_ns
class GL(Message, tag="gl"):
    request: int
    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float
    seed: int
enc, dec = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(GL | Generate)
junk = np.zeros(8 << 20, dtype=np.int64)
words = np.zeros(514, dtype=np.int64)
def thrash():
    junk.sum(); end = clock() + 300_000
    while clock() < end: pass
def client_bytes(l): return encode(Generate.of(1, Request(prompt_ids=l)))
def client_list(l):
    f = bytearray(4); r = Request(prompt_ids=l)
    enc.encode_into(GL(request=1, prompt_ids=r.prompt_ids, max_new_tokens=1, temperature=.7, seed=0), f, 4); return f
def server_bytes(b):
    m = dec.decode(b); r = m.asked(); ids = r.prompt_ids
    min(ids), max(ids); words[:len(ids)] = ids
def server_list(b):
    m = dec.decode(b); r = Request(prompt_ids=m.prompt_ids, max_new_tokens=m.max_new_tokens, temperature=m.temperature, seed=m.seed); ids = r.prompt_ids
    min(ids), max(ids); words[:len(ids)] = ids
def server_list2(b):
    m = dec.decode(b); r = Request(prompt_ids=m.prompt_ids, max_new_tokens=m.max_new_tokens, temperature=m.temperature, seed=m.seed); ids = r.prompt_ids
    min(ids), max(ids); struct.pack_into(f"{len(ids)}q", words, 0, *ids)
for n in (10, 150, 400):
    l = [random.randrange(32000) for _ in range(n)]
    bb, bl = bytes(client_bytes(l)[4:]), bytes(client_list(l)[4:])
    fs = dict(client_bytes=lambda: client_bytes(l), client_list=lambda: client_list(l), server_bytes=lambda: server_bytes(bb), server_list=lambda: server_list(bl), server_list2=lambda: server_list2(bl))
    t = {k: [] for k in fs}; h = {k: [] for k in fs}
    for _ in range(200):
        for k, f in fs.items():
            thrash(); a = clock(); f(); t[k].append(clock() - a); a = clock(); f(); h[k].append(clock() - a)
    print(n, "  ".join("%s cold %.1f hot %.1f" % (k, st.median(t[k]) / 1e3, min(h[k]) / 1e3) for k in fs))
