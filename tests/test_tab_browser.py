"""The tab in a headless Chromium, on a real run of the demo's network: what it draws, how it answers, what it says."""

from __future__ import annotations

import base64
import csv
import importlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import lightning_slt as slt
from lightning_slt.events import RunStage, write_stages
from lightning_slt.records import RecordWriter
from lightning_slt.tab.report import write_report

pytest.importorskip("selenium", reason="the browser is driven by selenium (pip install selenium)")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip(
        "there is no chromium with its driver: apt-get install chromium chromium-driver", allow_module_level=True
    )

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[1] / "examples"
HOSTILE = "<img src=x onerror=document.title=1>"
SVG = "{http://www.w3.org/2000/svg}"
WAIT = 30.0

SAVE = """
window.saved = [];
const make = URL.createObjectURL;
URL.createObjectURL = (blob) => { window.saved.push(blob.text()); return make.call(URL, blob); };
"""
ASK = "const told = arguments[arguments.length - 1]; "
PLUGIN = "plugin/slt/static"


@pytest.fixture(scope="module")
def tools() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("screenshots")


@pytest.fixture(scope="module")
def logs(tools: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that logged everything, and beside it one of hostile name that logged an LLC alone."""
    folder = tmp_path_factory.mktemp("logs")
    sampling = slt.SamplingConfig(num_chains=3, num_draws=30, num_burnin=5)
    with pytest.warns(UserWarning, match="cannot be relied on|needs"):  # so few draws fail their checks, as they should
        run = tools.train(folder, max_steps=60, readings=6, sampling=sampling, samples=60)
    whole = [reading for reading in slt.load_records(run, name="slt")]
    writer = RecordWriter(folder / "digits" / HOSTILE, HOSTILE)
    for reading in whole:
        writer.write(replace(reading, name=HOSTILE, estimates={"full": {HOSTILE: reading.estimates["full"]["llc"]}}))
    with writer.path.open("a") as file:
        file.write(f"{{broken {HOSTILE}\n")
    return folder


@pytest.fixture(scope="module")
def run(logs: Path) -> Path:
    return logs / "digits" / "version_0"


@pytest.fixture(scope="module")
def server(tools: ModuleType, logs: Path) -> Iterator[str]:
    with tools.tensorboard(logs, "--reload_interval", "1") as url:
        yield url


@pytest.fixture(scope="module")
def chromium(tools: ModuleType) -> Iterator[WebDriver]:
    with tools.chromium(width=1300, height=1100) as driver:
        yield driver


@pytest.fixture
def page(tools: ModuleType, chromium: WebDriver, server: str) -> Iterator[WebDriver]:
    """The tab inside TensorBoard with the full run alone; afterwards the console must be empty."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    tools.enter(chromium, server)
    choose(chromium, "version_0")
    yield chromium
    said = [entry for entry in chromium.get_log("browser") if not foreign(entry["message"])]
    assert not said


def foreign(message: str) -> bool:
    """What TensorBoard's own page says, and Chromium of its drawing without a graphics card."""
    return "/index.js" in message or "favicon.ico" in message or "WebGL" in message


def wait(driver: WebDriver, condition: Any, seconds: float = WAIT) -> Any:
    return WebDriverWait(driver, seconds, poll_frequency=0.1).until(lambda _: condition())


def view(page: WebDriver, name: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, f"[data-view={name}]")


def boxes(page: WebDriver, part: str) -> dict[str, Any]:
    labels = page.find_elements(By.CSS_SELECTOR, f"[data-part={part}] label.check")
    return {label.text: label.find_element(By.TAG_NAME, "input") for label in labels}


def choose(page: WebDriver, name: str) -> None:
    """Tick the run of this name and no other."""

    def ticked() -> bool:
        for label, box in boxes(page, "runs").items():
            if box.is_selected() != (name in label):
                box.click()
                return False
        return bool(boxes(page, "runs"))

    wait(page, ticked)
    wait(page, lambda: "step" in view(page, "scrubber").text)


def exported(page: WebDriver, name: str, button: str) -> str:
    """What a button of a view saves."""
    page.execute_script("if (!window.saved) {" + SAVE + "}")
    before = page.execute_script("return window.saved.length")
    target = view(page, name).find_element(By.XPATH, f".//button[text()='{button}']")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    target.click()
    wait(page, lambda: page.execute_script("return window.saved.length") > before)
    return str(page.execute_async_script(ASK + "window.saved.at(-1).then(told)"))


def table(page: WebDriver, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(exported(page, name, "CSV"))))


