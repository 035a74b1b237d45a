cd /tmp/r
for rep in 1 2; do for pin in "" 1 2; do for p in 5 20; do
PIN=$pin timeout 90 ./run_case4_benchmark.sh --forward fused --pause-ms $p --prompt-lengths 10,100,200,400 --precapture 10,100,200,400 --output-dir /tmp/pin/p$p-pin$pin-$rep > /tmp/log 2>&1 || tail -5 /tmp/log; grep pinned /tmp/log | tr '\n' ' '
done; done; done
python3 - <<'P'
import json,glob,statistics as st
for d in sorted(glob.glob('/tmp/pin/*')):
    r=[json.loads(l) for l in open(d+'/case4_jit_cuda_fused_samples.jsonl')][1:]
    out=[]
    for n in (10,100,200,400):
        v=[x for x in r if x['prompt_length']==n and x['warmth']=='warm']
        h=sorted(x['ttft_ms']-x['device_ms'] for x in v); t=sorted(x['ttft_ms'] for x in v)
        out.append('%.3f/%.3f/%.3f P99/m %.3f'%(st.mean(h),h[len(h)//2],h[-2],t[-2]/st.mean(t)))
    print(d.split('/')[-1],' | '.join(out))
P
nproc; lscpu | grep -i "model name\|thread\|numa"
