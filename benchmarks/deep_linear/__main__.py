"""One command: `python -m benchmarks.deep_linear`. See `benchmarks/README.md` for how to read what it prints."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import lightning_slt as slt
from benchmarks.chain_speed.hardware import describe, hardware_name, slug
from benchmarks.deep_linear import figures, report
from benchmarks.deep_linear.cells import Cell, one_thread, run_cell, start_worker
from benchmarks.deep_linear.classes import CLASSES, LOCALIZATION, RECIPES, NetworkClass
from benchmarks.deep_linear.contestants import CONTESTANTS
from benchmarks.deep_linear.networks import Plan, plan_network
from benchmarks.deep_linear.store import Store
from benchmarks.deep_linear.summary import Key, make_rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deep_linear", description=__doc__)
    parser.add_argument("--class", dest="network_class", default="small", choices=CLASSES, help="size of the networks")
    parser.add_argument("--recipe", default="deepest", choices=RECIPES, help="how the networks are made")
    parser.add_argument("--samplers", nargs="+", choices=CONTESTANTS, metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--networks", type=int, help="networks of each seed (12 of the small classes, else 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one set of networks for each seed")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--processes", type=int, help="cells at once (one for each core; 1 on a GPU)")
    parser.add_argument("--out", type=Path, help="JSON file to write and go on from; pictures are put beside it")
    return parser.parse_args(argv)


def plans_of(arguments: argparse.Namespace) -> dict[Key, Plan]:
    """The networks, by seed and index."""
    network_class = CLASSES[arguments.network_class]
    count = arguments.networks or network_class.networks
    keys = [(seed, index) for seed in arguments.seeds for index in range(count)]
    return {(s, i): plan_network(network_class, arguments.recipe, seed=s, index=i) for s, i in keys}


def cells_of(arguments: argparse.Namespace, plans: Sequence[Key]) -> list[Cell]:
    """Every sampler at every step size on every network, network after network."""
    network_class = CLASSES[arguments.network_class]
    names = arguments.samplers or [name for name, entry in CONTESTANTS.items() if entry.default]
    return [
        Cell(
            network_class=network_class.name,
            recipe=arguments.recipe,
            sampler=name,
            step_size=step_size,
            seed=seed,
            index=index,
            device=arguments.device,
        )
        for seed, index in plans
        for name in names
        for step_size in CONTESTANTS[name].step_sizes(network_class)
    ]


def header_of(arguments: argparse.Namespace, network_class: NetworkClass) -> dict[str, Any]:
    """What the results file says beside its cells."""
    run = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(network_class).items() if key != "networks"}
    run |= {"recipe": arguments.recipe, "nbeta": network_class.nbeta, "localization": LOCALIZATION}
    return {"run": run, "machine": describe(arguments.device, 1), "version": slt.__version__}


def finished(cells: Sequence[Cell], processes: int) -> Iterator[dict[str, Any]]:
    """Run cells, several at once, and yield each as it is done."""
    if processes == 1:
        one_thread()
        yield from map(run_cell, cells)
        return
    context = multiprocessing.get_context("spawn")
    todo = iter(cells)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=start_worker) as pool:
        running: set[Future[dict[str, Any]]] = set()
        # few at a time: an interrupted run waits for these alone
        while True:
            for cell in todo:
                running.add(pool.submit(run_cell, cell))
                if len(running) >= 2 * processes:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def run(cells: Sequence[Cell], store: Store, processes: int) -> None:
    """Run what the store does not have yet, with a progress bar; the store is saved whatever happens."""
    todo = [cell for cell in cells if cell.key not in store.cells]
    bar = tqdm(total=len(cells), initial=len(cells) - len(todo), unit="cell", smoothing=0.05)
    try:
        for cell in finished(todo, processes):
            store.add(cell)
            bar.set_postfix_str(f"{cell['sampler']} {cell['step_size']:g}", refresh=False)
            bar.update()
    finally:
        bar.close()
        store.save()


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; a second run goes on where an interrupted one stopped."""
    arguments = parse(argv)
    network_class = CLASSES[arguments.network_class]
    on_cpu = torch.device(arguments.device).type == "cpu"
    processes = arguments.processes or ((os.cpu_count() or 1) if on_cpu else 1)
    stem = f"deep_linear-{slug(network_class.name)}-{arguments.recipe}"
    path = arguments.out or RESULTS / f"{stem}-{slug(hardware_name(arguments.device))}.json"
    header = header_of(arguments, network_class)
    print("  ".join(f"{key}: {value}" for key, value in header["machine"].items()))

    plans = plans_of(arguments)
    cells = cells_of(arguments, list(plans))
    store = Store(path, header)
    try:
        run(cells, store, processes)
    except KeyboardInterrupt:
        print(f"\nstopped with {len(store.cells)} cells in {path}; the same command goes on from there")
        return 130

    rows = make_rows([store.cells[cell.key] for cell in cells], plans)
    exact = sum(plan.truth_kind == "exact" for plan in plans.values())
    title = f"{len(plans)} deep linear networks, class {network_class.name}, {arguments.recipe} recipe"
    print(f"\n{title}; λ exact for {exact}, a lower bound for {len(plans) - exact}\n")
    print(report.render(rows, plans))
    print(f"\nwritten to {path}")
    if arguments.out or not arguments.samplers:
        folder = arguments.out.parent if arguments.out else IMAGES
        print("\n".join(f"picture {made}" for made in figures.draw(rows, plans, title, folder, stem)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