def short(value: float) -> float:
    return float(f"{value:.6g}")


def circles(svg: str, line: str) -> list[dict[str, str]]:
    return [c.attrib for c in ElementTree.fromstring(svg).iter(f"{SVG}circle") if c.get("data-line") == line]


def cursor(page: WebDriver) -> str:
    return str(view(page, "scrubber").find_element(By.TAG_NAME, "output").text)


def canvas(page: WebDriver, name: str) -> Any:
    return view(page, name).find_element(By.CSS_SELECTOR, "canvas.overlay")


def test_the_timeline_draws_what_was_logged(page: WebDriver, run: Path) -> None:
    readings = slt.load_records(run, name="slt")
    found = {reading.step: reading.estimates["full"]["llc"] for reading in readings}
    svg = exported(page, "timeline", "SVG")
    dots = circles(svg, "LLC")
    assert [int(dot["data-step"]) for dot in dots] == list(found)
    assert [float(dot["data-value"]) for dot in dots] == [short(e.mean) for e in found.values()]
    assert [dot["data-ok"] == "1" for dot in dots] == [e.health.ok for e in found.values()]
    assert {dot["data-ok"]: dot["fill"] for dot in dots if dot["data-ok"] == "0"} == {"0": "#ffffff"}  # hollow

    x, y = (np.array([float(dot[axis]) for dot in dots]) for axis in ("cx", "cy"))
    steps, values = np.log10(1 + np.array(list(found))), np.array([e.mean for e in found.values()])
    for place, number in ((x, steps), (y, values)):  # each axis is affine: two ends fix it, the others lie on it
        first, last = number.argmin(), number.argmax()
        share = (number - number[first]) / (number[last] - number[first])
        # Places are written with two digits, at both ends and between.
        assert np.abs(place - (place[first] + share * (place[last] - place[first]))).max() <= 0.011


def test_the_csv_holds_every_reading(page: WebDriver, run: Path) -> None:
    rows = table(page, "timeline")
    for monitor in ("slt", "layers"):
        for reading in slt.load_records(run, name=monitor):
            for component, estimates in reading.estimates.items():
                if "llc" not in estimates:
                    continue
                [row] = [
                    r
                    for r in rows
                    if (r["source"], r["component"], r["estimate"]) == (monitor, component, "llc")
                    and int(r["reading"]) == reading.index
                ]
                llc = estimates["llc"]
                assert (int(row["step"]), float(row["value"])) == (reading.step, short(llc.mean))
                assert float(row["stderr"]) == short(llc.stderr)
                assert bool(int(row["ok"])) == llc.health.ok
                low, high = llc.interval(0.9)
                assert (float(row["lower"]), float(row["upper"])) == (short(low), short(high))


def test_hover_names_the_reading_and_why_it_is_unreliable(page: WebDriver, run: Path) -> None:
    readings = slt.load_records(run, name="slt")
    bad = next(reading for reading in readings if not reading.estimates["full"]["llc"].health.ok)
    llc = bad.estimates["full"]["llc"]
    [dot] = [d for d in circles(exported(page, "timeline", "SVG"), "LLC") if int(d["data-step"]) == bad.step]
    target = canvas(page, "timeline")
    move = ActionChains(page)
    width, height = target.size["width"], target.size["height"]
    move.move_to_element_with_offset(target, round(float(dot["cx"]) - width / 2), round(float(dot["cy"]) - height / 2))
    move.perform()
    tip = wait(page, lambda: view(page, "timeline").find_element(By.CLASS_NAME, "tip").text)
    assert f"step {bad.step}: " in tip
    assert "unreliable: " in tip
    assert llc.health.failed[0] in tip


