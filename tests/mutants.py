"""Does the suite notice? Breaks a copy of the package in one place at a time and runs the tests that should fail.

    python tests/mutants.py                        # all
    python tests/mutants.py estimators/ gram.py    # those whose file begins so

Prints a line per mutant and exits 1 if one survives. Takes some minutes, so it is a script and no test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mutants_of_results

ROOT = Path(__file__).parents[1]

LAWS, TWINS, LIMITS = "test_samplers_laws.py", "test_samplers_twins.py", "test_samplers_limits.py"
CHAINS, SWEEP, ABSOLUTE = "test_chains.py", "test_sweep.py", "test_absolute.py"
RENEWAL, FINDER, PROBES = "test_renewal.py", "test_finder.py", "test_probes.py"
BUDGET, WATCHERS, ADVICE = "test_budget.py", "test_watchers.py", "test_advice.py"
OFFLOAD = "test_offload.py"
FAULTS, FAULTS_LIVE, UNTRUSTED = "test_faults.py", "test_faults_live.py", "test_untrusted.py"

MUTANTS = [
    ("noise √(ε/2)", "samplers/sgld.py", "math.sqrt(eps * ", "math.sqrt(eps / 2 * ", "test_sgld.py"),
    ("drift ε for ε/2", "samplers/sgld.py", "scale=-eps / 2 * nbeta", "scale=-eps * nbeta", "test_sgld.py"),
    ("no localization", "samplers/sgld.py", "w.lerp_(anchor, eps / 2 * gamma)", "pass", "test_sgld.py"),
    ("SGHMC's noise", "samplers/sghmc.py", "math.sqrt(2 * alpha", "math.sqrt(alpha", LAWS),
    ("a whole friction step too few", "samplers/sghmc.py", "u.mul_(1 - alpha)", "u", LAWS),
    ("the thermostat stands still", "samplers/sgnht.py", "zeta.add_", "zeta.add", LAWS),
    (
        "one thermostat for all",
        "samplers/sgnht.py",
        "u.square().mean(1)",
        "u.square().mean().expand(len(u))",
        "test_zoo.py",
    ),
    (
        "BAOAB without its last half",
        "samplers/underdamped.py",
        "        w.add_(v, alpha=h / 2)\n        return",
        "        return",
        LAWS,
    ),
    ("MALA accepts all", "samplers/base.py", "noise.uniforms().log() < log_ratio", "log_ratio == log_ratio", LAWS),
    (
        "MALA without proposal densities",
        "samplers/mala.py",
        " + posterior.shards.add((k * (xi - k / 2)).sum(1))",
        "",
        LAWS,
    ),
    (
        "HMC without its last half kick",
        "samplers/hmc.py",
        "self.num_leapfrog else -h / 2",
        "self.num_leapfrog else 0.0",
        LAWS,
    ),
    ("infinite potentials accepted", "samplers/base.py", " & potential.isfinite()", "", LIMITS),
    ("minibatches for exact samplers", "samplers/hmc.py", "full_batch: ClassVar[bool] = True", "", LIMITS),
    (
        "never frozen",
        "samplers/preconditioning.py",
        '== "burnin" and state["steps"] == ',
        '== "" and state["steps"] == ',
        LAWS,
    ),
    (
        "the one remembered",
        "samplers/preconditioning.py",
        "        s.mul_(",
        "        s = state['squares'] = s + (state['steps'] == 1) * self.decay\n        s.mul_(",
        LAWS,
    ),
    ("√ε of one coordinate for ε", "samplers/rmsprop_sgld.py", "force.mul_(root), root", "force, root", TWINS),
    ("no bias correction", "samplers/preconditioning.py", ".div_(1 - forgotten)", "", TWINS),
    ("momentum without correction", "samplers/adam_sgld.py", 'nbeta / (1 - state["weight"])', "nbeta", TWINS),
    (
        "covariance without the mean product",
        "statistics.py",
        " - self.total[seen, :, None] * self.total[seen, None, :] / self.count[seen, None, None]",
        "",
        "test_statistics.py",
    ),
    (
        "/n for /(n−1)",
        "statistics.py",
        "/ (self.count[seen] - 1).sum()",
        "/ self.count[seen].sum()",
        "test_statistics.py",
    ),
    ("float32 sums", "statistics.py", "dtype=torch.float64", "dtype=torch.float32", "test_statistics.py"),
    ("one seed for all chains", "sampling.py", '"noise", chain,', '"noise", 0,', "test_coverage.py"),
    ("burn-in kept", "sampling.py", "past = step - (config.num_burnin or 0)", "past = step", "test_zoo.py"),
    (
        "no isolation of generators",
        "isolation.py",
        "stack.enter_context(_preserved_generators())",
        "pass",
        "test_isolation.py",
    ),
    (
        "no restored training flags",
        "isolation.py",
        "stack.enter_context(remembered([module, *also], known=module.parameters()))",
        "pass",
        "test_isolation.py",
    ),
    ("eval mode left out", "isolation.py", "        module.eval()\n", "", "test_isolation.py"),
    ("gradients of training kept inside", "isolation.py", "parameter.grad = None", "pass", "test_isolation.py"),
    ("loggers not silenced", "isolation.py", "stack.enter_context(_silent_trainer(part))", "pass", "test_isolation.py"),
    ("metrics and logging not muted", "isolation.py", "            _mute(part)\n", "", "test_isolation.py"),
    ("own generators not put back", "memory.py", "in _GENERATORS.items()", "in ()", "test_memory.py"),
    ("collate function not put back", "reading.py", ", also=self._bystanders", "", "test_bit_identity.py"),
    ("the user's own data set is read", "data.py", "dataset = copy_dataset(dataset)", "pass", "test_data.py"),
    (
        "one order for all chains",
        "data.py",
        "generator(seed, purpose, c)",
        "generator(seed, purpose, 0)",
        "test_data.py",
    ),
    ("unlike batches stacked", "batches.py", "    if not alike:", "    if False:", "test_data.py"),
    (
        "rare longer samples not seen",
        "data.py",
        "and not _alike(samples, prepare.collate)",
        "and False",
        "test_data.py",
    ),
    (
        "checkpoints a step early",
        "callbacks/schedule.py",
        "return counted + moved",
        "return counted",
        "test_schedules.py",
    ),
    ("budget without the next cost", "callbacks/budget.py", "self.spent + seconds <=", "self.spent <=", BUDGET),
    ("steps of the last reading for this one", "callbacks/budget.py", "steps=steps)", "steps=self.cost.steps)", BUDGET),
    ("too dear all the same", "callbacks/budget.py", "return steps <= expected or ", "return True or ", BUDGET),
    ("measuring for nothing", "callbacks/budget.py", "self.measuring + self.sampling", "self.sampling", BUDGET),
    ("no credit", "callbacks/agenda.py", "bool(self.watchers) and self.live.index == 0", "False", BUDGET),
    ("credit for ever", "callbacks/agenda.py", "bool(self.watchers) and self.live.index == 0", "True", BUDGET),
    (
        "a first reading too dear is dropped",
        "callbacks/agenda.py",
        "                self._first = first",
        "                pass",
        BUDGET,
    ),
    ("overhead from the first second", "callbacks/live.py", "if meaningful and step else", "if True else", BUDGET),
    ("scores of the reading before", "callbacks/agenda.py", "if self.at_checkpoints:", "if False:", WATCHERS),
    (
        "a reading before every look",
        "callbacks/watchers.py",
        "return any(saves_now",
        "return any(True or saves_now",
        WATCHERS,
    ),
    (
        "validation looked at too late",
        "callbacks/monitor.py",
        "def on_validation_start",
        "def on_validation_x",
        WATCHERS,
    ),
    (
        "patience counts what it has seen",
        "callbacks/watchers.py",
        "self._seen.get(index) == readings",
        "False",
        WATCHERS,
    ),
    ("told at every look", "callbacks/watchers.py", "if index not in self._told:", "if True:", WATCHERS),
    ("tags that never come", "callbacks/watchers.py", "wanted not in known", "False", WATCHERS),
    ("told at every bad reading", "reporting/advice.py", "if failing.keys() <= self._told:", "if not failing:", ADVICE),
    ("divergence for a number", "reporting/advice.py", "stability >= DIVERGES", "False", ADVICE),
    (
        "a diverged reading in the logs",
        "callbacks/journal.py",
        "scalars(self.name, results, worthless=bad)",
        "scalars(self.name, results)",
        ADVICE,
    ),
    (
        "validation's checkpoints missed",
        "callbacks/agenda.py",
        "or self.trainer.sanity_checking:\n            return\n        step",
        "or not self.trainer.training:\n            return\n        step",
        WATCHERS,
    ),
    (
        "resumed at Lightning's stale count",
        "callbacks/agenda.py",
        "if not self._resuming:",
        "if True:",
        "test_resume.py",
    ),
    (
        "settings of another run kept",
        "callbacks/monitor.py",
        "self._left.get(id(trainer), {}) if trainer.global_step else {}",
        "self._restored",
        "test_resume.py",
    ),
    (
        "calibrated anew on resume",
        "callbacks/live.py",
        'thaw(state["settings"], self.reader)',
        "None",
        "test_resume.py",
    ),
    ("NaN in callback_metrics", "callbacks/journal.py", "if math.isfinite(value) or", "if True or", "test_logging.py"),
    (
        "superseded readings kept",
        "records/loading.py",
        "while readings and readings[-1].index >= reading.index:",
        "while False:",
        "test_resume.py",
    ),
    (
        "files outside the records",
        "records/loading.py",
        "if not path.is_relative_to(folder.resolve()):",
        "if False:",
        "test_records.py",
    ),
    (
        "own buffers on every rank",
        "callbacks/peers.py",
        "            loss.set_buffers",
        "            (lambda _: None)",
        "test_ddp.py",
    ),
    (
        "an error kept to oneself",
        "callbacks/peers.py",
        "            if self._least_standing(Standing.FAILED) is Standing.INTERRUPTED:",
        "            if False:",
        "test_ddp.py",
    ),
    (
        "an interruption kept to oneself",
        "callbacks/peers.py",
        "            self._least_standing(Standing.INTERRUPTED)",
        "            pass",
        "test_ddp.py",
    ),
    (
        "a failure heard of where a signal came too",
        "standing.py",
        "        if self is Standing.INTERRUPTED:",
        "        if False:",
        "test_ddp.py",
    ),
    (
        "overhead of each rank's own",
        "callbacks/live.py",
        "self.peers.from_first(self._overhead())",
        "self._overhead()",
        "test_ddp.py",
    ),
    ("half a line stays", "files.py", "                file.truncate(size)", "                pass", FAULTS),
    ("a half line spoils the next", "files.py", 'else b"\\n") + text', 'else b"") + text', FAULTS),
    ("two runs in one file", "records/writing.py", "path.touch(exist_ok=False)", "path.touch()", FAULTS),
    (
        "broken arrays cost the numbers",
        "records/loading.py",
        "except _BROKEN_FILE as error:\n                    no",
        "except ZeroDivisionError as error:\n                    no",
        FAULTS,
    ),
    (
        "order by a clock set back",
        "records/loading.py",
        "zip(accumulate((r.time for r in readings), max)",
        "zip((r.time for r in readings)",
        FAULTS,
    ),
    ("told at every reading", "callbacks/complaints.py", "if kind not in self._told:", "if True:", FAULTS_LIVE),
    (
        "signals in the middle of a reading",
        "callbacks/interruptions.py",
        "if callable(signal.getsignal(n))",
        "if False",
        FAULTS_LIVE,
    ),
    (
        "a reading that goes on after SIGTERM",
        "callbacks/interruptions.py",
        "if self.waiting:",
        "if False:",
        FAULTS_LIVE,
    ),
    (
        "a reading begins after SIGTERM",
        "callbacks/live.py",
        'getattr(self.trainer, "received_sigterm", False)',
        "False",
        FAULTS_LIVE,
    ),
    (
        "a broken reading counts as made",
        "callbacks/agenda.py",
        "if not made:  # before",
        "if False:  # before",
        FAULTS_LIVE,
    ),
    (
        "settings of the other Trainer",
        "callbacks/monitor.py",
        "self._left.get(id(trainer), {})",
        "self._restored",
        FAULTS_LIVE,
    ),
    (
        "one monitor in two Trainers",
        "callbacks/checks.py",
        "at_work is not None and at_work is not trainer",
        "False",
        FAULTS_LIVE,
    ),
    ("a clock that goes back", "callbacks/budget.py", "self._lost += max(0.0, self._last - now)", "pass", FAULTS_LIVE),
    ("any class from a state", "callbacks/resume.py", 'if state["sampler"] not in kinds:', "if False:", UNTRUSTED),
    ("checkpoints that claim too much", "weights.py", "EOFError, MemoryError,", "EOFError,", UNTRUSTED),
    (
        "a look at every reading",
        "analysis/announcing.py",
        "(1 + len(self.rows) // MANY) == 0",
        "1 == 0",
        "test_stages.py",
    ),
    ("random numbers recorded", "tracing.py", "_draws(node) or ", "", "test_tracing.py"),
    ("writing to the weights recorded", "tracing.py", " or _writes_outside(node)", "", "test_tracing.py"),
    (
        "factors that move",
        "tracing.py",
        "any(_origin(factor) in inputs for factor in factors)",
        "False",
        "test_tracing.py",
    ),
    ("a recording never compared", "passes.py", "if recording.checks == self._checks:", "if True:", "test_tracing.py"),
    (
        "compared for the first chains alone",
        "passes.py",
        "checks=CHECKS * len(position)",
        "checks=CHECKS",
        "test_tracing.py",
    ),
    (
        "a recording that cannot run",
        "passes.py",
        "    try:\n        return replay(*tensors)\n    except REFUSALS:\n        return None",
        "    return replay(*tensors)",
        "test_tracing.py",
    ),
    (
        "chains one after another never recorded",
        "passes.py",
        "Recorder(checks=CHECKS * len(position)) if may",
        "Recorder(checks=CHECKS) if False",
        "test_tracing.py",
    ),
    (
        "whole leaves in the place of their moving part",
        "passes.py",
        "if leaf.moving is None or gradient is None else piece[leaf.moving]",
        "",
        "test_tracing.py",
    ),
    ("weights kept on the device", "callbacks/history.py", "Waiting(tensors) if waits else None", "None", OFFLOAD),
    ("gradients kept on the device", "offload.py", "*(p.grad for p in module.parameters()), ", "", OFFLOAD),
    ("storages kept", "offload.py", "        storage.resize_(0)", "        pass", OFFLOAD),
    ("what was written meanwhile is lost", "offload.py", "_bytes(storage).copy_(content)", "pass", OFFLOAD),
    ("minibatches of any length recorded", "passes.py", " or batch.ragged:", ":", "test_tracing.py"),
    (
        "backward passes in training's kernels",
        "passes.py",
        "with torch.enable_grad(), kernels(self.posterior.precision):",
        "with torch.enable_grad():",
        "test_precision.py",
    ),
    (
        "losses of bfloat16 under vmap",
        "precision.py",
        "return _AutocastRules(torch.get_autocast_dtype(device_type))",
        "return nullcontext()",
        "test_precision.py",
    ),
    (
        "kinds of kernels not put back",
        "precision.py",
        "        _set_each(each)\n",
        "        pass\n",
        "test_precision.py",
    ),
    ("values read past the dispatcher", "tracing.py", "if func in _READINGS:", "if False:", "test_tracing.py"),
    ("shapes that depend on values", "tracing.py", "if unknown:", "if False:", "test_tracing.py"),
    ("masks as if they were numbers", "tracing.py", "i.dtype in (torch.bool, torch.uint8)", "False", "test_tracing.py"),
    ("packed sequences", "tracing.py", " or func in _PACKINGS", "", "test_tracing.py"),
    ("operations of others", "tracing.py", ' or func.namespace != "aten"', "", "test_tracing.py"),
    ("attention never recorded", "tracing.py", 'bool(_argument(node, "dropout_p") != 0)', "True", "test_tracing.py"),
    (
        "attention with dropout recorded",
        "tracing.py",
        'bool(_argument(node, "dropout_p") != 0)',
        "False",
        "test_tracing.py",
    ),
    (
        "results that look at inputs",
        "tracing.py",
        'if any(_origin(output).op in ("placeholder", "get_attr") for output in _outputs(graph)):',
        "if False:",
        "test_tracing.py",
    ),
    ("statistics of batch norms", "tracing.py", "and bool(node.args[training])", "and False", "test_tracing.py"),
    ("views left out", "tracing.py", "before.shape != after.shape or ", "", "test_tracing.py"),
    (
        "what is written to simplified",
        "tracing.py",
        "if not any(_writes(node) for node in graph.nodes):",
        "if True:",
        "test_tracing.py",
    ),
    ("parts of split tensors are no views", "tracing.py", "node.target is operator.getitem or ", "", "test_tracing.py"),
    ("multiplied by anything", "tracing.py", "bool(node.args[1] == 1)", "True", "test_tracing.py"),
    (
        "dropped classes",
        "tracing.py",
        "_turned(output), grad.ndim - 2",
        "_turned(output), grad.ndim - 1",
        "test_tracing.py",
    ),
    (
        "weights and minibatches count as activations",
        "preflight.py",
        "besides=(position, *batch.leaves)",
        "besides=()",
        "test_tracing.py",
    ),
    ("any batch replayed alike", "batches.py", "if self is other:", "if True:", "test_tracing.py"),
    (
        "chains of one setting move another's",
        "chains.py",
        "self._here[i], self._noise[i]",
        "self._here[0], self._noise[i]",
        CHAINS,
    ),
    (
        "another gradient for each setting",
        "posterior.py",
        "own = slice(low - first, high - first)",
        "own = slice(0, high - low)",
        CHAINS,
    ),
    (
        "minibatches repeat chain by chain",
        "batches.py",
        "leaf.repeat(times, *([1] * (leaf.ndim - 1)))",
        "leaf.repeat_interleave(times, 0)",
        CHAINS,
    ),
    (
        "a sweep keeps its burn-in",
        "calibration/sweep.py",
        "    burnin = kept + max(",
        "    burnin = 0 * kept + max(",
        SWEEP,
    ),
    (
        "refused trials are candidates",
        "calibration/sweep.py",
        "candidates = [t for t in group if not t.refused]",
        "candidates = list(group)",
        SWEEP,
    ),
    (
        "the shortest step is chosen",
        "calibration/sweep.py",
        "        longest = trial",
        "        pass",
        SWEEP,
    ),
    (
        "the coarsest resolution is chosen",
        "calibration/sweep.py",
        "finest = max(t.condition for t in best)",
        "finest = min(t.condition for t in best)",
        SWEEP,
    ),
    ("no plateau of nβ", "calibration/sweep.py", "min(steady or finalists", "min(finalists", SWEEP),
    ("acceptance does not refuse", "calibration/sweep.py", "ACCEPTED = 0.8", "ACCEPTED = 0.0", SWEEP),
    (
        "minibatch noise without nβ",
        "calibration/walk.py",
        "scatter = self.posterior.nbeta * torch",
        "scatter = torch",
        ABSOLUTE,
    ),
    (
        "noise around no mean",
        "calibration/walk.py",
        "ensemble.gradient().rows - mean",
        "ensemble.gradient().rows",
        ABSOLUTE,
    ),
    ("minibatches stay small", "calibration/absolute.py", "if noise <= allowed:", "if True:", ABSOLUTE),
    ("friction without noise", "calibration/absolute.py", ", h * noise / (2 * HEAT))", ", 0.0)", ABSOLUTE),
    ("windows keep their burn-in", "calibration/absolute.py", "rises[..., window // 2 :]", "rises", ABSOLUTE),
    ("the doubled step is not looked at", "calibration/absolute.py", '"doubled": 0.1,', '"doubled": 1e9,', ABSOLUTE),
    (
        "a spike renews a run",
        "callbacks/live.py",
        "if outgrown and may_wait and self.history.held is None:",
        "if False:",
        RENEWAL,
    ),
    (
        "what is held back is lost",
        "callbacks/live.py",
        "        if held is not None:\n            self._read(held, on_credit=True)",
        "",
        RENEWAL,
    ),
    ("earlier readings stay", "callbacks/live.py", "for kept in readings:", "for kept in readings[:0]:", RENEWAL),
    (
        "replaced readings are loaded",
        "records/loading.py",
        "return readings if revised else",
        "return readings if True else",
        RENEWAL,
    ),
    (
        "anchors are kept for ever",
        "callbacks/history.py",
        "self.settled = len(self.readings) + self.lost >= MOST_KEPT",
        "self.settled = False",
        RENEWAL,
    ),
    (
        "a flat anchor runs away",
        "calibration/curvature.py",
        "width ** (2 / 3) * value ** (1 / 3)",
        "value",
        "test_calibration.py",
    ),
    (
        "a finder sets what was given",
        "callbacks/monitor.py",
        "and self.localization is None:\n            self._live.adopt",
        ":\n            self._live.adopt",
        FINDER,
    ),
    ("a finder looks again", "callbacks/finder.py", 'self._done = bool(state_dict["done"])', "pass", FINDER),
    (
        "probes in train mode order",
        "probing.py",
        ".sort().values",
        ".values if False else torch.randperm(len(dataset))[: probe.num_samples]",
        PROBES,
    ),
    (
        "probes drop their last batch",
        "sampling.py",
        "for batch in probe.batches])",
        "for batch in probe.batches[:1]])",
        PROBES,
    ),
    (
        "a copy of the weights for each token",
        "batching.py",
        "if func in _PRODUCTS and len(args) > 1:",
        "if False:",
        "test_batching.py",
    ),
    (
        "attention that is not looked into",
        "batching.py",
        "if func is F.multi_head_attention_forward:",
        "if False:",
        "test_batching.py",
    ),
]


def passes(tests: str, file: str = "", old: str = "", new: str = "") -> bool:
    """Whether tests pass on a copy of the package, with one change in one file."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("lightning_slt", "tests", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".envs"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if file:
            target = copy / "lightning_slt" / file
            text = target.read_text()
            assert old in text, f"{file} has no {old!r} any more"
            target.write_text(text.replace(old, new))
        options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, f"tests/{tests}"]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode == 0


def main(*files: str) -> int:
    """Try all, or those of some files, with tests that pass as long as nothing is broken."""
    wanted = [m for m in (*MUTANTS, *mutants_of_results.MUTANTS) if not files or m[1].startswith(files)]
    failing = {tests for tests in {m[4] for m in wanted} if not passes(tests)}
    for tests in sorted(failing):
        print(f"    FAILS  {tests} without any mutant, so that it says nothing", flush=True)
    alive = []
    for name, file, old, new, tests in wanted:
        if tests in failing:
            continue
        survived = passes(tests, file, old, new)
        print(f"{'SURVIVED' if survived else 'killed':>9}  {name}", flush=True)
        alive += [name] if survived else []
    return int(bool(alive or failing))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
