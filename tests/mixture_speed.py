"""How fast the mixture coder is on one core, and its rate against the ideal code length: the tables of docs/mixture.md.

    python tests/mixture_speed.py

Times are the process's own (CPU time), the best of several runs, so that other work on the machine counts little.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from fastcodec.kernels.rans.mixture import MixtureDecoder, MixturePass, encode, quantise_mixtures
from fastcodec.rans import available_isas

SHAPE = (6144, 192)  # a Kodak image's latents
RUNS = 5


def drawn(components: int, least: float, greatest: float, far: float) -> tuple[float, float, MixturePass]:
    """Symbols drawn from random mixtures, as a pass; and ideal code lengths in bits: the mixtures', and as rounded.

    Weights are Dirichlet(1), means uniform within ±far, log sigma uniform from least to greatest.
    """
    rng = np.random.default_rng(7)
    weights = np.moveaxis(rng.dirichlet([1.0] * components, SHAPE), -1, 0)
    means = rng.uniform(-far, far, (components, *SHAPE))
    sigmas = np.exp(rng.uniform(math.log(least), math.log(greatest), (components, *SHAPE)))
    pick = (rng.random(SHAPE) > np.cumsum(weights, 0)[:-1]).sum(0)[None]
    centre, width = (np.take_along_axis(values, pick, 0)[0] for values in (means, sigmas))
    symbols = torch.from_numpy(np.rint(rng.normal(size=SHAPE) * width + centre))

    def ideal(w: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> float:
        away = (symbols - m).abs()  # of two tails the smaller, so that no digits are lost
        mass = (w * (torch.special.ndtr((0.5 - away) / s) - torch.special.ndtr((-0.5 - away) / s))).sum(0)
        return float(-mass.clamp(min=2.0**-40).log2().sum())

    exact = tuple(map(torch.from_numpy, (weights, means, sigmas)))
    w, m, s = quantise_mixtures(*exact)
    rounded = ideal(w.double() / 4096, m.double() / 64, 2 ** ((s.double() - 80) / 24))
    return ideal(*exact), rounded, MixturePass(symbols.to(torch.int16), w, m, s)


def seconds(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(RUNS):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def main() -> None:
    torch.set_num_threads(1)
    cases = [(3, 0.11, 64, 20), (3, 0.11, 0.5, 20), (3, 0.11, 2, 2), (3, 40, 64, 20), (1, 0.11, 64, 20)]
    print("| K | sigma | means | bits a symbol | above ideal | of which rounded parameters |")
    for case in cases:
        ideal, rounded, item = drawn(*case)
        [payload] = encode([[item]], lanes=1, streams=1)
        above, rounding = 100 * (8 * len(payload) / ideal - 1), 100 * (rounded / ideal - 1)
        bits = ideal / item.symbols.numel()
        print(f"| {case[0]} | {case[1]}..{case[2]} | ±{case[3]} | {bits:.3f} | {above:.3f} % | {rounding:.3f} % |")
    print("| K | lanes | instruction set | encode, Msymbol/s | decode, Msymbol/s |")
    for components, lanes in ((3, 32), (3, 8), (3, 1), (1, 32)):
        item = drawn(components, 0.11, 64, 20)[2]
        million = item.symbols.numel() / 1e6
        for isa in available_isas():
            options = {"lanes": lanes, "streams": 1, "threads": 1, "isa": isa}
            payloads = encode([[item]], **options)
            writing = million / seconds(lambda item=item, options=options: encode([[item]], **options))
            reading = million / seconds(
                lambda item=item, payloads=payloads, isa=isa: MixtureDecoder(
                    payloads, threads=1, isa=isa
                ).decode_mixtures([item.weights], [item.means], [item.scales])
            )
            print(f"| {components} | {lanes} | {isa} | {writing:.0f} | {reading:.0f} |")


if __name__ == "__main__":
    main()