def test_controls(page: WebDriver) -> None:
    before = exported(page, "timeline", "SVG")
    assert "training step (logarithmic)" in before
    boxes(page, "options")["Steps on a logarithmic axis"].click()
    assert "training step (logarithmic)" not in exported(page, "timeline", "SVG")
    assert circles(before, "LLC of net.0")
    boxes(page, "components")["net.0"].click()
    after = exported(page, "timeline", "SVG")
    assert not circles(after, "LLC of net.0")
    assert circles(after, "LLC of net.2")
    boxes(page, "components")["net"].click()  # the whole group
    assert not circles(exported(page, "timeline", "SVG"), "LLC of net.2")
    boxes(page, "others")["full/loss_kernel/effective_rank"].click()
    assert circles(exported(page, "timeline", "SVG"), "full/loss_kernel/effective_rank")


def test_keys_move_the_cursor_and_zoom(page: WebDriver) -> None:
    target = canvas(page, "timeline")
    steps = view(page, "scrubber").find_element(By.TAG_NAME, "input")
    target.send_keys(Keys.HOME)
    wait(page, lambda: cursor(page).startswith("step 0 · reading 1 of"))
    target.send_keys(Keys.ARROW_RIGHT)
    wait(page, lambda: " reading 2 of" in cursor(page))
    target.send_keys(Keys.END)
    wait(page, lambda: steps.get_attribute("value") == steps.get_attribute("max"))
    whole = circles(exported(page, "timeline", "SVG"), "LLC")
    target.send_keys("+++")
    assert float(circles(exported(page, "timeline", "SVG"), "LLC")[-1]["cx"]) != float(whole[-1]["cx"])
    target.send_keys("0")
    assert circles(exported(page, "timeline", "SVG"), "LLC") == whole


