"""Pictures of the TensorBoard tab for README and docs: a run of the demo that logs everything, in a headless browser.

`python examples/screenshots.py` trains on scikit-learn's digits (some minutes), opens TensorBoard's tab "SLT" on the
run in Chromium, in light and dark, and writes each view to docs/images. It needs selenium, Chromium and its driver
(Debian: `apt-get install chromium chromium-driver`). The browser tests use the same functions.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import lightning as L
import torch
from digits import Digits, digits
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_slt as slt

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip

VIEWS = ("timeline", "kernel", "trajectory", "responses", "influence", "health")
"""Views of the tab, by the names that the page gives them."""


def logits(module: Digits, batch: tuple[Tensor, Tensor]) -> Tensor:
    """What the trajectory follows."""
    result: Tensor = module.net(batch[0])
    return result


def monitors(max_steps: int, readings: int, sampling: slt.SamplingConfig, samples: int) -> list[L.Callback]:
    """Monitors of all quantities that the tab shows."""
    data, held_out = digits()
    at = slt.LogSteps(2, max_steps, readings)
    probe = slt.Probe(held_out, name="held_out", num_samples=samples)
    train = slt.Probe(data, name="train", num_samples=samples)
    query = slt.Probe(held_out, name="query", num_samples=20)
    whole = [slt.LLC(traces=True), slt.LossKernel(probe), slt.BayesianInfluence(train=train, query=query)]
    layers = [slt.LLC(), slt.Susceptibility(slt.Probe(held_out, name="digit", num_samples=60), "layers")]
    return [
        slt.SLTMonitor(whole, sampling=sampling, at_steps=at),
        slt.SLTMonitor(layers, components="layers", name="layers", sampling=sampling, at_steps=at),
        slt.TrajectoryMonitor(probe=held_out, output_fn=logits, at_steps=slt.LogSteps(1, max_steps, 2 * readings)),
        slt.StageMonitor("slt/full/llc"),
    ]


def train(
    folder: Path, *, max_steps: int, readings: int, sampling: slt.SamplingConfig, samples: int = 300, seed: int = 0
) -> Path:
    """One training run of the demo's network that logs everything; returns the folder of its logs."""
    L.seed_everything(seed, verbose=False)
    data, held_out = digits()
    logger = TensorBoardLogger(folder, name="digits")
    trainer = L.Trainer(
        max_steps=max_steps,
        callbacks=monitors(max_steps, readings, sampling, samples),
        logger=logger,
        val_check_interval=5,
        log_every_n_steps=5,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Digits(), DataLoader(data, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=360))
    return Path(logger.log_dir)


@contextmanager
def tensorboard(logdir: Path, *options: str) -> Iterator[str]:
    """TensorBoard as a user starts it, on a free port; gives its address.

    Args:
        logdir: Its log folder.
        options: More of its command line.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield address(process, said)
        finally:
            process.terminate()
            process.wait()


def address(process: subprocess.Popen[bytes], said: IO[str], seconds: float = 120.0) -> str:
    """What TensorBoard says of where it is, once it is there.

    Raises:
        RuntimeError: If it ends, or says nothing for so long.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        said.seek(0)
        if found := re.search(r"at (http://\S+)", said.read()):
            return found[1]
        time.sleep(0.2)
    said.seek(0)
    raise RuntimeError(f"TensorBoard did not start: {said.read()}")


@contextmanager
def chromium(*, width: int = 1280, height: int = 1000, dark: bool = False) -> Iterator[WebDriver]:
    """A headless Chromium with a fresh profile.

    Args:
        width: Of the window, in pixels.
        height: Of it.
        dark: Whether the system prefers dark pages.

    Raises:
        FileNotFoundError: If there is none.
    """
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        raise FileNotFoundError(
            f"no {' and no '.join(missing)} on this machine; install Debian's chromium, chromium-driver"
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(programs["chromium"])
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
        try:
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield driver
        finally:
            driver.quit()


def enter(driver: WebDriver, url: str, *, seconds: float = 60.0) -> None:
    """Open TensorBoard's tab "SLT" and step into its frame, once something is drawn."""
    driver.get(f"{url}#slt")
    frame(driver, seconds=seconds)
    WebDriverWait(driver, seconds).until(
        lambda d: d.find_elements(By.CSS_SELECTOR, ".slt [data-view=timeline]:not([hidden])")
    )


def frame(driver: WebDriver, *, seconds: float = 60.0) -> None:
    """Step from TensorBoard's page into the tab's frame."""
    frames = WebDriverWait(driver, seconds).until(lambda d: d.find_elements(By.CSS_SELECTOR, "iframe[src*='name=slt']"))
    driver.switch_to.frame(frames[0])


def shoot(url: str, folder: Path, *, dark: bool) -> None:
    """One picture of the whole tab and one of each view."""
    ending = "dark" if dark else "light"
    with chromium(width=1280, height=900, dark=dark) as driver:
        enter(driver, url)
        time.sleep(3.0)
        driver.switch_to.default_content()  # TensorBoard is dark where the system is
        keep(driver.get_screenshot_as_png(), folder / f"tab_{ending}.png")
    with chromium(width=1280, height=5000, dark=dark) as driver:  # tall: views out of sight are not drawn
        driver.get(f"{url}data/plugin_entry.html?name=slt")
        wait = WebDriverWait(driver, 60.0)
        wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "[data-view=health] table"))
        time.sleep(3.0)
        for view in VIEWS:
            part = driver.find_element(By.CSS_SELECTOR, f"[data-view={view}]")
            keep(part.screenshot_as_png, folder / f"tab_{view}_{ending}.png")


def keep(picture: bytes, path: Path) -> None:
    """In 256 colours, which no eye tells from all of them, and a third of the size."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(path, optimize=True)


def toggle_dark(driver: WebDriver) -> None:
    """What TensorBoard's own switch for dark pages does to its page."""
    driver.execute_script("document.body.classList.toggle('dark-mode')")


def main() -> None:
    """Train, look, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=1500)
    parser.add_argument("--readings", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    parser.add_argument("--logdir", type=Path, help="take pictures of these logs in place of a new run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        logdir = options.logdir or Path(scratch)
        if options.logdir is None:
            sampling = slt.SamplingConfig(num_chains=4, num_draws=200)
            train(logdir, max_steps=options.max_steps, readings=options.readings, sampling=sampling)
        with tensorboard(logdir) as url:
            for dark in (False, True):
                shoot(url, options.folder, dark=dark)
    print("\n".join(str(path) for path in sorted(options.folder.glob("tab_*.png"))))


if __name__ == "__main__":
    main()
