import subprocess, sys, json, statistics as st, os
here = os.path.dirname(os.path.abspath(__file__))
ws = [subprocess.Popen([sys.executable, here + "/cold_host.py", t], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for t in sys.argv[1:]]
for w in ws:
    while w.stdout.readline().strip() != "ready": pass
for n in (10, 150, 400):
    got = [[[], [], []] for _ in ws]
    for _ in range(12):
        for g, w in zip(got, ws):
            w.stdin.write(json.dumps([n, 12]) + "\n"); w.stdin.flush()
            for x, y in zip(g, json.loads(w.stdout.readline())): x += y
    print(n, "   ".join(t + " encode %.0f arrival %.0f behind %.0f" % tuple(st.median(x) / 1e3 for x in g) for t, g in zip(sys.argv[1:], got)))
for w in ws: w.stdin.close(); w.wait()