def test_every_control_has_a_name_and_takes_the_focus(page: WebDriver) -> None:
    nameless = page.execute_script(
        "return [...document.querySelectorAll('button, input, select, canvas.overlay')].filter((e) => "
        "!(e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim()) || e.tabIndex < 0)"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []


def test_the_reading_at_the_cursor(page: WebDriver, run: Path) -> None:
    canvas(page, "timeline").send_keys(Keys.END)
    last = slt.load_records(run, name="slt")[-1]
    kernel, influence = (last.estimates["full"][key] for key in ("loss_kernel", "influence"))

    shown = seen(page, "kernel")
    assert f"at step {last.step}" in shown.text
    rows = {int(row["sample"]): row for row in table(page, "kernel")}
    indices = kernel.tensors["indices"].tolist()
    assert sorted(rows) == sorted(indices)
    factor = kernel.tensors["factor"].double().numpy()
    unit = factor / np.linalg.norm(factor, axis=0)
    matrix = np.array([[float(rows[a][f"R with {b}"]) for b in indices] for a in indices])
    # The browser has entries of size at most 1 in half precision: each is off by 2⁻¹² of itself at most, the sum over
    # a pair by 2⁻¹¹ of Σ|uᵢ||uⱼ| ≤ 1; four digits are written, and the norm was taken before rounding.
    assert np.abs(matrix - unit.T @ unit).max() <= 2**-11 + 5e-5 + 2**-20
    labels = kernel.tensors["labels"].tolist()
    assert [int(rows[index]["label"]) for index in indices] == labels

    seen(page, "influence")
    helpful = [row for row in table(page, "influence") if row["side"] == "helpful"]
    column = influence.tensors["influence"][:, 0].double().numpy()
    order = [int(at) for at in np.argsort(column) if column[at] < 0][: len(helpful)]
    assert [int(row["training sample"]) for row in helpful] == influence.tensors["train_indices"][order].tolist()
    assert [float(row["influence"]) for row in helpful] == [float(f"{column[at]:.4g}") for at in order]

    health = seen(page, "health")
    llc = last.estimates["full"]["llc"]
    [row] = [r for r in table(page, "health") if (r["monitor"], r["estimate"]) == ("slt", "llc")]
    assert float(row["value"]) == llc.mean  # every digit, beyond those of the timeline
    assert [float(v) for v in row["chains"].split()] == llc.per_chain.tolist()
    assert "chain 0" in health.text
    assert "Disagreement between chains" in health.text


def seen(page: WebDriver, name: str) -> Any:
    """A view, scrolled to, once it shows something."""
    shown = view(page, name)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", shown)
    wait(
        page,
        lambda: shown.find_elements(By.CSS_SELECTOR, ".content:not([hidden]) canvas, .content:not([hidden]) table"),
    )
    wait(page, lambda: name == "timeline" or shown.get_attribute("data-what"))
    return shown


def test_dragging_moves_what_is_in_view(page: WebDriver) -> None:
    target = canvas(page, "timeline")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    target.send_keys("+++")
    before = circles(exported(page, "timeline", "SVG"), "LLC")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    ActionChains(page).move_to_element(target).click_and_hold().move_by_offset(60, 0).move_by_offset(
        40, 0
    ).release().perform()
    after = {c["data-step"]: float(c["cx"]) for c in circles(exported(page, "timeline", "SVG"), "LLC")}
    moved = [after[c["data-step"]] - float(c["cx"]) for c in before if c["data-step"] in after]
    assert moved
    assert moved == pytest.approx([100.0] * len(moved), abs=1.0)


def test_large_arrays_are_fetched_when_they_are_shown(tools: ModuleType, page: WebDriver, server: str) -> None:
    loaded = "performance.getEntriesByType('resource').map(e => e.name)"
    asked = f"return {loaded}.filter(name => /data.(kernel|array)/.test(name)).length"
    size = page.get_window_size()
    page.set_window_size(1280, 700)  # in which the timeline alone has room
    try:
        page.get("about:blank")
        tools.enter(page, server)
        choose(page, "version_0")
        time.sleep(1.0)
        assert page.execute_script(asked) == 0
        seen(page, "kernel")
        wait(page, lambda: page.execute_script(asked) > 0)
    finally:
        page.switch_to.default_content()
        page.set_window_size(size["width"], size["height"])


@pytest.mark.parametrize("name", ["kernel", "trajectory", "responses"])
def test_views_follow_the_cursor(page: WebDriver, name: str) -> None:
    button = {"kernel": "SVG: embedding", "trajectory": "SVG", "responses": "SVG: matrix"}[name]
    canvas(page, "timeline").send_keys(Keys.END)
    seen(page, name)
    time.sleep(0.5)
    last = exported(page, name, button)
    canvas(page, "timeline").send_keys(Keys.HOME)
    wait(page, lambda: exported(page, name, button) != last)


def test_playing_goes_through_the_readings(page: WebDriver) -> None:
    canvas(page, "timeline").send_keys(Keys.HOME)
    wait(page, lambda: " reading 1 of" in cursor(page))
    bar = view(page, "scrubber")
    bar.find_element(By.XPATH, ".//option[text()='0.1 s']").click()
    bar.find_element(By.XPATH, ".//button[contains(., 'play')]").click()
    slider = bar.find_element(By.TAG_NAME, "input")
    wait(page, lambda: slider.get_attribute("value") == slider.get_attribute("max"))
    wait(page, lambda: "play" in bar.text)  # and it stops there


def test_what_a_run_lacks_is_said_with_what_to_write(page: WebDriver) -> None:
    choose(page, HOSTILE)
    shown = view(page, "kernel")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", shown)
    wait(page, lambda: "add LossKernel(probe)" in shown.text)
    trajectory = view(page, "trajectory")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", trajectory)
    wait(page, lambda: "TrajectoryMonitor(probe=" in trajectory.text)


def test_names_with_markup_are_text(page: WebDriver) -> None:
    choose(page, HOSTILE)
    body = page.find_element(By.TAG_NAME, "body")
    seen(page, "health")
    assert HOSTILE in body.text
    wait(page, lambda: "One record was left out" in body.text)
    assert "digits/" + HOSTILE in exported(page, "timeline", "CSV")
    assert HOSTILE in "".join(ElementTree.fromstring(exported(page, "timeline", "SVG")).itertext())
    assert not page.find_elements(By.CSS_SELECTOR, ".slt img, .slt script")
    assert page.title != "1"
    assert page.execute_script("return document.title") == "SLT"


def test_runs_lie_over_each_other(page: WebDriver) -> None:
    for label, box in boxes(page, "runs").items():
        if HOSTILE in label:
            box.click()
    names = ["digits/version_0: LLC", f"digits/{HOSTILE}: {HOSTILE}"]
    wait(page, lambda: all(circles(exported(page, "timeline", "SVG"), name) for name in names))
    svg = exported(page, "timeline", "SVG")
    first, second = ({c["stroke"] for c in circles(svg, name)} for name in names)
    assert len(first) == len(second) == 1
    assert first != second


def test_dark_pages_follow_tensorboard(tools: ModuleType, page: WebDriver) -> None:
    def ground() -> str:
        return str(page.execute_script("return getComputedStyle(document.querySelector('.card')).backgroundColor"))

    light = ground()
    page.switch_to.default_content()
    tools.toggle_dark(page)
    page.switch_to.frame(page.find_element(By.CSS_SELECTOR, "iframe[src*='name=slt']"))
    wait(page, lambda: ground() != light)
    assert "#1b1f24" in exported(page, "timeline", "SVG")


def append(run: Path) -> int:
    """Write one more reading; its step."""
    last = slt.load_records(run, name="slt")[-1]
    writer = RecordWriter(run, "slt", resume="slt.jsonl")
    step = last.step + 7
    writer.write(replace(last, index=last.index + 1, step=step, global_step=step))
    return step


def test_new_readings_appear(page: WebDriver, run: Path) -> None:
    before = len(circles(exported(page, "timeline", "SVG"), "LLC"))
    assert before == len(slt.load_records(run, name="slt"))
    step = append(run)
    wait(page, lambda: len(circles(exported(page, "timeline", "SVG"), "LLC")) == before + 1)
    wait(page, lambda: cursor(page).startswith(f"step {step} "))  # it stood on the newest, and goes on there


def test_a_press_of_tensorboards_reload_shows_new_readings(tools: ModuleType, page: WebDriver, run: Path) -> None:
    page.execute_script("for (let id = setInterval(() => {}, 1e9); id > 0; id--) clearInterval(id);")  # no more polling
    before = cursor(page)
    step = append(run)
    time.sleep(7.0)  # longer than a poll takes to come round
    assert cursor(page) == before
    page.switch_to.default_content()
    page.find_element(By.CSS_SELECTOR, "button.reload-button").click()
    tools.frame(page)
    wait(page, lambda: cursor(page).startswith(f"step {step} "))


def test_stages_that_monitors_found_are_drawn_of_the_chosen_number(page: WebDriver, run: Path) -> None:
    last = slt.load_records(run, name="slt")[-1].step
    for quantity, name in (("slt/full/loss_kernel/n_eff", "B7"), ("slt/full/llc", "A7")):
        found = RunStage(
            source="mine", quantity=quantity, known_at=last, name=name, kind="A", start=2.0, end=last, hidden=True
        )
        write_stages(run, [found])
    choice = page.find_element(By.CSS_SELECTOR, "[data-part=options] select")
    other = "slt/full/loss_kernel/n_eff, found by mine"
    wait(page, lambda: other in choice.text)

    def drawn() -> str:
        return " ".join(ElementTree.fromstring(exported(page, "timeline", "SVG")).itertext())

    assert "A7 · rising · hidden in the loss" in drawn()  # the LLC's before others
    Select(choice).select_by_visible_text(other)
    words = drawn()
    assert "B7" in words
    assert "A7" not in words


def test_the_page_reads_numbers_as_numpy_does(page: WebDriver) -> None:
    values = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float16)
    values[0, :4] = [0.0, 6e-8, -1.0, 65504.0]
    found = page.execute_async_script(
        ASK + "import(arguments[0]).then((m) => told([...m.halves(arguments[1])]))",
        f"/data/{PLUGIN}/source.js", base64.b64encode(values.tobytes()).decode(),
    )  # fmt: skip
    assert found == values.astype(float).ravel().tolist()


