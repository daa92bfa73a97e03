"""Times flash-linear-attention's Triton kernels and PyTorch's softmax attention on one GPU, and their errors.

peers.py <folder of flash-linear-attention> time <shapes> [<ops>] [--compile-only]
    Forward passes with the final state, inputs as bench.cu draws them; a JSON line per row:
    op, B, T, H, D, ms (median of single calls, events), graph_ms (replayed CUDA graph), peak_bytes (beyond inputs).
    Shapes like 1x65536x8x64, ops of linear, gated, gla, delta, gated_delta, kda, sdpa; both separated by commas.
    --compile-only makes every kernel once and prints nothing: Triton keeps what it compiled.
peers.py <folder> errors <folder that `harness export` wrote>
    Relative errors against float64 on the same inputs as ours.
"""
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from triton.testing import do_bench

sys.path.insert(0, sys.argv[1])
DEVICE = 'cuda'


def row(**values):
    print(json.dumps(values), flush=True)


def draw(B, T, H, D, dtype=torch.bfloat16):
    """Inputs of all ops: q k v [B,T,H,D], unit keys, decay per head and per key (log), beta."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, T, H, D, device=DEVICE, dtype=dtype) for _ in range(3))
    unit = F.normalize(k.float(), dim=-1).to(dtype)
    g = F.logsigmoid(torch.randn(B, T, H, device=DEVICE))
    g_key = F.logsigmoid(torch.randn(B, T, H, D, device=DEVICE)) / 4
    beta = torch.rand(B, T, H, device=DEVICE, dtype=dtype)
    return dict(q=q, k=k, v=v, unit=unit, g=g, g_key=g_key, beta=beta)


def calls(x):
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.kda import chunk_kda
    from fla.ops.linear_attn import chunk_linear_attn
    from fla.ops.simple_gla import chunk_simple_gla

    q, k, v, unit, g, g_key, beta = (x[n] for n in ('q', 'k', 'v', 'unit', 'g', 'g_key', 'beta'))
    g16 = g_key.to(q.dtype)
    heads_first = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
    state = dict(output_final_state=True)
    return {
        'linear': lambda: chunk_linear_attn(q, k, v, normalize=False, **state),
        'linear(elu1)': lambda: chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v, normalize=True, **state),
        'gated': lambda: chunk_simple_gla(q, k, v, g=g, **state),
        'gla': lambda: chunk_gla(q, k, v, g16, **state),
        'delta': lambda: chunk_delta_rule(q, unit, v, beta, **state),
        'gated_delta': lambda: chunk_gated_delta_rule(q, unit, v, g, beta, **state),
        'kda': lambda: chunk_kda(q, unit, v, g_key, beta, **state),
        'sdpa': lambda: F.scaled_dot_product_attention(*heads_first, is_causal=True),
    }


def graph_time(call):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    ms = do_bench(graph.replay, warmup=5, rep=40, return_mode='median')
    del graph
    return ms


def time_rows(shapes, names, compile_only):
    for B, T, H, D in shapes:
        x = draw(B, T, H, D)
        functions = calls(x)
        before = torch.cuda.memory_allocated()
        for name in names:
            if name == 'sdpa' and T > 262144:
                continue
            call = functions[name]
            try:
                call()
                torch.cuda.synchronize()
                if compile_only:
                    continue
                torch.cuda.reset_peak_memory_stats()
                call()
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated() - before
                quick = name != 'sdpa' or T <= 65536
                ms = do_bench(call, warmup=10, rep=60 if quick else 1, return_mode='median')
                try:
                    graph_ms = graph_time(call) if quick else None
                except Exception as error:  # capture is not supported by every kernel
                    print(f'{name}: no graph: {str(error)[:120]}', file=sys.stderr)
                    graph_ms = None
                row(op=name, B=B, T=T, H=H, D=D, ms=ms, graph_ms=graph_ms, peak_bytes=peak)
            except Exception as error:
                row(op=name, B=B, T=T, H=H, D=D, error=str(error)[:200])
        del x, functions
        torch.cuda.empty_cache()


def error_rows(folder):
    for file in sorted(os.listdir(folder)):
        if not file.endswith('.json'):
            continue
        with open(os.path.join(folder, file)) as f:
            about = json.load(f)
        B, T, H, D = (about[n] for n in 'BTHD')
        path = lambda name: os.path.join(folder, f'{about["op"]}.{name}')

        def half(name, *shape):
            bits = np.fromfile(path(name), dtype=np.int16)
            return torch.from_numpy(bits).to(DEVICE).view(torch.bfloat16).view(*shape)

        def single(name, *shape):
            return torch.from_numpy(np.fromfile(path(name), dtype=np.float32)).to(DEVICE).view(*shape)

        q, k, v = (half(name, B, T, H, D) for name in ('query', 'key', 'value'))
        per_key = about['op'] in ('gla', 'kda')
        x = dict(q=q, k=k, unit=k, v=v, g=None, g_key=torch.zeros(1, device=DEVICE), beta=None)
        if os.path.exists(path('decay')):
            read = half if about['decay_type'] == 'bf16' else single
            x['g_key' if per_key else 'g'] = read('decay', B, T, H, *([D] if per_key else [])).float()
        if os.path.exists(path('beta')):
            x['beta'] = half('beta', B, T, H)
        expected = torch.from_numpy(np.fromfile(path('expected'))).to(DEVICE).view(B, T, H, D)
        output = calls(x)[about['op']]()[0]
        error = ((output.double() - expected).norm() / expected.norm()).item()
        row(op=about['op'], B=B, T=T, H=H, D=D, error=error, ours=about['ours'])


with torch.no_grad():
    mode = sys.argv[2]
    if mode == 'errors':
        error_rows(sys.argv[3])
    else:
        shapes = [tuple(map(int, shape.split('x'))) for shape in sys.argv[3].split(',')]
        given = [a for a in sys.argv[4:] if not a.startswith('--')]
        names = given[0].split(',') if given else ['linear', 'linear(elu1)', 'gated', 'gla', 'delta', 'gated_delta', 'kda', 'sdpa']
        row(device=torch.cuda.get_device_name(), torch=torch.__version__, triton=__import__('triton').__version__)
        time_rows(shapes, names, '--compile-only' in sys.argv)