@pytest.mark.parametrize("mirrored", [False, True])
def test_embeddings_are_turned_to_the_one_before(page: WebDriver, mirrored: bool) -> None:
    random = np.random.default_rng(1)
    before = random.normal(size=(20, 2))
    turn = 2.1
    q = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ np.diag(
        [1, -1 if mirrored else 1]
    )
    now = before @ q + 0.1 * random.normal(size=(20, 2))
    found = page.execute_async_script(
        ASK + "import(arguments[0]).then((m) => told(m.matched(arguments[1], arguments[2])))",
        f"/data/{PLUGIN}/kernel.js", now.tolist(), before.tolist(),
    )  # fmt: skip
    left, _, right = np.linalg.svd(now.T @ before)  # orthogonal Procrustes
    assert np.abs(np.array(found) - now @ left @ right).max() < 1e-10


def test_the_report_shows_the_same_without_a_server(
    tools: ModuleType, page: WebDriver, run: Path, tmp_path: Path
) -> None:
    canvas(page, "timeline").send_keys(Keys.END)
    served = {name: table(page, name) for name in ("timeline", "kernel", "influence", "health") if seen(page, name)}
    write_report(run, tmp_path / "report.html")
    with tools.chromium(width=1300, height=1100) as driver:
        driver.get((tmp_path / "report.html").as_uri())
        wait(driver, lambda: "step" in view(driver, "scrubber").text)
        for name, rows in served.items():
            seen(driver, name)
            # The run's name is that of its folder there.
            alike = [{k: v for k, v in row.items() if k != "run"} for row in table(driver, name)]
            assert alike == [{k: v for k, v in row.items() if k != "run"} for row in rows]
        assert not driver.get_log("browser")


def opened(driver: WebDriver, url: str, sign: str) -> float:
    """Seconds until the tab shows something."""
    driver.get("about:blank")
    start = time.perf_counter()
    driver.get(f"{url}#slt")
    frame = wait(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "iframe[src*='name=slt']"))[0]
    driver.switch_to.frame(frame)
    wait(driver, lambda: driver.find_elements(By.CSS_SELECTOR, sign), 60.0)
    return time.perf_counter() - start


@pytest.mark.slow
def test_a_large_run(
    tools: ModuleType, chromium: WebDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2000 readings of 64 components and kernels of 1000 samples: times are told, not asserted.

    Beside them those of a run without readings: what the page and the imports of TensorBoard take by themselves.
    """
    benchmark = importlib.import_module("benchmarks.tab_size")
    benchmark.write_run(tmp_path / "large", readings=2000, components=64, samples=1000, kernel_every=50)
    RecordWriter(tmp_path / "empty", "slt")
    told: dict[str, float] = {}
    with tools.tensorboard(tmp_path / "empty") as url:
        for name in ("empty run", "empty run again"):
            told[name] = opened(chromium, url, ".slt .status")
    with tools.tensorboard(tmp_path / "large") as url:
        start = time.perf_counter()
        told["large run"] = opened(chromium, url, ".slt [data-view=timeline]:not([hidden])")
        wait(chromium, lambda: "reading 2000 of 2000" in cursor(chromium), 120.0)
        told["large run, all readings"] = time.perf_counter() - start
        start = time.perf_counter()
        seen(chromium, "kernel")
        told["kernel of 1000 samples"] = time.perf_counter() - start
        told["large run again"] = opened(chromium, url, ".slt [data-view=timeline]:not([hidden])")
        target = canvas(chromium, "timeline")
        chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
        frames = ASK + (
            "const start = performance.now(); let k = 0; const next = () => { "
            "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: k % 2 ? '-' : '+'})); "
            "if (++k < 20) requestAnimationFrame(next); else told((performance.now() - start) / 20); }; next();"
        )
        told["one frame while zooming (ms)"] = chromium.execute_async_script(frames, target)
        rows = table(chromium, "timeline")
    told["processors' load"] = os.getloadavg()[0]
    assert sum(r["component"] == "blocks.0.h0" for r in rows) == 2000
    with capsys.disabled():
        print("\n" + json.dumps({name: round(value, 2) for name, value in told.items()}))
